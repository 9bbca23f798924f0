"""The kit's own wheel, and the choice of others."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from entrep import wheels
from entrep.artifacts import hash_folder, sha256_file
from entrep.registry import weights_folder

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_installs_and_has_code_weights_and_requirements(tmp_path):
    wheel = wheels.build_wheel(ROOT, tmp_path)
    assert sha256_file(wheel) == sha256_file(wheels.build_wheel(ROOT, tmp_path / "again"))
    place = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--quiet", "--target", place, wheel], check=True)  # checks RECORD too
    assert hash_folder(place / "entrep" / "weights") == hash_folder(weights_folder())
    (found,) = importlib.metadata.distributions(path=[str(place)])
    assert "timm>=1.0.20" in found.requires
    assert any(
        line.startswith("faiss-cpu") and "extra == 'faiss'" in line for line in found.requires
    )
    assert found.metadata["Requires-Python"] == ">=3.11,<3.14"
    assert {entry.value for entry in found.entry_points} == {"entrep.cli:main"}
    code = "import entrep; print(entrep.__file__)"
    told = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(place)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.startswith(str(place))


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (["a_b-1.0-py3-none-any.whl"], ""),
        (["a_b-1.0-py2.py3-none-any.whl"], ""),
        (["a_b-1.0-cp39-abi3-manylinux_2_17_x86_64.whl"], ""),
        (["a_b-1.0-cp312-abi3-manylinux_2_17_x86_64.whl"], "3.11"),
        ([f"a_b-1.0-cp3{n}-cp3{n}-manylinux_2_28_x86_64.whl" for n in (11, 12)], "3.13"),
        (["a_b-1.1-py3-none-any.whl"], "3.11, 3.12, 3.13"),
        (["rubbish.whl"], "3.11, 3.12, 3.13"),
    ],
)
def test_a_wheel_must_do_for_every_python_that_kaggle_runs(names, lacking, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    if not lacking:
        assert [path.name for path in wheels.gather_wheels(["A.b==1.0"], tmp_path)] == names
        return
    with pytest.raises(FileNotFoundError, match=f"no wheel of A.b==1.0 for Python {lacking}. Get"):
        wheels.gather_wheels(["A.b==1.0"], tmp_path)


@pytest.mark.parametrize("name", ["torch==2.9", "torchvision==0.2", "nvidia-cublas-cu12==1"])
def test_pytorch_is_never_shipped(name, tmp_path):
    with pytest.raises(ValueError, match="takes PyTorch from its image"):
        wheels.gather_wheels([name], tmp_path)


def test_pins_come_from_the_requirements_unless_written_out(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("timm==1.0.31\nopen_clip_torch==3.3.0  # why\nfaiss-cpu==1.15.1; x\n")
    names = ("open_clip_torch", "ftfy==6.3.1", "faiss-cpu")
    found = wheels.pin_requirements(names, path)
    assert found == ["open_clip_torch==3.3.0", "ftfy==6.3.1", "faiss-cpu==1.15.1"]
    with pytest.raises(ValueError, match="does not pin peft; write it as peft==VERSION"):
        wheels.pin_requirements(["peft"], path)


def test_without_an_index_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="--wheels DIR: ftfy==6.3.1"):
        wheels.download_wheels(["ftfy==6.3.1"], tmp_path)

"""The stand-in for Kaggle's image has the listed packages, their needs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from entrep.kaggle_build import load_table
from entrep.preinstalled import PREINSTALLED, find_distributions, make_interpreter

if sys.platform == "win32":
    pytest.skip("runs on Linux and macOS; links want rights on Windows", allow_module_level=True)


ROOT = Path(__file__).resolve().parents[1]


def install(folder: Path, name: str, file: str, *requirements: str) -> None:
    """A package of one file, as pip would leave it."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(f"NAME = {name!r}\n")
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    (about / "METADATA").write_text("\n".join(lines) + "\n")
    places = [file, f"{about.name}/METADATA", f"{about.name}/RECORD", "../../../bin/program"]
    (about / "RECORD").write_text("".join(f"{place},,\n" for place in places))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Installed: listed, what it needs through an extra, and others beside them."""
    folder = tmp_path / "installed"
    install(folder, "listed", "space/listed.py", "needed[more]", "absent; python_version < '3'")
    install(folder, "needed", "needed.py", "deep; extra == 'more'", "unasked; extra == 'less'")
    install(folder, "deep", "deep/__init__.py")
    install(folder, "unasked", "unasked.py")
    install(folder, "other", "space/other.py")  # in one folder with a listed one
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_needs_are_followed_through_extras_and_markers(packages):
    assert sorted(find_distributions(["Listed"])) == ["deep", "listed", "needed"]


def test_only_those_can_be_imported_even_from_a_shared_folder(packages, tmp_path):
    readable = make_interpreter(tmp_path / "made", ["listed"])
    assert readable == (packages,)
    code = "import space.listed, needed, deep, importlib.util as u; print(u.find_spec('unasked'), "
    code += "u.find_spec('space.other'), u.find_spec('numpy'))"
    python = tmp_path / "made" / "venv" / "bin" / "python"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["None"] * 3, done.stderr
    assert not (tmp_path / "bin").exists()


def test_what_the_kit_needs_is_preinstalled_or_brought_by_the_bundle():
    found = find_distributions(name for name in PREINSTALLED if name != "pip")  # uv has none
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needs = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    wheels = load_table(ROOT / "kaggle" / "kernels.py").WHEELS
    brought = {canonicalize_name(wheel.partition("==")[0]) for wheel in wheels}
    assert needs <= found.keys() | brought
    assert not {"entrep", "open-clip-torch", "accelerate", "peft"} & found.keys()


def test_a_package_that_is_not_installed_here_is_named():
    with pytest.raises(ValueError, match="no-such-package is on Kaggle, but not installed here"):
        find_distributions(["no_such_package"])

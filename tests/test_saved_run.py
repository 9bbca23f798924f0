"""A run's artefacts in one file: what is in it, and what is refused."""

from __future__ import annotations

import zipfile

import pytest
from small_run import write_small_run

from entrep import saved_run
from entrep.artifacts import hash_folder, read_json, sha256_file, write_json
from entrep.pipeline import NOTEBOOKS
from entrep.runner import ARTIFACTS


@pytest.fixture
def run_folder(tmp_path):
    return write_small_run(tmp_path / "run")


def test_artifacts_hold_what_06_reads_and_no_place(run_folder, tmp_path):
    saved_run.save_run(run_folder)
    path = run_folder / ARTIFACTS
    folder = saved_run.unpack_run(path, tmp_path / "unpacked")
    names = set(hash_folder(folder))
    assert names == {
        "config.json",
        "01_eda/challenge.json",
        *(f"{step.name}/numbers.safetensors" for step in NOTEBOOKS[:-1]),
        *(f"{step.name}/metrics.json" for step in NOTEBOOKS[:-1]),
    }
    assert not any(b"/home/me" in (folder / name).read_bytes() for name in names)
    assert read_json(folder / "config.json")["seed"] == 3
    assert saved_run.pack_run(run_folder, tmp_path / "again.bin") == sha256_file(path)
    with pytest.raises(ValueError, match="is not empty; unpack artefacts into a new folder"):
        saved_run.unpack_run(path, folder)


def test_a_run_that_was_changed_or_did_not_end_is_not_packed(run_folder, tmp_path):
    target = tmp_path / "a.bin"
    write_json(run_folder / "04_hybrid" / "metrics.json", {"accuracy": 1.0})
    with pytest.raises(ValueError, match="metrics.json is not as the run left it"):
        saved_run.pack_run(run_folder, target)
    (run_folder / "04_hybrid" / "metrics.json").unlink()
    with pytest.raises(ValueError, match="metrics.json is not as the run left it"):
        saved_run.pack_run(run_folder, target)
    (run_folder / "SHA256SUMS").unlink()
    with pytest.raises(FileNotFoundError, match="give the folder of a run that ended well"):
        saved_run.pack_run(run_folder, target)
    saved_run.save_run(run_folder)
    assert not target.exists() and not (run_folder / ARTIFACTS).exists()


@pytest.mark.parametrize("which", ["gone", "older than what it reads"])
def test_a_run_whose_notebooks_do_not_belong_together_is_not_packed(which, run_folder, tmp_path):
    manifest = read_json(run_folder / "manifest.json")
    if which == "gone":
        del manifest["notebooks"]["05_retrieval"]
    else:
        manifest["notebooks"]["05_retrieval"]["inputs"]["upstream"] = "another"
    write_json(run_folder / "manifest.json", manifest)
    with pytest.raises(ValueError, match="run: 05_retrieval did not run, or ran before"):
        saved_run.pack_run(run_folder, tmp_path / "a.bin")
    saved_run.save_run(run_folder)
    assert not (run_folder / ARTIFACTS).exists()


def test_a_file_that_holds_no_run_is_refused(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="is not a whole artifacts.bin"):
        saved_run.unpack_run(path, tmp_path / "to")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(ValueError, match="holds no run; 'entrep run' writes artifacts.bin"):
        saved_run.unpack_run(path, tmp_path / "to")

"""Each source of a kernel lies where Kaggle mounts it, in both layouts."""

from __future__ import annotations

import json

import pytest

from entrep.mounts import find_inputs, place_of, stage_inputs

KINDS = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources")


@pytest.mark.parametrize(
    ("kind", "source", "new", "old"),
    [
        ("dataset_sources", "me/bundle", "datasets/me/bundle", "bundle"),
        ("competition_sources", "contest", "competitions/contest", "contest"),
        ("kernel_sources", "me/train", "notebooks/me/train", "train"),
        ("model_sources", "me/m/PyTorch/base/2", "models/me/m/pytorch/base/2", "models/…"),
    ],
)
def test_sources_are_mounted_as_on_kaggle(kind, source, new, old):
    assert place_of(kind, source, "new") == new
    assert place_of(kind, source, "old") == (new if old == "models/…" else old)


def reads(**sources) -> dict:
    return {"id": "me/kernel", **dict.fromkeys(KINDS, []), **sources}


@pytest.fixture
def build(tmp_path):
    """A build with the data set `bundle`."""
    folder = tmp_path / "build" / "datasets" / "bundle"
    folder.mkdir(parents=True)
    about = {"id": "me/bundle", "title": "Bundle", "licenses": [{"name": "other"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(about))
    (folder / "table.csv").write_text("a\n")
    return tmp_path / "build"


def test_a_built_data_set_and_the_given_pictures_are_laid_out(build, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "train").mkdir(parents=True)
    (pictures / "train" / "a.png").write_bytes(b"a")
    (pictures / "link.png").symlink_to(pictures / "train" / "a.png")
    metadata = reads(dataset_sources=["me/bundle"], competition_sources=["contest"])
    for copy in (True, False):
        root = tmp_path / f"input-{copy}"
        stage_inputs(find_inputs(metadata, build, tmp_path, "new", pictures), root, copy=copy)
        files = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
        contest = "competitions/contest"
        assert sorted(files) == [
            f"{contest}/link.png",
            f"{contest}/train/a.png",
            "datasets/me/bundle/table.csv",  # its metadata is for the server
        ]
        assert not any(path.is_symlink() for path in files.values())
        assert (files[f"{contest}/train/a.png"].stat().st_nlink == 1) == copy


@pytest.mark.parametrize(
    ("sources", "data", "error", "words"),
    [
        ({"competition_sources": ["contest"]}, "", FileNotFoundError, "contest.*--data DIR"),
        ({"dataset_sources": ["me/x"], "competition_sources": ["y"]}, ".", ValueError, "me/x, y"),
        ({"dataset_sources": ["me/bundle"]}, ".", ValueError, "leave it out"),
        ({"dataset_sources": ["me/x"]}, "nowhere", FileNotFoundError, "no folder nowhere"),
        ({"kernel_sources": ["me/train"]}, "", FileNotFoundError, "simulate that kernel first"),
    ],
)
def test_a_source_without_a_folder_is_one_clear_error(build, tmp_path, sources, data, error, words):
    with pytest.raises(error, match=words):
        find_inputs(reads(**sources), build, tmp_path, "new", data)


def test_an_unknown_layout_is_refused(build, tmp_path):
    with pytest.raises(ValueError, match="expected new or old, got 'newer'"):
        find_inputs(reads(), build, tmp_path, "newer")


def test_a_data_set_that_the_server_would_unpack_is_refused(build, tmp_path):
    (build / "datasets" / "bundle" / "wheels.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="Kaggle unpacks such files"):
        find_inputs(reads(dataset_sources=["me/bundle"]), build, tmp_path, "new")


@pytest.mark.parametrize("status", ["COMPLETE", "ERROR"])
def test_another_kernels_output_is_read_once_it_is_complete(build, tmp_path, status):
    trained = tmp_path / "train"
    (trained / "working").mkdir(parents=True)
    (trained / "simulation.json").write_text(json.dumps({"status": status}))
    metadata = reads(kernel_sources=["me/train"])
    if status == "COMPLETE":
        found = find_inputs(metadata, build, tmp_path, "old")
        assert found == {"train": trained / "working"}
    else:
        with pytest.raises(FileNotFoundError, match="is ERROR"):
            find_inputs(metadata, build, tmp_path, "old")

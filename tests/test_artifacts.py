"""Files are whole or not there, and say the same everywhere."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pandas as pd
import pytest

from entrep import artifacts


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), artifacts.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "old"


def test_a_value_that_is_no_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        artifacts.write_json(tmp_path / "a.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made_and_the_old_file_is_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    artifacts.write_text(path, "one\n")
    artifacts.write_text(path, "two\n")
    assert path.read_bytes() == b"two\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions; runs on Linux and macOS")
def test_files_get_the_permissions_of_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        artifacts.write_text(tmp_path / "x.txt", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o640


def test_json_keeps_order_and_letters(tmp_path):
    value = {"z": "mũi", "a": [1, 2.5]}
    artifacts.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_bytes()
    assert b"\r" not in text and "mũi".encode() in text
    assert list(artifacts.read_json(tmp_path / "a.json").items()) == list(value.items())


def test_tables_have_six_decimals_and_keep_empty_text(tmp_path):
    table = pd.DataFrame({"image_id": ["001", "NA"], "note": ["", "a,b"], "p": [1 / 3, 1.0]})
    artifacts.write_table(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_bytes() == (
        b'image_id,note,p\n001,,0.333333\nNA,"a,b",1.000000\n'
    )
    back = artifacts.read_table(tmp_path / "t.csv")
    assert back["image_id"].tolist() == ["001", "NA"]
    assert back["note"].tolist() == ["", "a,b"]


@pytest.mark.parametrize("read", [artifacts.read_table, artifacts.load_arrays])
def test_a_missing_artefact_names_the_notebook_that_makes_it(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="written by notebook 02_prototypes; run that"):
        read(tmp_path / "02_prototypes" / "x")


def test_arrays_come_back_with_their_metadata(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.array([1], np.int64)}
    artifacts.save_arrays(tmp_path / "x.safetensors", arrays, {"encoder": "demo"})
    back, metadata = artifacts.load_arrays(tmp_path / "x.safetensors")
    assert metadata == {"encoder": "demo"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def test_a_cut_off_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    artifacts.save_arrays(path, {"a": np.zeros(100)})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole safetensors file .* delete it and run again"):
        artifacts.load_arrays(path)


def test_hashes_are_of_the_bytes_and_json_hashes_of_the_value(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert artifacts.sha256_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
    assert artifacts.sha256_json({"a": 1, "b": 2}) == artifacts.sha256_json({"b": 2, "a": 1})
    assert artifacts.sha256_json({"a": 1}) != artifacts.sha256_json({"a": 2})


def test_listing_sorts_and_leaves_hidden_files_out(tmp_path):
    for name in ("b/y.txt", "a.txt", "b/x.txt", ".half-done.csv", ".ipynb_checkpoints/z.txt"):
        artifacts.write_text(tmp_path / name, name)
    assert list(artifacts.hash_folder(tmp_path)) == ["a.txt", "b/x.txt", "b/y.txt"]


def test_the_table_of_artefacts_says_what_is_in_a_file(tmp_path):
    artifacts.save_arrays(tmp_path / "e.safetensors", {"image": np.zeros((4, 2), np.float32)})
    artifacts.write_table(tmp_path / "t.csv", pd.DataFrame({"a": [1, 2], "b": [3, 4]}))
    table = artifacts.describe_artifacts(tmp_path).set_index("file")
    assert table.loc["e.safetensors", "content"] == "image (4, 2) F32"
    assert table.loc["t.csv", "content"] == "2 rows: a, b"


def test_what_was_learned_from_the_same_things_is_taken_as_it_was_saved(tmp_path):
    path = tmp_path / "learned.safetensors"

    def keep(key, value, path=path):
        return artifacts.keep_arrays(path, key, lambda: {"x": np.array([value])})["x"].tolist()

    assert keep("a", 1.0) == [1.0]
    assert keep("a", 2.0) == [1.0]
    assert keep("b", 3.0) == [3.0], "learned from something else"
    assert keep("b", 4.0) == [3.0]
    assert keep("b", 5.0, path=None) == [5.0]


@pytest.mark.parametrize("links", [True, False])
def test_a_linked_folder_holds_the_same_files_and_nothing_else(tmp_path, monkeypatch, links):
    if not links:  # as on another disk

        def refuse(*_):
            raise OSError("no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    source, target = tmp_path / "source", tmp_path / "target"
    artifacts.write_text(source / "deep" / "a.txt", "a")
    artifacts.write_text(source / ".hidden", "left out")
    artifacts.write_text(target / "old.txt", "of another run")
    artifacts.link_folder(source, target)
    assert artifacts.hash_folder(target) == artifacts.hash_folder(source)
    assert [path.name for path in target.iterdir()] == ["deep"]
    assert (target / "deep" / "a.txt").samefile(source / "deep" / "a.txt") == links
    artifacts.write_text(source / "deep" / "a.txt", "new")  # replaced, not written into
    assert (target / "deep" / "a.txt").read_text() == "a"
    artifacts.link_folder(tmp_path / "not there", target)
    assert not target.exists()

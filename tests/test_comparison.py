"""Submissions of two runs are told apart by their bytes."""

from __future__ import annotations

from hashlib import sha256

import pytest

from entrep.comparison import (
    compare_submissions,
    expected_submissions,
    find_differences,
    find_submissions,
)


def test_submissions_are_found_below_a_runs_folder(tmp_path):
    (tmp_path / "run" / "submissions").mkdir(parents=True)
    (tmp_path / "run" / "submissions" / "track1.json").write_bytes(b"{}")
    assert find_submissions(tmp_path) == {"track1.json": sha256(b"{}").hexdigest()}
    (tmp_path / "old" / "submissions").mkdir(parents=True)
    (tmp_path / "old" / "submissions" / "track1.json").write_bytes(b"[]")
    with pytest.raises(ValueError, match="different files track1.json"):
        find_submissions(tmp_path)


def test_a_run_without_submissions_is_nothing_to_agree_with(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no submissions"):
        expected_submissions(tmp_path)


def test_each_file_is_said_to_be_the_same_or_not():
    kernel, local = {"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}
    assert find_differences(kernel, local) == ["b", "c"]
    lines = compare_submissions(kernel, local).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["a", "1", "1", "same"],
        ["b", "2", "3", "DIFFERENT"],
        ["c", "missing", "4", "DIFFERENT"],
    ]

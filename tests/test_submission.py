import hashlib
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrep import submission
from entrep.data import Challenge, TestSplit
from entrep.submission import (
    check_submission,
    choose_split,
    queries_of,
    splits_to_answer,
    write_submission,
)

GALLERY = ("a.png", "b.png", "c.png", "d.png")
PHRASES = ("polyp (left), Bleeding", 'a "quoted" phrase', "ứ dịch tai giữa")
SPLIT = TestSplit(GALLERY, GALLERY[:2], PHRASES, GALLERY)
CLASSES = {"a.png": 0, "b.png": 3, "c.png": 6, "d.png": 4}
PICTURES = {"a.png": "b.png", "b.png": "d.png"}
ANSWERS = {1: CLASSES, 2: PICTURES, 3: dict(zip(PHRASES, GALLERY, strict=False))}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
in_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def challenge_of(**tests: TestSplit) -> Challenge:
    return Challenge(Path("data"), pd.DataFrame(), (), (), tests, pd.DataFrame())


CHALLENGE = challenge_of(private=SPLIT)


def save(path: Path, content: object) -> Path:
    """Write a JSON file: bytes and text as they are, other values as JSON."""
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def pack(path: Path, **contents: object) -> Path:
    """Write a zip; `__` in a name stands for a slash, `_json` at its end for `.json`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            name = name.replace("__", "/").replace("_json", ".json")
            archive.writestr(name, content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("track", [1, 2, 3])
def test_a_written_submission_passes_the_check(tmp_path, track):
    json_path, zip_path = write_submission(track, ANSWERS[track], tmp_path / "new" / "folder")
    assert (json_path.name, zip_path.name) == (f"track{track}.json", f"track{track}.zip")
    assert check_submission(json_path, track, CHALLENGE) == []
    assert check_submission(zip_path, track, CHALLENGE) == []
    assert sorted(path.name for path in json_path.parent.iterdir()) == [
        json_path.name,
        zip_path.name,
    ]


@in_folder
@given(st.dictionaries(texts, st.sampled_from(GALLERY), min_size=1, max_size=6))
def test_any_phrase_survives_writing_to_the_letter(tmp_path, answers):
    json_path, zip_path = write_submission(3, answers, tmp_path)
    with zipfile.ZipFile(zip_path) as archive:
        assert archive.namelist() == ["track3.json"]
        packed = archive.read("track3.json")
    assert packed == json_path.read_bytes()
    assert list(json.loads(packed.decode("utf-8")).items()) == list(answers.items())
    challenge = challenge_of(public=TestSplit((), (), tuple(answers), GALLERY))
    assert check_submission(zip_path, 3, challenge) == []


def test_the_bytes_of_a_submission_are_pinned(tmp_path):
    json_path, zip_path = write_submission(3, ANSWERS[3], tmp_path)
    assert json_path.read_bytes().decode("utf-8") == (
        "{\n"
        '  "polyp (left), Bleeding": "a.png",\n'
        '  "a \\"quoted\\" phrase": "b.png",\n'
        '  "ứ dịch tai giữa": "c.png"\n'
        "}\n"
    )
    digest = hashlib.sha256(zip_path.read_bytes()).hexdigest()
    assert digest == "9d940033c2e4df77769a429818a4157d3bd6d9e5b0597215e94a42cabad6526c"


def test_the_zip_holds_one_stored_entry_with_fixed_time_and_permissions(tmp_path):
    _, zip_path = write_submission(1, CLASSES, tmp_path)
    with zipfile.ZipFile(zip_path) as archive:
        (entry,) = archive.infolist()
    assert entry.date_time == (1980, 1, 1, 0, 0, 0)
    assert (entry.compress_type, entry.create_system) == (zipfile.ZIP_STORED, 3)
    assert entry.external_attr >> 16 == 0o100644


def test_answers_keep_their_order_and_may_come_from_numpy(tmp_path):
    answers = {"b.png": np.int64(3), "a.png": np.uint8(0)}
    json_path, _ = write_submission(1, answers, tmp_path)
    assert list(json.loads(json_path.read_text("utf-8")).items()) == [("b.png", 3), ("a.png", 0)]


@pytest.mark.parametrize(
    ("track", "answers", "words"),
    [
        (4, CLASSES, "track: expected 1, 2 or 3"),
        (1, {}, "no answer to write"),
        (1, {"a.png": 3.0}, "'a.png': expected a class index"),
        (1, {"a.png": True}, "expected a class index"),
        (1, {"a.png": "ear-left"}, "expected a class index"),
        (2, {"a.png": 3}, "expected a file name"),
        (3, {"x": None}, "expected a file name"),
    ],
)
def test_the_writer_refuses_what_no_server_takes(tmp_path, track, answers, words):
    with pytest.raises(ValueError, match=words):
        write_submission(track, answers, tmp_path / "out")
    assert not (tmp_path / "out").exists()


BAD_CLASSES = {
    "missing": ({"a.png": 0}, "Listed queries without an answer (3): 'b.png', 'c.png', 'd.png'."),
    "extra": (CLASSES | {"z.png": 1}, "Keys that are not on the list (1): 'z.png'."),
    "many": (
        CLASSES | {f"{i}.png": 0 for i in range(9)},
        "(9): '0.png', '1.png', '2.png' and 6 more.",
    ),
    "letter case": (
        {"A.png" if key == "a.png" else key: value for key, value in CLASSES.items()},
        "Keys are matched to the letter: 'A.png' is not 'a.png'",
    ),
    "class name": (CLASSES | {"a.png": "ear-left"}, "its official index, for 'ear-left' 3"),
    "text": (CLASSES | {"a.png": "3"}, "Answers that are no whole number (1): 'a.png': '3';"),
    "bool": (CLASSES | {"a.png": True}, "no whole number (1): 'a.png': True;"),
    "float": (CLASSES | {"a.png": 3.0}, "no whole number (1): 'a.png': 3.0;"),
    "null": (CLASSES | {"a.png": None}, "no whole number (1): 'a.png': None;"),
    "list": (CLASSES | {"a.png": [3]}, "no whole number (1): 'a.png': [3];"),
    "nan": ('{"a.png": NaN, "b.png": 3, "c.png": 6, "d.png": 4}', "'a.png': nan;"),
    "high": (CLASSES | {"a.png": 7}, "no class index (1): 'a.png': 7; the classes are 0..6."),
    "negative": (CLASSES | {"a.png": -1}, "no class index (1): 'a.png': -1;"),
    "array": ([0, 3, 6, 4], "The JSON is a list; expected one object"),
    "number": ("3", "The JSON is a int"),
    "duplicate key": (
        '{"a.png": 0, "b.png": 3, "a.png": 1, "c.png": 6, "d.png": 4}',
        "Keys that stand there more than once (1): 'a.png'.",
    ),
    "cut off": (json.dumps(CLASSES)[:-4], "The file is no valid JSON: "),
    "two objects": (json.dumps(CLASSES) * 2, "no valid JSON: Extra data"),
    "single quotes": (str(CLASSES), "no valid JSON: Expecting property name"),
    "empty": ("", "no valid JSON"),
    "deep": ("[" * 100_000, "no valid JSON"),
    "byte-order mark": ("\ufeff" + json.dumps(CLASSES), "byte-order mark"),
    "latin-1": ('{"\u00e9.png": 1}'.encode("latin-1"), "not UTF-8, first in line 1"),
    "utf-16": (json.dumps(CLASSES).encode("utf-16"), "not UTF-8"),
    "zip in disguise": (b"PK\x03\x04 and so on", "is a zip archive; call it .zip"),
}


@pytest.mark.parametrize(("content", "words"), BAD_CLASSES.values(), ids=BAD_CLASSES)
def test_a_bad_json_is_named(tmp_path, content, words):
    problems = check_submission(save(tmp_path / "x.json", content), 1, CHALLENGE)
    assert any(words in problem for problem in problems), problems


BAD_PICTURES = {
    "not in the gallery": ("z.png", "not in the gallery (1): 'a.png': 'z.png'; write the name of"),
    "folder": ("imgs/b.png", "of its 4 files, without folder, with ending"),
    "no ending": ("b", "not in the gallery"),
    "number": (1, "Answers that are no file name (1): 'a.png': 1;"),
    "several": (["b.png", "c.png"], "no file name (1): 'a.png': ['b.png', 'c.png'];"),
}


@pytest.mark.parametrize(("answer", "words"), BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_a_bad_picture_answer_is_named(tmp_path, answer, words):
    path = save(tmp_path / "x.json", PICTURES | {"a.png": answer})
    (problem,) = check_submission(path, 2, CHALLENGE)
    assert words in problem


def test_phrases_are_matched_to_the_letter_and_the_difference_is_shown(tmp_path):
    decomposed = dict(
        zip((*PHRASES[:2], "u\u031b\u0301 di\u0323ch tai giu\u031b\u0303a"), GALLERY, strict=False)
    )
    problems = check_submission(save(tmp_path / "x.json", decomposed), 3, CHALLENGE)
    assert len(problems) == 3
    assert "'\\u1ee9 d\\u1ecbch tai gi\\u1eefa'" in problems[2]


BAD_ZIPS = {
    "folder": ({"submission__x_json": CLASSES}, "The zip holds folders ('submission/x.json')"),
    "rubbish folder": ({"x_json": CLASSES, "__MACOSX__.x_json": ""}, "The zip holds folders"),
    "climbing path": ({"..__x_json": CLASSES}, "The zip holds folders ('../x.json')"),
    "two": (
        {"x_json": CLASSES, "y_json": CLASSES},
        "2 JSON files at its root ('x.json', 'y.json')",
    ),
    "none": ({"x.txt": CLASSES}, "The zip holds 0 JSON files at its root; expected 1."),
    "nothing": ({}, "The zip holds 0 JSON files"),
    "more": ({"x_json": CLASSES, "readme.md": "hi"}, "other files than the JSON ('readme.md')"),
    "hidden": ({"._x_json": CLASSES}, "other files than the JSON ('._x.json')"),
}


@pytest.mark.parametrize(("contents", "words"), BAD_ZIPS.values(), ids=BAD_ZIPS)
def test_a_bad_zip_is_named(tmp_path, contents, words):
    problems = check_submission(pack(tmp_path / "x.zip", **contents), 1, CHALLENGE)
    assert any(words in problem for problem in problems), problems


def test_all_problems_are_reported_at_once(tmp_path):
    content = '\ufeff{"a.png": "throat", "b.png": 9, "c.png": 1.5, "c.png": 1.5, "z.png": 0}'
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("x.json", content)
        archive.writestr("notes.txt", "")
    problems = check_submission(tmp_path / "x.zip", 1, CHALLENGE)
    gist = ["other files", "byte-order", "more than once", "without an answer", "not on the list"]
    gist += ["class name", "whole number", "no class index"]
    assert len(problems) == len(gist)
    assert all(words in problem for words, problem in zip(gist, problems, strict=True))


def test_a_long_or_odd_key_stays_on_one_short_line(tmp_path):
    content = CLASSES | {"x" * 5000: 1, "a\nb": [[[[[[[[1]]]]]]]], "\ud800": 1}
    for problem in check_submission(save(tmp_path / "x.json", content), 1, CHALLENGE):
        assert "\n" not in problem
        assert len(problem) < 400
        problem.encode("utf-8")


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "MAX_BYTES", 1000)
    path = save(tmp_path / "x.json", " " * 1001)
    assert check_submission(path, 1, CHALLENGE) == [
        "The file has 1,001 bytes; expected at most 1,000."
    ]


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.json", b" " * (submission.MAX_BYTES + 1))
    (problem,) = check_submission(path, 1, CHALLENGE)
    assert "unpacks to 16,000,001 bytes" in problem

    # The same with a size that lies, in the entry's own header and in the directory.
    true, lie = struct.pack("<L", submission.MAX_BYTES + 1), struct.pack("<L", 100)
    path.write_bytes(path.read_bytes().replace(true, lie))
    (problem,) = check_submission(path, 1, CHALLENGE)
    assert "not a whole zip archive" in problem


def test_an_encrypted_or_oddly_compressed_entry_is_refused(tmp_path):
    path = pack(tmp_path / "x.zip", x_json=CLASSES)
    whole = bytearray(path.read_bytes())
    directory = whole.index(b"PK\x01\x02")
    whole[6] |= 1
    whole[directory + 8] |= 1
    path.write_bytes(whole)
    assert "encrypted" in check_submission(path, 1, CHALLENGE)[0]

    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.json", json.dumps(CLASSES))
    assert "compressed by method 12" in check_submission(path, 1, CHALLENGE)[0]


@in_folder
@given(st.data())
def test_a_damaged_zip_never_breaks_the_checker(tmp_path, data):
    path = pack(tmp_path / "x.zip", x_json=CLASSES)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    assert isinstance(check_submission(path, 1, CHALLENGE), list)


@in_folder
@given(st.binary(max_size=60) | texts.map(json.dumps) | texts.map(str.encode))
def test_no_content_breaks_the_checker(tmp_path, content):
    assert check_submission(save(tmp_path / "x.json", content), 1, CHALLENGE)


def test_other_file_names_and_missing_files(tmp_path):
    path = save(tmp_path / "x.txt", CLASSES)
    assert "expected a name in .json or .zip" in check_submission(path, 1, CHALLENGE)[0]
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        check_submission(tmp_path / "nothing.json", 1, CHALLENGE)
    with pytest.raises(FileNotFoundError):
        check_submission(tmp_path, 1, CHALLENGE)


def test_the_private_set_is_answered_if_it_lists_queries_for_the_track():
    public = TestSplit(("p.png",), ("p.png",), (), ("p.png",))
    private = TestSplit(("q.png",), (), (), ("q.png",))
    both = challenge_of(public=public, private=private)
    assert choose_split(both, 1) == "private"
    assert choose_split(both, 2) == "public"
    assert choose_split(both, 1, "public") == "public"
    assert choose_split(challenge_of(test=public), 1) == "test"
    assert queries_of(private, 1) == ("q.png",)


def test_every_track_that_has_a_list_is_answered():
    public = TestSplit(("p.png",), ("p.png",), (), ("p.png",))
    private = TestSplit(("q.png",), (), (), ("q.png",))
    both = challenge_of(public=public, private=private)
    assert splits_to_answer(both) == {1: "private", 2: "public"}
    assert splits_to_answer(both, "private") == {1: "private"}
    assert splits_to_answer(challenge_of()) == {}
    with pytest.raises(ValueError, match="no private test lists"):
        splits_to_answer(challenge_of(public=public), "private")


@pytest.mark.parametrize(
    ("track", "split", "words"),
    [
        (0, "auto", "track: expected 1, 2 or 3"),
        (1, "hidden", "split: expected auto"),
        (1, "public", r"no public list of queries for track 1 \(lists found: private\)"),
    ],
)
def test_a_split_that_is_not_there_is_refused(track, split, words):
    with pytest.raises(ValueError, match=words):
        choose_split(CHALLENGE, track, split)


def test_without_test_lists_there_is_nothing_to_check():
    with pytest.raises(ValueError, match="lists found: none"):
        choose_split(challenge_of(), 3)

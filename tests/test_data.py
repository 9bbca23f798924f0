"""One loader for every tree that people have, and clear words for what cannot be right."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from entrep.data import (
    DataError,
    find_challenge,
    fingerprint,
    load_challenge,
    save_challenge,
)
from entrep.labels import CLASS_NAMES

TRAIN = [f"{index}{copy}.png" for index in range(7) for copy in "ab"]
CLS = {name: CLASS_NAMES[int(name[0])] for name in TRAIN}
PUBLIC = ["p.png", "q.png", "0a.png"]  # the last repeats a training name
PRIVATE = ["r.png", "s.png"]
PHRASE = 'Polyp, left (small) of the "middle" turbinate'


def picture(seed: str, file_format: str = "PNG") -> bytes:
    """A small picture of noise; another seed, another picture."""
    noise = np.random.default_rng(zlib.crc32(seed.encode())).integers(0, 256, (12, 16, 3))
    buffer = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).save(buffer, file_format)
    return buffer.getvalue()


def write(path: Path, content: bytes | str | dict | list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict | list):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_pictures(folder: Path, names: list[str], salt: str = "") -> None:
    for name in names:
        write(folder / name, picture(salt + name))


def write_train(folder: Path) -> None:
    write_pictures(folder / "imgs", TRAIN)
    write(folder / "cls.json", CLS)
    write(folder / "i2i.json", {"0a.png": "0b.png", "2a.png": "2b.png"})
    write(folder / "t2i.json", {"polyp": "0a.png", PHRASE: "1a.png"})


def write_challenge(root: Path) -> Path:
    """The public and private challenge as it is downloaded."""
    write_train(root / "train" / "train")
    write_pictures(root / "PublicData" / "PublicTest", PUBLIC, salt="test ")
    write(root / "Track1_Public" / "cls.csv", "q.png\np.png\n0a.png\n")
    write(root / "Track2_Public" / "i2i.csv", "p.png\n")
    write(root / "Track3_Public" / "t2i.csv", f"Throat (red), swollen\n{PHRASE}\n")
    private = root / "ENTRep_Private_Dataset_Update" / "imgs" / "ENTRep Private Dataset"
    write_pictures(private, PRIVATE)
    for track, name, line in ((1, "cls", "r.png"), (2, "i2i", "s.png"), (3, "t2i", "polyp")):
        write(root / f"ENTRep_Track{track}_Private_Data" / f"{name}.csv", f"{line}\n")
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return write_challenge(tmp_path / "challenge")


def count(challenge, what: str) -> int:
    return int(challenge.report.set_index("what").loc[what, "count"])


def warned(challenge) -> dict[str, int]:
    rows = challenge.report[challenge.report["level"] == "warning"]
    return dict(zip(rows["what"], rows["count"], strict=True))


# What is found


def test_the_download_is_read_whole(root):
    found = find_challenge(root)
    assert found.pictures["source"].value_counts().to_dict() == {
        "train": 14,
        "public": 3,
        "private": 2,
    }
    assert found.pictures["path"].is_monotonic_increasing and found.pictures["path"].is_unique
    assert found.pairs == (("0a.png", "0b.png"), ("2a.png", "2b.png"))
    assert found.phrases == (("polyp", "0a.png"), (PHRASE, "1a.png"))
    assert set(found.tests) == {"public", "private"}
    public = found.tests["public"]
    assert public.classify == ("q.png", "p.png", "0a.png")  # list order
    assert public.image_queries == ("p.png",)
    assert public.text_queries == ("Throat (red), swollen", PHRASE)  # to the letter
    assert public.gallery == ("0a.png", "p.png", "q.png")
    assert found.tests["private"].text_queries == ("polyp",)
    assert warned(found) == {}


def test_labels_go_to_training_pictures_and_not_to_their_namesakes(root):
    pictures = find_challenge(root).pictures
    trained = pictures["source"] == "train"
    expected = [int(name[0]) for name in pictures.loc[trained, "image_id"]]
    assert pictures.loc[trained, "class_index"].tolist() == expected
    assert (pictures.loc[~trained, "class_index"] == -1).all()


def test_the_report_counts_what_was_found(root):
    found = find_challenge(root)
    assert list(found.report.columns) == ["what", "count", "detail", "level"]
    assert [count(found, f"class {name}") for name in CLASS_NAMES] == [2] * 7
    assert count(found, "pictures") == 19
    assert count(found, "labelled pictures") == 14
    assert count(found, "pairs") == 2 and count(found, "phrases") == 2
    assert count(found, "public: pictures to classify") == 3
    assert count(found, "private: gallery") == 2


@pytest.mark.parametrize("place", ["", "train", "a/b/train/train", "entrep-public-2025"])
def test_the_training_set_may_lie_anywhere(tmp_path, place):
    write_train(tmp_path / place)
    found = find_challenge(tmp_path)
    assert count(found, "labelled pictures") == 14 and len(found.phrases) == 2
    assert found.tests == {}


def test_the_training_set_alone_is_found_from_inside_its_folder(root):
    found = find_challenge(root / "train" / "train")
    assert len(found.pictures) == 14 and found.tests == {}


def test_the_parents_folder_does_as_well(root):
    assert len(find_challenge(root.parent).pictures) == 19


@pytest.mark.parametrize(
    "folders",
    [
        CLASS_NAMES,
        [name.upper().replace("-", "_") for name in CLASS_NAMES],
        [f"{index}_{name}" for index, name in enumerate(CLASS_NAMES)],
        [f"train/{name}" for name in CLASS_NAMES[:4]] + [f"test/{n}" for n in CLASS_NAMES[4:]],
    ],
)
def test_class_folders_give_labels_and_no_tests(tmp_path, folders):
    for folder in folders:  # the same names in each folder
        write(tmp_path / folder / "1.png", picture(folder))
        write(tmp_path / folder / "2.JPG", picture(folder + "2", "JPEG"))
        write(tmp_path / folder / "3.jpeg", picture(folder + "3", "JPEG"))
    found = find_challenge(tmp_path)
    assert found.pictures["class_index"].value_counts().to_dict() == dict.fromkeys(range(7), 3)
    assert set(found.pictures["source"]) == {"train"} and found.tests == {}
    assert warned(found) == {}


def data_rows(**changes: dict) -> list[dict]:
    rows = [
        {
            "Path": name,
            "Classification": CLS[name],
            "Type": "normal",
            "Description": "mũi phải",
            "DescriptionEN": "a nose, right",
        }
        for name in TRAIN
    ]
    for row in rows:
        row.update(changes.get(row["Path"].split(".")[0], {}))
    return rows


def test_data_json_alone_gives_labels_and_descriptions(tmp_path):
    write_pictures(tmp_path / "images", TRAIN)
    rows = data_rows(_0a={})
    rows[0].update(Path="images\\0A.png", Type="", Description=None)
    write(tmp_path / "data.json", rows)
    found = find_challenge(tmp_path)
    first, second = found.pictures.iloc[0], found.pictures.iloc[1]
    assert (first["class_index"], first["finding_type"], first["description_vi"]) == (0, "", "")
    assert (second["finding_type"], second["description_vi"]) == ("normal", "mũi phải")
    assert second["description_en"] == "a nose, right"
    assert count(found, "names that differ in case only") == 1
    assert count(found, "descriptions without a type") == 1
    assert warned(found) == {}  # even a perfect copy has these


def test_data_json_writes_image_where_the_file_says_Image(tmp_path):
    write_pictures(tmp_path, ["7_8_9_Image01.png", "7_8_9_Image02.png"])
    rows = [
        {"Path": f"7_8_9_image0{n}.png", "Classification": name, "Type": "normal"}
        for n, name in ((1, "throat"), (2, "vc-open"))
    ]
    write(tmp_path / "data.json", rows)
    found = find_challenge(tmp_path)
    assert found.pictures["class_index"].tolist() == [6, 4]
    assert count(found, "names that differ in case only") == 2


def test_beside_cls_json_data_json_describes_and_a_contradiction_is_counted(root):
    rows = data_rows()
    rows[0]["Classification"] = "throat"
    rows.append({**rows[0], "Path": "p.png"})  # a test picture: never described
    write(root / "data.json", rows)
    found = find_challenge(root)
    described = found.pictures["description_en"] != ""
    assert (described == (found.pictures["source"] == "train")).all()
    assert warned(found) == {"labels that disagree": 1}
    assert count(found, "class nose-right") == 2


def test_lists_without_a_split_in_their_names_belong_to_the_only_test_set(tmp_path):
    write_train(tmp_path / "train")
    write_pictures(tmp_path / "PrivateImages", PRIVATE)
    write(tmp_path / "lists" / "i2i.csv", "s.png\n")
    assert set(find_challenge(tmp_path).tests) == {"private"}


def test_pictures_without_a_split_in_their_names_belong_to_the_only_lists(tmp_path):
    write_train(tmp_path / "train")
    write_pictures(tmp_path / "test_images", PRIVATE)
    write(tmp_path / "Track1_Private" / "anything.csv", "s.png\n")
    assert find_challenge(tmp_path).tests["private"].classify == ("s.png",)


def test_test_pictures_without_lists_are_a_gallery(tmp_path):
    write_train(tmp_path / "train")
    write_pictures(tmp_path / "TestImages", PRIVATE)
    (test,) = find_challenge(tmp_path).tests.values()
    assert test.gallery == ("r.png", "s.png") and test.classify == ()


def test_rubbish_is_ignored_and_counted(root):
    write(root / "__MACOSX" / "train" / "imgs" / "._0a.png", b"\0\5\x16\7")
    write(root / "train" / "train" / "imgs" / "._0a.png", b"\0\5\x16\7")
    write(root / "PublicData" / ".DS_Store", b"x")
    write(root / ".cache" / "cls.json", "{")
    write(root / "notes.csv", "a,b\n")
    write(root / "train.zip", b"PK")
    found = find_challenge(root)
    assert len(found.pictures) == 19
    assert count(found, "rubbish ignored") == 4
    assert count(found, "tables not read") == 1
    assert count(found, "archives left packed") == 1
    assert warned(found) == {}


def test_a_set_that_was_unpacked_twice_is_read_once(root):
    shutil.copytree(root / "train" / "train", root / "train" / "again" / "train")
    found = find_challenge(root)
    assert len(found.pictures) == 19
    assert warned(found) == {"copies of a file": 14 + 3}


# Text to the letter


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        ("Pale, boggy [left]", "Pale, boggy [left]"),
        ('the "cone" of light', 'the "cone" of light'),
        ('"a comma, quoted by a writer"', "a comma, quoted by a writer"),
        ('"a ""quoted"" word, and a comma"', 'a "quoted" word, and a comma'),
        ('"one" and "two"', '"one" and "two"'),
        ("line\x0bseparators\u2028stay", "line\x0bseparators\u2028stay"),
        ("'single'; semicolons\ttabs", "'single'; semicolons\ttabs"),
    ],
)
def test_phrases_keep_their_letters(root, line, phrase):
    write(root / "Track3_Public" / "t2i.csv", f"{line}\nother\n\n\n")
    found = find_challenge(root)
    assert found.tests["public"].text_queries == (phrase, "other")
    assert count(found, "quoted lines") == (line != phrase)


def test_marks_line_ends_and_blank_lines_are_read_through_and_counted(root):
    write(root / "Track1_Public" / "cls.csv", b"\xef\xbb\xbfq.png\r\n\r\np.png\r\nq.png\r\n")
    write(root / "Track3_Public" / "t2i.csv", "polyp \nother")
    found = find_challenge(root)
    assert found.tests["public"].classify == ("q.png", "p.png")
    assert found.tests["public"].text_queries == ("polyp ", "other")
    assert warned(found) == {
        "byte-order marks": 1,
        "CRLF line ends": 1,
        "blank lines": 1,
        "repeated lines": 1,
        "lines with white space at an end": 1,
    }


def test_repeated_json_keys_are_counted_if_they_agree(root):
    text = json.dumps(CLS)[:-1] + ', "0a.png": "nose-right"}'
    write(root / "train" / "train" / "cls.json", text)
    assert warned(find_challenge(root)) == {"repeated JSON keys": 1}


def test_a_phrase_with_two_answers_keeps_both(root):
    write(root / "train" / "train" / "t2i.json", '{"polyp": "0a.png", "polyp": "1a.png"}')
    assert find_challenge(root).phrases == (("polyp", "0a.png"), ("polyp", "1a.png"))


# Warnings


def test_broken_training_pictures_are_left_out_and_counted(root):
    folder = root / "train" / "train" / "imgs"
    whole = picture("0a.png")
    write(folder / "0a.png", whole[:-20])  # and with it a pair and a phrase
    write(folder / "1b.png", b"")
    write(folder / "3a.png", whole[:60] + b"\xff" + whole[61:])
    write(folder / "4a.png", "<html>not found</html>")
    write(folder / "5a.png", picture("x", "JPEG")[:-200])
    (folder / "6a.png").unlink()
    found = find_challenge(root)
    assert warned(found) == {
        "zero-byte pictures": 1,
        "unreadable or truncated pictures": 4,
        "labels without a picture": 1,
        "pairs without a picture": 1,
        "phrases without a picture": 1,
    }
    assert count(found, "labelled pictures") == 8
    details = found.report.set_index("what")["detail"]
    assert "0a.png (truncated)" in details["unreadable or truncated pictures"]
    assert "3a.png (damaged" in details["unreadable or truncated pictures"]
    assert "and 1 more: left out" in details["unreadable or truncated pictures"]


def test_a_picture_bomb_is_left_out(root):
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    whole = picture("0b.png")
    write(root / "train" / "train" / "imgs" / "0b.png", whole[:8] + chunk + whole[33:])
    found = find_challenge(root)
    assert warned(found)["pictures over 50 megapixels"] == 1


def test_pictures_without_label_stay_unlabelled(root):
    write(root / "train" / "train" / "imgs" / "extra.png", picture("extra"))
    found = find_challenge(root)
    assert warned(found) == {"pictures without a label": 1}
    assert (found.pictures["class_index"] == -1).sum() == 6


def test_identical_pictures_with_different_labels_are_told(root):
    folder = root / "train" / "train" / "imgs"
    shutil.copy(folder / "0a.png", folder / "1a.png")
    found = find_challenge(root)
    assert warned(found) == {"identical pictures with different labels": 1}
    assert count(found, "byte-identical pictures") == 2


def test_an_unreadable_gallery_picture_that_nobody_asks_about_is_left_out(root):
    write(root / "PublicData" / "PublicTest" / "z.png", b"")
    found = find_challenge(root)
    assert "z.png" not in found.tests["public"].gallery
    assert warned(found) == {"zero-byte pictures": 1}


# What stops the run: (what is done to the folder, gist of the error)

CLS_JSON, PUBLIC_CLS = "train/train/cls.json", "Track1_Public/cls.csv"
PUBLIC_T2I, PUBLIC_TEST = "Track3_Public/t2i.csv", "PublicData/PublicTest"


def put(path: str, content: bytes | str | dict | list):
    return lambda root: write(root / path, content)


def remove(path: str):
    return lambda root: shutil.rmtree(root / path)


def repack(root: Path) -> None:
    remove("train")(root)
    write(root / "train.zip", b"PK")


def second_set(root: Path) -> None:
    write(root / "old" / "cls.json", {"0a.png": "throat"})


def second_picture(root: Path) -> None:
    write(root / "train" / "train" / "more" / "0a.png", picture("another"))


def lose_most_training_pictures(root: Path) -> None:
    for name in TRAIN[:9]:
        (root / "train" / "train" / "imgs" / name).unlink()


def lose_all_pictures(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"")


def rename_class_folder(root: Path) -> None:
    for path in list(root.iterdir()):
        shutil.rmtree(path)
    write_pictures(root / "ear-left", ["a.png"])
    write_pictures(root / "nose-rigth", ["b.png"])


BAD = {
    "no training set": (remove("train"), "5 pictures but no labels. Expected cls.json, data.json"),
    "set still packed": (repack, "no labels.*Still packed there: train.zip; unpack"),
    "test still packed": (
        lambda root: (remove("PublicData")(root), write(root / "PublicData.zip", b"PK")),
        "no public test pictures to answer with.*Still packed there: PublicData.zip",
    ),
    "no labels in cls.json": (put(CLS_JSON, {}), "cls.json: no labels in it"),
    "broken JSON": (put(CLS_JSON, '{"a.png": "throat",\n "b'), r"line 2 column 2: broken JSON"),
    "empty JSON file": (put(CLS_JSON, ""), "line 1 column 1: broken JSON"),
    "deep JSON": (put(CLS_JSON, "[" * 200_000), "nested too deeply"),
    "JSON list": (put(CLS_JSON, [["0a.png", "throat"]]), "expected an object .* got a list"),
    "JSON of pairs": (put("train/train/i2i.json", {"0a.png": ["0b.png"]}), "got a list"),
    "misspelt label": (
        put(CLS_JSON, {**CLS, "0a.png": "nose_right"}),
        r"1 wrong label\(s\): 0a.png: 'nose_right' \(did you mean 'nose-right'\?\)",
    ),
    "numeric labels": (
        put(CLS_JSON, dict.fromkeys(TRAIN, 5)),
        r"14 wrong label.*a number; 5 would be 'vc-closed'; write the class name\).* and 11 more",
    ),
    "foreign label": (
        put(CLS_JSON, {**CLS, "0a.png": None}),
        "0a.png: None. Expected one of nose-",
    ),
    "two labels": (
        put(CLS_JSON, json.dumps(CLS)[:-1] + ', "0a.png": "throat"}'),
        r"1 name\(s\) with two different labels: 0a.png",
    ),
    "JSON in Latin-1": (put(CLS_JSON, b'{"m\xe9.png": "throat"}'), "line 1: not UTF-8; save it"),
    "list in UTF-16": (
        put(PUBLIC_CLS, "p.png\n".encode("utf-16")),
        r"not UTF-8 \(it looks like UTF-16\)",
    ),
    "two training sets": (second_set, "old/cls.json and .*cls.json differ, so there are two train"),
    "two pictures of a name": (second_picture, "Different pictures of one name.*imgs/0a.png"),
    "data.json object": (put("data.json", {"Path": "0a.png"}), "expected a list of objects"),
    "data.json rows": (put("data.json", ["0a.png"]), "row 1: expected an object, got a text"),
    "data.json fields": (put("data.json", [{"path": "0a.png"}]), "row 1: expected a text under 'P"),
    "training pictures missing": (
        lose_most_training_pictures,
        "14 labels, and 9 of them have no readable training picture: 0a.png, 0b.png, 1a.png and 6",
    ),
    "nothing readable": (lose_all_pictures, "none of 19 pictures can be read"),
    "class folder misspelt": (
        rename_class_folder,
        "called 'nose-rigth'; did you mean 'nose-right'",
    ),
    "name without picture": (
        put(PUBLIC_CLS, "p.png\nlost.png\n"),
        r"cls.csv: 1 of 2 names have no readable picture among the 3 of the public test: lost.png",
    ),
    "training picture asked": (put("Track2_Public/i2i.csv", "1a.png\n"), "1a.png .not there"),
    "unreadable picture asked": (
        put(f"{PUBLIC_TEST}/q.png", picture("test q.png")[:-15]),
        r"q.png \(truncated\). Each must be answered",
    ),
    "zero-byte picture asked": (put(f"{PUBLIC_TEST}/q.png", b""), r"q.png \(zero bytes\)"),
    "header in names": (put(PUBLIC_CLS, "file\np.png\n"), "got 'file'.*lists have no header"),
    "header in phrases": (put(PUBLIC_T2I, "Text\npolyp\n"), "'Text' is a header"),
    "columns": (put(PUBLIC_CLS, "p.png,0\n"), "one file name a line and no columns; got 'p.png,0'"),
    "empty list": (put(PUBLIC_CLS, "\n"), "cls.csv is empty"),
    "names for phrases": (put(PUBLIC_T2I, "p.png\n"), "expected phrases, got file names"),
    "two lists": (put("Public2/cls.csv", "p.png\n"), "both list the public cls test, and differ"),
    "no test pictures": (remove(PUBLIC_TEST), "there are no public test pictures to answer with"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_right_stops_with_one_clear_error(root, kind):
    spoil, gist = BAD[kind]
    spoil(root)
    before = sorted(root.rglob("*"))
    with pytest.raises(DataError, match=gist):
        find_challenge(root)
    assert sorted(root.rglob("*")) == before


def test_a_root_that_is_no_folder_with_pictures_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        find_challenge(tmp_path / "nowhere")
    write(tmp_path / "train.zip", b"PK")
    with pytest.raises(DataError, match="is a file; unpack it first"):
        find_challenge(tmp_path / "train.zip")
    with pytest.raises(DataError, match="no picture .* in it. Still packed there: train.zip"):
        find_challenge(tmp_path)
    with pytest.raises(DataError, match="name is empty"):
        find_challenge("")


def test_what_may_not_be_read_is_named(root):
    (root / CLS_JSON).chmod(0)
    if os.access(root / CLS_JSON, os.R_OK):
        pytest.skip("root may read everything; runs as an ordinary user")
    with pytest.raises(DataError, match="cls.json cannot be read: Permission denied"):
        find_challenge(root)


# Laws


def test_a_read_only_folder_works_and_stays_as_it_is(root):
    before = sorted(root.rglob("*"))
    folders = [root, *(path for path in before if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        find_challenge(root)
        fingerprint(root)
        assert sorted(root.rglob("*")) == before
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_link_that_leads_back_up_is_followed_once(root):
    try:
        (root / "train" / "loop").symlink_to(root, target_is_directory=True)
    except OSError:
        pytest.skip("runs where this user may make symbolic links")
    assert len(find_challenge(root).pictures) == 19


def test_the_fingerprint_follows_content_and_nothing_else(root, tmp_path):
    first = fingerprint(root)
    moved = root.rename(tmp_path / "moved")
    write(moved / "__MACOSX" / "._x.png", b"x")
    write(moved / "readme.txt", b"x")
    os.utime(moved / CLS_JSON, (time.time(), 0))
    assert fingerprint(moved) == first
    write(moved / PUBLIC_CLS, "p.png\n")
    second = fingerprint(moved)
    write(moved / PUBLIC_TEST / "p.png", picture("other"))
    assert len({first, second, fingerprint(moved)}) == 3


def test_what_is_saved_comes_back(root, tmp_path):
    found = find_challenge(root)
    parted = found.pictures.assign(group=range(19), part="dev", fold=0)
    save_challenge(found, parted, tmp_path / "01_eda")
    back = load_challenge(tmp_path / "01_eda")
    pd.testing.assert_frame_equal(back.pictures, parted, check_dtype=False)
    assert back.root == found.root
    assert (back.pairs, back.phrases, back.tests) == (found.pairs, found.phrases, found.tests)


def test_drawn_pictures_are_found_again_when_their_run_folder_moves(root, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    root.rename(run / "data")
    found = find_challenge(run / "data")
    save_challenge(found, found.pictures.assign(group=0, part="dev", fold=0), run / "01_eda")
    moved = run.rename(tmp_path / "elsewhere")
    back = load_challenge(moved / "01_eda")
    assert back.root == moved / "data"
    assert (back.root / back.pictures["path"][0]).is_file()


def test_loading_what_was_not_saved_names_the_notebook(tmp_path):
    with pytest.raises(FileNotFoundError, match="written by notebook 01_eda"):
        load_challenge(tmp_path / "01_eda")


def test_the_real_sample_is_clean(real_sample):
    found = find_challenge(real_sample)
    assert warned(found) == {}
    assert (found.pictures["class_index"] >= 0).any() and found.tests

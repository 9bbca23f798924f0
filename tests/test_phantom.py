from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from entrep import anatomy, phantom
from entrep.anatomy import FINDINGS_OF_CLASS, draw_picture, draw_scene
from entrep.brush import Draws, unit
from entrep.findings import FINDINGS, phrases_of
from entrep.labels import CLASS_NAMES
from entrep.phantom import draw_dataset, draw_pictures, ensure_dataset
from entrep.scope import hold_scope

SMALL = 0.02  # the smallest set: 42 train, 28 private and 21 public pictures
IMAGES = {
    "train": "train/train/imgs",
    "public": "PublicData/PublicTest",
    "private": "ENTRep_Private_Dataset_Update/imgs",
}
LISTS = {"public": "Track{}_Public", "private": "ENTRep_Track{}_Private_Data"}


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def lines(root: Path, part: str, track: int) -> list[str]:
    name = ("cls", "i2i", "t2i")[track - 1]
    text = (root / LISTS[part].format(track) / f"{name}.csv").read_text(encoding="utf-8")
    return text.splitlines()


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "data"
    draw_dataset(root, size=SMALL, seed=3, workers=1)
    return root


# ---------------------------------------------------------------- one picture


@pytest.mark.parametrize(
    ("class_name", "finding", "digest"),
    [
        ("nose-left", "normal", "33039d38cbd2d382"),
        ("ear-right", "perforation", "79fe4621e5f8442a"),
        ("vc-closed", "cord_nodule", "d4080555e1e7fb78"),
        ("throat", "white_exudate", "bdbbecf50d13776c"),
    ],
)
def test_the_same_key_gives_the_same_pixels_on_every_machine(class_name, finding, digest):
    picture = draw_picture(class_name, finding, Draws("golden", 7), difficulty=0.7)
    assert picture.shape == (480, 640, 3)
    assert picture.dtype == np.uint8
    assert hashlib.sha256(picture.tobytes()).hexdigest()[:16] == digest


def test_draws_keep_numpys_raw_stream():
    draws = Draws("a", 1)
    raw = np.random.PCG64(np.random.SeedSequence([0xCABD1BCA128197CA, 1, 1, 0])).random_raw(2)
    assert draws.uniform() == (int(raw[0]) >> 11) / 2**53
    assert draws.integers(0, 10) == (int(raw[1]) >> 32) * 10 >> 32
    assert draws.child(2).uniform() == Draws("a", 1, 2).uniform()
    assert Draws("1").uniform() != Draws(1).uniform()


def test_unit_is_close_to_the_cosine_and_sine_on_the_whole_circle():
    for degrees in range(-360, 721, 7):
        c, s = unit(degrees)
        assert c * c + s * s == pytest.approx(1, abs=1e-12)
        angle = np.deg2rad(degrees)
        assert (c, s) == pytest.approx((np.cos(angle), np.sin(angle)), abs=0.03)


@pytest.mark.parametrize("site", ["nose", "ear"])
def test_a_left_side_is_a_right_side_in_a_mirror(site):
    finding = FINDINGS_OF_CLASS[f"{site}-left"][1]
    view = hold_scope(Draws("view"), 0.8)
    left = draw_scene(f"{site}-left", finding, Draws("look"), view)
    right = draw_scene(f"{site}-right", finding, Draws("look"), view.mirrored())
    assert np.array_equal(left.rgb, right.rgb[:, :, ::-1])
    assert np.array_equal(left.z, right.z[:, ::-1])
    assert not np.array_equal(right.rgb, right.rgb[:, :, ::-1])


def test_light_and_camera_know_neither_class_nor_finding(monkeypatch):
    scene = draw_scene("throat", "normal", Draws("look"), hold_scope(Draws("view"), 0.5))
    monkeypatch.setattr(anatomy, "draw_scene", lambda *a, **k: scene)
    pictures = {
        draw_picture(name, FINDINGS_OF_CLASS[name][index % 3], Draws(5), difficulty=1.0).tobytes()
        for index, name in enumerate(CLASS_NAMES)
    }
    assert len(pictures) == 1


@pytest.mark.parametrize("class_name", ["nose-right", "ear-right", "vc-closed", "throat"])
def test_every_finding_can_be_seen_at_112_pixels(class_name):
    def small(finding: str) -> np.ndarray:
        picture = draw_picture(class_name, finding, Draws("seen", 2), difficulty=0.0)
        return np.asarray(Image.fromarray(picture).resize((149, 112)), int)

    normal = small("normal")
    for finding in FINDINGS_OF_CLASS[class_name][1:]:
        changed = np.abs(small(finding) - normal).max(axis=2) > 24
        assert changed.sum() > 40, finding  # of some 9,800 pixels in the disc


@pytest.mark.parametrize(
    ("arguments", "gist"),
    [
        (("nose", "normal", 0.4), "class 'nose': expected one of nose-right, "),
        (("vc-open", "incomplete_closure", 0.4), "finding 'incomplete_closure' of vc-open"),
        (("throat", "normal", 1.5), "difficulty: expected 0 .* got 1.5"),
        (("throat", "normal", float("nan")), "difficulty: expected 0 .* got nan"),
    ],
)
def test_wrong_arguments_of_a_picture_are_named(arguments, gist):
    class_name, finding, difficulty = arguments
    with pytest.raises(ValueError, match=gist):
        draw_picture(class_name, finding, Draws(0), difficulty=difficulty)


# ---------------------------------------------------------------- findings and plan


def test_every_finding_has_phrases_in_two_languages_and_no_phrase_is_used_twice():
    can_be_drawn = {(n.split("-")[0], f) for n, found in FINDINGS_OF_CLASS.items() for f in found}
    assert set(FINDINGS) == can_be_drawn
    phrases = [phrase for finding in FINDINGS.values() for phrase in finding.phrases]
    assert len(phrases) == len({phrase.en for phrase in phrases}) >= 30
    assert all(phrase.en and phrase.vi and phrase.en.isascii() for phrase in phrases)
    assert all((kind == "normal") == (f.type == "normal") for (_, kind), f in FINDINGS.items())
    for class_name, findings in FINDINGS_OF_CLASS.items():
        assert all(phrases_of(class_name, finding) for finding in findings)


@pytest.mark.parametrize("size", [SMALL, 0.25, 1.0])
def test_counts_follow_the_real_set(size):
    plan = phantom._plan(size, 0)
    train = Counter(picture.class_name for picture in plan.of("train"))
    real = (325, 290, 156, 133, 159, 147, 81)
    assert [train[name] for name in CLASS_NAMES] == [max(6, round(size * n)) for n in real]
    assert len(plan.pairs) == max(6, round(144 * size))
    assert len(plan.of("private")) == pytest.approx(max(28, 0.6 * size * 844), abs=4)
    assert len(plan.image_queries["private"]) == pytest.approx(max(6, 0.6 * size * 333), abs=2)
    assert len(plan.phrases) >= (10 if size == SMALL else 50)


@pytest.mark.parametrize("seed", range(4))
def test_every_query_has_a_right_answer_that_is_no_copy(seed):
    plan = phantom._plan((SMALL, 0.1, 0.25, 1.0)[seed], seed)
    names = [picture.path for picture in plan.pictures]
    assert len(set(names)) == len(names)
    for part in ("public", "private"):
        gallery = {picture.name: picture for picture in plan.of(part)}
        assert plan.image_queries[part] and plan.text_queries[part]
        for query in plan.image_queries[part]:
            same = [p for p in gallery.values() if p.label == gallery[query].label]
            assert any(p.key != gallery[query].key for p in same)
        for phrase in plan.text_queries[part]:
            assert any(phrase in [p.en for p in phrases_of(*g.label)] for g in gallery.values())
    train = {picture.name: picture for picture in plan.of("train")}
    for query, answer in plan.pairs.items():
        assert query != answer
        assert train[query].label == train[answer].label
    assert all(train[name].phrase.en == phrase for phrase, name in plan.phrases.items())


def test_pretraining_and_demo_share_no_picture(monkeypatch):
    keys = []
    monkeypatch.setattr(
        phantom, "draw_picture", lambda c, f, draws, difficulty: keys.append(draws.key)
    )
    list(draw_pictures(30, seed=0))
    assert len(set(keys)) == 30
    demo = {p.key for p in phantom._plan(0.25, 0).pictures}
    assert {key[0] for key in keys} == {"pretrain"}
    assert {key[0] for key in demo} == {"demo"}
    firsts = [Draws(*key).child("look").uniform() for key in [*keys, *demo]]
    assert len(set(firsts)) == len(firsts)


def test_pictures_to_pretrain_on_come_with_class_finding_and_phrase():
    for picture, class_name, finding, phrase in draw_pictures(2, seed=1):
        assert picture.shape == (480, 640, 3)
        assert phrase in [p.en for p in phrases_of(class_name, finding)]


# ---------------------------------------------------------------- the folder


def test_the_layout_is_the_challenges(drawn):
    train = read(drawn / "train/train/cls.json")
    assert set(train.values()) == set(CLASS_NAMES)
    assert {path.name for path in (drawn / IMAGES["train"]).iterdir()} == set(train)
    for part in ("public", "private"):
        names = {path.name for path in (drawn / IMAGES[part]).iterdir()}
        assert set(lines(drawn, part, 1)) == names
        assert set(lines(drawn, part, 2)) < names
        phrases = lines(drawn, part, 3)
        assert len(set(phrases)) == len(phrases) >= 2
    rows = read(drawn / "data.json")
    keys = ["Path", "Classification", "Type", "Description", "DescriptionEN"]
    assert all(list(row) == keys for row in rows)
    assert {row["Path"].replace("_image", "_Image") for row in rows} == set(train)
    assert {row["Type"] for row in rows} == {"normal", "abnormal"}
    for name in ("i2i", "t2i"):
        assert set(read(drawn / f"train/train/{name}.json").values()) <= set(train)


def test_pictures_are_rgb_png_with_a_bright_disc_on_black(drawn):
    for path in sorted((drawn / IMAGES["train"]).iterdir())[:5]:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (640, 480))
            pixels = np.asarray(image)
        assert pixels[:20, :20].max() < 10
        assert pixels[120:360, 220:420].mean() > 40


def test_one_in_six_names_is_of_an_examination(drawn):
    names = list(read(drawn / "train/train/cls.json"))
    series = [name for name in names if "_Image" in name]
    assert 0.1 < len(series) / len(names) < 0.35
    assert any(n > 1 for n in Counter(name.split("_")[0] for name in series).values())


def test_planted_copies_are_in_the_truth(drawn):
    copies = read(drawn / "truth.json")["copies"]
    assert {copy["kind"] for copy in copies} == {"identical", "near"}
    parts = set()
    for copy in copies:
        first, second = (drawn / path for path in copy["paths"])
        parts.add((Path(copy["paths"][1]).parent.as_posix(), copy["kind"]))
        if copy["kind"] == "identical":
            assert first.read_bytes() == second.read_bytes()
        else:
            a, b = (np.asarray(Image.open(path), int) for path in (first, second))
            assert 0 < np.abs(a - b).mean() < 12
    assert len(parts) == 6  # both kinds, within train and into both test sets
    same_name = [copy for copy in copies if len({Path(p).name for p in copy["paths"]}) == 1]
    assert len(same_name) >= 2
    known = {frozenset(copy["paths"]) for copy in copies}
    by_bytes: dict[bytes, list[str]] = {}
    for name, data in contents(drawn).items():
        if name.endswith(".png"):
            by_bytes.setdefault(data, []).append(name)
    assert all(frozenset(same) in known for same in by_bytes.values() if len(same) > 1)


def test_the_truth_answers_every_query(drawn):
    truth = read(drawn / "truth.json")
    train = read(drawn / "train/train/cls.json")
    assert all(truth["pictures"][f"{IMAGES['train']}/{n}"]["class"] == c for n, c in train.items())
    for part in ("public", "private"):
        gallery = {path.name for path in (drawn / IMAGES[part]).iterdir()}
        for track, kind in ((2, "image_answers"), (3, "text_answers")):
            answers = truth[kind][part]
            assert list(answers) == lines(drawn, part, track)
            assert all(found and set(found) <= gallery for found in answers.values())


def test_the_number_of_processes_changes_nothing(drawn, tmp_path):
    plan = phantom._plan(SMALL, 3)
    some = dataclasses.replace(plan, pictures=plan.pictures[20:36])
    phantom._draw_files(tmp_path, some, 0.4, 2)
    again = contents(tmp_path)
    assert len(again) == 16
    assert again.items() <= contents(drawn).items()


def test_an_interrupted_draw_leaves_nothing(monkeypatch, tmp_path):
    calls = []

    def interrupted(job):
        calls.append(job)
        if len(calls) == 3:
            raise KeyboardInterrupt
        Path(job[1][0]).write_bytes(b"half")

    monkeypatch.setattr(phantom, "_draw_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "data", size=SMALL, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    for draw in (draw_dataset, ensure_dataset):
        with pytest.raises(FileExistsError, match="not an empty folder"):
            draw(tmp_path, size=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_set_that_is_there_is_not_drawn_again(monkeypatch, tmp_path):
    monkeypatch.setattr(phantom, "_draw_file", lambda job: None)
    folder = tmp_path / "data"
    folder.mkdir()  # an empty folder will do
    draw_dataset(folder, size=SMALL, workers=1)
    monkeypatch.setattr(phantom, "draw_dataset", lambda folder, **k: (Path(folder) / "x").touch())
    ensure_dataset(folder, size=SMALL)
    assert not (folder / "x").exists()
    monkeypatch.setattr(phantom, "draw_dataset", lambda folder, **k: Path(folder).mkdir())
    ensure_dataset(folder, size=SMALL, seed=1)  # another set takes its place
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "gist"),
    [
        ({"size": 0.01}, "size: expected 0.02 to 4"),
        ({"size": float("nan")}, "size: expected 0.02 to 4"),
        ({"difficulty": -0.1}, "difficulty: expected 0"),
        ({"seed": -1}, "seed: expected a whole number"),
        ({"workers": -2}, "workers: expected"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_written(options, gist, tmp_path):
    with pytest.raises(ValueError, match=gist):
        draw_dataset(tmp_path / "data", **options)
    assert list(tmp_path.iterdir()) == []

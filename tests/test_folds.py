"""Pictures that show the same thing share a group, and no part or fold splits one."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from entrep.artifacts import read_json, sha256_file
from entrep.data import find_challenge
from entrep.folds import assign_parts, duplicate_groups
from entrep.labels import CLASS_NAMES
from entrep.phantom import draw_dataset


def draw_disc(seed: int) -> Image.Image:
    """A bright disc with coarse texture on black, 320×240."""
    noise = np.random.default_rng(seed).integers(60, 220, (6, 8, 3)).astype(np.uint8)
    texture = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
    y, x = np.mgrid[:240, :320]
    lit = ((x - 160) ** 2 + (y - 120) ** 2 < 110**2)[..., None]
    return Image.fromarray(np.where(lit, np.asarray(texture), 0).astype(np.uint8))


def shifted(picture: Image.Image, x: int, y: int) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y))


def as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def table_of(folder: Path, pictures: dict[str, Image.Image]) -> pd.DataFrame:
    rows = []
    for name, picture in pictures.items():
        picture.save(folder / name)
        rows.append((name, name, sha256_file(folder / name)))
    return pd.DataFrame(rows, columns=["path", "image_id", "sha256"])


def test_copies_share_a_group_and_others_do_not(tmp_path):
    first = draw_disc(0)
    pictures = {
        "a.png": first,
        "b.png": draw_disc(1),
        "same.png": first,
        "jpeg.png": as_jpeg(first, 60),
        "bright.png": ImageEnhance.Brightness(first).enhance(1.1),
        "shift.png": shifted(first, 2, -1),
        "mirrored.png": first.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "c.jpg": draw_disc(2),
    }
    groups = duplicate_groups(tmp_path, table_of(tmp_path, pictures))
    assert groups.tolist() == [0, 1, 0, 0, 0, 0, 2, 3]


def test_pictures_of_one_examination_share_a_group(tmp_path):
    names = ["12_1_1_image01.png", "12_3_9_Image02.PNG", "123_1_1_image01.png", "12_1_image01.png"]
    table = table_of(tmp_path, {name: draw_disc(seed) for seed, name in enumerate(names)})
    assert duplicate_groups(tmp_path, table).tolist() == [0, 0, 1, 2]


def test_only_copies_share_a_group_where_examinations_may_differ(tmp_path):
    names = ("7_1_1_image01.png", "7_1_1_image02.png", "7_1_1_image03.png")
    pictures = dict(zip(names, (draw_disc(0), draw_disc(1), draw_disc(0)), strict=True))
    table = table_of(tmp_path, pictures)
    assert duplicate_groups(tmp_path, table).tolist() == [0, 0, 0]
    assert duplicate_groups(tmp_path, table, examinations=False).tolist() == [0, 1, 0]


def test_links_join_across_kinds(tmp_path):
    pictures = {
        "7_1_1_image01.png": draw_disc(0),
        "7_1_1_image02.png": draw_disc(1),
        "x.png": draw_disc(1),  # the same bytes as the second
        "y.png": shifted(draw_disc(0), 1, 1),  # nearly the first
    }
    assert duplicate_groups(tmp_path, table_of(tmp_path, pictures)).tolist() == [0, 0, 0, 0]


def test_flat_pictures_have_nothing_in_common(tmp_path):
    pictures = {f"{v}.png": Image.new("RGB", (64, 48), (v, v, v)) for v in (0, 3, 90, 200)}
    assert duplicate_groups(tmp_path, table_of(tmp_path, pictures)).tolist() == [0, 1, 2, 3]


def test_groups_do_not_depend_on_the_reading_order(tmp_path):
    pictures = {f"{s}.png": draw_disc(s % 4) for s in range(8)}
    table = table_of(tmp_path, pictures)
    forward = duplicate_groups(tmp_path, table)
    backward = duplicate_groups(tmp_path, table[::-1].reset_index(drop=True))[::-1]
    for row in range(8):
        assert ((forward == forward[row]) == (backward == backward[row])).all()


def test_the_demos_planted_copies_are_found_and_no_others(tmp_path):
    draw_dataset(tmp_path / "demo", size=0.02, seed=3, difficulty=0.4)
    truth = read_json(tmp_path / "demo" / "truth.json")
    pictures = find_challenge(tmp_path / "demo").pictures
    pictures["image_id"] = "no examination"
    groups = duplicate_groups(tmp_path / "demo", pictures)
    group_of = dict(zip(pictures["path"], groups, strict=True))
    copies = [{group_of[path] for path in copy["paths"]} for copy in truth["copies"]]
    assert copies and all(len(found) == 1 for found in copies)
    planted = {path for copy in truth["copies"] for path in copy["paths"]}
    shared = pictures["path"][pd.Series(groups).duplicated(keep=False)]
    assert set(shared) == planted


def test_no_two_real_pictures_are_taken_for_one(real_sample):
    pictures = find_challenge(real_sample).pictures
    assert len(set(duplicate_groups(real_sample, pictures))) == pictures["sha256"].nunique()


def test_copies_of_real_pictures_are_found(real_sample, tmp_path):
    pictures = {}
    for number, path in enumerate(find_challenge(real_sample).pictures["path"][::9]):
        with Image.open(real_sample / path) as picture:
            first = picture.convert("RGB")
        pictures[f"{number}.png"] = first
        pictures[f"{number}s.png"] = shifted(first, 2, 1)
        pictures[f"{number}j.png"] = as_jpeg(first, 40)
        pictures[f"{number}b.png"] = ImageEnhance.Brightness(first).enhance(1.1)
    groups = duplicate_groups(tmp_path, table_of(tmp_path, pictures))
    assert groups.tolist() == [row // 4 for row in range(len(groups))]


# Parts and folds


def labelled(per_class: list[int], unlabelled: int = 0) -> pd.DataFrame:
    classes = np.repeat(np.arange(len(per_class)), per_class).tolist() + [-1] * unlabelled
    return pd.DataFrame(
        {"path": [f"{row:04}.png" for row in range(len(classes))], "class_index": classes}
    )


@st.composite
def tables(draw) -> tuple[pd.DataFrame, np.ndarray]:
    table = labelled(
        draw(st.lists(st.integers(4, 12), min_size=2, max_size=7)), draw(st.integers(0, 5))
    )
    members = st.lists(st.integers(0, 2 * len(table)), min_size=len(table), max_size=len(table))
    groups = np.array(draw(members))
    independent = table.assign(group=groups).groupby("class_index")["group"].nunique()
    assume((independent[independent.index >= 0] >= 3).all())
    return table, groups


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(2, 5), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5]), st.integers(0, 99))
def test_the_division_keeps_its_laws(given_table, folds, holdout, seed):
    table, groups = given_table
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # small classes are told; see below
        try:
            parts = assign_parts(table, groups, folds=folds, holdout=holdout, seed=seed)
        except ValueError as error:
            # Half of three groups, or all but a giant one, leave nothing to divide: refused.
            assert re.search("Expected development pictures .* 1 group", str(error))
            reject()
        order = np.random.default_rng(seed).permutation(len(table))
        renumbered = np.unique(groups, return_inverse=True)[1] * 7 + 3
        again = assign_parts(
            table.iloc[order], renumbered[order], folds=folds, holdout=holdout, seed=seed
        )
    assert parts["path"].tolist() == table["path"].tolist()
    known = parts[parts["class_index"] >= 0]
    # no group crosses
    assert (known.groupby("group")["part"].nunique() == 1).all()
    assert (known.groupby("group")["fold"].nunique() == 1).all()
    # every picture has its place
    assert (parts.loc[parts["class_index"] < 0, "part"] == "test").all()
    assert known["part"].isin(["dev", "heldout"]).all()
    assert ((parts["fold"] >= 0) == (parts["part"] == "dev")).all()
    dev = parts[parts["part"] == "dev"]
    assert sorted(dev["fold"].unique()) == list(range(dev["fold"].max() + 1))
    assert 2 <= dev["fold"].max() + 1 <= folds
    assert ("heldout" in set(parts["part"])) == (holdout > 0)
    # neither row order nor group numbers matter
    again = again.set_index("path").loc[parts["path"]]
    assert again["fold"].tolist() == parts["fold"].tolist()
    assert again["part"].tolist() == parts["part"].tolist()


@pytest.mark.parametrize("holdout", [0.1, 0.15, 0.2, 0.3, 0.4, 0.5])
def test_classes_are_spread_evenly(holdout):
    table = labelled([65, 58, 31, 27, 32, 29, 16])  # a fifth of the real counts
    parts = assign_parts(table, np.arange(len(table)), folds=3, holdout=holdout, seed=0)
    held = (parts["part"] == "heldout").groupby(parts["class_index"]).mean()
    assert held.between(holdout - 0.09, holdout + 0.09).all()
    dev = parts[parts["part"] == "dev"]
    counts = dev.groupby(["class_index", "fold"]).size().unstack()
    assert (counts.max(axis=1) - counts.min(axis=1) <= 2).all()


def test_another_seed_gives_another_division():
    table = labelled([10] * 7)
    parts = [
        assign_parts(table, np.arange(70), folds=3, holdout=0.2, seed=seed)["fold"].tolist()
        for seed in (0, 0, 1)
    ]
    assert parts[0] == parts[1] != parts[2]


def test_a_scarce_class_means_fewer_folds_and_a_warning():
    table = labelled([6, 6, 6, 6, 6, 6, 3])
    with pytest.warns(UserWarning, match="3 folds instead of 5: throat has only 3 independent"):
        parts = assign_parts(table, np.arange(len(table)), folds=5, holdout=0, seed=0)
    assert parts["fold"].max() == 2


def test_a_class_that_a_training_side_lacks_is_named():
    table = labelled([6, 6, 1])
    with pytest.warns(UserWarning, match=f"Without fold . no picture of {CLASS_NAMES[2]} is left"):
        assign_parts(table, np.arange(len(table)), folds=2, holdout=0, seed=0)


def test_a_tiny_set_gets_a_coarser_hold_out():
    table = labelled([4] * 7)
    parts = assign_parts(table, np.arange(28), folds=3, holdout=0.2, seed=0)
    held = parts.loc[parts["part"] == "heldout", "class_index"]
    assert sorted(held) == list(range(7))  # one of four, for want of one of five


@pytest.mark.parametrize(
    ("per_class", "groups", "options", "gist"),
    [
        ([3], None, {}, "two classes or more"),
        ([3, 3], [0] * 6, {}, r"got 6 pictures, 2 class\(es\) and 1 group"),
        ([0, 0], None, {}, "got 0 pictures"),
        ([3, 3], [0], {}, "1 groups for 6 pictures"),
        ([1, 1], None, {"holdout": 0.2}, "no class has two independent pictures; set holdout=0"),
        ([3, 3], None, {"folds": 1}, "Expected folds >= 2"),
        ([3, 3], None, {"holdout": 0.7}, "holdout 0 to 0.5; got 2 and 0.7"),
    ],
)
def test_what_cannot_be_divided_is_refused(per_class, groups, options, gist):
    table = labelled(per_class, unlabelled=0)
    groups = np.arange(len(table)) if groups is None else np.array(groups)
    with pytest.raises(ValueError, match=gist):
        assign_parts(table, groups, **{"folds": 2, "holdout": 0.0, "seed": 0, **options})

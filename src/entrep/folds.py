"""Groups of pictures that must stay together, and parts and folds that never split one."""

from __future__ import annotations

import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from entrep.labels import CLASS_NAMES

# `<examination>_<digits>_<digits>_image<NN>.png`
EXAMINATION = re.compile(r"(\d+)_\d+_\d+_image\d+\.\w+", re.IGNORECASE)

# Correlation of two thumbnails from which pictures count as one. Copies of real pictures that were
# encoded again (JPEG 30), brightened by 15 %, blurred (2 px) or shifted (2 px) reach 0.97 to 1;
# of 35 different real pictures no two pass 0.47, of 480 drawn ones no two pass 0.90.
NEAR_IDENTICAL = 0.94
_THUMB_PX = 16
_SHADE_PX = 7  # a thumbnail's mean over so many pixels is shading, and taken off
_INNER_SHARE = 0.65  # of the disc's diameter; the square of 0.71 would touch the rim
_LIT = 16  # grey value above which a pixel belongs to the disc


def duplicate_groups(
    root: str | Path, pictures: pd.DataFrame, *, examinations: bool = True
) -> np.ndarray:
    """Number the groups of pictures that show the same thing, or may.

    One group: byte-identical pictures, near-identical ones (a copy that was encoded again,
    brightened, or shifted by a pixel or two) and all of one examination; and whatever such
    links connect, across training and test pictures.

    Args:
        root: folder that the paths are relative to.
        pictures: `path`, `image_id` and `sha256` of N pictures.
        examinations: False leaves pictures of one examination apart unless they are copies:
            what a query may be answered with is a narrower question than what may leak.

    Returns:
        (N,) group numbers from 0, by first appearance.
    """
    count = len(pictures)
    exams = [EXAMINATION.fullmatch(name) for name in pictures["image_id"]]
    contents, firsts = pd.factorize(pictures["sha256"])
    first_rows = np.flatnonzero(~pictures["sha256"].duplicated().to_numpy())
    links = [np.column_stack([np.arange(count), first_rows[contents]])]
    seen: dict[str, int] = {}
    same_exam = [
        (row, seen.setdefault(e[1], row)) for row, e in enumerate(exams) if e and examinations
    ]
    links.append(np.array(same_exam, dtype=int).reshape(-1, 2))

    paths = [Path(root) / path for path in pictures["path"].iloc[first_rows]]
    with ThreadPoolExecutor() as pool:  # decoding leaves Python's lock
        thumbs = np.array(list(pool.map(_thumbnail, paths)), dtype=np.float32)
    links.append(first_rows[_similar_pairs(thumbs.reshape(len(firsts), -1))])

    rows, others = np.concatenate(links).T.astype(np.int32)  # 64 bits are too many for old SciPys
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, others)), shape=(count, count))
    return pd.factorize(connected_components(graph, directed=False)[1])[0]


def _thumbnail(path: Path) -> np.ndarray:
    """Grey inner square of the lit disc without its shading, unit norm; all zero if it is flat.

    The black frame and the disc's rim are left out, and the light that falls off towards the rim
    is taken off: they are alike in all pictures.
    """
    with Image.open(path) as picture:
        picture.draft("L", (4 * _THUMB_PX, 4 * _THUMB_PX))  # a JPEG need not be decoded whole
        grey = picture.convert("L")
    lit = np.asarray(grey.resize((160, 120), Image.Resampling.BOX)) > _LIT
    columns, rows = np.flatnonzero(lit.mean(axis=0) > 0.1), np.flatnonzero(lit.mean(axis=1) > 0.1)
    if not (len(columns) and len(rows)):
        columns, rows = np.array([0, 159]), np.array([0, 119])
    left, right = columns[0] * grey.width / 160, (columns[-1] + 1) * grey.width / 160
    top, bottom = rows[0] * grey.height / 120, (rows[-1] + 1) * grey.height / 120
    half = min(right - left, bottom - top) * _INNER_SHARE / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    inner = grey.resize(
        (_THUMB_PX, _THUMB_PX), Image.Resampling.BOX, box=(x - half, y - half, x + half, y + half)
    )
    values = np.asarray(inner, dtype=np.float32)
    values = (values - uniform_filter(values, _SHADE_PX)).ravel()
    values -= values.mean()
    norm = np.linalg.norm(values)
    return values / norm if norm > _THUMB_PX else np.zeros_like(values)  # deviation over 1 of 255


def _similar_pairs(thumbs: np.ndarray) -> np.ndarray:
    """(P, 2) rows of thumbnails that correlate by `NEAR_IDENTICAL` or more."""
    pairs = [np.empty((0, 2), dtype=int)]
    for start in range(0, len(thumbs), 1024):  # bounds the memory
        similarity = thumbs[start : start + 1024] @ thumbs.T
        row, other = np.nonzero(similarity >= NEAR_IDENTICAL)
        pairs.append(np.column_stack([row + start, other])[row + start < other])
    return np.concatenate(pairs)


def assign_parts(
    pictures: pd.DataFrame, groups: np.ndarray, *, folds: int, holdout: float, seed: int
) -> pd.DataFrame:
    """Part the labelled pictures into a held-out part and stratified folds; groups stay whole.

    The result depends on the pictures' paths, classes and groups and on the seed, not on the
    order of the rows. Every class that can be is in every fold; a class that a training side
    lacks, and fewer folds than asked for, are told by a warning.

    Args:
        pictures: `path` and `class_index` (-1: unknown) of N pictures.
        groups: (N,) group numbers of `duplicate_groups`.
        folds: cross-validation folds over the development pictures, at least 2.
        holdout: share of labelled pictures that nothing may be fitted on, 0 to 0.5; rounded
            to a fraction of tenths or coarser (below a tenth: 1/20 or more), and coarser still
            if the largest class has fewer pictures than parts.
        seed: of the shuffling.

    Returns:
        `pictures` with `group`, `part` ("dev", "heldout", or "test" for those without a label)
        and `fold` (0..folds-1 for "dev", else -1).

    Raises:
        ValueError: if there are too few labelled pictures for it.
    """
    if len(groups) != len(pictures):
        raise ValueError(f"{len(groups)} groups for {len(pictures)} pictures; they must match.")
    if folds < 2 or not 0 <= holdout <= 0.5:
        raise ValueError(f"Expected folds >= 2 and holdout 0 to 0.5; got {folds} and {holdout}.")
    table = pictures.assign(group=groups, part="test", fold=-1).reset_index(drop=True)
    labelled = table[table["class_index"] >= 0].sort_values("path")
    _check_enough(labelled, "labelled")
    table.loc[labelled.index, "part"] = "dev"
    if holdout > 0:
        held = _hold_out(labelled, holdout, seed)
        table.loc[held.index, "part"] = "heldout"
        labelled = labelled.drop(held.index)
        _check_enough(labelled, "development")
    per_class = labelled.groupby("class_index")["group"].nunique()
    possible = max(2, min(folds, int(per_class.min())))
    if possible < folds:
        scarce = CLASS_NAMES[per_class.idxmin()]
        warnings.warn(
            f"{possible} folds instead of {folds}: {scarce} has only {per_class.min()} "
            "independent picture(s).",
            stacklevel=2,
        )
    for fold, rows in enumerate(_split(labelled, possible, seed)):
        table.loc[labelled.index[rows], "fold"] = fold
        _warn_of_absent(labelled, labelled.drop(labelled.index[rows]), f"fold {fold}")
    return table


def _check_enough(labelled: pd.DataFrame, what: str) -> None:
    classes, groups = labelled["class_index"].nunique(), labelled["group"].nunique()
    if classes < 2 or groups < 2:
        raise ValueError(
            f"Expected {what} pictures of two classes or more in two groups or more; got "
            f"{len(labelled)} pictures, {classes} class(es) and {groups} group(s)."
        )


def _hold_out(labelled: pd.DataFrame, holdout: float, seed: int) -> pd.DataFrame:
    most = int(labelled.groupby("class_index")["group"].nunique().max())
    if most < 2:
        raise ValueError(
            "holdout: no class has two independent pictures; set holdout=0, or give more pictures."
        )
    share = Fraction(holdout).limit_denominator(min(10, most)) if holdout >= 0.1 else Fraction(0)
    share = share or Fraction(1, min(20, most, round(1 / holdout)))
    parts = _split(labelled, share.denominator, seed)[: share.numerator]
    held = labelled.iloc[np.sort(np.concatenate(parts))]
    _warn_of_absent(labelled, labelled.drop(held.index), "the held-out part")
    _warn_of_absent(labelled, held, "the development part")
    return held


def _split(labelled: pd.DataFrame, parts: int, seed: int) -> list[np.ndarray]:
    """Row numbers of each part; the rows must be sorted by path."""
    groups = pd.factorize(labelled["group"])[0]  # the numbers must not depend on other rows
    splitter = StratifiedGroupKFold(n_splits=parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # We warn ourselves, by the class's name and of the consequence.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return [rows for _, rows in splitter.split(groups, labelled["class_index"], groups)]


def _warn_of_absent(labelled: pd.DataFrame, kept: pd.DataFrame, without: str) -> None:
    absent = sorted(set(labelled["class_index"]) - set(kept["class_index"]))
    if absent:
        names = ", ".join(CLASS_NAMES[index] for index in absent)
        warnings.warn(
            f"Without {without} no picture of {names} is left; it needs more independent pictures.",
            stacklevel=4,
        )

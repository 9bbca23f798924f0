"""The challenge under one folder, put together from its files, checked and reported in a table.

Labels come from `cls.json`, else from `data.json`, else from folders named like the classes.
What could make a run wrong stops it here; what it can live with is a warning with a count.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from entrep.artifacts import read_json, read_table, sha256_file, write_json, write_table
from entrep.labels import CLASS_NAMES, CLASS_TO_INDEX
from entrep.layout import TRACKS, FoundFiles, find_files, split_above
from entrep.readers import (
    CHECKS,
    DataError,
    Notes,
    base_name,
    check_picture,
    class_indices,
    first_three,
    plain_name,
    read_list,
    read_object,
    read_rows,
    read_text_object,
)

__all__ = [
    "Challenge",
    "DataError",
    "TestSplit",
    "find_challenge",
    "fingerprint",
    "load_challenge",
    "save_challenge",
]

PICTURE_COLUMNS = [
    "path",
    "image_id",
    "source",
    "class_index",
    "sha256",
    "description_en",
    "description_vi",
    "finding_type",
]
REPORT_COLUMNS = ["what", "count", "detail", "level"]
# Each of these stops the run with its own message, so a report that was written shows none.
_FATAL_CHECKS = (
    "wrong labels",
    "files that are not UTF-8",
    "names in test lists without a picture",
)
# Even a perfect copy of the full release has these.
_NATURAL = ("names that differ in case only", "descriptions without a type")


@dataclass(frozen=True)
class TestSplit:
    """One test set: what its lists ask, in list order, and the pictures that can be answers."""

    __test__ = False  # not a test case, whatever its name tells pytest

    classify: tuple[str, ...] = ()  # file names
    image_queries: tuple[str, ...] = ()  # file names
    text_queries: tuple[str, ...] = ()  # phrases, to the letter
    gallery: tuple[str, ...] = ()  # file names of the split's readable pictures, sorted


@dataclass(frozen=True)
class Challenge:
    """What was found under `root`.

    `pictures` has a row for each usable picture, sorted by `path` (POSIX, relative to `root`,
    unique): `image_id` (the file name), `source` ("train", "public", "private" or "test"),
    `class_index` (-1: unknown), `sha256`, `description_en`, `description_vi` and `finding_type`
    ("": unknown). Labels and descriptions are given to training pictures only. An `image_id`
    may repeat across sources, and across class folders ("ear-left/1.png", "ear-right/1.png").

    `pairs` (query, match) and `phrases` (phrase, match) hold names of training pictures.
    `report` has the columns what, count, detail and level ("info" or "warning").
    """

    root: Path
    pictures: pd.DataFrame
    pairs: tuple[tuple[str, str], ...]
    phrases: tuple[tuple[str, str], ...]
    tests: dict[str, TestSplit]
    report: pd.DataFrame


def find_challenge(root: str | Path) -> Challenge:
    """Find, read and check the challenge's files below `root`; nothing is written there.

    Raises:
        FileNotFoundError: if there is no such folder.
        DataError: if a run on what is there could not be right.
    """
    found = find_files(root)
    notes = Notes(found.root)
    labels, rows = _read_labels(found, notes)
    pictures, faults = _read_pictures(found, notes)
    if labels is None:
        pictures = _label_by_folder(found, pictures)
    pictures = _drop_copies(pictures, by_name=labels is not None, notes=notes)

    trained = pictures["source"] == "train"
    find = _name_finder(pictures.loc[trained, "image_id"], notes)
    elsewhere = set(pictures.loc[~trained, "image_id"])
    unreadable = {name for _, name in faults}
    if labels is not None:
        # data.json may describe the test pictures too; cls.json is of training pictures only
        others = set() if "cls.json" in found.train else elsewhere
        classes = _label_by_name(found, labels, find, others, unreadable, notes)
        pictures["class_index"] = [
            classes.get(name, -1) if source == "train" else -1
            for name, source in zip(pictures["image_id"], pictures["source"], strict=True)
        ]
    described = _describe(rows, find, elsewhere | unreadable, notes)
    for column in PICTURE_COLUMNS[5:]:
        pictures[column] = [
            described.get(name, {}).get(column, "") if source == "train" else ""
            for name, source in zip(pictures["image_id"], pictures["source"], strict=True)
        ]
    pictures = pictures[PICTURE_COLUMNS].reset_index(drop=True)
    _check_labels(pictures, notes)

    pairs = []
    for query, match in _read_one(found, "i2i.json", read_text_object, notes) or []:
        pairs.append((find(query), find(match)))
        if None in pairs[-1]:
            notes.add("pairs without a picture", f"{query} → {match}")
    phrases = []
    for phrase, match in _read_one(found, "t2i.json", read_text_object, notes) or []:
        phrases.append((phrase, find(match)))
        if phrases[-1][1] is None:
            notes.add("phrases without a picture", phrase)
    pairs = tuple(pair for pair in pairs if None not in pair)
    phrases = tuple(pair for pair in phrases if None not in pair)
    tests = _read_tests(found, pictures, faults, notes)
    report = _report(found, pictures, pairs, phrases, tests, notes)
    return Challenge(found.root, pictures, pairs, phrases, tests, report)


def fingerprint(root: str | Path) -> str:
    """SHA-256 over path and content of every file that `find_challenge` would read.

    It stays the same when the folder moves, and when rubbish, archives or other files change.
    """
    found = find_files(root)
    lists = [path for paths in (*found.train.values(), *found.lists.values()) for path in paths]
    paths = sorted([*found.pictures, *lists])

    def digest(path: str) -> str:
        try:
            return sha256_file(found.root / path)
        except OSError:  # the loader reports it, or stops on it
            return "unreadable"

    with ThreadPoolExecutor() as pool:
        lines = [
            f"{sha} {path}\n" for sha, path in zip(pool.map(digest, paths), paths, strict=True)
        ]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def save_challenge(challenge: Challenge, pictures: pd.DataFrame, folder: str | Path) -> None:
    """Write what later notebooks start from: `pictures.csv` and `challenge.json`.

    Args:
        challenge: what `find_challenge` found.
        pictures: its pictures, with `group`, `part` and `fold` added.
        folder: where to write.
    """
    root, run_folder = Path(challenge.root).resolve(), Path(folder).resolve().parent
    if root.is_relative_to(run_folder):  # drawn pictures move with their run folder
        root = Path("..") / root.relative_to(run_folder)
    write_table(Path(folder) / "pictures.csv", pictures)
    found = {
        "root": root.as_posix(),
        "pairs": challenge.pairs,
        "phrases": challenge.phrases,
        "tests": {split: asdict(test) for split, test in challenge.tests.items()},
    }
    write_json(Path(folder) / "challenge.json", found)


def load_challenge(folder: str | Path) -> Challenge:
    """Read what `save_challenge` wrote; `pictures` has `group`, `part` and `fold`, no report.

    Raises:
        FileNotFoundError: if there is none; the message names the notebook to run.
    """
    pictures = read_table(Path(folder) / "pictures.csv")
    found = read_json(Path(folder) / "challenge.json")
    return Challenge(
        root=(Path(folder) / found["root"]).resolve(),
        pictures=pictures,
        pairs=tuple((query, match) for query, match in found["pairs"]),
        phrases=tuple((phrase, match) for phrase, match in found["phrases"]),
        tests={
            split: TestSplit(**{asked: tuple(names) for asked, names in test.items()})
            for split, test in found["tests"].items()
        },
        report=pd.DataFrame(columns=REPORT_COLUMNS),
    )


# Training files and pictures


def _read_one(
    found: FoundFiles, name: str, read: Callable[[Path, Notes], list], notes: Notes
) -> list | None:
    """Read the one training file of that name; copies with equal content are one."""
    paths = found.train.get(name, [])
    beside = {str(PurePosixPath(path).parent) for path in found.train.get("cls.json", [])}
    paths = [path for path in paths if str(PurePosixPath(path).parent) in beside] or paths
    if not paths:
        return None
    first, *others = paths
    content = read(found.root / first, notes)
    for other in others:
        if read(found.root / other, notes) != content:
            raise DataError(
                f"{found.root}: {first} and {other} differ, so there are two training sets; "
                "give the folder of one of them."
            )
        notes.add("copies of a file", other)
    return content


def _read_pictures(
    found: FoundFiles, notes: Notes
) -> tuple[pd.DataFrame, dict[tuple[str, str], str]]:
    """Readable pictures (path, image_id, source, sha256) and faults by (source, image_id)."""
    named = found.train.get("cls.json") or found.train.get("data.json", [])
    train_folders = {str(PurePosixPath(path).parent) for path in named}
    paths = [found.root / path for path in found.pictures]
    with ThreadPoolExecutor() as pool:  # hashing and checksums leave Python's lock
        checked = list(pool.map(check_picture, paths))
    rows, faults = [], {}
    for path, picture in zip(map(PurePosixPath, found.pictures), checked, strict=True):
        folder = path.parent / "x"  # a picture's own name says nothing about its split
        source = split_above(folder, default="train", train_folders=train_folders)
        if picture.trouble:
            notes.add(picture.trouble, f"{path} ({picture.fault})")
            faults[source, path.name] = picture.fault
        else:
            rows.append((str(path), path.name, source, picture.sha256))
    if not rows:
        raise DataError(
            f"{found.root}: none of {len(paths)} pictures can be read: "
            f"{first_three(f'{name} ({fault})' for (_, name), fault in faults.items())}."
        )
    pictures = pd.DataFrame(rows, columns=["path", "image_id", "source", "sha256"])
    splits = set(pictures["source"]) - {"train"}
    asked = {split for split, _ in found.lists}
    if len(splits) == len(asked) == 1 and splits != asked and "test" in splits | asked:
        # One test set, and only its lists or only its pictures tell which.
        (split,) = (splits | asked) - {"test"}
        pictures["source"] = pictures["source"].replace("test", split)
        faults = {(s.replace("test", split), name): f for (s, name), f in faults.items()}
        found.lists = {(split, track): paths for (_, track), paths in found.lists.items()}
    return pictures, faults


def _drop_copies(pictures: pd.DataFrame, *, by_name: bool, notes: Notes) -> pd.DataFrame:
    """Leave out second copies of a file; refuse two pictures of one name that must be told apart.

    Raises:
        DataError: if a name that a list may use stands for two different pictures.
    """
    same = ["source", "image_id", "sha256"] + ([] if by_name else ["class_index"])
    copies = pictures.duplicated(same)
    for path in pictures.loc[copies, "path"]:
        notes.add("copies of a file", path)
    pictures = pictures[~copies].copy()
    named = pictures if by_name else pictures[pictures["source"] != "train"]
    twice = named[named.duplicated(["source", "image_id"], keep=False)].sort_values("image_id")
    if len(twice):
        raise DataError(
            f"Different pictures of one name, so the lists do not tell which is meant: "
            f"{first_three(twice['path'])}. Keep one of each."
        )
    return pictures


# Labels and descriptions


def _read_labels(
    found: FoundFiles, notes: Notes
) -> tuple[dict[str, int] | None, list[dict[str, str]]]:
    """Class indices by name as a file gives them (None: no file does), and data.json's rows."""
    rows = _read_one(found, "data.json", read_rows, notes) or []
    stated = [(row["Path"], row["Classification"]) for row in rows if row["Classification"]]
    pairs = _read_one(found, "cls.json", read_object, notes)
    if pairs is not None:
        path = found.root / found.train["cls.json"][0]
        if not pairs:
            raise DataError(f"{path}: no labels in it; copy it again from the challenge.")
        labels = class_indices(path, pairs)
        for name, class_name in stated:
            index = labels.get(base_name(name))
            if index is not None and CLASS_NAMES[index] != class_name:
                notes.add("labels that disagree", f"{name}: {CLASS_NAMES[index]}, {class_name}")
        return labels, rows
    if stated:
        return class_indices(found.root / found.train["data.json"][0], stated), rows
    return None, rows


def _label_by_folder(found: FoundFiles, pictures: pd.DataFrame) -> pd.DataFrame:
    """Label pictures by the class that their folder is named after.

    Raises:
        DataError: if no folder is, or if one nearly is.
    """
    folders = pictures["path"].map(lambda path: PurePosixPath(path).parent.name)
    classes = folders.map(lambda name: CLASS_TO_INDEX.get(plain_name(name), -1))
    for name in sorted(set(folders[(classes < 0) & (pictures["source"] == "train")])):
        near = difflib.get_close_matches(plain_name(name), CLASS_NAMES, n=1, cutoff=0.75)
        if near:
            raise DataError(
                f"{found.root}: no class is called {name!r}; did you mean {near[0]!r}? "
                "Rename the folder."
            )
    if (classes < 0).all():
        raise DataError(
            f"{found.root}: {len(pictures)} pictures but no labels. Expected cls.json, data.json "
            f"with a Classification, or folders named {', '.join(CLASS_NAMES)}.{found.hint}"
        )
    # Whoever re-packed the set may have split it; the kit makes its own parts.
    source = pictures["source"].where(classes < 0, "train")
    return pictures.assign(class_index=classes, source=source)


def _label_by_name(
    found: FoundFiles,
    labels: dict[str, int],
    find: Callable[[str], str | None],
    elsewhere: set[str],
    unreadable: set[str],
    notes: Notes,
) -> dict[str, int]:
    """Class indices by the names of training pictures.

    Raises:
        DataError: if more than half of the labels have no usable picture.
    """
    classes, absent = {}, []
    for name, index in labels.items():
        image_id = find(name)
        if image_id is not None:
            classes[image_id] = index
        elif name not in elsewhere:
            absent.append(name)
            if name not in unreadable:
                notes.add("labels without a picture", name)
    if not classes or len(absent) > len(labels) / 2:
        raise DataError(
            f"{found.root}: {len(labels)} labels, and {len(absent)} of them have no readable "
            f"training picture: {first_three(absent)}. Copy the pictures again.{found.hint}"
        )
    return classes


def _describe(
    rows: list[dict[str, str]],
    find: Callable[[str], str | None],
    known: set[str],
    notes: Notes,
) -> dict[str, dict[str, str]]:
    """Descriptions and finding type by the names of training pictures."""
    described = {}
    for row in rows:
        image_id = find(row["Path"])
        finding_type = row["Type"].strip().lower()
        if finding_type not in ("normal", "abnormal"):
            notes.add("descriptions without a type", row["Path"])
            finding_type = ""
        if image_id is not None:
            described[image_id] = {
                "description_en": row["DescriptionEN"].strip(),
                "description_vi": row["Description"].strip(),
                "finding_type": finding_type,
            }
        elif base_name(row["Path"]) not in known:
            notes.add("descriptions without a picture", row["Path"])
    return described


def _check_labels(pictures: pd.DataFrame, notes: Notes) -> None:
    trained = pictures[pictures["source"] == "train"]
    for path in trained.loc[trained["class_index"] < 0, "path"]:
        notes.add("pictures without a label", path)
    labelled = trained[trained["class_index"] >= 0]
    for _, same in labelled.groupby("sha256", sort=False):
        if same["class_index"].nunique() > 1:
            notes.add("identical pictures with different labels", " = ".join(same["path"]))


def _name_finder(names: Iterable[str], notes: Notes) -> Callable[[str], str | None]:
    """Look up a name from a training file among the pictures: exact, else but for its case."""
    counts = pd.Series(list(names), dtype=object).value_counts()
    exact = set(counts.index[counts == 1])
    folded: dict[str, list[str]] = {}
    for name in sorted(exact):
        folded.setdefault(name.casefold(), []).append(name)

    def find(name: str) -> str | None:
        name = base_name(name)
        if name in exact:
            return name
        near = folded.get(name.casefold(), [])
        if len(near) != 1:
            return None
        notes.add("names that differ in case only", name)
        return near[0]

    return find


# Test sets


def _read_tests(
    found: FoundFiles,
    pictures: pd.DataFrame,
    faults: dict[tuple[str, str], str],
    notes: Notes,
) -> dict[str, TestSplit]:
    """The test sets by split.

    Raises:
        DataError: if a listed picture is not there or cannot be read: it must be answered.
    """
    tests = {}
    for split in sorted({*pictures["source"], *(split for split, _ in found.lists)} - {"train"}):
        gallery = tuple(sorted(pictures.loc[pictures["source"] == split, "image_id"]))
        asked = {}
        for track in TRACKS:
            path, asked[track] = _read_test_list(found, split, track, notes)
            if path and not gallery:
                raise DataError(
                    f"{found.root / path}: there are no {split} test pictures to answer with. "
                    f"Put them into a folder with {split!r} in its name.{found.hint}"
                )
            if track == "t2i":
                continue
            missing = [
                f"{name} ({faults.get((split, name), 'not there')})"
                for name in sorted(set(asked[track]) - set(gallery), key=asked[track].index)
            ]
            if missing:
                raise DataError(
                    f"{found.root / path}: {len(missing)} of {len(asked[track])} names have no "
                    f"readable picture among the {len(gallery)} of the {split} test: "
                    f"{first_three(missing)}. Each must be answered: copy them again.{found.hint}"
                )
        tests[split] = TestSplit(asked["cls"], asked["i2i"], asked["t2i"], gallery)
    return tests


def _read_test_list(
    found: FoundFiles, split: str, track: str, notes: Notes
) -> tuple[str, tuple[str, ...]]:
    paths = found.lists.get((split, track), [])
    if not paths:
        return "", ()
    first, *others = paths
    lines = read_list(found.root / first, notes, of_names=track != "t2i")
    for other in others:
        if read_list(found.root / other, notes, of_names=track != "t2i") != lines:
            raise DataError(
                f"{found.root}: {first} and {other} both list the {split} {track} test, and "
                "differ; remove the wrong one."
            )
        notes.add("copies of a file", other)
    return first, lines


# Report


def _report(
    found: FoundFiles,
    pictures: pd.DataFrame,
    pairs: tuple[tuple[str, str], ...],
    phrases: tuple[tuple[str, str], ...],
    tests: dict[str, TestSplit],
    notes: Notes,
) -> pd.DataFrame:
    rows: list[tuple[str, int, str, str]] = []

    def tell(what: str, count: int, detail: str = "") -> None:
        rows.append((what, count, detail, "info"))

    labelled = pictures[pictures["class_index"] >= 0]
    sources = pictures["source"].value_counts()
    tell("pictures", len(pictures), ", ".join(f"{s} {n}" for s, n in sorted(sources.items())))
    tell("labelled pictures", len(labelled))
    for index, name in enumerate(CLASS_NAMES):
        tell(f"class {name}", int((labelled["class_index"] == index).sum()))
    described = pictures["description_en"] != ""
    tell("described pictures", int(described.sum()))
    tell("pairs", len(pairs), "pictures with the same finding")
    tell("phrases", len(phrases), "a finding and its picture")
    for split, test in tests.items():
        tell(f"{split}: pictures to classify", len(test.classify))
        tell(f"{split}: image queries", len(test.image_queries))
        tell(f"{split}: text queries", len(test.text_queries))
        tell(f"{split}: gallery", len(test.gallery))
    copies = pictures[pictures.duplicated("sha256", keep=False)].sort_values(["sha256", "path"])
    tell("byte-identical pictures", len(copies), first_three(copies["path"]))
    tell("archives left packed", len(found.archives), first_three(found.archives))
    tell("tables not read", len(found.unread), first_three(found.unread))
    tell("rubbish ignored", len(found.rubbish), first_three(found.rubbish))
    for what in _FATAL_CHECKS:
        tell(what, 0)
    for what, offenders in notes.found.items():
        detail = f"{first_three(offenders)}: {CHECKS[what]}" if offenders else ""
        level = "warning" if offenders and what not in _NATURAL else "info"
        rows.append((what, len(offenders), detail, level))
    return pd.DataFrame(rows, columns=REPORT_COLUMNS)

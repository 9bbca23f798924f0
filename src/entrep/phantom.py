"""Draws a synthetic data set in exactly the challenge's layout: the kit's embedded demo.

What a picture shows is `anatomy`'s business; here are the findings and their phrases, the plan of
a set (which pictures, names, copies, pairs and lists) and its files. The plan and every picture
have streams of their own, so pixels depend on neither the drawing order nor the number of
processes. The same seed gives the same pixels everywhere; the bytes of a PNG file may differ
between builds of zlib.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import struct
import tempfile
import uuid
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from entrep.anatomy import FINDINGS_OF_CLASS, draw_picture
from entrep.brush import Draws
from entrep.findings import FINDINGS, Phrase, phrases_of
from entrep.labels import CLASS_NAMES

# Raise it when the drawing changes: `ensure_dataset` then draws its set anew.
DRAWING_VERSION = 1


# Counts of the real set, which `size` scales: pictures, and lines of each list.
TRAIN_COUNTS = (325, 290, 156, 133, 159, 147, 81)
TRAIN_PAIRS, TRAIN_PHRASES = 144, 71
PRIVATE_PICTURES, PRIVATE_PAIRS, PRIVATE_PHRASES = 844, 333, 52

_FOLDERS = {
    "train": "train/train/imgs",
    "public": "PublicData/PublicTest",
    "private": "ENTRep_Private_Dataset_Update/imgs",
}
_LISTS = {"public": "Track{}_Public", "private": "ENTRep_Track{}_Private_Data"}


@dataclass(frozen=True)
class _Picture:
    """A picture of the plan. Copies have the key and the look of what they copy."""

    part: str  # train, public or private
    name: str
    class_name: str
    finding: str
    phrase: Phrase
    key: tuple[int | str, ...]
    look: tuple[int | str, ...]
    shift: int = 0  # near-identical copies: pixels to the right ...
    brighter: int = 0  # ... and grey levels to add

    @property
    def path(self) -> str:
        return f"{_FOLDERS[self.part]}/{self.name}"

    @property
    def label(self) -> tuple[str, str]:
        return self.class_name, self.finding


@dataclass(frozen=True)
class _Plan:
    pictures: tuple[_Picture, ...]
    copies: tuple[tuple[str, str, str], ...]  # (kind, path, path)
    pairs: dict[str, str]
    phrases: dict[str, str]
    image_queries: dict[str, tuple[str, ...]]  # by part
    text_queries: dict[str, tuple[str, ...]]

    def of(self, part: str) -> list[_Picture]:
        return [picture for picture in self.pictures if picture.part == part]


def draw_pictures(
    count: int, *, seed: int = 0, difficulty: float = 0.4
) -> Iterator[tuple[np.ndarray, str, str, str]]:
    """Draw pictures to pretrain on, classes equally often; no data set shares one of them.

    Yields:
        (480, 640, 3) uint8 RGB, class name, finding, English phrase.
    """
    for index in range(count):
        yield draw_one(index, seed=seed, difficulty=difficulty)


def draw_one(
    index: int, *, seed: int = 0, difficulty: float = 0.4
) -> tuple[np.ndarray, str, str, str]:
    """The picture of that number in `draw_pictures`' endless row."""
    draws = Draws("pretrain", seed, index)
    class_name = draws.choice(CLASS_NAMES)
    finding = "normal"
    if draws.chance(0.65):
        finding = draws.choice(FINDINGS_OF_CLASS[class_name][1:])
    phrase = draws.choice(phrases_of(class_name, finding))
    picture = draw_picture(class_name, finding, draws, difficulty=difficulty)
    return picture, class_name, finding, phrase.en


def ensure_dataset(
    folder: str | Path, *, size: float = 0.25, seed: int = 0, difficulty: float = 0.4
) -> None:
    """Draw the data set unless the folder already holds this very one.

    A drawn set of other parameters is replaced; anything else in the folder is refused.
    """
    folder = Path(folder)
    mark = folder / "phantom.json"
    if mark.is_file():
        if json.loads(mark.read_text(encoding="utf-8")) == _mark(size, seed, difficulty):
            return
        shutil.rmtree(folder)
    draw_dataset(folder, size=size, seed=seed, difficulty=difficulty)


def draw_dataset(
    folder: str | Path,
    *,
    size: float = 0.25,
    seed: int = 0,
    difficulty: float = 0.4,
    workers: int | None = None,
) -> None:
    """Draw a data set in the challenge's layout, whole or not at all.

    Train pictures and pairs are `size` times the real counts, at least 6 a class. So that a demo
    draws quickly, the private test set has 0.6 of its share and the public one a quarter of that
    (at least 4 and 3 a class); so that the phrases tell something, there are up to three
    times their share, as far as different phrases go.

    Besides the challenge's files there are `phantom.json` (the parameters) and `truth.json`
    (classes, findings, planted copies and right answers, for tests and benchmarks only).

    Args:
        folder: new or empty.
        size: share of the real set's counts, 0.02 to 4.
        seed: names, lists and pixels.
        difficulty: 0 (clean pictures) to 1 (much nuisance).
        workers: processes; None: one a core, 1: none beside this one. A script without an
            `if __name__ == "__main__":` needs 1.

    Raises:
        ValueError: for a value out of range.
        FileExistsError: if the folder holds anything.
    """
    if not 0.02 <= size <= 4:
        raise ValueError(f"size: expected 0.02 to 4 times the real counts, got {size}.")
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty: expected 0 (easy) to 1 (hard), got {difficulty}.")
    if seed < 0:
        raise ValueError(f"seed: expected a whole number from 0, got {seed}.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected 1 or more (None: one a core), got {workers}.")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} is not an empty folder. Give a new one, or delete it first."
        )
    plan = _plan(size, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_lists(temporary, plan)
        _write_json(temporary / "truth.json", _truth(plan))
        _write_json(temporary / "phantom.json", _mark(size, seed, difficulty))
        _draw_files(temporary, plan, difficulty, workers)
        umask = os.umask(0)  # mkdtemp makes private folders; readers need no more than this
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _mark(size: float, seed: int, difficulty: float) -> dict[str, object]:
    return {
        "drawing": DRAWING_VERSION,
        "size": float(size),
        "seed": seed,
        "difficulty": float(difficulty),
    }


# ---------------------------------------------------------------- plan


def _plan(size: float, seed: int) -> _Plan:
    draws = Draws("demo", seed, "plan")
    private = 0.6 * size * PRIVATE_PICTURES / sum(TRAIN_COUNTS)
    pictures = []
    for part, share, least in (
        ("train", size, 6),
        ("private", private, 4),
        ("public", private / 4, 3),
    ):
        deck = []
        for class_name, real in zip(CLASS_NAMES, TRAIN_COUNTS, strict=True):
            count = max(least, round(real * share))
            deck += _deal(class_name, count, draws)
        deck = draws.shuffled(deck)
        pictures += _name(part, deck, seed, draws)
    pictures, copies = _plant_copies(pictures, draws)

    def of(part: str) -> list[_Picture]:
        return [picture for picture in pictures if picture.part == part]

    def lines(real: float) -> int:
        return max(6, round(real * size))

    more = min(max(3 * size, 0.15), max(size, 1))  # phrases cost no drawing

    gallery = {part: draws.shuffled(of(part)) for part in ("train", "public", "private")}
    return _Plan(
        pictures=tuple(pictures),
        copies=tuple(copies),
        pairs=_pairs(gallery["train"], lines(TRAIN_PAIRS)),
        phrases=dict(_answers(gallery["train"], round(more * TRAIN_PHRASES))),
        image_queries={
            part: tuple(_pairs(gallery[part], lines(real)))
            for part, real in (("private", 0.6 * PRIVATE_PAIRS), ("public", 0.15 * PRIVATE_PAIRS))
        },
        text_queries={
            part: tuple(phrase for phrase, _ in _answers(gallery[part], round(more * real)))
            for part, real in (("private", PRIVATE_PHRASES), ("public", PRIVATE_PHRASES / 4))
        },
    )


def _deal(class_name: str, count: int, draws: Draws) -> list[tuple[str, str]]:
    """`count` labels of a class: 40 % normal, the rest findings, each twice or more often."""
    normal = round(0.4 * count)
    findings = draws.shuffled(FINDINGS_OF_CLASS[class_name][1:])
    findings = findings[: max(1, (count - normal) // 2)]
    found = [findings[i % len(findings)] for i in range(count - normal)]
    return [(class_name, finding) for finding in ["normal"] * normal + found]


def _name(part: str, deck: Sequence[tuple[str, str]], seed: int, draws: Draws) -> list[_Picture]:
    """Name and number the pictures of one part: mostly UUIDs, 16 % series of one examination."""
    waiting = list(range(len(deck)))
    series: dict[int, tuple[str, str]] = {}  # index -> (name, examination)
    while len(series) < round(0.16 * len(deck)):
        label = deck[draws.choice(waiting)]
        same = [i for i in waiting if deck[i] == label][: draws.integers(2, 7)]
        patient = str(draws.integers(1_000_000, 10_000_000))
        stamp = f"{draws.integers(230101, 241231)}_{draws.integers(10**8, 10**9)}"
        for number, index in enumerate(same, start=draws.integers(1, 20)):
            series[index] = (f"{patient}_{stamp}_Image{number:02d}.png", patient)
            waiting.remove(index)
    pictures = []
    for index, (class_name, finding) in enumerate(deck):
        key = ("demo", seed, part, index)
        bits = int.from_bytes(draws.octets(16).tobytes(), "little")
        name, patient = series.get(index, (f"{uuid.UUID(int=bits, version=4)}.png", ""))
        look = ("demo", seed, part, "patient", int(patient)) if patient else (*key, "look")
        phrase = draws.choice(phrases_of(class_name, finding))
        pictures.append(_Picture(part, name, class_name, finding, phrase, key, look))
    return pictures


def _plant_copies(
    pictures: list[_Picture], draws: Draws
) -> tuple[list[_Picture], list[tuple[str, str, str]]]:
    """Turn some pictures into copies of train pictures of their class.

    Identical and near-identical ones within train, and from train into both test sets; some
    public ones keep the train picture's name too.
    """
    pictures = list(pictures)
    free = set(range(len(pictures)))  # neither a copy nor copied yet
    copies = []
    counts = {part: sum(p.part == part for p in pictures) for part in _FOLDERS}
    for part, kind, share in (
        ("train", "identical", 0.012),
        ("train", "near", 0.012),
        ("private", "identical", 0.03),
        ("private", "near", 0.03),
        ("public", "identical", 0.06),
        ("public", "near", 0.06),
        ("public", "same name", 0.12),
    ):
        for _ in range(max(2, round(share * counts[part]))):
            # normal pictures give way, so that no finding is lost
            options = [i for i in free if pictures[i].part == part]
            options = [i for i in options if pictures[i].finding == "normal"] or options
            index = draws.choice(sorted(options))
            victim = pictures[index]
            sources = [
                i
                for i in sorted(free - {index})
                if pictures[i].part == "train" and pictures[i].class_name == victim.class_name
            ]
            source = draws.choice(sources)
            original = pictures[source]
            copy = replace(original, part=part, name=victim.name)
            if kind == "same name":
                copy = replace(copy, name=original.name)
            if kind == "near":
                copy = replace(
                    copy, shift=draws.choice((-1, 1)), brighter=draws.choice((-5, -3, 3, 5))
                )
            pictures[index] = copy
            free -= {index, source}
            copies.append(("near" if kind == "near" else "identical", original.path, copy.path))
    return pictures, copies


def _pairs(gallery: Sequence[_Picture], count: int) -> dict[str, str]:
    """Query -> another picture, drawn anew, with the same class and finding.

    Abnormal queries come first: that two normal pictures match says little.
    """
    pairs = {}
    for query in sorted(gallery, key=lambda picture: picture.finding == "normal"):
        if len(pairs) == count:
            break
        # a copy would be too easy an answer, and so would a picture of the same examination
        others = [o for o in gallery if o.label == query.label and o.look != query.look]
        if others:
            pairs[query.name] = others[len(pairs) % len(others)].name
    return pairs


def _answers(gallery: Sequence[_Picture], count: int) -> list[tuple[str, str]]:
    """Different phrases of findings, each with a picture that it describes."""
    first: dict[str, str] = {}
    for picture in gallery:
        if picture.finding != "normal":
            first.setdefault(picture.phrase.en, picture.name)
    return list(first.items())[:count]


def _truth(plan: _Plan) -> dict[str, object]:
    text_answers, image_answers = {}, {}
    for part, phrases in plan.text_queries.items():
        gallery = plan.of(part)
        text_answers[part] = {
            phrase: sorted(
                picture.name
                for picture in gallery
                if phrase in [p.en for p in phrases_of(*picture.label)]
            )
            for phrase in phrases
        }
        label = {picture.name: picture.label for picture in gallery}
        image_answers[part] = {
            query: sorted(name for name in label if label[name] == label[query] and name != query)
            for query in plan.image_queries[part]
        }
    return {
        "pictures": {
            picture.path: {
                "class": picture.class_name,
                "finding": picture.finding,
                "phrase": picture.phrase.en,
            }
            for picture in sorted(plan.pictures, key=lambda picture: picture.path)
        },
        "copies": [{"kind": kind, "paths": paths} for kind, *paths in plan.copies],
        "image_answers": image_answers,
        "text_answers": text_answers,
    }


# ---------------------------------------------------------------- files


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


def _write_json(path: Path, value: object) -> None:
    _write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _write_lists(root: Path, plan: _Plan) -> None:
    train = sorted(plan.of("train"), key=lambda picture: picture.name)
    _write_json(root / "train/train/cls.json", {p.name: p.class_name for p in train})
    _write_json(root / "train/train/i2i.json", plan.pairs)
    _write_json(root / "train/train/t2i.json", plan.phrases)
    rows = [
        {
            "Path": picture.name.replace("_Image", "_image"),  # as the real file spells it
            "Classification": picture.class_name,
            "Type": FINDINGS[picture.class_name.split("-")[0], picture.finding].type,
            "Description": picture.phrase.vi,
            "DescriptionEN": picture.phrase.en,
        }
        for picture in train
    ]
    _write_json(root / "data.json", rows)
    for part, folder in _LISTS.items():
        lists = {
            "cls": sorted(picture.name for picture in plan.of(part)),
            "i2i": plan.image_queries[part],
            "t2i": plan.text_queries[part],
        }
        for track, (name, lines) in enumerate(lists.items(), start=1):
            text = "".join(f"{line}\n" for line in lines)
            _write_text(root / folder.format(track) / f"{name}.csv", text)


def _draw_files(root: Path, plan: _Plan, difficulty: float, workers: int | None) -> None:
    by_pixels: dict[tuple[object, ...], list[_Picture]] = {}
    for picture in plan.pictures:
        (root / picture.path).parent.mkdir(parents=True, exist_ok=True)
        pixels = (picture.key, picture.shift, picture.brighter)
        by_pixels.setdefault(pixels, []).append(picture)
    jobs = [
        (same[0], [str(root / picture.path) for picture in same], difficulty)
        for same in by_pixels.values()
    ]
    workers = workers or os.cpu_count() or 1
    bar = {"desc": "draw", "total": len(jobs), "unit": "picture", "disable": None}
    if workers == 1:
        for job in tqdm(jobs, **bar):
            _draw_file(job)
        return
    # "spawn" does the same on every system and is safe beside a notebook kernel's threads
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        for _ in tqdm(pool.map(_draw_file, jobs, chunksize=8), **bar):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _draw_file(job: tuple[_Picture, list[str], float]) -> None:
    """Draw a picture and write it under every name it has."""
    picture, paths, difficulty = job
    pixels = draw_picture(
        *picture.label, Draws(*picture.key), difficulty=difficulty, look=Draws(*picture.look)
    )
    if picture.shift or picture.brighter:
        lit = np.roll(pixels, picture.shift, axis=1).astype(np.int16)
        lit += (lit > 24) * np.int16(picture.brighter)
        pixels = np.minimum(np.maximum(lit, 0), 255).astype(np.uint8)
    png = encode_png(pixels)
    for path in paths:
        Path(path).write_bytes(png)


def encode_png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as PNG: rows minus the row above, run lengths only.

    Half the time of Pillow, which tries five filters on every row, for files of the same size.
    """
    height, width, _ = pixels.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 2  # PNG's filter "Up"
    flat = pixels.reshape(height, -1)
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    data = packer.compress(rows.tobytes()) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )

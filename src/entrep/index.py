"""The folder of a picture index: numbered segments that never change, and one manifest.

    index.json                   what is in it, with the size and SHA-256 of every other file
    segments/000001.vectors.npy  (n, D) float16 or float32, unit L2 norm per row
    segments/000001.keys.npy     (n,) the picture's path below its folder, and its SHA-256

A change writes new segments, then replaces the manifest in one rename; files that no manifest
names are removed afterwards. Whoever is killed in between leaves the old index or the new one.
Opening reads the manifest and compares file sizes. The SHA-256 of a file is checked when its
first row is used, so a changed file is refused before it gives any answer, and opening a million
vectors takes no longer than a thousand. The manifest holds no file names, only numbers: nothing
in it can point out of the folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from filelock import FileLock, Timeout

from entrep.artifacts import atomic_path, sha256_file, sha256_json, write_json

MANIFEST = "index.json"
SEGMENTS = "segments"
LOCK = ".lock"
INDEX_FORMAT = 1
DTYPES = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4")}
_OURS = re.compile(
    r"\.?\d{6,}(-\w+)?\.(vectors|keys|faiss)\b.*"
)  # with what a killed writer leaves


@dataclass(frozen=True)
class Part:
    """One file of the index, as it was when it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Segment:
    """Some pictures of the index; `number` names its files and is never given twice."""

    number: int
    rows: int
    vectors: Part
    keys: Part


@dataclass(frozen=True)
class Approximate:
    """A FAISS index of the same vectors.

    Attributes:
        number: names its file.
        file: its size and SHA-256.
        probes: inverted lists that a search looks into.
        recall: share of the true 10 nearest that it found when it was made.
    """

    number: int
    file: Part
    probes: int
    recall: float


@dataclass(frozen=True)
class Recipe:
    """What a vector depends on beside the picture.

    Attributes:
        encoder: name for `load_encoder`.
        precision: of the network: fp32, fp16 or bf16.
        fingerprint: of the encoder; see `encoders.Encoder`.
        preprocessing: digest of what turns a file into pixels; see `decode`.
        crop: whether pictures are cut to the lit disc.
        made_with: versions of the libraries, for people.
    """

    encoder: str
    precision: str
    fingerprint: str
    preprocessing: str
    crop: bool
    made_with: str


@dataclass(frozen=True)
class Hit:
    """One answer: path below the folder of the pictures, cosine to 6 decimals, SHA-256."""

    name: str
    similarity: float
    sha256: str


@dataclass
class Index:
    """An index as its manifest says; rows are counted through its segments.

    Attributes:
        folder: where it lies.
        recipe: how its vectors are made.
        pictures: the folder of the pictures, as an absolute path.
        dtype: "fp16" or "fp32".
        width: D, of every vector.
        segments: in the order of their rows.
        last_number: highest number that a file ever had.
        unfinished: pictures that the build at work, or a killed one, still had to add.
        approximate: a FAISS index of the same segments, if one was made.
        loaded: files that a search keeps in memory, by path.
    """

    folder: Path
    recipe: Recipe
    pictures: str
    dtype: str
    width: int
    segments: tuple[Segment, ...] = ()
    last_number: int = 0
    unfinished: int = 0
    approximate: Approximate | None = None
    loaded: dict[Path, object] = field(default_factory=dict, repr=False)
    _sound: set[Path] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def starts(self) -> np.ndarray:
        """(S + 1,) number of the first row of each segment, and of all rows."""
        return np.cumsum([0, *(segment.rows for segment in self.segments)])

    def vectors(self, segment: Segment) -> np.ndarray:
        """Map a segment's vectors into memory: (n, D) in the index's dtype.

        Writing into the array changes a copy of the touched pages, never the file.

        Raises:
            ValueError: if the file is not what the manifest says.
            FileNotFoundError: if it is gone.
        """
        file = _file(self.folder, segment.number, "vectors.npy")
        return self._map(file, segment.vectors, (segment.rows, self.width), DTYPES[self.dtype])

    def keys(self, segment: Segment) -> np.ndarray:
        """Map a segment's keys into memory: (n,) with fields `sha256` and `path`, both bytes.

        Raises:
            ValueError: if the file is not what the manifest says.
            FileNotFoundError: if it is gone.
        """
        file = _file(self.folder, segment.number, "keys.npy")
        return self._map(file, segment.keys, (segment.rows,), None)

    def faiss_file(self) -> Path:
        """The checked file of the FAISS index.

        Raises:
            ValueError: if there is none, or it is not what the manifest says.
        """
        if self.approximate is None:
            raise ValueError(
                f"{self.folder}: it has no approximate index of its present pictures; "
                f"make one: entrep index {self.pictures} --out {self.folder} --approximate"
            )
        file = _file(self.folder, self.approximate.number, "faiss")
        self._check(file, self.approximate.file)
        return file

    def all_keys(self) -> dict[str, tuple[str, int]]:
        """SHA-256 and row by path, of all pictures.

        Raises:
            ValueError: if a keys file is damaged, or a path leads out of the pictures' folder.
        """
        found = {}
        for segment, start in zip(self.segments, self.starts.tolist(), strict=False):
            for row, key in enumerate(self.keys(segment), start=start):
                found[self.checked_name(bytes(key["path"]))] = (key["sha256"].tobytes().hex(), row)
        if len(found) != len(self):
            raise ValueError(f"{self.folder}: it holds a picture twice; build the index anew.")
        return found

    def gather(self, rows: np.ndarray) -> Iterator[tuple[Segment, np.ndarray, np.ndarray]]:
        """Divide rows, in any order, by segment: it, positions in `rows`, rows within it."""
        starts = self.starts
        of = np.searchsorted(starts, rows, side="right") - 1
        order = np.argsort(of, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(of[order])) + 1):
            if len(part):
                number = int(of[part[0]])
                yield self.segments[number], part, rows[part] - starts[number]

    def checked_name(self, path: bytes) -> str:
        """A picture's path from its key.

        Raises:
            ValueError: if it leads out of the pictures' folder.
        """
        name = path.decode("utf-8", "surrogateescape")
        reason = name_fault(name)
        if reason:
            raise ValueError(
                f"{self.folder}: the key {display_name(name)!r} {reason}. The kit writes no such "
                "key; do not use this index, build it anew from the pictures."
            )
        return name

    def _check(self, file: Path, part: Part) -> None:
        if file in self._sound:
            return
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is gone; if the index is being built just now, search again, else build "
                "it anew into a new folder."
            )
        if file.stat().st_size != part.bytes or sha256_file(file) != part.sha256:
            raise ValueError(self._changed(file))
        self._sound.add(file)

    def _changed(self, file: Path) -> str:
        return (
            f"{file} is not as the manifest says: it was changed, cut off or damaged. Take the "
            f"folder from a copy, or build it anew: entrep index {self.pictures} --out NEW"
        )

    def _map(
        self, file: Path, part: Part, shape: tuple[int, ...], dtype: np.dtype | None
    ) -> np.ndarray:
        self._check(file, part)
        try:
            array = np.load(file, mmap_mode="c", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(self._changed(file)) from error
        fits = array.dtype == dtype if dtype else array.dtype.names == ("sha256", "path")
        if array.shape != shape or not fits:
            raise ValueError(self._changed(file))
        return array


def open_index(folder: str | Path) -> Index:
    """Open an index: read its manifest, compare the sizes of its files.

    Raises:
        FileNotFoundError: if there is none in the folder, or a file of it is missing.
        ValueError: if the manifest is damaged, was changed, or is of another format; if a
            file has another size than it says.
    """
    folder = Path(folder)
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not there: {folder} is no index, or its first build was stopped early. "
            f"Make it: entrep index PICTURES --out {folder}"
        )
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if value["format"] != INDEX_FORMAT:
            raise _ManifestError(
                f"is of format {value['format']!r}, this kit reads {INDEX_FORMAT}; use the "
                "kit's version that wrote it, or build the index anew into a new folder"
            )
        digest = value.pop("sha256")
        index = _parse(folder, value)
        if digest != sha256_json(value):
            raise _ManifestError("was changed by another program; build the index anew")
    except _ManifestError as error:
        raise ValueError(f"{file} {error}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged or no manifest of an index ({_first_line(error)}); take the "
            f"folder from a copy, or build the index anew: entrep index PICTURES --out NEW"
        ) from error
    for path, part in _parts(index).items():
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise FileNotFoundError(f"{path}: the index lacks this file; {_mend(index)}")
        if size != part.bytes:
            raise ValueError(
                f"{path} has {size:,} bytes, the manifest says {part.bytes:,}; {_mend(index)}"
            )
    return index


def write_segment(
    index: Index, names: Sequence[str], sha256: Sequence[str], vectors: np.ndarray
) -> Segment:
    """Write one segment's files. The index holds it once it is `commit`ted.

    Args:
        index: its `last_number` goes up by one.
        names: n paths below the folder of the pictures.
        sha256: n digests of the pictures' bytes.
        vectors: (n, D), unit L2 norm per row.

    Raises:
        ValueError: if a vector is not finite or has another width.
        OSError: if the disk is full or cannot be written.
    """
    if vectors.shape != (len(names), index.width) or not np.isfinite(vectors).all():
        raise ValueError(
            f"{index.folder}: expected {len(names)} finite vectors of width {index.width}, got "
            f"{vectors.shape}; {index.recipe.encoder} does not work with "
            f"{index.recipe.precision}, take another device."
        )
    paths = np.array([name.encode("utf-8", "surrogateescape") for name in names])
    keys = np.empty(len(names), [("sha256", "u1", (32,)), ("path", paths.dtype)])
    keys["sha256"] = np.frombuffer(bytes.fromhex("".join(sha256)), np.uint8).reshape(-1, 32)
    keys["path"] = paths
    index.last_number += 1
    parts = []
    for ending, array in (("vectors.npy", vectors.astype(DTYPES[index.dtype])), ("keys.npy", keys)):
        with new_part(index.folder, index.last_number, ending) as temporary:
            with open(temporary, "wb") as out:
                np.save(out, array, allow_pickle=False)
            parts.append(describe_part(temporary))
    return Segment(index.last_number, len(names), *parts)


@contextmanager
def new_part(folder: Path, number: int, ending: str) -> Iterator[Path]:
    """A temporary file that takes the name of a part if the block succeeds."""
    with atomic_path(_file(folder, number, ending)) as temporary:
        yield temporary
        # The manifest must not reach the disk before what it names.
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())


def describe_part(file: Path) -> Part:
    """Size and SHA-256 of a file."""
    return Part(file.stat().st_size, sha256_file(file))


def commit(index: Index) -> None:
    """Replace the manifest: what it names now is the index."""
    value = {
        "format": INDEX_FORMAT,
        **{key: getattr(index, key) for key in ("pictures", "dtype", "width")},
        "recipe": dataclasses.asdict(index.recipe),
        "last_number": index.last_number,
        "unfinished": index.unfinished,
        "approximate": dataclasses.asdict(index.approximate) if index.approximate else None,
        "segments": [dataclasses.asdict(segment) for segment in index.segments],
    }
    write_json(index.folder / MANIFEST, {**value, "sha256": sha256_json(value)})


def sweep(index: Index) -> None:
    """Remove files of ours that the index does not name: of changes made, or broken off."""
    named = _parts(index).keys()
    files = [path for path in (index.folder / SEGMENTS).glob("*") if _OURS.fullmatch(path.name)]
    for path in [*files, *index.folder.glob(".index-*.json")]:
        if path not in named:
            try:
                path.unlink()
            except PermissionError:
                continue  # Windows, while somebody searches in it; the next build removes it


@contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Make an index's folder and hold its lock, so that two builds never share it.

    Raises:
        ValueError: if another build is at work, or the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / MANIFEST).is_file():
        others = [] if folder.is_dir() else [folder]
        if folder.is_dir():
            known = (LOCK, SEGMENTS)
            others = [
                path
                for path in sorted(folder.iterdir())
                if path.name not in known and not path.match(".index-*.json")
            ]
        if others:
            raise ValueError(
                f"{folder} is no index and not empty ({others[0].name}); give a new folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)  # its holder's death frees it
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder}: another build is at work in this index; wait for it to end."
        ) from None
    try:
        yield
    finally:
        lock.release()


def name_fault(name: str) -> str:
    """Why a path may not be a key, on any system; "" if it may."""
    ways = (PurePosixPath(name), PureWindowsPath(name))
    if not name or "\0" in name or any(way.anchor for way in ways):
        return "is no path relative to the folder of the pictures"
    if any(".." in way.parts for way in ways):
        return "leads out of the folder of the pictures"
    return ""


def display_name(name: str) -> str:
    """A name for the screen: what could steer a terminal, or is no text, becomes a mark."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


class _ManifestError(Exception):
    """A manifest that is read well and refused; its words say what to do."""


def _parse(folder: Path, value: dict) -> Index:
    """Build an index from its manifest's JSON; KeyError or TypeError where it does not fit."""
    kinds = {"pictures": str, "width": int, "unfinished": int, "segments": list}
    for key, kind in kinds.items():
        if type(value[key]) is not kind:
            raise TypeError(f"{key} is {value[key]!r}")
    recipe = _typed(Recipe, value["recipe"])
    segments = tuple(
        _typed(Segment, {**entry, **{key: _part(entry[key]) for key in ("vectors", "keys")}})
        for entry in value["segments"]
    )
    approximate = value["approximate"]
    if approximate is not None:
        approximate = _typed(Approximate, {**approximate, "file": _part(approximate["file"])})
    numbers = [segment.number for segment in segments]
    if approximate is not None:
        numbers.append(approximate.number)
    if len(set(numbers)) < len(numbers) or not all(0 < n <= value["last_number"] for n in numbers):
        raise ValueError("numbers of its files repeat or are out of range")
    if not all(segment.rows > 0 for segment in segments) or value["width"] < 1:
        raise ValueError("a segment without rows or columns")
    if value["dtype"] not in DTYPES:
        raise ValueError(f"dtype {value['dtype']!r}, expected {' or '.join(DTYPES)}")
    fields = ("pictures", "dtype", "width", "last_number", "unfinished")
    rest = {key: value[key] for key in fields}
    return Index(folder, recipe, segments=segments, approximate=approximate, **rest)


def _part(entry: dict) -> Part:
    part = _typed(Part, entry)
    if part.bytes < 0 or not re.fullmatch(r"[0-9a-f]{64}", part.sha256):
        raise ValueError(f"a file of {part.bytes} bytes with SHA-256 {part.sha256[:80]!r}")
    return part


def _typed(kind: type, entry: dict):
    """An instance of a dataclass from JSON, each field of exactly its type."""
    made = kind(**entry)
    for known in dataclasses.fields(kind):
        got = type(getattr(made, known.name)).__name__
        if got != known.type:
            raise TypeError(f"{known.name} is a {got}, expected {known.type}")
    return made


def _file(folder: Path, number: int, ending: str) -> Path:
    return folder / SEGMENTS / f"{number:06}.{ending}"


def _parts(index: Index) -> dict[Path, Part]:
    """Every file that the manifest names."""
    parts = {}
    for segment in index.segments:
        parts[_file(index.folder, segment.number, "vectors.npy")] = segment.vectors
        parts[_file(index.folder, segment.number, "keys.npy")] = segment.keys
    if index.approximate:
        parts[_file(index.folder, index.approximate.number, "faiss")] = index.approximate.file
    return parts


def _mend(index: Index) -> str:
    return (
        "take the folder from a copy, or build the index anew: "
        f"entrep index {index.pictures} --out NEW"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

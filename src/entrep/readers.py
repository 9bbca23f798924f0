"""One file of the challenge at a time: a text list, a JSON file, labels, a picture; all checked."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from entrep.labels import CLASS_NAMES, CLASS_TO_INDEX

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
_FORMATS = ("PNG", "JPEG")  # of all that PIL can open, some start other programs
MAX_PIXELS = 50_000_000  # a picture of the challenge has 0.3 million

ZERO_BYTES = "zero-byte pictures"
UNREADABLE = "unreadable or truncated pictures"
TOO_LARGE = "pictures over 50 megapixels"

# Everything a loader looks out for and can live with, and what is done about it.
CHECKS = {
    "byte-order marks": "skipped",
    "CRLF line ends": "read as line ends",
    "blank lines": "skipped",
    "repeated lines": "answered once",
    "quoted lines": "the quotes taken off",
    "lines with white space at an end": "kept to the letter",
    "repeated JSON keys": "equal values read once; several answers all kept",
    ZERO_BYTES: "left out",
    UNREADABLE: "left out",
    TOO_LARGE: "left out",
    "copies of a file": "same name and content in two places, read once",
    "names that differ in case only": "taken for the picture",
    "labels without a picture": "left out",
    "pictures without a label": "not trained on",
    "labels that disagree": "cls.json counts",
    "identical pictures with different labels": "kept; at most one label can be right",
    "pairs without a picture": "left out",
    "phrases without a picture": "left out",
    "descriptions without a picture": "left out",
    "descriptions without a type": "type left empty",
}

# First lines that somebody's table program added to a list that has no header.
_HEADER_WORDS = {"text", "query", "queries", "phrase", "caption", "description", "finding", "t2i"}


class DataError(ValueError):
    """The challenge's folder cannot be used as it is; the message says why and how to mend it."""


class Notes:
    """Offenders by kind of trouble (the keys of `CHECKS`), each once, in the order met."""

    def __init__(self, root: Path) -> None:
        """Paths below `root` are noted relative to it."""
        self.root = root
        self.found: dict[str, dict[str, None]] = {what: {} for what in CHECKS}

    def add(self, what: str, offender: str | Path) -> None:
        """Note one offender."""
        self.found[what][self.name(offender) if isinstance(offender, Path) else offender] = None

    def name(self, path: Path) -> str:
        """A file's name for the report: its POSIX path below the root."""
        return path.relative_to(self.root).as_posix()


def first_three(items: Iterable[object]) -> str:
    """The first three items and how many more there are."""
    items = [str(item) for item in items]
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more


def read_text(path: Path, notes: Notes) -> str:
    """Read a UTF-8 file; a byte-order mark is skipped, every line end becomes a line feed.

    Raises:
        DataError: if the file cannot be read or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if data.startswith(b"\xef\xbb\xbf"):
        notes.add("byte-order marks", path)
        data = data[3:]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        utf16 = " (it looks like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8{utf16}; save it as UTF-8.") from error
    if "\r" in text:
        notes.add("CRLF line ends", path)
        text = re.sub(r"\r\n?", "\n", text)
    return text


def read_list(path: Path, notes: Notes, *, of_names: bool) -> tuple[str, ...]:
    r"""Read a list of the test data: one picture name or one phrase a line, no header.

    A line is an answer's key and stays as it is, commas, brackets and capitals included:
    it is not split into CSV fields. One exception: table programs put a phrase that holds a
    comma into double quotes and double the quotes inside. A line that is wholly so
    (`"a ""b"", c"`) loses them; a line with any other use of quotes stays as it is.

    Raises:
        DataError: if the file is empty, has a header, or lists the other kind of thing.
    """
    unique: dict[str, None] = {}
    for number, line in enumerate(read_text(path, notes).rstrip("\n").split("\n"), start=1):
        if not line.strip():
            notes.add("blank lines", f"{notes.name(path)}, line {number}")
            continue
        if re.fullmatch(r'"(?:[^"]|"")+"', line):
            notes.add("quoted lines", line)
            line = line[1:-1].replace('""', '"')
        if of_names:
            line = line.strip()
        elif line != line.strip():
            notes.add("lines with white space at an end", repr(line))
        if line in unique:
            notes.add("repeated lines", line)
        unique[line] = None
    lines = tuple(unique)
    if not lines:
        raise DataError(f"{path} is empty; copy it again from the challenge, or remove it.")
    names = [line.lower().endswith(PICTURE_SUFFIXES) for line in lines]
    if of_names and any("," in line for line in lines):
        line = next(line for line in lines if "," in line)
        raise DataError(f"{path}: expected one file name a line and no columns; got {line!r}.")
    if of_names and not names[0]:
        raise DataError(
            f"{path}, line 1: expected a picture's file name, got {lines[0]!r}. "
            "The challenge's lists have no header; delete it if this is one."
        )
    if not of_names and lines[0].strip().lower() in _HEADER_WORDS:
        raise DataError(
            f"{path}, line 1: {lines[0]!r} is a header. "
            "The challenge's lists have none; delete that line."
        )
    if not of_names and all(names):
        raise DataError(f"{path}: expected phrases, got file names such as {lines[0]!r}.")
    return lines


def read_object(path: Path, notes: Notes) -> list[tuple[str, object]]:
    """Read a JSON object as (key, value) pairs in file order.

    A key that repeats with the same value is given once; with another value, each time.

    Raises:
        DataError: if the file is no JSON or its top is no object.
    """
    value = _read_json(path, notes)
    if not isinstance(value, _Pairs):
        raise DataError(
            f'{path}: expected an object {{"<key>": "<value>", …}}, got a {_kind(value)}.'
        )
    seen: dict[str, list[object]] = {}
    pairs = []
    for key, item in value:
        if key in seen:
            notes.add("repeated JSON keys", key)
            if item in seen[key]:
                continue
        seen.setdefault(key, []).append(item)
        pairs.append((key, item))
    return pairs


def read_text_object(path: Path, notes: Notes) -> list[tuple[str, str]]:
    """`read_object` for texts: (key, value) pairs whose values are all text.

    Raises:
        DataError: as `read_object`, or if a value is not text.
    """
    pairs = read_object(path, notes)
    for key, value in pairs:
        if not isinstance(value, str):
            raise DataError(f"{path}, key {key!r}: expected a file name, got a {_kind(value)}.")
    return pairs


def read_rows(path: Path, notes: Notes) -> list[dict[str, str]]:
    """Read `data.json`: a list of objects with a `Path`; a field that is null or absent is "".

    Raises:
        DataError: if the file is no JSON, no such list, or a field is not text.
    """
    value = _read_json(path, notes)
    if isinstance(value, _Pairs) or not isinstance(value, list):
        raise DataError(f"{path}: expected a list of objects, got a {_kind(value)}.")
    rows = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, _Pairs):
            raise DataError(f"{path}, row {number}: expected an object, got a {_kind(item)}.")
        row = dict.fromkeys(("Path", "Classification", "Type", "Description", "DescriptionEN"), "")
        row.update((key, field) for key, field in item if key in row and field is not None)
        wrong = [key for key, field in row.items() if not isinstance(field, str)]
        if wrong or not row["Path"]:
            key = wrong[0] if wrong else "Path"
            raise DataError(f"{path}, row {number}: expected a text under {key!r}.")
        rows.append(row)
    return rows


def class_indices(path: Path, pairs: Iterable[tuple[str, object]]) -> dict[str, int]:
    """Class indices by file name, from (name, class name) pairs that `path` gave.

    Raises:
        DataError: if a label is none of the seven, or a name has two of them.
    """
    labels: dict[str, int] = {}
    wrong, conflicts = [], []
    for name, value in pairs:
        index = CLASS_TO_INDEX.get(value) if isinstance(value, str) else None
        if index is None:
            wrong.append(f"{name}: {value!r}{_label_hint(value)}")
        elif labels.setdefault(base_name(name), index) != index:
            conflicts.append(name)
    if wrong:
        raise DataError(
            f"{path}: {len(wrong)} wrong label(s): {first_three(wrong)}. "
            f"Expected one of {', '.join(CLASS_NAMES)}."
        )
    if conflicts:
        raise DataError(
            f"{path}: {len(conflicts)} name(s) with two different labels: "
            f"{first_three(conflicts)}. Keep the right one of each."
        )
    return labels


def _label_hint(value: object) -> str:
    text = str(value)
    if text.isdecimal():
        right = f"; {text} would be {CLASS_NAMES[int(text)]!r}" if int(text) < 7 else ""
        return f" (a number{right}; write the class name)"
    near = difflib.get_close_matches(plain_name(text), CLASS_NAMES, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def plain_name(name: str) -> str:
    """A folder's name in the spelling of the classes: "0_Nose Right" is "nose-right"."""
    words = re.sub(r"([a-z])([A-Z])", r"\1-\2", name).lower()
    return re.sub(r"[^a-z]+", "-", words).strip("-")


def base_name(name: str) -> str:
    """A file's name without the folders that a list may write before it."""
    return re.split(r"[\\/]", name)[-1]


class _Pairs(list):
    """A JSON object as its pairs, so that repeated keys can be seen."""


def _read_json(path: Path, notes: Notes) -> object:
    try:
        return json.loads(read_text(path, notes), object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno} column {error.colno}: broken JSON ({error.msg}); "
            "the file may be cut off: copy it again."
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply to be a file of the challenge.") from error


def _kind(value: object) -> str:
    names = {_Pairs: "object", list: "list", str: "text", bool: "truth value", type(None): "null"}
    return names.get(type(value), f"number ({value})")


@dataclass(frozen=True)
class PictureFile:
    """A picture's bytes, judged: `trouble` is a key of `CHECKS`, `fault` says it in words."""

    sha256: str
    trouble: str = ""
    fault: str = ""


def check_picture(path: Path) -> PictureFile:
    """Read a picture once; hash it and find out whether it is whole.

    A PNG is checked by its chunk lengths and checksums up to the end mark, which finds any
    cut or changed byte without decoding the pixels; other formats are decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        return PictureFile("", UNREADABLE, error.strerror or "cannot be read")
    digest = hashlib.sha256(data).hexdigest()
    if not data:
        return PictureFile(digest, ZERO_BYTES, "zero bytes")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            pixels = picture.width * picture.height
            if pixels > MAX_PIXELS:
                raise Image.DecompressionBombError
            if picture.format == "PNG":
                fault = _png_fault(memoryview(data))
            else:
                picture.load()
                fault = ""
    except Image.DecompressionBombError:
        return PictureFile(digest, TOO_LARGE, "more than 50 megapixels")
    except Image.UnidentifiedImageError:
        fault = "neither PNG nor JPEG"
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        fault = f"cannot be decoded: {error}"
    return PictureFile(digest, UNREADABLE if fault else "", fault)


def check_header(path: Path) -> str:
    """Why a picture is not to be decoded, as far as its first bytes tell; "" if it may be.

    `check_picture` reads all of a file; this is for those that are decoded anyway.
    """
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            pixels = picture.width * picture.height
    except Image.DecompressionBombError:
        return "more than 50 megapixels"
    except Image.UnidentifiedImageError:
        return "neither PNG nor JPEG"
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        return f"cannot be decoded: {error}"
    return "more than 50 megapixels" if pixels > MAX_PIXELS else ""


def _png_fault(data: memoryview) -> str:
    position, has_pixels = 8, False
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            return "truncated"
        kind = bytes(data[position + 4 : position + 8])
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return "damaged (wrong checksum)"
        has_pixels = has_pixels or kind == b"IDAT"
        if kind == b"IEND":
            return "" if has_pixels else "no pixels in it"
        position = end
    return "truncated"

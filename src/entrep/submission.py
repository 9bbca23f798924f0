"""The three submissions: a writer with reproducible bytes and a checker that trusts nothing."""

from __future__ import annotations

import io
import json
import reprlib
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from entrep.artifacts import write_json, write_zip
from entrep.data import Challenge, TestSplit
from entrep.labels import CLASS_NAMES, CLASS_TO_INDEX

# What a track asks for: the attribute of `TestSplit` that lists its keys.
QUERIES_OF_TRACK = {1: "classify", 2: "image_queries", 3: "text_queries"}

# A whole submission has some 100 kB; what is larger, or says it unpacks to more, is not read.
MAX_BYTES = 16_000_000

# What zipfile raises for damaged archives: it promises BadZipFile, fuzzing shows the others.
_ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OverflowError,
    RuntimeError,
    ValueError,
)

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 100


def choose_split(challenge: Challenge, track: int, split: str = "auto") -> str:
    """Pick the test set that a track's submission answers, a key of `challenge.tests`.

    Args:
        challenge: what `data.find_challenge` found.
        track: 1 (classify), 2 (image to image) or 3 (text to image).
        split: a test set's name; "auto" takes the private one if it lists queries for this
            track, else the public one, else the one whose name tells neither ("test").

    Raises:
        ValueError: for an unknown track or split, or if there is nothing to answer.
    """
    names = ("private", "public", "test")
    if track not in QUERIES_OF_TRACK:
        raise ValueError(f"track: expected 1, 2 or 3; got {track!r}.")
    if split not in ("auto", *names):
        raise ValueError(f"split: expected auto, {', '.join(names)}; got {split!r}.")
    there = [n for n in names if n in challenge.tests and queries_of(challenge.tests[n], track)]
    if split == "auto" and there:
        return there[0]
    if split in there:
        return split
    which = "" if split == "auto" else f"{split} "
    raise ValueError(
        f"{challenge.root} has no {which}list of queries for track {track} "
        f"(lists found: {', '.join(there) or 'none'}); "
        "put the challenge's list below that folder, or choose another split."
    )


def splits_to_answer(challenge: Challenge, split: str = "auto") -> dict[int, str]:
    """The test set of every track that has a list; empty where the data has no lists at all.

    Raises:
        ValueError: if `split` names a test set that is not there.
    """
    if split != "auto" and split not in challenge.tests:
        there = ", ".join(challenge.tests) or "none"
        raise ValueError(f"split: {challenge.root} has no {split} test lists (found: {there}).")
    return {
        track: choose_split(challenge, track, split)
        for track in QUERIES_OF_TRACK
        if any(queries_of(test, track) for test in _chosen_tests(challenge, split))
    }


def _chosen_tests(challenge: Challenge, split: str) -> list[TestSplit]:
    return [test for name, test in challenge.tests.items() if split in ("auto", name)]


def queries_of(test: TestSplit, track: int) -> tuple[str, ...]:
    """The keys that a track's submission for this test set must have, in list order."""
    return getattr(test, QUERIES_OF_TRACK[track])


def write_submission(
    track: int, answers: Mapping[str, int | str], folder: str | Path
) -> tuple[Path, Path]:
    """Write `track<N>.json` and, with nothing else in it, `track<N>.zip`.

    The same answers give the same bytes everywhere, see `write_zip`.

    Args:
        track: 1, 2 or 3.
        answers: class index (track 1) or gallery file name (2, 3) by query, in list order.
        folder: where to write; made if need be.

    Returns:
        The paths of the JSON file and of the zip.

    Raises:
        ValueError: for an unknown track, no answer, or an answer of the wrong type.
    """
    if track not in QUERIES_OF_TRACK:
        raise ValueError(f"track: expected 1, 2 or 3; got {track!r}.")
    if not answers:
        raise ValueError(f"track {track}: there is no answer to write.")
    plain = {query: _plain(track, query, answer) for query, answer in answers.items()}
    json_path = Path(folder) / f"track{track}.json"
    zip_path = json_path.with_suffix(".zip")
    write_json(json_path, plain)

    write_zip(zip_path, {json_path.name: json_path})
    return json_path, zip_path


def _plain(track: int, query: str, answer: object) -> int | str:
    """The answer as plain int or text; NumPy's are welcome, a bool or a float is a mistake."""
    if track == 1 and isinstance(answer, int | np.integer) and not isinstance(answer, bool):
        return int(answer)
    if track != 1 and isinstance(answer, str):
        return str(answer)
    wanted = "a class index (int)" if track == 1 else "a file name (str)"
    raise ValueError(f"track {track}, {query!r}: expected {wanted}, got {answer!r}.")


def check_submission(
    path: str | Path, track: int, challenge: Challenge, split: str = "auto"
) -> list[str]:
    """Check a submission as strictly as a server may, sharing no code with the writer.

    Args:
        path: a `.json`, or a `.zip` that holds exactly one JSON file at its root.
        track: 1, 2 or 3.
        challenge: what `data.find_challenge` found: the lists and the gallery.
        split: see `choose_split`.

    Returns:
        Every problem found, a sentence each, with a count and the first three offenders;
        an empty list for a submission that is fine.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `choose_split`.
    """
    test = challenge.tests[choose_split(challenge, track, split)]
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or no file; give a .json or a .zip.")
    problems: list[str] = []
    data = _read(path, problems)
    pairs = None if data is None else _parse(data, problems)
    if pairs is not None:
        _check_keys(pairs, queries_of(test, track), problems)
        if track == 1:
            _check_classes(pairs, problems)
        else:
            _check_pictures(pairs, set(test.gallery), problems)
    return problems


def _read(path: Path, problems: list[str]) -> bytes | None:
    """The bytes of the JSON, from the file itself or out of the zip."""
    if path.suffix not in (".json", ".zip"):
        problems.append(f"The file is called {path.name!r}; expected a name in .json or .zip.")
        return None
    size = path.stat().st_size
    if size > MAX_BYTES:
        problems.append(f"The file has {size:,} bytes; expected at most {MAX_BYTES:,}.")
        return None
    data = path.read_bytes()
    if path.suffix == ".json":
        if data.startswith(b"PK\x03\x04"):
            problems.append("The file is a zip archive; call it .zip.")
            return None
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read_entry(archive, problems)
    except _ZIP_FAULTS as error:
        problems.append(f"The file is not a whole zip archive ({error}); zip the JSON again.")
        return None


def _read_entry(archive: zipfile.ZipFile, problems: list[str]) -> bytes | None:
    entries = archive.infolist()
    # zipfile turns backslashes into slashes on Windows only.
    nested = [e.filename for e in entries if "/" in e.filename or "\\" in e.filename]
    if nested:
        problems.append(
            f"The zip holds folders ({_some(nested)}); zip the JSON file alone, not its folder."
        )
    at_root = [e for e in entries if e.filename not in nested]
    found = [e for e in at_root if e.filename.endswith(".json") and e.filename[0] != "."]
    other = [e.filename for e in at_root if e not in found]
    if other:
        problems.append(f"The zip holds other files than the JSON ({_some(other)}); remove them.")
    if len(found) != 1:
        names = f" ({_some(e.filename for e in found)})" if found else ""
        problems.append(f"The zip holds {len(found)} JSON files at its root{names}; expected 1.")
        return None
    entry = found[0]
    if entry.flag_bits & 1:
        problems.append(f"{entry.filename!r} is encrypted; zip it without a password.")
    elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problems.append(
            f"{entry.filename!r} is compressed by method {entry.compress_type}; "
            "expected it stored (0) or deflated (8)."
        )
    elif entry.file_size > MAX_BYTES:
        problems.append(
            f"{entry.filename!r} unpacks to {entry.file_size:,} bytes; "
            f"expected at most {MAX_BYTES:,}."
        )
    else:
        with archive.open(entry) as file:
            # With a limit, since the declared size may be a lie; past the end, for the CRC.
            return file.read(MAX_BYTES + 1)
    return None


def _parse(data: bytes, problems: list[str]) -> dict[str, object] | None:
    """The JSON's object; of a duplicate key the last value, as most readers take it."""
    if data.startswith(b"\xef\xbb\xbf"):
        problems.append("The JSON starts with a byte-order mark; save it as UTF-8 without BOM.")
        data = data[3:]
    duplicates: list[str] = []

    def as_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
        counts = Counter(key for key, _ in pairs)
        duplicates.extend(key for key, count in counts.items() if count > 1)
        return dict(pairs)

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=as_dict)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.append(f"The JSON is not UTF-8, first in line {line}; save it as UTF-8.")
        return None
    except (ValueError, RecursionError) as error:
        problems.append(f"The file is no valid JSON: {error}.")
        return None
    if duplicates:
        problems.append(_offence("Keys that stand there more than once", duplicates))
    if not isinstance(value, dict):
        problems.append(
            f"The JSON is a {type(value).__name__}; "
            'expected one object {"<query>": <answer>, ...}.'
        )
        return None
    return value


def _check_keys(pairs: dict[str, object], queries: tuple[str, ...], problems: list[str]) -> None:
    listed = dict.fromkeys(queries)
    missing = [query for query in listed if query not in pairs]
    extra = [key for key in pairs if key not in listed]
    if missing:
        problems.append(_offence("Listed queries without an answer", missing))
    if extra:
        problems.append(_offence("Keys that are not on the list", extra))
    alike = {_loosely(query): query for query in missing}
    for key in extra:
        if _loosely(key) in alike:
            problems.append(
                f"Keys are matched to the letter: {ascii(key)} is not "
                f"{ascii(alike[_loosely(key)])}; copy the keys from the list."
            )
            break  # one example says it


def _check_classes(pairs: dict[str, object], problems: list[str]) -> None:
    last = len(CLASS_NAMES) - 1
    names = {key: value for key, value in pairs.items() if value in CLASS_NAMES}
    # JSON's true and 1.0 equal 1 in Python, but are not what the server asks for.
    others = {k: v for k, v in pairs.items() if type(v) is not int and k not in names}
    outside = {k: v for k, v in pairs.items() if type(v) is int and not 0 <= v <= last}
    if names:
        name = next(iter(names.values()))
        hint = f"write its official index, for {name!r} {CLASS_TO_INDEX[name]}"
        problems.append(_offence("Answers that are a class name", names, hint))
    if others:
        hint = f"write 0..{last} without quotes or decimals"
        problems.append(_offence("Answers that are no whole number", others, hint))
    if outside:
        hint = f"the classes are 0..{last}"
        problems.append(_offence("Answers that are no class index", outside, hint))


def _check_pictures(pairs: dict[str, object], gallery: set[str], problems: list[str]) -> None:
    others = {key: value for key, value in pairs.items() if not isinstance(value, str)}
    unknown = {k: v for k, v in pairs.items() if isinstance(v, str) and v not in gallery}
    if others:
        hint = "write one file name, as text"
        problems.append(_offence("Answers that are no file name", others, hint))
    if unknown:
        hint = f"write the name of one of its {len(gallery)} files, without folder, with ending"
        problems.append(_offence("Answers that are not in the gallery", unknown, hint))


def _loosely(key: str) -> str:
    """The key without what the eye overlooks: case, white space, composed letters."""
    return " ".join(unicodedata.normalize("NFKC", key).casefold().split())


def _offence(what: str, offenders: Mapping[str, object] | list[str], hint: str = "") -> str:
    """`<what> (<count>): <the first three>; <hint>`, as a sentence."""
    return f"{what} ({len(offenders)}): {_some(offenders)}" + (f"; {hint}." if hint else ".")


def _some(offenders: Mapping[str, object] | Iterable[str]) -> str:
    """The first three, each on one line and shortened, and how many more there are."""
    if isinstance(offenders, Mapping):
        shown = [f"{_shortened.repr(k)}: {_shortened.repr(v)}" for k, v in offenders.items()]
    else:
        shown = [_shortened.repr(name) for name in offenders]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")

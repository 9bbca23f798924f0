"""Files that are whole or not there: atomic writes, SHA-256 and the table of what a step saved."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` if the block succeeds.

    Readers see the old file or the whole new one, never half of it. If the block
    raises, or is interrupted, the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; a result may be read by whoever may read its folder.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with line-feed ends on every system, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented UTF-8 JSON, keys in the order given, atomically."""
    write_text(path, format_json(value))


def format_json(value: object) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: str | Path) -> object:
    """Read one of our own JSON files."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV without its index, floats to 6 decimals, atomically.

    Six decimals are the kit's precision for every score that a later step decides on:
    the last bits of a float32 differ between processors, these digits do not.
    """
    text = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    write_text(path, text)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table of `write_table`; empty cells come back as empty text, not as NaN."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there. It is written by notebook {path.parent.name}; "
            "run that one first, with the same work_dir."
        )
    text = dict.fromkeys(("path", "image_id", "query", "answer"), str)  # never a number
    return pd.read_csv(path, dtype=text, keep_default_na=False, encoding="utf-8")


def save_arrays(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Save arrays as safetensors with text metadata, atomically."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata or {}))


def load_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Load the arrays and the metadata of a safetensors file.

    Raises:
        FileNotFoundError: if there is no such file; the message names the notebook to run.
        ValueError: if the file is no safetensors file or is cut off.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there. It is written by notebook {path.parent.name}; "
            "run that one first, with the same work_dir."
        )
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            return arrays, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); delete it and run again."
        ) from error


def write_zip(path: str | Path, members: Mapping[str, bytes | Path]) -> None:
    """Write a zip of the same bytes everywhere, atomically.

    Members are sorted by name and stored, not deflated (compressors differ between builds);
    their time, permissions and system are fixed.

    Args:
        path: of the zip.
        members: content by name, or the file that holds it.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in sorted(members.items()):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, also where this runs on Windows
            entry.external_attr = 0o100644 << 16  # a plain file, rw-r--r--
            if isinstance(content, bytes):
                archive.writestr(entry, content)
                continue
            entry.file_size = content.stat().st_size  # or zipfile takes it for a small one
            with open(content, "rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def keep_arrays(
    path: Path | None, key: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """The arrays that an earlier call with the same key saved, or made now, and saved.

    What is learned enlarges the last bits in which two machines' numbers differ; so what was
    learned from the same things is taken as it was saved.

    Args:
        path: of the safetensors file; None: nothing is kept.
        key: digest of all that the arrays depend on.
        make: gives them.
    """
    if path is not None and path.is_file():
        arrays, metadata = load_arrays(path)
        if metadata.get("key") == key:
            return arrays
    arrays = make()
    if path is not None:
        save_arrays(path, arrays, {"key": key})
    return arrays


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """SHA-256 of a value's canonical JSON: keys sorted, no white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def list_files(folder: str | Path) -> list[Path]:
    """All finished files below `folder`, sorted by their POSIX path; hidden names are left out."""
    folder = Path(folder)
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def hash_folder(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by POSIX path relative to it."""
    folder = Path(folder)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in list_files(folder)}


def link_folder(source: str | Path, target: str | Path) -> None:
    """Let `target` hold the finished files of `source`, and nothing else.

    Hard links where the file system has them, so that nothing is stored twice, else copies.
    Safe as long as files are replaced and never written into, which `atomic_path` sees to. A
    `source` that is not there leaves no `target`.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        shutil.rmtree(target)
    for path in list_files(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        link_file(path, copy)


def link_file(source: str | Path, target: str | Path) -> None:
    """Let `target`, which may be there, be the same file as `source`, or a copy of it."""
    target = Path(target)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links; a full one fails again
        shutil.copy2(source, target)


def describe_artifacts(folder: str | Path) -> pd.DataFrame:
    """Table of the files that a notebook saved: file, content, kB, sha256 (first 12 digits)."""
    folder = Path(folder)
    rows = []
    for path in list_files(folder):
        content = ""
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}
            shapes = [f"{n} {tuple(s.get_shape())} {s.get_dtype()}" for n, s in slices.items()]
            content = "; ".join(shapes[:3]) + ("; …" if len(shapes) > 3 else "")
        elif path.suffix == ".csv":
            table = read_table(path)
            content = f"{len(table)} rows: {', '.join(table.columns[:4])}" + (
                ", …" if table.shape[1] > 4 else ""
            )
        rows.append(
            {
                "file": path.relative_to(folder).as_posix(),
                "content": content,
                "kB": round(path.stat().st_size / 1000, 1),
                "sha256": sha256_file(path)[:12],
            }
        )
    return pd.DataFrame(rows, columns=["file", "content", "kB", "sha256"])

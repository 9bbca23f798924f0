"""What Kaggle accepts: its slugs, and strict checks of kernel and data set metadata.

The official client lets most mistakes pass (an unknown key, a title that does not fit its slug,
a missing switch that then means "internet on"), and the server answers some of them late or not
at all. Here everything that is not known to be right is refused before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tqdm import tqdm

from entrep.artifacts import read_json, sha256_file, write_json

KERNEL_FILE, DATASET_FILE = "kernel-metadata.json", "dataset-metadata.json"
MANIFEST_FILE = "MANIFEST.json"  # of a folder that a kernel will mount: its files' SHA-256
TITLE_LENGTHS = {KERNEL_FILE: (5, 50), DATASET_FILE: (6, 50)}  # 50: known for data sets only
MAX_SOURCE_BYTES = 800_000  # of a notebook; 0.9 MB passed, 1.2 MB was refused
MAX_FILES = 50  # at the top of a data set
SHAPES = ("", "NvidiaTeslaT4", "TpuV5E8")  # "": a CPU; a T4 is always two of them
LICENCES = (
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-SA-4.0",
    "CC-BY-NC-SA-4.0",
    "apache-2.0",
    "copyright-authors",
    "other",
    "unknown",
)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".pt", ".pth")
"""Endings that Kaggle unpacks, or may unpack (a `.pt` is a zip inside)."""

_SLUG = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_OWNER = r"[a-z0-9][a-z0-9_-]*"
_ID = rf"{_OWNER}/{_SLUG}"
SOURCE_FORMS = {
    "dataset_sources": (_ID, "owner/slug"),
    "competition_sources": (_SLUG, "slug"),
    "kernel_sources": (_ID, "owner/slug"),
    "model_sources": (rf"{_ID}/\w+/[\w.-]+/\d+", "owner/model/framework/variation/version"),
}
_KERNEL_KEYS = {
    "id": str,
    "title": str,
    "code_file": str,
    "language": str,
    "kernel_type": str,
    "is_private": bool,
    "enable_gpu": bool,
    "enable_tpu": bool,
    "enable_internet": bool,
    "machine_shape": str,
    "keywords": list,
    **dict.fromkeys(SOURCE_FORMS, list),
}
_DATASET_KEYS = {"id": str, "title": str, "licenses": list}


def slugify(title: str) -> str:
    """The slug that Kaggle makes of a title: lower case, all else than letters and digits to -."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def write_manifest(folder: str | Path, names: Iterable[str]) -> str:
    """Write `MANIFEST.json` over files of a folder; what mounts the folder checks it first.

    Returns:
        The SHA-256 of the manifest itself, which stands for all of its files.
    """
    folder = Path(folder)
    names = sorted(names)
    files = {name: sha256_file(folder / name) for name in tqdm(names, "hash", unit="file")}
    write_json(folder / MANIFEST_FILE, {"format": 1, "files": files})
    return sha256_file(folder / MANIFEST_FILE)


def read_kernel(folder: str | Path) -> dict:
    """Read and check a kernel's folder: its metadata and its notebook.

    Raises:
        FileNotFoundError: if there is no metadata file.
        ValueError: names the file and everything that is wrong with it.
    """
    path = Path(folder) / KERNEL_FILE
    data = _read_object(path)
    problems = _check_keys(data, _KERNEL_KEYS, optional=("machine_shape",))
    if not problems:
        problems = _check_name(data, KERNEL_FILE) + _check_sources(data)
        problems += _check_machine(data) + _check_notebook(Path(folder), data)
    _refuse(path, problems)
    return data


def read_dataset(folder: str | Path) -> dict:
    """Read and check a data set's folder: its metadata, and its files as far as Kaggle cares.

    Raises:
        FileNotFoundError: if there is no metadata file.
        ValueError: names the file and everything that is wrong with it.
    """
    path = Path(folder) / DATASET_FILE
    data = _read_object(path)
    problems = _check_keys(data, _DATASET_KEYS)
    if not problems:
        problems = _check_name(data, DATASET_FILE) + _check_files(Path(folder))
        names = [entry.get("name") for entry in data["licenses"] if isinstance(entry, dict)]
        if len(data["licenses"]) != 1 or len(names) != 1 or names[0] not in LICENCES:
            problems.append(
                f"licenses: expected one {{'name': ...}} of {', '.join(LICENCES)}; "
                f"got {data['licenses']!r}"
            )
    _refuse(path, problems)
    return data


def _read_object(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; give a folder that 'entrep kaggle build' made."
        )
    try:
        data = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON ({error}); build it again.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected one JSON object; build it again.")
    return data


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}.")


def _check_keys(
    data: Mapping[str, object], types: Mapping[str, type], optional: tuple[str, ...] = ()
) -> list[str]:
    problems = [f"{key}: there is no such key" for key in data if key not in types]
    for key, expected in types.items():
        if key not in data:
            if key not in optional:
                problems.append(f"{key}: missing; write it out, whatever the default is")
        elif type(data[key]) is not expected:
            problems.append(f"{key}: expected {expected.__name__}, got {data[key]!r}")
    return problems


def _check_name(data: Mapping[str, str], kind: str) -> list[str]:
    """The id, the title, and that the one is the slug of the other."""
    low, high = TITLE_LENGTHS[kind]
    title, slug = data["title"], data["id"].rpartition("/")[2]
    problems = []
    if not re.fullmatch(_ID, data["id"]):
        problems.append(f"id: expected owner/slug in lower case, got {data['id']!r}")
    for what, text in (("title", title), ("slug of the id", slug)):
        if not low <= len(text) <= high:
            problems.append(f"{what}: expected {low} to {high} characters, got {len(text)}")
    if slug != slugify(title):
        problems.append(
            f"id: Kaggle makes the slug {slugify(title)!r} of the title {title!r}, "
            f"but the id says {slug!r}"
        )
    return problems


def _check_sources(data: Mapping[str, list]) -> list[str]:
    problems = []
    for key, (form, words) in SOURCE_FORMS.items():
        for source in data[key]:
            if not isinstance(source, str) or not re.fullmatch(form, source):
                problems.append(f"{key}: expected {words}, got {source!r}")
        if len(set(map(str, data[key]))) < len(data[key]):
            problems.append(f"{key}: the same source twice")
    if data["keywords"]:
        problems.append("keywords: expected none; 'util-script' would make it no kernel")
    return problems


def _check_machine(data: Mapping[str, object]) -> list[str]:
    shape, problems = data.get("machine_shape", ""), []
    if shape not in SHAPES:
        problems.append(f"machine_shape: expected one of {SHAPES[1:]} or none, got {shape!r}")
    elif data["enable_gpu"] != shape.startswith("Nvidia"):
        problems.append("machine_shape and enable_gpu: a GPU in one of them only")
    elif data["enable_tpu"] != shape.startswith("Tpu"):
        problems.append("machine_shape and enable_tpu: a TPU in one of them only")
    if data["enable_internet"]:
        problems.append("enable_internet: expected false; a kernel of the kit needs no network")
    for key, expected in (("language", "python"), ("kernel_type", "notebook")):
        if data[key] != expected:
            problems.append(f"{key}: expected {expected!r}, got {data[key]!r}")
    return problems


def _check_notebook(folder: Path, data: Mapping[str, str]) -> list[str]:
    name = data["code_file"]
    path = folder / name
    if Path(name).name != name or not name.endswith(".ipynb") or not path.is_file():
        return [f"code_file: expected a notebook in this folder, got {name!r}"]
    size = path.stat().st_size
    if size > MAX_SOURCE_BYTES:
        return [f"{name}: {size:,} bytes; Kaggle takes about {MAX_SOURCE_BYTES:,}"]
    try:
        notebook = read_json(path)
        kernel, cells = notebook["metadata"]["kernelspec"]["name"], notebook["cells"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{name}: no notebook with a kernelspec ({error!r})"]
    if kernel != "python3":
        return [f"{name}: expected the kernel 'python3', got {kernel!r}"]
    return [f"{name}: has outputs; build it again"] if any(c.get("outputs") for c in cells) else []


def _check_files(folder: Path) -> list[str]:
    """Flat, few, of plain names, and nothing that the server would unpack."""
    entries = sorted(path for path in folder.iterdir() if path.name != DATASET_FILE)
    problems = []
    if not 1 <= len(entries) <= MAX_FILES:
        problems.append(f"{len(entries)} files; expected 1 to {MAX_FILES}")
    for path in entries:
        if not path.is_file() or path.is_symlink():
            problems.append(f"{path.name}: only plain files are uploaded")
        elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", path.name):
            problems.append(f"{path.name}: Kaggle refuses some characters of this name")
        elif path.name.lower().endswith(ARCHIVES):
            problems.append(f"{path.name}: Kaggle unpacks such files; give it the ending .bin")
    return problems

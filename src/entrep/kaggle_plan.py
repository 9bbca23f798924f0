"""What a push to Kaggle would send: built folders, checked against their manifests, and said.

Nothing here imports Kaggle's client or opens a connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from entrep.artifacts import sha256_file

KERNEL_METADATA = "kernel-metadata.json"
DATASET_METADATA = "dataset-metadata.json"
MANIFEST = "MANIFEST.json"
MOST_FILES = 50  # that Kaggle takes at the top of a data set
_BUILD_AGAIN = "run 'entrep kaggle build' again"


@dataclass(frozen=True)
class DataSet:
    """One built data set.

    Attributes:
        folder: its metadata and, flat, its files.
        ref: OWNER/SLUG.
        title: what Kaggle shows.
        licence: Kaggle's name of it.
        files: SHA-256 of every file that is sent, by name; the manifest is one of them.
    """

    folder: Path
    ref: str
    title: str
    licence: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """One built kernel and those of its data sources that were built with it.

    Attributes:
        folder: metadata and notebook.
        ref: OWNER/SLUG.
        metadata: content of `kernel-metadata.json`.
        datasets: in the order in which the kernel names them.
    """

    folder: Path
    ref: str
    metadata: Mapping[str, object]
    datasets: tuple[DataSet, ...]

    @property
    def notebook(self) -> Path:
        """The one file of code that Kaggle takes."""
        return self.folder / str(self.metadata["code_file"])


def load_plan(build: str | Path, kernel: str) -> Plan:
    """Read and check what `entrep kaggle build` made for one kernel.

    Args:
        build: the build's folder, with `kernels/` and `datasets/`.
        kernel: the kernel's slug.

    Raises:
        FileNotFoundError: if the kernel, or a file of it, is not built.
        ValueError: if metadata cannot be used, or a file is not the one of its manifest.
    """
    folder = _kernel_folder(build, kernel)
    metadata = _read_object(folder / KERNEL_METADATA, ("id", "title", "code_file"))
    if metadata.get("enable_internet") is not False:
        raise ValueError(
            f"{folder / KERNEL_METADATA}: enable_internet must be written out as false (left "
            f"out, the client turns it on); {_BUILD_AGAIN}."
        )
    ref = _checked_ref(folder / KERNEL_METADATA, metadata)
    code = str(metadata["code_file"])
    if Path(code).name != code or not (folder / code).is_file():
        raise FileNotFoundError(
            f"{folder / KERNEL_METADATA}: code_file {code!r} is not a file of that folder; "
            f"{_BUILD_AGAIN}."
        )
    _read_object(folder / code, ("cells",))
    return Plan(folder, ref, metadata, _load_datasets(build, _names(metadata, "dataset_sources")))


def kernel_ref(name: str, build: str | Path, *, versioned: bool = False) -> str:
    """OWNER/SLUG or OWNER/SLUG/VERSION of what a user calls a kernel.

    Args:
        name: SLUG of a built kernel, or OWNER/SLUG; each may end in /VERSION.
        build: the build's folder; its metadata say whose SLUG is.
        versioned: the version must be given.

    Raises:
        FileNotFoundError: if only a slug is given and no such kernel is built.
        ValueError: if it is no name of a kernel, or lacks its version.
    """
    parts = name.split("/")
    version = [parts.pop()] if len(parts) > 1 and parts[-1].isdigit() else []
    if versioned and not version:
        raise ValueError(f"{name}: which version? Write {name}/3, say; a push prints its number.")
    if len(parts) == 1:
        path = _kernel_folder(build, parts[0]) / KERNEL_METADATA
        parts = [_checked_ref(path, _read_object(path, ("id",)))]
    elif len(parts) != 2 or not all(parts):
        raise ValueError(f"{name}: expected SLUG or OWNER/SLUG, and /VERSION after it if need be.")
    return "/".join(parts + version)


def describe_plan(plan: Plan, *, datasets: bool) -> str:
    """What a push sends, line by line.

    Args:
        plan: of `load_plan`.
        datasets: whether the data sets are sent, too.
    """
    data = plan.metadata
    kind = "TPU" if data.get("enable_tpu") else "GPU" if data.get("enable_gpu") else "CPU"
    machine = data.get("machine_shape") or kind
    built = {dataset.ref for dataset in plan.datasets}
    sources = [
        f"{name} ({'of this build' if name in built else 'must be on Kaggle'})"
        for name in _names(data, "dataset_sources")
    ]
    rows = [
        f"Kernel {plan.ref}",
        f"  title        {data['title']}",
        f"  notebook     {plan.notebook.name}, {plan.notebook.stat().st_size:,} bytes, "
        f"SHA-256 {sha256_file(plan.notebook)}",
        f"  runs on      {machine}, internet off, as soon as it is there",
        f"  seen by      {'you alone' if data.get('is_private', True) else 'everybody'}",
        f"  data sets    {', '.join(sources) or 'none'}",
    ]
    for kind in ("competition", "kernel", "model"):
        if names := _names(data, f"{kind}_sources"):
            rows.append(f"  {kind + 's':12} {', '.join(names)}")
    for dataset in plan.datasets:
        sent = "sent unless Kaggle has it already" if datasets else "not sent without --datasets"
        rows += [
            f"Data set {dataset.ref}: {sent}",
            f"  title        {dataset.title}",
            f"  licence      {dataset.licence}",
            "  as           a new data set, seen by you alone, or a new version of yours",
        ]
        for name, digest in dataset.files.items():
            size = (dataset.folder / name).stat().st_size
            rows.append(f"  {size:>13,} bytes  {digest}  {name}")
    return "\n".join(rows)


def _kernel_folder(build: str | Path, kernel: str) -> Path:
    kernels = Path(build) / "kernels"
    if kernel in ("", ".", "..") or not (kernels / kernel / KERNEL_METADATA).is_file():
        built = sorted(path.parent.name for path in kernels.glob(f"*/{KERNEL_METADATA}"))
        raise FileNotFoundError(
            f"{kernels / kernel}: no such kernel is built; there are {', '.join(built) or 'none'}. "
            "Run 'entrep kaggle build', or give its folder with --build."
        )
    return kernels / kernel


def _load_datasets(build: str | Path, sources: Sequence[str]) -> tuple[DataSet, ...]:
    """Those of the sources that lie in the build, in the order of the sources."""
    found = {}
    for path in sorted((Path(build) / "datasets").glob(f"*/{DATASET_METADATA}")):
        metadata = _read_object(path, ("id", "title", "licenses"))
        ref = _checked_ref(path, metadata)
        if ref in sources:
            found[ref] = _load_dataset(path, ref, metadata)
    return tuple(found[ref] for ref in sources if ref in found)


def _load_dataset(path: Path, ref: str, metadata: Mapping[str, object]) -> DataSet:
    try:
        (licence,) = [row["name"] for row in metadata["licenses"]]
    except (TypeError, KeyError, ValueError):
        raise ValueError(
            f'{path}: licenses must be a list of one {{"name": ...}}; {_BUILD_AGAIN}.'
        ) from None
    files = _checked_files(path.parent)
    return DataSet(path.parent, ref, str(metadata["title"]), str(licence), files)


def _checked_files(folder: Path) -> dict[str, str]:
    """SHA-256 by name of what the client would send, which must be what the manifest lists."""
    listed = _read_object(folder / MANIFEST, ("files",))["files"]
    if not isinstance(listed, dict):
        raise ValueError(f"{folder / MANIFEST}: files must map names to SHA-256s; {_BUILD_AGAIN}.")
    paths = [path for path in folder.iterdir() if path.name not in (DATASET_METADATA, MANIFEST)]
    wrong = sorted(listed.keys() ^ {path.name for path in paths})
    wrong = [f"{name} is {'missing' if name in listed else 'not listed'}" for name in wrong]
    for path in tqdm(sorted(paths), desc=f"check {folder.name}", unit="file", leave=False):
        if path.name in listed and not path.is_file():
            wrong.append(f"{path.name} is no file")
        elif path.name in listed and sha256_file(path) != listed[path.name]:
            wrong.append(f"{path.name} has changed")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{folder / MANIFEST}: {', '.join(wrong[:3])}{more}; {_BUILD_AGAIN}.")
    if len(listed) >= MOST_FILES:
        raise ValueError(
            f"{folder}: {len(listed) + 1} files, Kaggle takes {MOST_FILES}; {_BUILD_AGAIN}."
        )
    return {MANIFEST: sha256_file(folder / MANIFEST), **{n: listed[n] for n in sorted(listed)}}


def _checked_ref(path: Path, metadata: Mapping[str, object]) -> str:
    ref = metadata["id"]
    if not isinstance(ref, str) or len(ref.split("/")) != 2 or not all(ref.split("/")):
        raise ValueError(f"{path}: id: expected OWNER/SLUG, got {ref!r}; {_BUILD_AGAIN}.")
    return ref


def _names(metadata: Mapping[str, object], key: str) -> list[str]:
    return [str(name) for name in metadata.get(key) or ()]


def _read_object(path: Path, needed: Sequence[str]) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; {_BUILD_AGAIN}.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {_BUILD_AGAIN}.") from error
    missing = [key for key in needed if not isinstance(value, dict) or key not in value]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {_BUILD_AGAIN}.")
    return value

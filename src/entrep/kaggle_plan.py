"""What a push to Kaggle would send: built folders, checked against their manifests, and said.

Nothing here imports Kaggle's client or opens a connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from entrep.artifacts import read_json, sha256_file
from entrep.kaggle_rules import DATASET_FILE, KERNEL_FILE, MANIFEST_FILE, read_dataset, read_kernel

_AGAIN = "run 'entrep kaggle build' again"


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
        return self.folder / self.metadata["code_file"]


def load_plan(build: str | Path, kernel: str) -> Plan:
    """Read and check what `entrep kaggle build` made for one kernel.

    Args:
        build: the build's folder; empty: `kaggle/build` of the checkout.
        kernel: the kernel's slug.

    Raises:
        FileNotFoundError: if the kernel, or a file of it, is not built.
        ValueError: if metadata cannot be used, or a file is not the one of its manifest.
    """
    build = _build_folder(build)
    folder = _kernel_folder(build, kernel)
    metadata = read_kernel(folder)
    return Plan(folder, metadata["id"], metadata, _load_datasets(build, metadata))


def kernel_ref(name: str, build: str | Path, *, versioned: bool = False) -> str:
    """OWNER/SLUG or OWNER/SLUG/VERSION of what a user calls a kernel.

    Args:
        name: SLUG of a built kernel, or OWNER/SLUG; each may end in /VERSION.
        build: as for `load_plan`; its metadata say whose SLUG is.
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
        parts = [read_kernel(_kernel_folder(_build_folder(build), parts[0]))["id"]]
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
    machine = data.get("machine_shape") or "CPU"
    built = {dataset.ref for dataset in plan.datasets}
    sources = [
        f"{name} ({'of this build' if name in built else 'must be on Kaggle'})"
        for name in data["dataset_sources"]
    ]
    rows = [
        f"Kernel {plan.ref}",
        f"  title        {data['title']}",
        f"  notebook     {plan.notebook.name}, {plan.notebook.stat().st_size:,} bytes, "
        f"SHA-256 {sha256_file(plan.notebook)}",
        f"  runs on      {machine}, internet off, as soon as it is there",
        f"  seen by      {'you alone' if data['is_private'] else 'everybody'}",
        f"  data sets    {', '.join(sources) or 'none'}",
    ]
    for kind in ("competition", "kernel", "model"):
        if names := data[f"{kind}_sources"]:
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


def _build_folder(build: str | Path) -> Path:
    if build:
        return Path(build)
    from entrep.kaggle_build import find_checkout  # takes a second

    return find_checkout(None) / "kaggle" / "build"


def _kernel_folder(build: Path, kernel: str) -> Path:
    built = sorted(path.parent.name for path in build.glob(f"kernels/*/{KERNEL_FILE}"))
    if kernel not in built:
        raise FileNotFoundError(
            f"{build / 'kernels' / kernel}: no such kernel is built; there are "
            f"{', '.join(built) or 'none'}. Run 'entrep kaggle build', or name its folder with "
            "--build."
        )
    return build / "kernels" / kernel


def _load_datasets(build: Path, kernel: Mapping[str, object]) -> tuple[DataSet, ...]:
    """Those of a kernel's data sets that lie in the build, in the kernel's order."""
    found = {}
    for path in sorted(build.glob(f"datasets/*/{DATASET_FILE}")):
        metadata = read_dataset(path.parent)
        ref = metadata["id"]
        if ref in kernel["dataset_sources"]:
            licence = metadata["licenses"][0]["name"]
            files = _checked_files(path.parent)
            found[ref] = DataSet(path.parent, ref, metadata["title"], licence, files)
    return tuple(found[ref] for ref in kernel["dataset_sources"] if ref in found)


def _checked_files(folder: Path) -> dict[str, str]:
    """SHA-256 by name of what the client would send, which must be what the manifest lists."""
    manifest = folder / MANIFEST_FILE
    try:
        listed = dict(read_json(manifest)["files"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{manifest}: no manifest of a build ({error!r}); {_AGAIN}.") from error
    names = {path.name for path in folder.iterdir()} - {DATASET_FILE, MANIFEST_FILE}
    wrong = [f"{name} is missing" for name in sorted(listed.keys() - names)]
    wrong += [f"{name} is not listed" for name in sorted(names - listed.keys())]
    for name in tqdm(sorted(names & listed.keys()), f"check {folder.name}", unit="file"):
        if sha256_file(folder / name) != listed[name]:
            wrong.append(f"{name} has changed")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{manifest}: {', '.join(wrong[:3])}{more}; {_AGAIN}.")
    return {MANIFEST_FILE: sha256_file(manifest), **dict(sorted(listed.items()))}

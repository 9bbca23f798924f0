"""From the one table of kernels to folders that can be pushed: notebooks, data sets, metadata.

    OUT/kernels/SLUG/   kernel-metadata.json and the rendered notebook
    OUT/datasets/SLUG/  dataset-metadata.json, flat files and MANIFEST.json with their SHA-256

All of it is made anew by each build and renamed into place at its end; the same checkout, run,
packs and wheels give the same bytes.
"""

from __future__ import annotations

import ast
import importlib.util
import pprint
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from entrep.artifacts import list_files, read_json, write_json, write_zip
from entrep.config import load_config
from entrep.kaggle_rules import (
    DATASET_FILE,
    KERNEL_FILE,
    SOURCE_FORMS,
    read_dataset,
    read_kernel,
    slugify,
    write_manifest,
)
from entrep.pipeline import NOTEBOOKS
from entrep.registry import find_packs
from entrep.saved_run import ARTIFACTS, PLACES, pack_run
from entrep.wheels import (
    build_wheel,
    download_wheels,
    gather_wheels,
    pin_requirements,
    wheel_cache,
)

BUILT = ".entrep-kaggle"  # file in a folder of our making; another one is never replaced
GPU_SHAPE = "NvidiaTeslaT4"
REST = "settings"  # the parameter that takes all others, in a dictionary


@dataclass(frozen=True)
class Kernel:
    """A row of the table in `kaggle/kernels.py`.

    Attributes:
        title: 5 to 50 characters; Kaggle makes the slug of it.
        notebooks: one after the other, from the repository's root.
        inputs: names of what it mounts: "kit", and "data", "packs", "artifacts" where given.
        gpu: whether it wants GPUs, unless the build is for CPUs.
        parameters: baked into each notebook that declares them; Kaggle passes none.
    """

    title: str
    notebooks: tuple[str, ...]
    inputs: tuple[str, ...] = ("kit",)
    gpu: bool = False
    parameters: Mapping[str, object] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name in the kernel's address."""
        return slugify(self.title)


@dataclass(frozen=True)
class Source:
    """What a kernel mounts, as its first cell is told.

    Attributes:
        kind: dataset, competition, kernel or model.
        ref: as in the metadata, such as "owner/slug".
        marker: a file in a bundle of ours; "" for what others made.
        manifest: SHA-256 of the bundle's MANIFEST.json; "" where it is not known yet.
    """

    kind: str
    ref: str
    marker: str = ""
    manifest: str = ""


def build(
    out: str | Path = "",
    *,
    root: str | Path | None = None,
    owner: str = "owner",
    run_folder: str | Path = "",
    data: str = "",
    packs: str = "",
    accelerator: str = "gpu",
    wheels: str | Path = "",
    parameters: Mapping[str, object] | None = None,
) -> Path:
    """Build all kernels and data sets of the table.

    Args:
        out: the folder to make, or to replace if a build made it; empty: `kaggle/build`.
        root: the checkout; None: the one that this package lies in.
        owner: the Kaggle user whose kernels and data sets these are.
        run_folder: of a run whose artefacts become a data set; empty: the submitting kernel
            reads the training kernel's output.
        data: the pictures on Kaggle, "owner/slug" of a data set or "slug" of a competition;
            empty: drawn ones.
        packs: folder with model packs, or "owner/model/framework/variation/version" of packs
            that lie on Kaggle as a model; empty: none.
        accelerator: "gpu", or "cpu" for no GPU in any kernel.
        wheels: folder with the wheels of the table; empty: they are downloaded once.
        parameters: fields of `RunConfig`, baked into the notebooks that take them.

    Returns:
        The built folder.

    Raises:
        FileNotFoundError: if the checkout, the run, a pack or a wheel is missing.
        ValueError: for a name that Kaggle would refuse, or a parameter that no run would take.
        RuntimeError: if the wheels cannot be downloaded.
    """
    root = find_checkout(root)
    table = load_table(root / "kaggle" / "kernels.py")
    profile = ("full" if packs else "mini") if data else "demo"
    given = dict(parameters or {})
    for name in given.keys() & {"profile", *PLACES}:
        raise ValueError(f"{name}: a kernel sets it itself; leave it out.")
    load_config(profile, data_path=data, **given)  # refuses what no run would take
    target = Path(out) if out else root / "kaggle" / "build"
    with _new_folder(target) as folder:
        sources = {"kit": _build_kit(root, folder, table, owner, wheels)}
        if data:
            sources["data"] = Source("dataset" if "/" in data else "competition", data)
        if packs.count("/") == 4 and not Path(packs).exists():
            sources["packs"] = Source("model", packs)
        elif packs:
            sources["packs"] = _build_packs(folder, table, owner, packs)
        trained = Source("kernel", f"{owner}/{table.TRAINED_BY.slug}", ARTIFACTS)
        if run_folder:
            trained = _build_artifacts(folder, table, owner, run_folder)
        sources["artifacts"] = trained
        for kernel in table.KERNELS:
            values = {"profile": profile, **given, **kernel.parameters}
            gpu = kernel.gpu and accelerator == "gpu"
            _build_kernel(root, folder, kernel, owner, sources, values, gpu)
    return target


def find_checkout(root: str | Path | None) -> Path:
    """The repository's folder; None: the one in which this package lies.

    Raises:
        FileNotFoundError: if the table of kernels is not there.
    """
    found = Path(root) if root else Path(__file__).resolve().parents[2]
    if not (found / "kaggle" / "kernels.py").is_file():
        raise FileNotFoundError(
            f"{found / 'kaggle' / 'kernels.py'} is not there. The table of kernels comes with the "
            "repository, not with the package: run this in an environment of `python kit.py setup`."
        )
    return found.resolve()


def load_table(path: Path) -> ModuleType:
    """The module `kaggle/kernels.py`, by its file: its folder is no package."""
    spec = importlib.util.spec_from_file_location("kaggle_kernels", path)
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    return table


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place if the block succeeds."""
    if target.exists() and any(target.iterdir()) and not (target / BUILT).is_file():
        raise ValueError(f"--out: {target} was not made by a build; choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        (folder / BUILT).touch()
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _dataset_folder(folder: Path, title: str, owner: str) -> tuple[Path, str]:
    """(folder with its metadata, owner/slug) of a data set."""
    slug = slugify(title)
    place = folder / "datasets" / slug
    place.mkdir(parents=True)
    about = {"title": title, "id": f"{owner}/{slug}", "licenses": [{"name": "other"}]}
    write_json(place / DATASET_FILE, about)
    return place, about["id"]


def _finish_dataset(place: Path, ref: str, marker: str) -> Source:
    """Write the manifest and check the whole as strictly as we can."""
    names = [path.name for path in list_files(place) if path.name != DATASET_FILE]
    manifest = write_manifest(place, names)
    read_dataset(place)
    return Source("dataset", ref, marker, manifest)


def _build_kit(
    root: Path, folder: Path, table: ModuleType, owner: str, wheels: str | Path
) -> Source:
    place, ref = _dataset_folder(folder, table.DATASETS["kit"], owner)
    wheel = build_wheel(root, place)
    pinned = pin_requirements(table.WHEELS, root / "requirements.txt")
    found = gather_wheels(pinned, wheels) if wheels else download_wheels(pinned, wheel_cache())
    notebooks = [root / "notebooks" / f"{step.name}.ipynb" for step in NOTEBOOKS]
    for path in (*found, *notebooks):
        shutil.copyfile(path, place / path.name)
    return _finish_dataset(place, ref, wheel.name)


def _build_packs(folder: Path, table: ModuleType, owner: str, packs: str) -> Source:
    found = find_packs(packs)
    if not found:
        raise FileNotFoundError(f"--packs: there is no model pack below {packs}.")
    place, ref = _dataset_folder(folder, table.DATASETS["packs"], owner)
    names = []
    for pack, encoder in tqdm(found.items(), "pack", unit="pack"):
        names.append(f"{slugify(encoder)}.bin")
        if names[-1] in names[:-1]:
            raise ValueError(f"--packs: {pack} and another pack are both of {encoder}.")
        files = {path.relative_to(pack).as_posix(): path for path in list_files(pack)}
        write_zip(place / names[-1], files)
    return _finish_dataset(place, ref, sorted(names)[0])


def _build_artifacts(folder: Path, table: ModuleType, owner: str, run_folder: str | Path) -> Source:
    place, ref = _dataset_folder(folder, table.DATASETS["artifacts"], owner)
    pack_run(run_folder, place / ARTIFACTS)
    return _finish_dataset(place, ref, ARTIFACTS)


def _build_kernel(
    root: Path,
    folder: Path,
    kernel: Kernel,
    owner: str,
    sources: Mapping[str, Source],
    values: Mapping[str, object],
    gpu: bool,
) -> None:
    mounted = {name: sources[name] for name in kernel.inputs if name in sources}
    place = folder / "kernels" / kernel.slug
    place.mkdir(parents=True)
    bodies = [read_json(root / name) for name in kernel.notebooks]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    call = {
        "inputs": {name: vars(source) for name, source in mounted.items()},
        "python": tuple(re.findall(r"[\d.]+", project["requires-python"])),
        "gpu": gpu,
    }
    opening = (root / "kaggle" / "bootstrap.py").read_text("utf-8")
    write_json(place / f"{kernel.slug}.ipynb", render(kernel.title, opening, call, bodies, values))
    about = {
        "id": f"{owner}/{kernel.slug}",
        "title": kernel.title,
        "code_file": f"{kernel.slug}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_tpu": False,
        "enable_internet": False,  # the client's default is true, whatever its manual says
        **({"machine_shape": GPU_SHAPE} if gpu else {}),
        "keywords": [],
    }
    for key in SOURCE_FORMS:
        about[key] = [s.ref for s in mounted.values() if f"{s.kind}_sources" == key]
    write_json(place / KERNEL_FILE, about)
    read_kernel(place)


def render(
    title: str,
    opening: str,
    call: Mapping[str, object],
    bodies: Sequence[Mapping],
    values: Mapping[str, object],
) -> dict:
    """One notebook of several: the first cell, then each with its parameters written out.

    Args:
        title: for people.
        opening: source of `bootstrap.py`.
        call: arguments of its `prepare`.
        bodies: notebooks as JSON, code in cells tagged `parameters` where they take any.
        values: parameters by name; each body takes what it declares, and one that declares
            `settings` takes all others in that dictionary.

    Returns:
        The notebook as JSON, without outputs.
    """
    arguments = "".join(f"    {name}={_literal(value)},\n" for name, value in call.items())
    first = f"{opening.rstrip()}\n\n\nprepare(\n{arguments})"
    about = (
        f"# {title}\n\nA kernel of the ENTRep kit, made by `entrep kaggle build`. The first cell "
        "finds, checks and installs what is mounted; it needs no network."
    )
    cells = [_cell("markdown", "kernel", about), _cell("code", "bootstrap", first)]
    for number, body in enumerate(bodies):
        if number:  # as by hand: each notebook starts with nothing in memory
            cells.append(_cell("code", f"reset-{number}", "%reset -f"))
        for cell in body["cells"]:
            cells.append({**cell, "metadata": {}})
            baked = _baked(cell, values)
            if baked:
                source = "".join(f"\n{name} = {_literal(value)}" for name, value in baked.items())
                source = f"# Written by the build: Kaggle passes no parameters.{source}"
                cells.append(_cell("code", f"baked-{number}", source))
    kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernelspec, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _baked(cell: Mapping, values: Mapping[str, object]) -> dict[str, object]:
    """What a cell tagged `parameters` takes of the values; nothing for another cell."""
    if "parameters" not in cell["metadata"].get("tags", ()):
        return {}
    nodes = ast.parse("".join(cell["source"])).body
    declared = [node.target.id for node in nodes if isinstance(node, ast.AnnAssign)]
    baked = {name: values[name] for name in declared if name in values}
    if REST in declared:
        baked[REST] = {name: value for name, value in values.items() if name not in declared}
    return baked


def _literal(value: object) -> str:
    """Python source of plain values, one entry a line where it is long."""
    return pprint.pformat(value, width=88, sort_dicts=False).replace("\n", "\n    ")


def _cell(kind: str, name: str, source: str) -> dict:
    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": source}
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}

"""What a kernel finds below /kaggle/input: which folder stands for each source, and where.

Kaggle has two layouts, and which one a run gets cannot be known beforehand.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from entrep.artifacts import read_json
from entrep.kaggle_rules import DATASET_FILE, SOURCE_FORMS, read_dataset

LAYOUTS = ("new", "old")
RESULT_FILE = "simulation.json"  # beside `working`, the output of a simulated kernel
_FOLDERS = {
    "dataset_sources": "datasets",
    "competition_sources": "competitions",
    "kernel_sources": "notebooks",
    "model_sources": "models",
}


def place_of(kind: str, source: str, layout: str) -> str:
    """Where Kaggle mounts a source, relative to /kaggle/input.

    Args:
        kind: its key in the kernel's metadata, such as "dataset_sources".
        source: as it stands there: "owner/slug", a competition's slug, or a model's five parts.
        layout: "new" (`datasets/owner/slug`) or "old" (`slug`; models are as in the new one).
    """
    parts = source.split("/")
    if kind == "model_sources":
        parts[2] = parts[2].lower()  # the framework
    elif layout == "old":
        return parts[-1]
    return "/".join((_FOLDERS[kind], *parts))


def find_inputs(
    metadata: Mapping[str, list], build: Path, out: Path, layout: str, data: str | Path = ""
) -> dict[str, Path]:
    """Find the folder that stands for each source of a kernel.

    Args:
        metadata: of the kernel.
        build: of `entrep kaggle build`; its `datasets/SLUG` are the data sets made here.
        out: of `simulate`; its `SLUG/working` are the outputs of other kernels.
        layout: see `place_of`.
        data: stands for the one source that is neither; empty: there is none.

    Returns:
        Folders by their place below /kaggle/input.

    Raises:
        FileNotFoundError: if a source has no folder.
        ValueError: for an unknown layout, if `data` is given for nothing or would stand for
            several sources, or if a built data set is not as Kaggle takes it.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected {' or '.join(LAYOUTS)}, got {layout!r}.")
    inputs, others = {}, {}
    for kind in SOURCE_FORMS:
        for source in metadata[kind]:
            place, slug = place_of(kind, source, layout), source.split("/")[-1]
            built = build / "datasets" / slug
            if kind == "dataset_sources" and built.is_dir():
                read_dataset(built)  # what the server would unpack or leave out is refused
                inputs[place] = built
            elif kind == "kernel_sources":
                inputs[place] = _output_of(out / slug)
            else:
                others[source] = place
    names = ", ".join(others)
    if others and not data:
        raise FileNotFoundError(
            f"{metadata['id']} reads {names}, not built here; give its folder with --data DIR."
        )
    if len(others) > 1:
        raise ValueError(f"--data stands for one source; not built are {names}.")
    if data and not others:
        raise ValueError(f"--data: all that {metadata['id']} reads is built; leave it out.")
    if data and not Path(data).is_dir():
        raise FileNotFoundError(f"--data: there is no folder {data}.")
    return inputs | {place: Path(data) for place in others.values()}


def _output_of(simulated: Path) -> Path:
    path = simulated / RESULT_FILE
    status = read_json(path)["status"] if path.is_file() else "not there"
    if status != "COMPLETE":
        raise FileNotFoundError(
            f"The output of the kernel {simulated.name} is wanted, but {path} is {status}; "
            "simulate that kernel first, with the same --out."
        )
    return simulated / "working"


def stage_inputs(inputs: Mapping[str, Path], root: Path, *, copy: bool) -> None:
    """Lay out the inputs below `root` as plain files; a data set's metadata does not travel.

    Args:
        inputs: from `find_inputs`.
        root: the folder that becomes /kaggle/input.
        copy: whether the kernel could write to them, so that they must be copies. Otherwise
            they are hard links, where the file system allows that.
    """
    for place, folder in inputs.items():
        shutil.copytree(
            folder,
            root / place,
            ignore=shutil.ignore_patterns(DATASET_FILE),
            copy_function=shutil.copyfile if copy else _link_or_copy,
        )


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another disk, or somebody else's file
        shutil.copyfile(source, target)

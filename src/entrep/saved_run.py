"""A run's artefacts in one file, and the submissions from them again, on any machine.

What notebook 06 reads is a few tables and arrays. Packed, they are the point from which the
submissions are the same bytes everywhere, whatever the training ran on.
"""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

from entrep.artifacts import (
    format_json,
    hash_folder,
    read_json,
    sha256_file,
    sha256_json,
    write_zip,
)
from entrep.notebook import declared_parameters
from entrep.pipeline import DRAWN, NOTEBOOKS, find_notebooks
from entrep.runner import ARTIFACTS, run

LAST = NOTEBOOKS[-1]
SUFFIXES = (".csv", ".json", ".safetensors")  # not figures
# Fields of `RunConfig` that name a folder; where a run happened is not what it found.
PLACES = ("data_path", "work_dir", "cache_dir", "weights_dir")


def save_run(run_folder: str | Path) -> None:
    """Write `artifacts.bin` into a run folder, and say so, if 01 to 05 are done and of one run."""
    folder = Path(run_folder)
    if (folder / "SHA256SUMS").is_file() and not unfinished(folder):
        print(f"Artefacts: {pack_run(folder, folder / ARTIFACTS)}  {folder / ARTIFACTS}")


def pack_run(run_folder: str | Path, path: str | Path) -> str:
    """Pack what notebook 06 needs: tables, metrics and arrays of notebooks 01 to 05.

    The networks' checkpoints, which are large and decide nothing any more, stay out, and so do
    names of folders of this machine. The same run gives the same bytes, wherever it lies.

    Args:
        run_folder: of a run in which notebooks 01 to 05 are done.
        path: the file to write, a zip; called `.bin`, as Kaggle would unpack a `.zip`.

    Returns:
        Its SHA-256.

    Raises:
        FileNotFoundError: if the folder holds no run that ended well.
        ValueError: if a notebook has not run, or a file is not as the run left it.
    """
    folder = Path(run_folder)
    sums = read_sums(folder)
    behind = unfinished(folder)
    if behind:
        raise ValueError(
            f"{folder}: {', '.join(behind)} did not run, or ran before what it reads was made "
            "anew; run without --only."
        )
    members: dict[str, bytes | Path] = {
        name: folder / name for name in [*filter(_is_needed, sums), "config.json"]
    }
    for name, file in members.items():
        if not file.is_file() or sha256_file(file) != sums.get(name):
            raise ValueError(
                f"{file} is not as the run left it (SHA256SUMS of that folder); "
                "run the notebooks again with the same --out."
            )
    elsewhere = {
        "config.json": dict.fromkeys(PLACES, ""),
        f"{NOTEBOOKS[0].name}/challenge.json": {"root": f"../{DRAWN}"},
    }
    for name, changes in elsewhere.items():
        members[name] = format_json({**read_json(folder / name), **changes}).encode()
    write_zip(path, members)
    return sha256_file(path)


def unpack_run(path: str | Path, folder: str | Path) -> Path:
    """Unpack artefacts into a folder that is new or empty; gives that folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not whole, is none of `pack_run`, or the folder is not empty.
    """
    path, folder = Path(path), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; unpack artefacts into a new folder.")
    try:
        with zipfile.ZipFile(path) as archive:
            if "config.json" not in archive.namelist():
                raise ValueError(f"{path} holds no run; 'entrep run' writes {ARTIFACTS}.")
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a whole {ARTIFACTS} ({error}); copy it again.") from error
    return folder


def submit_run(
    folder: str | Path,
    *,
    data: str | Path = "",
    weights_dir: str | Path = "",
    notebooks: str | Path | None = None,
) -> dict[str, str]:
    """Run notebook 06 in a folder of unpacked artefacts, with the configuration they came with.

    Args:
        folder: from `unpack_run`; `submissions/` and `06_submission/` are written into it.
        data: the challenge's folder; not needed, but with pictures the numerical noise of this
            machine is measured.
        weights_dir: where the packs of encoders are that are not shipped, for the same.
        notebooks: folder of the notebooks; None: the checkout's.

    Returns:
        SHA-256 of each submission by its file's name; empty where the data has no test lists.
    """
    config = read_json(Path(folder) / "config.json")
    declared = declared_parameters(find_notebooks(notebooks, [LAST]) / f"{LAST.name}.ipynb")
    elsewhere = (*PLACES, "profile", "device", "threads")
    parameters = {name: config[name] for name in declared if name not in elsewhere}
    if "weights_dir" in declared:
        parameters["weights_dir"] = str(weights_dir)
    run(
        config["profile"],
        data=data,
        out=folder,
        only=[LAST.name],
        parameters=parameters,
        notebooks=notebooks,
    )
    return hash_folder(Path(folder) / "submissions")


def unfinished(run_folder: str | Path) -> list[str]:
    """The notebooks from 01 to 05 that have not run, or not on what their upstream last wrote."""
    path = Path(run_folder) / "manifest.json"
    done = read_json(path)["notebooks"] if path.is_file() else {}
    behind = []
    for step in NOTEBOOKS[:-1]:
        if not {step.name, *step.upstream} <= done.keys():
            behind.append(step.name)
            continue
        upstream = sha256_json({name: done[name]["outputs"] for name in step.upstream})
        if done[step.name]["inputs"]["upstream"] != upstream:
            behind.append(step.name)
    return behind


def read_sums(run_folder: str | Path) -> dict[str, str]:
    """What a run folder's SHA256SUMS says: digests by file name.

    Raises:
        FileNotFoundError: if the folder has none, as when a run did not end well.
    """
    path = Path(run_folder) / "SHA256SUMS"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; give the folder of a run that ended well (entrep run)."
        )
    lines = [line.split("  ", 1) for line in path.read_text("utf-8").splitlines()]
    return {name: digest for digest, name in lines}


def _is_needed(name: str) -> bool:
    path = PurePosixPath(name)
    step = next((step for step in NOTEBOOKS if step.name == path.parts[0]), LAST)
    kept = bool(step.kept) and path.match(step.kept)
    return step.name in LAST.upstream and path.suffix in SUFFIXES and not kept

"""Two sets of submissions side by side: are they the same bytes?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from entrep.artifacts import hash_folder

SUBMISSIONS = "submissions"  # the folder in a run folder, or in a kernel's output


def find_submissions(folder: str | Path) -> dict[str, str]:
    """SHA-256, by name, of the files in the folder `submissions`, which may lie deeper.

    Raises:
        ValueError: if there are two such folders with different files of one name.
    """
    found: dict[str, str] = {}
    for place in sorted(Path(folder).rglob(SUBMISSIONS)):
        for name, digest in hash_folder(place).items():
            if found.setdefault(name, digest) != digest:
                raise ValueError(f"{folder}: there are different files {name}; name one run.")
    return found


def expected_submissions(run_folder: str | Path) -> dict[str, str]:
    """`find_submissions` of a run that others shall agree with.

    Raises:
        FileNotFoundError: if it has none.
    """
    found = find_submissions(run_folder)
    if not found:
        raise FileNotFoundError(
            f"--compare: {run_folder} holds no submissions; give the folder of a run whose data "
            "has test lists."
        )
    return found


def find_differences(kernel: Mapping[str, str], local: Mapping[str, str]) -> list[str]:
    """Names of the files that only one side has, or that are not the same."""
    return sorted({name for name, _ in kernel.items() ^ local.items()})


def compare_submissions(kernel: Mapping[str, str], local: Mapping[str, str]) -> str:
    """A table of both sides' SHA-256 by file name; what is not the same is called DIFFERENT."""
    different = find_differences(kernel, local)
    lines = [f"{'':12}  {'kernel':64}  entrep run"]
    for name in sorted(kernel.keys() | local.keys()):
        theirs, ours = kernel.get(name, "missing"), local.get(name, "missing")
        verdict = "DIFFERENT" if name in different else "same"
        lines.append(f"{name:12}  {theirs:64}  {ours:64}  {verdict}")
    return "\n".join(lines)

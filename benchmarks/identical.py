"""Do equal inputs give equal submissions, byte for byte?

    python benchmarks/identical.py [--out runs/identical] [--python PATH ...] [-p name=value ...]

Runs the demo; the same seed again in another folder, and on the drawn pictures from a read-only
folder. Then, each in a fresh process, under other instruction sets, numbers of threads and sizes
of batches, and with other interpreters (environments with the kit's requirements):

(a) notebook 06 from the artefacts that the first run packed;
(b) everything after training, with the first run's checkpoints and nothing else kept. Another
    interpreter takes notebook 03's predictions as they are: its torch would train anew.

Prints the SHA-256 of each run's three submissions, and by how much a score of (b) differs at
most; exits with 1 if a submission differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import entrep
from entrep.artifacts import hash_folder, read_table
from entrep.notebook import declared_parameters
from entrep.pipeline import find_notebooks, parse_parameters, select_steps
from entrep.runner import ARTIFACTS, run
from entrep.saved_run import pack_run

SETTINGS: dict[str, tuple[dict[str, str], dict[str, int]]] = {
    "as it is": ({}, {}),
    "1 thread": ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, {"threads": 1}),
    "2 threads": ({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, {"threads": 2}),
    "ATEN default": ({"ATEN_CPU_CAPABILITY": "default"}, {}),
    "ATEN avx2": ({"ATEN_CPU_CAPABILITY": "avx2"}, {}),
    "oneDNN SSE41": ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, {}),
    "MKL SSE4_2": ({"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, {}),
    "batches of 1": ({}, {"batch_size": 1}),
    "batches of 8": ({}, {"batch_size": 8}),
    "batches of 32": ({}, {"batch_size": 32}),
}
"""By name: environment variables, and parameters of a run. Notebook 06 knows no batches."""

SCORED = ("04_hybrid/predictions.csv", "05_retrieval/i2i.csv", "05_retrieval/t2i.csv")


def main() -> int:
    """Run all variants; 0 if their submissions are the same bytes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/identical"))
    parser.add_argument("--python", nargs="+", default=[], metavar="PATH")
    parser.add_argument("-p", action="append", default=[], metavar="name=value")
    options = parser.parse_args()
    out = options.out.resolve()
    shutil.rmtree(out, ignore_errors=True)

    first = out / "first"
    run("demo", out=first, parameters=parse_parameters(options.p))
    pack_run(first, first / ARTIFACTS)
    wanted, rows = hash_folder(first / "submissions"), []

    def record(name: str, what: str, folder: Path, change: str = "") -> None:
        found = hash_folder(folder / "submissions")
        cells = [found.get(f"track{track}.zip", "none")[:12] for track in (1, 2, 3)]
        rows.append([name, what, *cells, change, "yes" if found == wanted else "NO"])
        print(f"| {' | '.join(rows[-1])} |", flush=True)

    record("first run", "", first)
    run("demo", out=out / "elsewhere" / "again", parameters=parse_parameters(options.p))
    record("same seed, other folder", "", out / "elsewhere" / "again")
    untouched = run_on_read_only_pictures(first / "data", out, parse_parameters(options.p))
    record("pictures from a read-only folder", "", out / "readonly")

    variants = [(name, sys.executable, *changes) for name, changes in SETTINGS.items()]
    variants += [(version_of(python), python, {}, {}) for python in options.python]
    for name, python, environment, parameters in variants:
        folder = out / "variant"
        shutil.rmtree(folder, ignore_errors=True)
        if "batch_size" not in parameters:
            kit(python, environment, "submit", first / ARTIFACTS, "--out", folder)
            record(name, "06", folder)
            shutil.rmtree(folder)
        shutil.copytree(first, folder, ignore=shutil.ignore_patterns(".cache"))
        again = "02,03,04,05,06" if python == sys.executable else "02,04,05,06"
        given = [pair for pair in options.p if is_taken(pair, again)]
        given += [f"{key}={value}" for key, value in parameters.items()]
        arguments = [part for pair in given for part in ("-p", pair)]
        kit(python, environment, "run", "--force", "--only", again, "--out", folder, *arguments)
        record(name, again, folder, f"{largest_change(first, folder):.0e}")

    print("\n| run | ran again | track 1 | track 2 | track 3 | scores change by | the same |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print(f"\nread-only folder untouched: {'yes' if untouched else 'NO'}")
    return 0 if untouched and all(row[-1] == "yes" for row in rows) else 1


def run_on_read_only_pictures(drawn: Path, out: Path, parameters: dict[str, object]) -> bool:
    """Run the demo on a read-only copy of its pictures; whether that stayed as it was."""
    data = out / "read-only data"
    shutil.copytree(drawn, data)
    for path in [data, *data.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = hash_folder(data)
    run("demo", data=data, out=out / "readonly", parameters=parameters)
    untouched = hash_folder(data) == before
    for path in [data, *data.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return untouched


def kit(python: str, environment: dict[str, str], *arguments: object) -> None:
    """One command of this kit in a fresh process of some interpreter."""
    source = str(Path(entrep.__file__).resolve().parents[1])
    inherited = {**os.environ, **environment, "PYTHONPATH": source}
    command = [python, "-m", "entrep", *map(str, arguments)]
    done = subprocess.run(command, env=inherited, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def is_taken(pair: str, only: str) -> bool:
    """Whether one of the notebooks that run declares the parameter of a `name=value`."""
    steps = select_steps(only.split(","))
    folder = find_notebooks(None, steps)
    names = {n for step in steps for n in declared_parameters(folder / f"{step.name}.ipynb")}
    return pair.partition("=")[0] in names


def version_of(python: str) -> str:
    """Versions of an interpreter and of what computes in it."""
    code = (
        "import platform, importlib.metadata as m; print('Python', platform.python_version(), "
        "*(f'{n} {m.version(n)}' for n in ('torch', 'timm', 'open_clip_torch', 'numpy')))"
    )
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def largest_change(first: Path, again: Path) -> float:
    """The largest difference of a rounded score between two runs; infinity if rows differ."""
    largest = 0.0
    for name in SCORED:
        tables = [read_table(folder / name) for folder in (first, again)]
        keys = [c for c in tables[0] if c in ("path", "query", "rank", "answer")]
        if not tables[0][keys].equals(tables[1][keys]):
            return float("inf")
        scores = [c for c in tables[0] if c.startswith("p_") or c == "similarity"]
        if len(tables[0]):
            change = (tables[0][scores] - tables[1][scores]).abs().to_numpy().max()
            largest = max(largest, float(change))
    return largest


if __name__ == "__main__":
    sys.exit(main())

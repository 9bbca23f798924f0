"""Do equal inputs give equal submissions, byte for byte?

    python benchmarks/identical.py [--out runs/identical] [-p name=value ...]

Runs the demo, then again: from the same seed in another folder; from its own checkpoints with 1
and 2 threads and with batches of 1, 8 and 32 pictures; and on the drawn pictures from a read-only
folder. Prints the SHA-256 of each run's three submissions, and exits with 1 if one differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from entrep.artifacts import hash_folder
from entrep.runner import parse_parameters, run

AFTER_TRAINING = {
    "1 thread": {"threads": 1},
    "2 threads": {"threads": 2},
    "batches of 1": {"batch_size": 1},
    "batches of 8": {"batch_size": 8},
    "batches of 32": {"batch_size": 32},
}


def main() -> int:
    """Run all variants; 0 if their submissions are the same bytes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/identical"))
    parser.add_argument("-p", action="append", default=[], metavar="name=value")
    options = parser.parse_args()
    parameters, out = parse_parameters(options.p), options.out
    shutil.rmtree(out, ignore_errors=True)

    first = out / "first"
    run("demo", out=first, parameters=parameters)
    run("demo", out=out / "elsewhere" / "again", parameters=parameters)
    folders = {"first run": first, "same seed, other folder": out / "elsewhere" / "again"}
    for number, (name, changed) in enumerate(AFTER_TRAINING.items()):
        folders[name] = out / f"variant{number}"
        shutil.copytree(first, folders[name])
        # A cache of its own: kept embeddings would hide what threads and batches do to them.
        fresh = changed | {"cache_dir": str(out / f"cache{number}")}
        results = run("demo", out=folders[name], parameters=parameters | fresh)
        print(f"{name}: ran {[step for step, why in results.items() if why != 'unchanged']}")

    data = out / "read-only data"
    shutil.copytree(first / "data", data)
    for path in [data, *data.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = hash_folder(data)
    folders["pictures from a read-only folder"] = out / "readonly"
    run("demo", data=data, out=out / "readonly", parameters=parameters)
    untouched = hash_folder(data) == before
    for path in [data, *data.rglob("*")]:
        os.chmod(path, 0o755 if path.is_dir() else 0o644)

    hashes = {name: hash_folder(folder / "submissions") for name, folder in folders.items()}
    print("\n| run | track 1 | track 2 | track 3 | the same |\n|---|---|---|---|---|")
    for name, found in hashes.items():
        cells = [found[f"track{track}.zip"][:12] for track in (1, 2, 3)]
        same = "yes" if found == hashes["first run"] else "NO"
        print(f"| {name} | {' | '.join(cells)} | {same} |")
    print(f"\nread-only folder untouched: {'yes' if untouched else 'NO'}")
    return 0 if untouched and len({tuple(h.items()) for h in hashes.values()}) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())

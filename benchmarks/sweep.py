"""What sharing and two at a time bring to a sweep, and what kills cost it: nothing but time.

    python benchmarks/sweep.py [--out runs/sweep-benchmark] [--seeds 4] [--kills 5]
                               [--moments 0] [--only 03] [-p name=value ...]

Twelve demo runs (3 learning rates x 4 seeds of the fine-tune; --only: of these notebooks):

1. one after the other, each with all its notebooks and all cores (`entrep run`);
2. as a sweep, two at a time with half of the cores each, what is upstream of the fine-tune shared
   (`entrep sweep`);
3. as a sweep again, killed with SIGKILL at --kills random moments and started anew each time.

Prints the times and their ratio, and from the killed sweep's log how often each notebook was
finished, whether its table is complete, and whether it holds the same answers as the other one.
Exits with 1 if the ratio is above 0.6, a run is lost or done twice, or an answer differs. A small
setting for a look: --seeds 2 -p demo_size=0.03 -p folds=2 -p epochs=1 -p image_size=56
The whole takes about an hour and a half on 2 cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from entrep.artifacts import read_json
from entrep.sweep import make_plan
from entrep.sweep_table import read_sweep_table

RATES = ("0.0005", "0.001", "0.002")
JOBS, TARGET = 2, 0.6


def main() -> int:
    """Measure, print, and say whether the targets are met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/sweep-benchmark"))
    parser.add_argument("--seeds", type=int, default=4, help="how many")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--moments", type=int, default=0, help="seed of the kills' moments")
    parser.add_argument("--only", default="", help="notebooks, such as 03; those upstream run, too")
    parser.add_argument("-p", action="append", default=[], metavar="name=value")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    given = [word for pair in options.p for word in ("-p", pair)]
    seeds = ",".join(map(str, range(options.seeds)))
    axes = ["-p", f"learning_rate={','.join(RATES)}", "-p", f"training_seed={seeds}"]
    sweep = ["sweep", "--only", options.only, "--jobs", str(JOBS), *axes, *given, "--out"]

    only = upstream_of(options.only)
    alone = sum(run_alone(options.out / "alone", options.seeds, ["--only", only, *given]))
    shared = timed(start([*sweep, str(options.out / "shared")]))
    print(f"one after the other, nothing shared: {alone:.0f} s")
    print(f"sweep, {JOBS} at a time:                 {shared:.0f} s")
    print(f"ratio: {shared / alone:.2f} (target: at most {TARGET})", flush=True)

    moments = np.random.default_rng(options.moments).uniform(0.05, 0.35, options.kills) * shared
    killed = options.out / "killed"
    for moment in moments:
        kill_after(start([*sweep, str(killed)]), moment)
    timed(start([*sweep, str(killed)]))
    print(f"killed after {', '.join(f'{moment:.0f}' for moment in moments)} s")
    whole = report(options.out / "shared", killed, len(RATES) * options.seeds)
    return 0 if whole and shared / alone <= TARGET else 1


def upstream_of(only: str) -> str:
    """These notebooks and those upstream of them, as `entrep run --only` takes them."""
    plan = make_plan({}, "runs/unused", only=only.split(","))
    return ",".join(node.step.name for node in plan.nodes.values())


def run_alone(folder: Path, seeds: int, given: list[str]) -> list[float]:
    """Seconds of each run when it is run for itself."""
    seconds = []
    for rate, seed in itertools.product(RATES, range(seeds)):
        out = folder / f"{rate}-{seed}"
        own = ["-p", f"learning_rate={rate}", "-p", f"training_seed={seed}"]
        seconds.append(timed(start(["run", "--out", str(out), *own, *given])))
        print(f"alone {rate} {seed}: {seconds[-1]:.0f} s", flush=True)
    return seconds


def start(arguments: list[str]) -> subprocess.Popen:
    """Start `entrep`, which chooses its threads itself."""
    free = {name: value for name, value in os.environ.items() if "_NUM_THREADS" not in name}
    command = [sys.executable, "-m", "entrep", *arguments]
    return subprocess.Popen(command, env=free, stdout=subprocess.DEVNULL)


def timed(process: subprocess.Popen) -> float:
    """Seconds until it ends well."""
    started = time.monotonic()
    if process.wait():
        raise SystemExit(f"{process.args}: exit status {process.returncode}")
    return time.monotonic() - started


def kill_after(process: subprocess.Popen, seconds: float) -> None:
    """Kill it at once after so many seconds, unless it has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def report(shared: Path, killed: Path, runs: int) -> bool:
    """Print what the killed sweep came to; true if nothing is lost, doubled or different."""
    lines = [line for line in (killed / "log.jsonl").read_text().splitlines() if line]
    events = [json.loads(line) for line in lines]
    started = Counter(event["node"] for event in events if event["event"] == "started")
    ended = Counter(event["node"] for event in events if event["event"] in ("finished", "found"))
    tables = [read_sweep_table(folder).set_index("run") for folder in (shared, killed)]
    planned = {node for path in (killed / "records").iterdir()
               for node in read_json(path)["nodes"].values()}  # fmt: skip
    once = ended == Counter(planned)
    complete = len(tables[1]) == runs and set(tables[1]["status"]) == {"done"}
    same = same_answers(*tables)
    print(f"notebooks: {len(planned)} planned, {sum(started.values())} starts, each finished "
          f"{'once' if once else 'NOT ONCE'}")  # fmt: skip
    print(f"table: {len(tables[1])} of {runs} runs, {'complete' if complete else 'NOT COMPLETE'}")
    print(f"answers of both sweeps: {'the same' if same else 'DIFFERENT'}")
    return once and complete and same


def same_answers(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether parameters, metrics and hashes agree; what they cost may differ."""
    cost = [name for name in one.columns if name.startswith(("seconds", "attempts", "peak_gb"))]
    return one.drop(columns=cost).equals(other.drop(columns=cost))


if __name__ == "__main__":
    sys.exit(main())

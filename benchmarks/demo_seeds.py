"""What the demo shows over several seeds: the four methods and retrieval on held-out pictures.

    python benchmarks/demo_seeds.py [--seeds 0 1 2 3 4] [--out runs/seeds] [-p name=value ...]

Each seed is a whole `entrep run` with its own phantoms, folds, heads and shuffling, in its own
folder below --out; finished ones are not run again. Prints a Markdown table, mean ± sample
standard deviation over seeds, and the targets that the demo promises.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from entrep.artifacts import read_json
from entrep.pipeline import parse_parameters
from entrep.runner import run

METHODS = ("prototypes", "baseline", "reference", "combined")


def main() -> None:
    """Run the seeds and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("-p", action="append", default=[], metavar="name=value")
    options = parser.parse_args()
    runs = []
    for seed in options.seeds:
        folder = options.out / f"seed{seed}"
        run("demo", out=folder, parameters={"seed": seed, **parse_parameters(options.p)})
        runs.append(read_json(folder / "metrics.json"))

    hybrid = [metrics["04_hybrid"] for metrics in runs]
    errors = {m: [run["calibration error"][m] for run in hybrid] for m in METHODS}
    print(f"\nHeld-out pictures, seeds {options.seeds}, mean ± sd\n")
    print("| method | coarse accuracy | fine accuracy | macro F1 | weighted F1 | ECE |")
    print("|---|--:|--:|--:|--:|--:|")
    fine = {}
    for method in METHODS:
        scores = [metrics[method]["heldout"] for metrics in hybrid]
        fine[method] = [score["fine"] for score in scores]
        cells = [spread([s[name] for s in scores]) for name in ("coarse", "fine")]
        cells += [spread([s[name] for s in scores], 1, 3) for name in ("macro_f1", "weighted_f1")]
        cells.append(spread(errors[method], 1, 3))
        print(f"| {method} | {' | '.join(cells)} |")

    print(
        "\n| query | queries | R@1 | its 95 % interval in a run | R@5 | R@10 | MRR | chance R@1 |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    least = {}
    for kind in ("image", "text"):
        scores = [metrics["05_retrieval"][kind] for metrics in runs]
        names = ("recall@1", "recall@5", "recall@10", "mrr", "chance")
        cells = [spread([s[name] for s in scores], 1, 3) for name in names]
        ends = [statistics.mean(s[end] for s in scores) for end in ("low", "high")]
        cells.insert(1, f"{ends[0]:.3f} to {ends[1]:.3f}")
        least[kind] = min(s["recall@1"] / s["chance"] for s in scores)
        print(f"| {kind} | {sum(s['queries'] for s in scores)} | {' | '.join(cells)} |")

    coarse = statistics.mean(m["prototypes"]["heldout"]["coarse"] for m in hybrid)
    means = {method: statistics.mean(values) for method, values in fine.items()}
    checks = {
        "prototypes: coarse accuracy at least 95 %": coarse >= 0.95,
        "prototypes: fine accuracy at most 70 %": means["prototypes"] <= 0.70,
        "baseline: 15 points more": means["baseline"] >= means["prototypes"] + 0.15,
        "combined: 15 points more": means["combined"] >= means["prototypes"] + 0.15,
        "combined: at least the baseline's equal": means["combined"] >= means["baseline"],
        "combined: at least the reference's equal": means["combined"] >= means["reference"],
        f"image R@1 at least 5 times chance ({least['image']:.0f} at least)": least["image"] >= 5,
        f"text R@1 at least 5 times chance ({least['text']:.0f} at least)": least["text"] >= 5,
    }
    print()
    for target, met in checks.items():
        print(f"- {'met' if met else 'NOT MET'}: {target}")


def spread(values: list[float], scale: float = 100, digits: int = 1) -> str:
    """Mean ± sample standard deviation, as text."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    unit = " %" if scale == 100 else ""
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * deviation:.{digits}f}{unit}"


if __name__ == "__main__":
    main()

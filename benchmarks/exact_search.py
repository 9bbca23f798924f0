"""Does exact search in a folder on disk keep up with FAISS in memory?

    python benchmarks/exact_search.py [--rows 1000000] [--width 512] [--queries 1000] [--rounds 3]

Writes an index of random unit vectors in fp16, in segments as a build makes them. Each round
starts two processes, in alternating order: one opens the index and searches it, one reads the
same fp16 vectors into FAISS's IndexFlatIP (fp32) and searches that. Medians over the rounds.
"Opened and searched" is what a command does: the first search checks the SHA-256 of every file
too. FAISS's time is that of its search alone. Peak memory is VmHWM, mapped file pages included.
Linux only; needs faiss-cpu, 3 GB of disk and 6 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from entrep.archive import SEGMENT_ROWS
from entrep.exact import search_exact
from entrep.index import Index, Recipe, commit, open_index, write_segment

K = 10
ALLOWED_RATIO = 1.2
ALLOWED_GB = 1.5
ALLOWED_OPEN_S = 1.0
TIE = 2e-6  # similarities this near may change places: float32 sums differ in their last bits


def unit_vectors(rows: int, width: int, seed: int) -> np.ndarray:
    """(rows, width) float32."""
    vectors = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_index(
    folder: Path,
    rows: int,
    width: int,
    draw: Callable[[int, int, int], np.ndarray] = unit_vectors,
) -> None:
    """An index as a build leaves it; `draw` gives vectors of so many rows, a width and a seed."""
    recipe = Recipe("random", "fp32", "0" * 64, "0" * 64, True, "")
    index = Index(folder, recipe, "/pictures", "fp16", width)
    for start in range(0, rows, SEGMENT_ROWS):
        count = min(SEGMENT_ROWS, rows - start)
        names = [f"patient{n // 50:06}/examination/{n:08}.png" for n in range(start, start + count)]
        digests = [f"{n:064x}" for n in range(start, start + count)]
        vectors = draw(count, width, start)
        index.segments += (write_segment(index, names, digests, vectors),)
    commit(index)


def peak_gb() -> float:
    """Highest resident size of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(x.split()[1]) / 1e6 for x in lines if x.startswith("VmHWM"))


def timed(function, *arguments, **options):
    """(seconds, result)."""
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def run_kit(folder: Path, queries: np.ndarray) -> dict:
    """Open and search, as a child process."""
    base = peak_gb()
    open_s, index = timed(open_index, folder)
    first_s, hits = timed(search_exact, index, queries, k=K)
    again_s, _ = timed(search_exact, index, queries, k=K)
    one_s, _ = timed(search_exact, index, queries[:1], k=K)
    rows = [[int(hit.name[-12:-4]) for hit in row] for row in hits]
    values = [[hit.similarity for hit in row] for row in hits]
    times = {"open": open_s, "first": open_s + first_s, "search": again_s, "one": one_s}
    return {**times, "base": base, "peak": peak_gb(), "rows": rows, "values": values}


def run_faiss(folder: Path, queries: np.ndarray, threads: int) -> dict:
    """Read all vectors into memory and search them, as a child process."""
    import faiss

    faiss.omp_set_num_threads(threads)
    base = peak_gb()
    index = open_index(folder)
    flat = faiss.IndexFlatIP(index.width)
    for segment in index.segments:
        flat.add(index.vectors(segment).astype(np.float32))
    search_s, (values, rows) = timed(flat.search, queries, K)
    one_s, _ = timed(flat.search, queries[:1], K)
    found = {"rows": rows.tolist(), "values": values.tolist()}
    return {"search": search_s, "one": one_s, "base": base, "peak": peak_gb(), **found}


def differences(ours: dict, theirs: dict) -> int:
    """Places where another picture stands though the similarities are no tie."""
    a, b = np.array(ours["values"]), np.array(theirs["values"])
    return int(((np.array(ours["rows"]) != np.array(theirs["rows"])) & (abs(a - b) > TIE)).sum())


def main() -> None:
    """Write, measure in children, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # who, folder
    options = parser.parse_args()
    if options.child:
        who, folder = options.child
        torch.set_num_threads(options.threads)
        queries = unit_vectors(options.queries, options.width, 2**31)
        arguments = (Path(folder), queries)
        found = run_kit(*arguments) if who == "kit" else run_faiss(*arguments, options.threads)
        print(json.dumps(found))
        return

    def child(who: str, folder: str) -> dict:
        given = [f"--{key}={getattr(options, key)}" for key in ("width", "queries", "threads")]
        command = [sys.executable, __file__, *given, "--child", who, folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout)

    results: dict[str, list[dict]] = {"kit": [], "faiss": []}
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder) / "index", options.rows, options.width)
        for number in range(options.rounds):
            for who in ("kit", "faiss") if number % 2 == 0 else ("faiss", "kit"):
                results[who].append(child(who, str(Path(folder) / "index")))
                last = results[who][-1]
                print(f"round {number + 1}, {who}: {last['search']:.1f} s", file=sys.stderr)

    def middle(who: str, key: str) -> float:
        return median(result[key] for result in results[who])

    numbers = {"kit": ("open", "first", "search", "one", "base", "peak")}
    numbers["faiss"] = numbers["kit"][2:]
    kit, faiss = ({key: middle(who, key) for key in numbers[who]} for who in results)
    many = f"{options.queries:,} queries"
    print(f"{options.rows:,} x {options.width}, top {K}, {options.threads} threads\n")
    print("| | this kit, fp16 on disk | FAISS flat, fp32 in memory |")
    print("|---|--:|--:|")
    print(f"| open, s | {kit['open']:.2f} | |")
    print(f"| {many}, s | {kit['search']:.1f} | {faiss['search']:.1f} |")
    print(f"| opened and searched, every file checked, s | {kit['first']:.1f} | |")
    print(f"| 1 query, s | {kit['one']:.2f} | {faiss['one']:.2f} |")
    print(f"| peak memory, GB | {kit['peak']:.2f} | {faiss['peak']:.2f} |")
    print(f"| of it before opening, GB | {kit['base']:.2f} | {faiss['base']:.2f} |\n")
    pairs = zip(results["kit"], results["faiss"], strict=True)
    wrong = sum(differences(ours, theirs) for ours, theirs in pairs)
    ratio, whole = kit["search"] / faiss["search"], kit["first"] / faiss["search"]
    verdicts = [
        (f"time {ratio:.2f} x FAISS flat's (at most {ALLOWED_RATIO})", ratio <= ALLOWED_RATIO),
        (f"... {whole:.2f} x with opening and checking", whole <= ALLOWED_RATIO),
        (f"peak memory {kit['peak']:.2f} GB (at most {ALLOWED_GB})", kit["peak"] <= ALLOWED_GB),
        (f"opened in {kit['open']:.2f} s (at most {ALLOWED_OPEN_S})", kit["open"] < ALLOWED_OPEN_S),
        (f"{wrong} answers differ from FAISS's beyond ties", wrong == 0),
    ]
    for words, met in verdicts:
        print(f"- {'met' if met else 'NOT MET'}: {words}")


if __name__ == "__main__":
    main()

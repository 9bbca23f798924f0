"""What 10⁴, 10⁶ and 10⁸ pictures cost: measured rates, a model of them, the model checked.

    python benchmarks/scale.py [--sizes 100000,1000000] [--width 512]

Measures on one core (one thread): decoding a 640x480 PNG, forward passes, writing a segment, and
search in a small index of synthetic embeddings (1,000 clusters on the unit sphere). Fits the
model's constants to it (--fit), predicts larger ones (--sizes), writes and measures these, too,
and prints Markdown: rates, predicted against measured, and the costs of 10⁴, 10⁶ and 10⁸ pictures.
Forward passes run on CUDA instead where there is a GPU. Needs faiss-cpu and, for each million of
vectors, 2.2 GB of disk and 3 GB of memory.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from embedding_rate import build, describe_machine, lay_out
from exact_search import unit_vectors, write_index
from scipy.optimize import brentq
from tqdm import tqdm

from entrep.approximate import TRAINED_ON, build_approximate, search_approximate
from entrep.encoders import Encoder, load_encoder
from entrep.exact import search_exact
from entrep.index import Index, open_index
from entrep.preprocess import prepare_picture

CLUSTERS = 1000
QUERIES = 100  # of a batch of queries
PICTURES = (10**4, 10**6, 10**8)
MEMORY_GB = 64  # of a large single machine, for the limits that are printed
SEGMENT_BYTES = 330  # of the manifest, for each segment
SHARD = 2048


def clustered(rows: int, width: int, seed: int) -> np.ndarray:
    """(rows, width) unit vectors around the same centres for every seed."""
    centres = unit_vectors(CLUSTERS, width, 1)
    chosen = centres[np.random.default_rng([seed, 2]).integers(0, CLUSTERS, rows)]
    near = chosen + 0.5 * unit_vectors(rows, width, seed + 3)
    return near / np.linalg.norm(near, axis=1, keepdims=True)


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Median wall-clock time of some repeats."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken)


# Rates


def decode_seconds(folder: Path) -> tuple[float, float]:
    """(seconds of one core a picture, mean bytes of its file)."""
    paths = [folder / name for name in lay_out(None, folder, 32, 32)]
    each = seconds(lambda: [prepare_picture(path, 224) for path in paths]) / len(paths)
    return each, sum(path.stat().st_size for path in paths) / len(paths)


def forward_seconds(encoder: Encoder, batch_size: int) -> float:
    """Seconds a picture in the network, on tensors that lie ready."""
    size = encoder.spec.image_size
    batch = torch.rand(batch_size, 3, size, size, device=encoder.device, dtype=encoder.dtype)

    def run() -> None:
        with torch.inference_mode():
            encoder.encode_pictures(batch).cpu()

    run()
    return seconds(run) / batch_size


def measure_forwards() -> dict[str, float]:
    """Seconds a picture by network; with random weights where none are shipped."""
    device, dtype, batch = "cpu", torch.float32, 16
    if torch.cuda.is_available():
        device, dtype, batch = "cuda", torch.bfloat16, 128
    networks = {name: load_encoder(name, device=device) for name in ("demo-clip", "effnet-lite0")}
    networks["ViT-B/16, random"] = build("vit_base_patch16_224", 224, device, dtype)
    return {name: forward_seconds(network, batch) for name, network in networks.items()}


# One index, measured


def measure_index(folder: Path, rows: int, width: int, approximate: bool) -> dict[str, float]:
    """What writing and searching so many synthetic vectors takes; units in the names."""
    drawn_s = []

    def draw(*arguments: int) -> np.ndarray:
        start = time.perf_counter()
        vectors = clustered(*arguments)
        drawn_s.append(time.perf_counter() - start)
        return vectors

    start = time.perf_counter()
    write_index(folder, rows, width, draw)
    found = {"write_s": time.perf_counter() - start - sum(drawn_s)}
    files = [path for path in folder.rglob("*") if path.is_file()]
    found["bytes"] = float(sum(path.stat().st_size for path in files))
    index = open_index(folder)
    queries = clustered(QUERIES, width, 2**31)
    first = seconds(lambda: search_exact(index, queries[:1]), repeats=1)
    found["one_s"] = seconds(lambda: search_exact(index, queries[:1]))
    found["many_s"] = seconds(lambda: search_exact(index, queries))
    found["check_s"] = first - found["one_s"]
    found["key_bytes"] = float(keys_bytes(index))
    if approximate:
        start = time.perf_counter()
        build_approximate(index)
        found["build_s"] = time.perf_counter() - start
        search_approximate(index, queries[:1])  # reads FAISS's file
        found["approximate_s"] = seconds(lambda: search_approximate(index, queries)) / QUERIES
        found["probes"], found["recall"] = index.approximate.probes, index.approximate.recall
        found["faiss_bytes"] = float(index.faiss_file().stat().st_size)
    return found


def keys_bytes(index: Index) -> int:
    """Memory of all names and digests, as a build holds them."""
    tracemalloc.start()
    keys = index.all_keys()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del keys
    return held


# The model


class Model:
    """Costs of search by rows and queries; linear but for FAISS, whose lists are √rows.

    Exact search reads every vector (`scan`) and multiplies it with every query (`multiply`). FAISS
    learns √rows centres from 64 √rows vectors in 10 rounds and compares every vector with every
    centre: rows (640 + √rows) products. A query looks at the centres and some lists, √rows each.
    """

    def __init__(self, rows: int, found: dict[str, float]) -> None:
        """Fit the constants to one measured index."""
        self.multiply = (found["many_s"] - found["one_s"]) / (rows * (QUERIES - 1))
        self.scan = found["one_s"] / rows - self.multiply
        self.bytes = found["bytes"] / rows
        self.check = found["check_s"] / rows
        self.write = found["write_s"] / rows
        self.key_bytes = found["key_bytes"] / rows
        self.faiss_bytes = found["faiss_bytes"] / rows
        self.build = found["build_s"] / self._products(rows)
        self.approximate = found["approximate_s"] / math.sqrt(rows)

    def predict(self, rows: int) -> dict[str, float]:
        """What `measure_index` would measure."""
        return {
            "write_s": self.write * rows,
            "bytes": self.bytes * rows,
            "key_bytes": self.key_bytes * rows,
            "one_s": rows * (self.scan + self.multiply),
            "many_s": rows * (self.scan + QUERIES * self.multiply),
            "check_s": self.check * rows,
            "build_s": self.build * self._products(rows),
            "approximate_s": self.approximate * math.sqrt(rows),
            "faiss_bytes": self.faiss_bytes * rows,
        }

    @staticmethod
    def _products(rows: float) -> float:
        return rows * (10 * TRAINED_ON + math.sqrt(rows))

    def rows_built_in(self, most_s: float) -> float:
        """Rows of a FAISS index that is built in so many seconds."""
        return brentq(lambda rows: self.build * self._products(rows) - most_s, 1, 1e15)


# Text

LABELS = {
    "bytes": "bytes on disk",
    "key_bytes": "names and digests in memory, while built",
    "write_s": "written, s",
    "check_s": "SHA-256 of all files checked, s",
    "one_s": "1 query, exact, s",
    "many_s": f"{QUERIES} queries at once, exact, s",
    "build_s": "FAISS index built, s",
    "approximate_s": "1 query of many, approximate, s",
    "faiss_bytes": "bytes of the FAISS index, on disk and in memory",
}


def amount(value: float, unit: str) -> str:
    """A number that people can read."""
    if unit == "s":
        for size, name in ((365.25 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")):
            if value >= 2 * size:
                return f"{value / size:,.1f} {name}"
        return f"{value:.3g} s"
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f} B"


def unit_of(name: str) -> str:
    """Seconds or bytes."""
    return "s" if name.endswith("_s") else "bytes"


def print_check(rows: int, predicted: dict[str, float], found: dict[str, float]) -> None:
    """Predicted against measured."""
    print(f"### {rows:,} vectors\n")
    print("| | predicted | measured | measured / predicted |\n|---|--:|--:|--:|")
    for name, label in LABELS.items():
        if name in found:
            pair = [amount(values[name], unit_of(name)) for values in (predicted, found)]
            ratio = found[name] / predicted[name] if predicted[name] else math.nan
            print(f"| {label} | {' | '.join(pair)} | {ratio:.2f} |")
    if "recall" in found:
        print(f"\nFAISS finds {found['recall']:.3f} of the 10 nearest in {found['probes']} lists.")
    print(flush=True)


def print_costs(model: Model, decode: float, forwards: dict[str, float], file: float) -> None:
    """The table of 10⁴, 10⁶ and 10⁸ pictures."""
    print("| one core | " + " | ".join(f"{n:,}" for n in PICTURES) + " |")
    print("|---|" + "--:|" * len(PICTURES))

    def row(label: str, of: Callable[[int], float], unit: str) -> None:
        print(f"| {label} | " + " | ".join(amount(of(n), unit) for n in PICTURES) + " |")

    row("the PNG files", lambda n: file * n, "bytes")
    row("decode, crop, resize", lambda n: decode * n, "s")
    for name, each in forwards.items():
        row(f"forward, {name}", lambda n, each=each: each * n, "s")
    for name, label in LABELS.items():
        row(label.removesuffix(", s"), lambda n, name=name: model.predict(n)[name], unit_of(name))
    # Every shard replaces the manifest by a longer one.
    row("manifests written", lambda n: SEGMENT_BYTES * (n / SHARD) ** 2 / 2, "bytes")
    print("\nWhere it stops being sensible, by the same rates:\n")
    per_row = model.scan + model.multiply
    slowest = max(forwards.values())
    limits = (
        ("exact search, 1 query in 1 s", 1 / per_row),
        (f"FAISS index in {MEMORY_GB} GB of memory", MEMORY_GB * 1e9 / model.faiss_bytes),
        ("FAISS index built in a day", model.rows_built_in(86400)),
        (f"names in {MEMORY_GB} GB of memory", MEMORY_GB * 1e9 / model.key_bytes),
        ("embedded with the slowest network in a day of one core", 86400 / (decode + slowest)),
        ("... of 64 cores", 64 * 86400 / (decode + slowest)),
    )
    for label, most in limits:
        print(f"- {label}: up to {float(f'{most:.2g}'):,.0f} pictures")


def main() -> None:
    """Measure, fit, predict, check, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fit", type=int, default=50_000, help="rows (50000)")
    sizes = {"type": lambda text: [int(part) for part in text.split(",")]}
    parser.add_argument("--sizes", **sizes, default=[100_000, 1_000_000], help="rows to check")
    parser.add_argument("--faiss-up-to", type=int, default=1_000_000, help="rows (1000000)")
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    import faiss  # reads the variable

    faiss.omp_set_num_threads(1)
    print(f"python benchmarks/scale.py {' '.join(sys.argv[1:])}\n\n{describe_machine()}\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "pictures").mkdir()
        decode, file = decode_seconds(folder / "pictures")
        forwards = measure_forwards()
        print("## Rates\n\n| | pictures/s |\n|---|--:|")
        print(f"| decode, crop, resize to 224 px, one core | {1 / decode:.1f} |")
        where = "one core" if not torch.cuda.is_available() else torch.cuda.get_device_name()
        for name, each in forwards.items():
            print(f"| forward, {name}, {where} | {1 / each:.1f} |")

        found = {}
        for rows in tqdm(sorted({options.fit, *options.sizes}), desc="indexes", disable=None):
            given = (rows, options.width, rows <= options.faiss_up_to)
            found[rows] = measure_index(folder / str(rows), *given)
    model = Model(options.fit, found[options.fit])
    each = model.scan + model.multiply
    print(f"| written to an index, {options.width} wide, fp16 | {1 / model.write:,.0f} |")
    print(f"| compared with one query, exact | {1 / each:,.0f} |")
    print(f"| compared with each of {QUERIES} queries at once | {1 / model.multiply:,.0f} |\n")
    print(f"## The model, fitted to {options.fit:,} vectors, against larger indexes\n")
    for rows in options.sizes:
        print_check(rows, model.predict(rows), found[rows])
    print("## Costs\n")
    print_costs(model, decode, forwards, file)


if __name__ == "__main__":
    main()

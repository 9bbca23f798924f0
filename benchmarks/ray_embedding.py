"""Do Ray's workers, one of them killed on the way, make the index that one process makes?

    python benchmarks/ray_embedding.py [--pictures 20000] [--workers 2] [--seed 0]

Draws cheap pictures of 128 px, embeds them with demo-clip in one process, then on a local Ray of
some workers, of which one gets SIGKILL at a seeded moment. Compares every file of the two
indexes' vectors and keys bit for bit (each forward pass has one thread), and samples the resident
memory of the driver and of the workers. Prints Markdown; exit status 1 if a file differs, nobody
was killed, or the memory of the driver or of a worker grows by more than 50 MB in the
second half of its life. Linux only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from embedding_memory import resident_mb
from PIL import Image
from tqdm import tqdm

from entrep.artifacts import hash_folder
from entrep.bulk import embed_folder
from entrep.ray_embed import ray_encoders

SIDE = 128
SHARD = 512
ALLOWED_MB = 50


def draw_pictures(folder: Path, count: int, seed: int) -> None:
    """Soft random blots as PNG files, each its own."""
    rng = np.random.default_rng(seed)
    for number in tqdm(range(count), desc="draw", unit="picture", disable=None):
        blots = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8))
        blots.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:06}.png")


def our_workers() -> list[psutil.Process]:
    """Ray's processes that hold an encoder."""
    below = psutil.Process().children(recursive=True)
    found = []
    for process in below:
        try:
            if " ".join(process.cmdline()).startswith("ray::MapWorker(Map(_EmbedShard))"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


class Watch(threading.Thread):
    """Samples memory, and kills a worker when so many pictures are in the index."""

    def __init__(self, index: Path, kill_at: int):
        super().__init__(daemon=True)
        self.index, self.kill_at = index, kill_at
        self.over = threading.Event()
        self.killed: list[int] = []
        self.samples: dict[int, list[float]] = {}  # MB by process, this one first

    def run(self) -> None:
        """Look every half second until it is over."""
        while not self.over.wait(0.5):
            workers = our_workers()
            for pid in (os.getpid(), *(worker.pid for worker in workers)):
                try:
                    self.samples.setdefault(pid, []).append(resident_mb(pid))
                except (FileNotFoundError, ProcessLookupError):
                    continue
            done = SHARD * len(list((self.index / "segments").glob("[0-9]*.vectors.npy")))
            if done >= self.kill_at and workers and not self.killed:
                victim = workers[self.kill_at % len(workers)]
                victim.kill()
                self.killed.append(victim.pid)


def main() -> int:
    """Draw, embed twice, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Not at the ends, so that the killed one and its successor have memory to compare.
    share = np.random.default_rng(options.seed).uniform(0.25, 0.75)

    with tempfile.TemporaryDirectory() as scratch:
        pictures, alone, ray = (Path(scratch) / name for name in ("pictures", "alone", "ray"))
        pictures.mkdir()
        draw_pictures(pictures, options.pictures, options.seed)
        given = {"encoder": "demo-clip", "device": "cpu", "shard_size": SHARD}
        start = time.perf_counter()
        embed_folder(pictures, alone, **given)
        alone_s = time.perf_counter() - start

        watch = Watch(ray, int(share * options.pictures))
        start = time.perf_counter()
        with ray_encoders("local", options.workers) as encoders:
            watch.start()
            report = embed_folder(pictures, ray, **given, start=encoders)
            watch.over.set()
            watch.join()
        ray_s = time.perf_counter() - start
        one, other = hash_folder(alone / "segments"), hash_folder(ray / "segments")
    different = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]

    print(f"python benchmarks/ray_embedding.py {' '.join(sys.argv[1:])}\n")
    print(f"{len(report.index):,} pictures of {SIDE} px, demo-clip, shards of {SHARD}\n")
    print("| | seconds |\n|---|--:|")
    print(f"| one process | {alone_s:.0f} |")
    print(f"| {options.workers} workers, one killed, start of Ray included | {ray_s:.0f} |\n")
    print("| resident memory | peak, MB | first half, MB | more in the second, MB |")
    print("|---|--:|--:|--:|")
    grown = []
    for number, (pid, sizes) in enumerate(watch.samples.items()):
        name = "driver" if not number else f"worker {number}"
        name += ", killed" if pid in watch.killed else ""
        early = max(sizes[: max(1, len(sizes) // 2)])
        grown.append(max(sizes) - early)
        print(f"| {name} | {max(sizes):.0f} | {early:.0f} | {grown[-1]:.0f} |")
    verdicts = [
        (f"{len(different)} of {len(one)} files of the index differ", not different),
        (f"{len(watch.killed)} worker killed by SIGKILL", len(watch.killed) == 1),
        (f"memory grows by {max(grown):.0f} MB (at most {ALLOWED_MB})", max(grown) <= ALLOWED_MB),
    ]
    print()
    for words, met in verdicts:
        print(f"- {'met' if met else 'NOT MET'}: {words}")
    return 0 if all(met for _, met in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())

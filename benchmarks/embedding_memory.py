"""Does memory stay flat while 100,000 pictures are embedded?

    python benchmarks/embedding_memory.py [--pictures 100000] [--workers 2]

A generator names pictures, the engine reads them from a handful of small files, decodes them in
processes and passes them through a tiny network. The resident size of this process and of its
workers is sampled on the way. Prints a Markdown table; fails if the size grows by more than
20 MB after the first tenth. Linux only.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from entrep.embed import stream_embeddings
from entrep.encoders import Encoder
from entrep.registry import EncoderSpec

SIDE = 32
FILES = 8
ALLOWED_MB = 20


def resident_mb(pid: int) -> float:
    """Resident size of a process in MB, without the libraries that all of them map."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(x.split()[1]) / 1000 for x in lines if x.startswith(("RssAnon", "RssShmem")))


def all_resident_mb() -> tuple[float, float]:
    """Of this process, and of all its workers together."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    return resident_mb(own), sum(resident_mb(int(pid)) for pid in children)


def main() -> None:
    """Embed, sample, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=SIDE)
    spec = EncoderSpec("test_vit", "image", "timm", "test_vit", SIDE, 128, "", "file")
    encoder = Encoder(spec, model.eval(), torch.device("cpu"), torch.float32, "random")

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for n in range(FILES):
            pixels = rng.integers(60, 255, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{n}.png")

        def names() -> Iterator[str]:
            for n in range(options.pictures):
                yield f"{n % FILES}.png"

        print("| pictures | this process, MB | workers, MB | pictures/s |")
        print("|--:|--:|--:|--:|")
        done, due, samples, start = 0, 0, [], time.perf_counter()
        for part in stream_embeddings(encoder, folder, names(), workers=options.workers):
            assert np.isfinite(part.matrix).all()
            done += len(part.keys)
            if done >= due:
                own, workers = all_resident_mb()
                rate = done / (time.perf_counter() - start)
                print(f"| {done} | {own:.1f} | {workers:.1f} | {rate:.0f} |", flush=True)
                if done >= options.pictures // 10:
                    samples.append(own + workers)
                due += options.pictures // 10
    assert done == options.pictures
    growth = max(samples) - samples[0]
    print(f"\nGrowth after the first tenth: {growth:.1f} MB (allowed: {ALLOWED_MB} MB).")
    assert growth < ALLOWED_MB


if __name__ == "__main__":
    main()

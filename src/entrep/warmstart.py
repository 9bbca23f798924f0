"""A warm start on drawn pictures: what left and right look like, learned before the few real ones.

Phantoms cost nothing, and their labels are certain. A network that has told thousands of them
apart needs real pictures only to get used to their looks.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from entrep.artifacts import sha256_json
from entrep.labels import CLASS_NAMES
from entrep.network import checkpoint_metadata, save_checkpoint
from entrep.phantom import DRAWING_VERSION, draw_one
from entrep.preprocess import prepare_image
from entrep.registry import pack_digest
from entrep.training import TrainingOptions, train_network

EPOCHS = 2  # no picture need be seen often where new ones are free
DIFFICULTY = 0.7  # much nuisance: the network shall not lean on how clean drawings look
VALIDATION_SHARE = 20  # one in so many shows how the training goes


def warm_start(
    cache: str | Path,
    count: int,
    *,
    options: TrainingOptions,
    device: torch.device,
    seed: int,
    workers: int | None = None,
) -> Path:
    """Checkpoint of a network that was trained on drawn pictures; made once, then kept.

    Args:
        cache: folder to keep it in, as `warmstart-<digest>.safetensors`.
        count: drawn pictures, at least 140; 1,800 at 192 px take about seven minutes on 2 cores.
        options: of the training to come; its backbone, size and recipe are used here, for
            two epochs.
        device: where to train.
        seed: of the pictures and the training.
        workers: processes that draw; None: one a core, 1: none beside this one.

    Raises:
        ValueError: if `count` is too small to part into all classes.
    """
    if count < 20 * len(CLASS_NAMES):
        raise ValueError(f"phantoms: expected 0 or at least {20 * len(CLASS_NAMES)}, got {count}.")
    options = dataclasses.replace(options, epochs=EPOCHS, patience=0, start="")
    settings = {k: v for k, v in vars(options).items() if k not in ("weights_dir", "processes")}
    weights = pack_digest(options.backbone, options.weights_dir)
    drawn = [DRAWING_VERSION, DIFFICULTY, count, seed]
    key = sha256_json([settings, weights, drawn, torch.__version__])
    path = Path(cache) / f"warmstart-{key[:16]}.safetensors"
    if checkpoint_metadata(path).get("key") == key:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures, class_index = draw_prepared(
        count, options.image_size, crop=options.crop, seed=seed, workers=workers
    )
    kept = path.with_suffix(".pt")
    network, _, _ = train_network(
        pictures,
        class_index,
        np.arange(count) % VALIDATION_SHARE == 0,
        options=options,
        device=device,
        seed=seed,
        name="warm start",
        kept=kept,
        key=key,
    )
    save_checkpoint(path, network, dataclasses.asdict(options), key)
    kept.unlink(missing_ok=True)
    return path


def draw_prepared(
    count: int, size: int, *, crop: bool = True, seed: int = 0, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw pictures and prepare them as real ones are.

    Args:
        count: how many.
        size: pixels a side.
        crop: to the lit disc, or the whole frame.
        seed: of the pictures; their streams are `phantom.draw_pictures`', no data set shares one.
        workers: processes; None: one a core, 1: none beside this one.

    Returns:
        ((count, size, size, 3) uint8, (count,) class indices). The same for any `workers`.
    """
    draw = functools.partial(_draw, size=size, crop=crop, seed=seed)
    pictures, classes = np.empty((count, size, size, 3), np.uint8), np.empty(count, int)
    bar = {"desc": "draw", "total": count, "unit": "picture", "disable": None}
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        for row in tqdm(range(count), **bar):
            pictures[row], classes[row] = draw(row)
        return pictures, classes
    # "spawn" is safe beside a notebook kernel's threads
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        found = tqdm(pool.map(draw, range(count), chunksize=16), **bar)
        for row, (picture, class_index) in enumerate(found):
            pictures[row], classes[row] = picture, class_index
    finally:
        pool.shutdown(cancel_futures=True)
    return pictures, classes


def _draw(index: int, *, size: int, crop: bool, seed: int) -> tuple[np.ndarray, int]:
    pixels, class_name, _, _ = draw_one(index, seed=seed, difficulty=DIFFICULTY)
    return prepare_image(Image.fromarray(pixels), size, crop=crop), CLASS_NAMES.index(class_name)

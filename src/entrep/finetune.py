"""Fine-tuning by cross-validation: networks that answer every question, one a fold and seed."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from entrep.artifacts import read_table, sha256_json, write_table
from entrep.config import RunConfig
from entrep.heads import BINARY, to_probs
from entrep.network import (
    SharedNetwork,
    checkpoint_metadata,
    load_checkpoint,
    predict_logits,
    save_checkpoint,
)
from entrep.registry import pack_digest
from entrep.training import TrainingOptions, train_network

# How the reference trains, as far as its description goes: changes for `options_of`.
REFERENCE: dict[str, object] = {
    "linear_probe": False,
    "ema": False,
    "flip_swap": False,
    "mirror_pairs": False,
}


def options_of(config: RunConfig, **changes: object) -> TrainingOptions:
    """The training part of a run's configuration, with changes."""
    names = {field.name for field in dataclasses.fields(TrainingOptions)} - {"questions", "start"}
    return TrainingOptions(**{**{name: getattr(config, name) for name in names}, **changes})


def cross_validate(
    folder: str | Path,
    prepared: np.ndarray,
    class_index: np.ndarray,
    fold: np.ndarray,
    sha256: Sequence[str],
    *,
    options: TrainingOptions,
    device: torch.device,
    seed: int,
    members: int = 1,
    budget_s: float = math.inf,
) -> tuple[list[SharedNetwork], pd.DataFrame]:
    """Train networks for each fold; one whose checkpoint in `folder` fits is loaded instead.

    Args:
        folder: where `fold<i>.safetensors` and `fold<i>.csv` (its history) are kept, and
            `fold<i>.pt` while it trains; of further members `fold<i>_<m>`.
        prepared: (N, S, S, 3) uint8 of all pictures.
        class_index: (N,) ints; read for development pictures only.
        fold: (N,) ints, -1 for pictures outside development.
        sha256: N digests of the pictures' bytes, which the checkpoints' keys hold.
        options: see `TrainingOptions`.
        device: where to train.
        seed: member m of fold i trains with seed + i + 100 m.
        members: networks a fold, which differ by their seeds.
        budget_s: seconds for all networks together, shared out evenly. A training that runs
            out of it gives the weights it has; the next call goes on from there.

    Returns:
        (networks, the first member of each fold in fold order, then the second ones;
        histories with columns `fold` and `member`).
    """
    folder, rows = Path(folder), fold >= 0
    content = [f"{d}:{c}:{f}" for d, c, f in zip(sha256, class_index, fold, strict=True) if f >= 0]
    networks, histories = [], []
    start, count = time.monotonic(), int(fold.max()) + 1
    jobs = [(member, number) for member in range(members) for number in range(count)]
    names = [f"fold{number}_{member}" if member else f"fold{number}" for member, number in jobs]
    for path in folder.glob("fold*"):
        if path.stem not in names:
            path.unlink()  # of an earlier run with more folds
    for place, ((member, number), name) in enumerate(zip(jobs, names, strict=True)):
        checkpoint, table = folder / f"{name}.safetensors", folder / f"{name}.csv"
        key = fold_key(options, content, seed + 100 * member, number)
        if checkpoint_metadata(checkpoint).get("key") == key and table.is_file():
            network, history = load_checkpoint(checkpoint, device), read_table(table)
        else:
            kept = folder / f"{name}.pt"
            left = budget_s - (time.monotonic() - start)
            network, history, whole = train_network(
                prepared[rows],
                class_index[rows],
                fold[rows] == number,
                options=options,
                device=device,
                seed=seed + number + 100 * member,
                name=name.replace("fold", "fold ").replace("_", ", member "),
                kept=kept,
                key=key,
                budget_s=max(0.0, left) / (len(jobs) - place),
            )
            if whole:
                write_table(table, history)
                save_checkpoint(checkpoint, network, dataclasses.asdict(options), key)
                kept.unlink(missing_ok=True)
        networks.append(network)
        histories.append(history.assign(fold=number, member=member))
    return networks, pd.concat(histories, ignore_index=True)


def predict_all(
    networks: Sequence[SharedNetwork],
    prepared: np.ndarray,
    fold: np.ndarray,
    *,
    batch_size: int = 32,
    flip_tta: bool = True,
) -> np.ndarray:
    """Probabilities of every picture, from networks that never saw it: (N, 14).

    Development pictures are judged by the networks of the fold that left them out, all
    others (fold -1) by all networks. Their logits are averaged: networks that agree are as sure
    together as one of them is alone, which is what the hybrid's weights are fitted on.
    Columns: `PROB_COLUMNS`.

    Args:
        networks: as `cross_validate` returns them.
        prepared: (N, S, S, 3) uint8.
        fold: (N,) ints, -1 for pictures outside development.
        batch_size: pictures a forward pass.
        flip_tta: see `predict_logits`.
    """
    logits = np.zeros((len(prepared), BINARY.stop), np.float32)
    folds = int(fold.max()) + 1
    members, outside = len(networks) // folds, fold < 0
    for number, network in enumerate(tqdm(networks, "predict", unit="network")):
        for rows, judges in ((fold == number % folds, members), (outside, len(networks))):
            found = predict_logits(
                network, prepared[rows], batch_size=batch_size, flip_tta=flip_tta
            )
            logits[rows] += found / judges
    return to_probs(logits)


def fold_key(options: TrainingOptions, sha256: Sequence[str], seed: int, fold: int) -> str:
    """Digest of everything that a fold's checkpoint depends on; an equal one need not retrain."""
    elsewhere = ("weights_dir", "processes")  # where it trains is not what it trains
    settings = {key: value for key, value in vars(options).items() if key not in elsewhere}
    weights = pack_digest(options.backbone, options.weights_dir)
    settings["start"] = checkpoint_metadata(options.start).get("key", "") if options.start else ""
    return sha256_json([settings, weights, list(sha256), seed, fold, torch.__version__])

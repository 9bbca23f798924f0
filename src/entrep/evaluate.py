"""What the methods reach on labelled pictures, by repeated cross-validation with nothing tuned.

Three methods on the same folds: frozen features with logistic regression, the reference's rule,
and ours. No picture, copy of it or picture of its examination is on both sides of a fold;
networks train for a fixed number of epochs, as to pick the best one would look at the answers.

The reference's rule gets a network that is trained and asked as the reference describes: no
mirrored pictures, no probe, no average of weights, no warm start. One for all its questions, not
one for each, which costs a third (`benchmarks/ablation.py` compares the two), and in the first
repeat only.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from entrep import finetune, heads, hybrid, metrics, prototypes
from entrep.config import RunConfig, cache_folder, need_pictures
from entrep.data import find_challenge
from entrep.decode import cached_pixels
from entrep.embed import embed_pictures
from entrep.encoders import load_encoder, resolve_device, set_threads
from entrep.folds import assign_parts, duplicate_groups
from entrep.labels import CLASS_NAMES, SITE_OF
from entrep.training import TrainingOptions
from entrep.warmstart import warm_start

SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "fine_accuracy": metrics.accuracy,
    "coarse_accuracy": lambda t, p: metrics.accuracy(np.take(SITE_OF, t), np.take(SITE_OF, p)),
    "macro_f1": lambda t, p: metrics.macro_f1(t, p, len(CLASS_NAMES)),
}
_THRESHOLDS = np.round(np.linspace(0, 1.01, 102), 2)


def evaluate(config: RunConfig, *, repeats: int = 2) -> dict[str, object]:
    """Score the methods on all labelled pictures of `config.data_path`.

    Folds are drawn anew in each repeat. What is done is kept in `config.work_dir`: an
    interrupted evaluation goes on where it stopped, fold by fold.

    Args:
        config: encoders, folds, training and seed.
        repeats: of the whole cross-validation.

    Returns:
        "frozen", "reference" and "ours", each with fine_accuracy, coarse_accuracy and macro_f1
        as mean over repeats, low and high (95 %, resampling groups of pictures); beside them
        counts, seconds and the configuration. "reference" is of the first repeat.

    Raises:
        ValueError: if `repeats` is not positive, or the data cannot be divided.
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected 1 or more, got {repeats}.")
    need_pictures(config)
    start = time.perf_counter()
    set_threads(config.threads)
    challenge = find_challenge(config.data_path)
    pictures = challenge.pictures[challenge.pictures["class_index"] >= 0].reset_index(drop=True)
    if pictures.empty:
        raise ValueError(f"{config.data_path}: no picture has a label; there is nothing to score.")
    groups = duplicate_groups(challenge.root, pictures)
    target = pictures["class_index"].to_numpy()
    files = [challenge.root, pictures["path"].tolist()]
    shared = {"sha256": pictures["sha256"].tolist(), "crop": config.crop}
    encoder = load_encoder(
        config.prototype_encoder,
        device=config.device,
        weights_dir=config.weights_dir,
        precision=config.precision,
    )
    embeddings = embed_pictures(encoder, *files, cache=cache_folder(config), **shared).matrix
    prepared = cached_pixels(cache_folder(config), *files, config.image_size, **shared)

    ours = finetune.options_of(config, patience=0)
    # As many looks at each picture: trained in pairs, an epoch has two of them.
    epochs = config.epochs * (2 if ours.in_pairs else 1)
    theirs = finetune.options_of(config, patience=0, **{**finetune.REFERENCE, "epochs": epochs})
    if config.phantoms:
        start_from = warm_start(
            cache_folder(config),
            config.phantoms,
            options=ours,
            device=resolve_device(config.device),
            seed=config.seed,
        )
        ours = dataclasses.replace(ours, start=str(start_from))
    answers: dict[str, list[np.ndarray]] = {"frozen": [], "reference": [], "ours": []}
    for repeat in range(repeats):
        seed = config.seed + 1000 * repeat
        table = assign_parts(pictures, groups, folds=config.folds, holdout=0.0, seed=seed)
        fold = table["fold"].to_numpy()
        folder = Path(config.work_dir) / f"repeat{repeat}"
        answers["frozen"].append(predict_frozen(embeddings, target, fold))
        by_prototypes = _prototypes(embeddings, target, fold)
        study = (folder, prepared, pictures, target, fold)
        backbone = _backbone(*study, config=config, seed=seed, options=ours)
        answers["ours"].append(_combined(by_prototypes, backbone, target, fold))
        if repeat == 0:
            study = (folder / "reference", *study[1:])
            backbone = _backbone(*study, config=config, seed=seed, options=theirs, plain=True)
            answers["reference"].append(_by_rule(by_prototypes, backbone, target, fold))
    return {
        **{name: _score(target, rows, groups, config.seed) for name, rows in answers.items()},
        "pictures": len(pictures),
        "folds": int(fold.max()) + 1,
        "repeats": repeats,
        "seconds": round(time.perf_counter() - start, 1),
        "config": dataclasses.asdict(config),
    }


def predict_frozen(embeddings: np.ndarray, target: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Out-of-fold classes of logistic regression on frozen features: (N,) class indices."""
    predicted = np.empty(len(target), int)
    for number in np.unique(fold):
        left_out = fold == number
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        model.fit(embeddings[~left_out], target[~left_out])
        predicted[left_out] = model.predict(embeddings[left_out])
    return predicted


def describe_evaluation(found: dict) -> str:
    """The scores as a Markdown table."""
    lines = ["| method | fine accuracy | coarse accuracy | macro F1 |", "|---|--:|--:|--:|"]
    for name in ("frozen", "reference", "ours"):
        cells = [
            f"{score['mean']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
            for score in (found[name][key] for key in SCORES)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(
        f"\n{found['pictures']} pictures, {found['folds']} folds, {found['repeats']} repeats, "
        f"{found['seconds']:.0f} s"
    )
    return "\n".join(lines)


def _prototypes(embeddings: np.ndarray, target: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(N, 7) out-of-fold probabilities of picture prototypes, as notebook 02 makes them."""
    stack = prototypes.out_of_fold_prototypes(embeddings, target, fold, None, 1.0)
    temperature = prototypes.fit_temperature(embeddings, stack, target)
    return prototypes.predict_all(
        embeddings, target, fold, None, picture_weight=1.0, temperature=temperature
    ).round(6)


def _backbone(
    folder: Path,
    prepared: np.ndarray,
    pictures: pd.DataFrame,
    target: np.ndarray,
    fold: np.ndarray,
    *,
    config: RunConfig,
    seed: int,
    options: TrainingOptions,
    plain: bool = False,
) -> np.ndarray:
    """(N, 14) out-of-fold probabilities of fine-tuned networks; `plain`: one, asked once."""
    networks, _ = finetune.cross_validate(
        folder,
        prepared,
        target,
        fold,
        pictures["sha256"].tolist(),
        options=options,
        device=resolve_device(config.device),
        seed=seed,
        members=1 if plain else config.members,
    )
    flip_tta = config.flip_tta and not plain
    return finetune.predict_all(networks, prepared, fold, flip_tta=flip_tta).round(6)


def _by_rule(
    by_prototypes: np.ndarray, backbone: np.ndarray, target: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """(N,) classes by the reference's rule, its threshold being that of the other folds."""
    classes, sites = np.empty(len(target), int), prototypes.site_probs(by_prototypes)
    for number in np.unique(fold):
        rows, kept = fold == number, fold != number
        threshold, _ = hybrid.sweep_threshold(
            sites[kept], backbone[kept][:, heads.SITES], target[kept], _THRESHOLDS
        )
        chosen, _ = hybrid.choose_site(sites[rows], backbone[rows][:, heads.SITES], threshold)
        classes[rows] = hybrid.predict_classes(chosen, backbone[rows][:, heads.BINARY])
    return classes


def _combined(
    by_prototypes: np.ndarray, backbone: np.ndarray, target: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """(N,) classes by all opinions, their weights being those of the other folds."""
    opinions = {
        "flat head": hybrid.split_classes(backbone[:, heads.CLASSES]),
        "site and side heads": (backbone[:, heads.SITES], backbone[:, heads.BINARY]),
        "prototypes": hybrid.split_classes(by_prototypes),
    }
    combined, _ = hybrid.combine_out_of_fold(opinions, target, fold)
    return combined.round(6).argmax(axis=1)


def _score(
    target: np.ndarray, answers: list[np.ndarray], groups: np.ndarray, seed: int, draws: int = 2000
) -> dict[str, dict[str, float]]:
    """Mean over repeats of each score, with the interval of resampled groups."""
    names, members = np.unique(groups, return_inverse=True)
    rows_of = [np.flatnonzero(members == group) for group in range(len(names))]
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, float]] = {}
    resamples = [
        np.concatenate([rows_of[group] for group in rng.integers(len(names), size=len(names))])
        for _ in range(draws)
    ]
    for name, score in SCORES.items():
        mean = float(np.mean([score(target, predicted) for predicted in answers]))
        values = [
            np.mean([score(target[rows], predicted[rows]) for predicted in answers])
            for rows in resamples
        ]
        low, high = np.quantile(values, [0.025, 0.975])
        ends = {"mean": mean, "low": float(low), "high": float(high)}
        found[name] = {end: round(value, 6) for end, value in ends.items()}
    return found

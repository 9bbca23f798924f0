"""When to believe an answer: pictures unlike the training's, and sets that hold the truth.

An outlier score rises the farther a picture is from what was learned; a conformal set
names every class that cannot be ruled out at a stated coverage. Thresholds are quantiles
of out-of-fold scores, so nothing here is tuned on pictures that it is judged by.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.linalg import cholesky, solve_triangular
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf

QUERIES_AT_ONCE = 1024  # rows of the distance matrix that are held in memory


def neighbours_for(count: int) -> int:
    """Which neighbour `knn_scores` asks for among `count` pictures: one in a thousand, at least 1.

    A rule of thumb. Sun et al. (arXiv 2204.06507) take the 50th of CIFAR-10's 50,000
    pictures and the 200th of CIFAR-100's, chosen on validation data; on a few hundred drawn
    pictures the nearest neighbour told strange ones apart better than the 3rd or the 10th.
    """
    return max(1, round(count / 1000))


def knn_scores(
    embeddings: np.ndarray, fold: np.ndarray, group: np.ndarray, *, k: int | None = None
) -> np.ndarray:
    """Distance of every picture to its k-th nearest development picture.

    Sun et al., "Out-of-distribution detection with deep nearest neighbors", arXiv 2204.06507:
    Euclidean distance of unit vectors.

    Args:
        embeddings: (N, D), any length of rows above 0; they are normalised here.
        fold: (N,) ints, >= 0 for the development pictures, -1 for all others.
        group: (N,) ids of pictures that belong together. No picture is compared with its
            own group, so that a development picture is scored like a new one.
        k: which neighbour; None: `neighbours_for` the development pictures.

    Returns:
        (N,) in 0..2, rounded to 6 decimals; larger is farther out.

    Raises:
        ValueError: if a picture has fewer than k development pictures outside its group.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    dev = np.asarray(fold) >= 0
    k = neighbours_for(int(dev.sum())) if k is None else k
    group = np.unique(np.asarray(group), return_inverse=True)[1]
    scores = np.empty(len(rows))
    for start in range(0, len(rows), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        similarity = rows[part] @ rows[dev].T
        own = group[part, None] == group[None, dev]
        fewest = int((~own).sum(axis=1).min())
        if not 1 <= k <= fewest:
            raise ValueError(
                f"k: expected 1..{fewest}, the development pictures outside a picture's own "
                f"group, got {k}."
            )
        similarity[own] = -np.inf
        nearest = np.partition(similarity, -k, axis=1)[:, -k]
        scores[part] = np.sqrt(np.maximum(2 - 2 * nearest, 0))
    return scores.round(6)


def mahalanobis_scores(rows: np.ndarray, class_index: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Mahalanobis distance of every picture to the nearest class, by others' statistics.

    Lee et al., arXiv 1807.03888: distance to the nearest class mean under the classes' common
    covariance, which is shrunk towards equal spread (Ledoit and Wolf, 2004): there may be fewer
    pictures than dimensions. Ren et al. (arXiv 2106.09022) subtract the distance to the mean of
    everything, to find what lies just beside a class; on drawn strangers, which lie far from
    everything, that was much worse (AUROC 0.66 and 0.93 for 0.95 and 0.97).

    Args:
        rows: (N, D) embeddings, or statistics of comparable scale.
        class_index: (N,) ints; read for development pictures only.
        fold: (N,) ints, -1 for pictures outside development. Development pictures are
            scored by the other folds, all others by the whole development set.

    Returns:
        (N,) >= 0, rounded to 6 decimals; larger is farther out.

    Raises:
        ValueError: if fewer than two folds are left to learn from.
    """
    rows, fold = np.asarray(rows, np.float64), np.asarray(fold)
    folds = np.unique(fold[fold >= 0])
    if len(folds) < 2:
        raise ValueError(f"fold: expected at least 2 folds (0, 1, ...), got {folds.tolist()}.")
    scores = np.empty(len(rows))
    for left_out in np.unique(fold):
        kept = (fold >= 0) & (fold != left_out)
        judged = fold < 0 if left_out < 0 else fold == left_out
        scores[judged] = _to_nearest_class(rows[kept], class_index[kept], rows[judged])
    return scores.round(6)


def energy_scores(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Free energy of logits (N, C): (N,), larger where no class is likely.

    Liu et al., arXiv 2010.03759. Softmax throws this away: it needs logits, for
    example the prototypes' cosine similarities with their temperature.
    """
    return -temperature * logsumexp(np.asarray(logits, np.float64) / temperature, axis=1)


def join_scores(scores: Sequence[np.ndarray], fold: np.ndarray) -> np.ndarray:
    """Sum of several outlier scores, each in units of its own spread in development.

    One score that fires is enough: far outside, its units are many. The largest instead of the
    sum found drawn strangers no better, and a bit worse where two scores each saw a little.

    Args:
        scores: arrays (N,), each higher the farther out.
        fold: (N,) ints, >= 0 for the development pictures: their median becomes 0, their
            95 % quantile 1.

    Returns:
        (N,) rounded to 6 decimals.

    Raises:
        ValueError: if a score hardly differs among the development pictures.
    """
    dev = np.asarray(fold) >= 0
    total = np.zeros(len(dev))
    for place, score in enumerate(scores):
        middle, high = np.quantile(score[dev], [0.5, 0.95])
        if not high - middle > 1e-9:
            raise ValueError(
                f"score {place}: median and 95 % quantile of the development pictures are both "
                f"{middle:.6f}; leave it out, it tells none of them apart."
            )
        total += (score - middle) / (high - middle)
    return total.round(6)


def accept_threshold(
    scores: np.ndarray, share: float = 0.95, *, groups: np.ndarray | None = None
) -> float:
    """Outlier score up to which a picture is accepted, so that `share` of new ones are.

    Args:
        scores: (N,) of development pictures, each scored without itself.
        share: of the pictures like these to accept, in 0..1.
        groups: see `conformal_thresholds`.

    Returns:
        A score; infinity where N is too small to promise so much (0.95 needs 19).
    """
    return _conformal_quantile(np.asarray(scores, np.float64), share, groups)


def gate(scores: np.ndarray, fall_back_above: float, abstain_above: float) -> np.ndarray:
    """What to do with each picture: 0 ask everyone, 1 the backbone alone, 2 abstain.

    Args:
        scores: (N,) outlier scores.
        fall_back_above: up to here the prototypes have a say (from `accept_threshold`).
        abstain_above: beyond here no answer is given, >= `fall_back_above`.
    """
    if not fall_back_above <= abstain_above:
        raise ValueError(
            f"fall_back_above is {fall_back_above}, abstain_above {abstain_above}; "
            "a picture must be doubted before it is refused."
        )
    scores = np.asarray(scores)
    return (scores > fall_back_above).astype(int) + (scores > abstain_above)


def set_scores(
    probs: np.ndarray,
    *,
    method: str = "lac",
    penalty: float = 0.0,
    free_ranks: int = 1,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """How badly each class conforms to a picture: (N, C) probabilities to (N, C) scores.

    Args:
        probs: (N, C), rows sum to 1.
        method: "lac", 1 - p: the smallest sets on average (Sadinle et al., arXiv 1609.00451).
            "aps", the probability of all classes at least as likely: sets that grow with
            the difficulty of a picture (Romano et al., arXiv 2006.02544).
        penalty: with "aps", added for each rank beyond `free_ranks`; above 0 it is RAPS
            (Angelopoulos et al., arXiv 2009.14193). Fix it beforehand.
        free_ranks: ranks without penalty, the likeliest class is rank 1.
        rng: with "aps", take a random part of each class's own probability off: one draw a
            row, in row order. Coverage is then what was asked, and no more, also where
            scores tie. Without it the sets are the same in every run and cover as promised
            or more often: more where scores tie, as sure answers do at 1.

    Returns:
        (N, C), rounded to 6 decimals.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if method == "lac":
        return (1 - probs).round(6)
    if method != "aps":
        raise ValueError(f"method: expected 'lac' or 'aps', got {method!r}.")
    order = np.argsort(-probs.round(6), axis=1, kind="stable")
    rank = np.argsort(order, axis=1)  # from 0
    falling = np.take_along_axis(probs, order, axis=1)
    scores = np.take_along_axis(np.cumsum(falling, axis=1), rank, axis=1)
    scores = scores + penalty * np.maximum(rank + 1 - free_ranks, 0)
    if rng is not None:
        scores = scores - rng.random((len(probs), 1)) * probs
    return scores.round(6)


def conformal_thresholds(
    scores: np.ndarray,
    target: np.ndarray,
    coverage: float = 0.9,
    *,
    groups: np.ndarray | None = None,
    per_class: bool = False,
) -> np.ndarray:
    """Score up to which each class is in a picture's set.

    Split conformal prediction: the set of a new picture holds its true class with
    probability `coverage` at least, if the picture could have been one of these (it is
    exchangeable with them and `scores` come from a model that saw none of them).

    Args:
        scores: (N, C) from `set_scores`, of calibration pictures.
        target: (N,) class indices.
        coverage: to promise, in 0..1.
        groups: (N,) ids of pictures that belong together, None: each for itself. Pictures of
            one examination are no independent evidence; each group then counts once, and
            the promise is for a random picture of a new group (Lee, Barber and Willett,
            arXiv 2306.06342).
        per_class: promise it within each true class (Mondrian). A class with few pictures
            gets an infinite threshold: below 9 for 0.9, it is in every set.

    Returns:
        (C,); the same number in each place unless `per_class`.
    """
    scores, target = np.asarray(scores, np.float64), np.asarray(target)
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(
            f"scores has shape {scores.shape}, target {target.shape}; "
            "give (N, C) scores and N class indices."
        )
    if len(target) and not (target.min() >= 0 and target.max() < scores.shape[1]):
        raise ValueError(
            f"target: expected indices 0..{scores.shape[1] - 1}, got "
            f"{target.min()}..{target.max()}; leave out pictures without a label (-1)."
        )
    own = scores[np.arange(len(target)), target]
    if not per_class:
        return np.full(scores.shape[1], _conformal_quantile(own, coverage, groups))
    groups = np.arange(len(target)) if groups is None else np.asarray(groups)
    return np.array(
        [
            _conformal_quantile(own[target == index], coverage, groups[target == index])
            for index in range(scores.shape[1])
        ]
    )


def prediction_sets(
    scores: np.ndarray, thresholds: np.ndarray, *, never_empty: bool = False
) -> np.ndarray:
    """Which classes each picture's set holds: (N, C) scores and (C,) to (N, C) bool.

    An empty set says that the picture conforms to no class; where a method is right more
    often than `coverage`, that is how it covers no more than was asked. `never_empty` puts
    the best class in instead, and such a method then covers more.
    """
    sets = np.asarray(scores) <= thresholds
    if never_empty:
        empty = ~sets.any(axis=1)
        sets[empty, np.asarray(scores)[empty].argmin(axis=1)] = True
    return sets


def coverage_over_splits(
    scores: np.ndarray,
    target: np.ndarray,
    coverage: float = 0.9,
    *,
    groups: np.ndarray | None = None,
    per_class: bool = False,
    never_empty: bool = False,
    splits: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Try the promise: calibrate on a random half, count how often the other half is covered.

    Args:
        scores: (N, C) from `set_scores`, all from models that did not see their picture.
        target: (N,) class indices.
        coverage: to promise.
        groups: stay on one side of each split, and count once each in calibration; None:
            each picture for itself.
        per_class: see `conformal_thresholds`.
        never_empty: see `prediction_sets`.
        splits: how many.
        seed: of the splits.

    Returns:
        One row a split: split, coverage (share of pictures), group_coverage (mean over
        groups), worst_class (lowest coverage of a class), size (mean) and empty (share).
        Half of the pictures stay apart in each: a single row may be off by
        sqrt(coverage (1 - coverage) / (N / 4)), the mean of the rows by much less.
    """
    target = np.asarray(target)
    groups = np.arange(len(target)) if groups is None else np.asarray(groups)
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"groups: expected at least 2 to split, got {len(names)}.")
    rng = np.random.default_rng(seed)
    rows = []
    for split in range(splits):
        calibration = np.isin(group, rng.permutation(len(names))[: len(names) // 2])
        thresholds = conformal_thresholds(
            scores[calibration],
            target[calibration],
            coverage,
            groups=group[calibration],
            per_class=per_class,
        )
        apart = ~calibration
        sets = prediction_sets(scores[apart], thresholds, never_empty=never_empty)
        covered = pd.Series(sets[np.arange(len(sets)), target[apart]])
        rows.append(
            {
                "split": split,
                "coverage": covered.mean(),
                "group_coverage": covered.groupby(group[apart]).mean().mean(),
                "worst_class": covered.groupby(target[apart]).mean().min(),
                "size": sets.sum(axis=1).mean(),
                "empty": (~sets.any(axis=1)).mean(),
            }
        )
    return pd.DataFrame(rows)


def _to_nearest_class(train: np.ndarray, class_index: np.ndarray, judged: np.ndarray) -> np.ndarray:
    present = np.unique(class_index)
    means = np.stack([train[class_index == index].mean(axis=0) for index in present])
    within = train - means[np.searchsorted(present, class_index)]
    return np.sqrt(_square_distances(judged, means, within).min(axis=1))


def _square_distances(rows: np.ndarray, centres: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance of (N, D) rows to (M, D) centres: (N, M)."""
    covariance = ledoit_wolf(residuals, assume_centered=True)[0]
    # A little spread in every direction: a constant column must not make it singular.
    spread = max(np.trace(covariance) / len(covariance), 1e-12)
    lower = cholesky(covariance + 1e-9 * spread * np.eye(len(covariance)), lower=True)
    white_rows = solve_triangular(lower, rows.T, lower=True).T
    white_centres = solve_triangular(lower, centres.T, lower=True).T
    return ((white_rows[:, None] - white_centres[None]) ** 2).sum(axis=2)


def _conformal_quantile(
    scores: np.ndarray, coverage: float, groups: np.ndarray | None = None
) -> float:
    """The score that a new one stays at or below with probability `coverage` at least.

    With N scores it is the ceil((N + 1) coverage)-th smallest; with groups, each group's
    scores share the weight of one. Infinity stands for the new score itself.
    """
    if not 0 <= coverage <= 1:
        raise ValueError(f"coverage: expected a share in 0..1, got {coverage}.")
    groups = np.arange(len(scores)) if groups is None else np.asarray(groups)
    if groups.shape != scores.shape:
        raise ValueError(f"groups has shape {groups.shape}; give one a score, {scores.shape}.")
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1 / sizes[group[order]]) >= (len(sizes) + 1) * coverage - 1e-9
    return float(scores[order][reached.argmax()]) if reached.any() else float("inf")

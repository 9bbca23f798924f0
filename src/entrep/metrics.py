"""Scores of classification and calibration, and their intervals: arrays in, numbers out.

Every average over classes keeps the classes that are absent from a sample: their row is
zero, as scikit-learn gives with `labels=range(classes), zero_division=0`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from entrep.labels import CLASS_NAMES, SITE_NAMES, SITE_OF


def confusion_matrix(target: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count pictures by true class (row) and predicted class (column).

    Args:
        target: (N,) class indices, N >= 1, each in 0..classes-1.
        predicted: (N,) class indices in the same range.
        classes: how many classes there are, absent ones included.

    Returns:
        (classes, classes) int64; the sum is N.

    Raises:
        ValueError: for no picture, unequal lengths or an index out of range.

    >>> confusion_matrix([0, 0, 1], [0, 1, 1], classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    target, predicted = np.asarray(target), np.asarray(predicted)
    if target.ndim != 1 or target.shape != predicted.shape:
        raise ValueError(
            f"target has shape {target.shape}, predicted {predicted.shape}; "
            "give one class index a picture in both."
        )
    if not len(target):
        raise ValueError("there is no picture to score; give at least one.")
    for name, index in (("target", target), ("predicted", predicted)):
        if not np.issubdtype(index.dtype, np.integer):
            raise ValueError(f"{name}: expected class indices (int), got {index.dtype}.")
        if index.min() < 0 or index.max() >= classes:
            raise ValueError(
                f"{name}: expected indices 0..{classes - 1}, got {index.min()}..{index.max()}; "
                "leave out pictures without a label (-1)."
            )
    cells = target.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def accuracy(target: np.ndarray, predicted: np.ndarray) -> float:
    """Share of the (N,) predictions that equal their target, N >= 1.

    >>> accuracy([0, 1, 2, 2], [0, 1, 1, 2])
    0.75
    """
    target, predicted = np.asarray(target), np.asarray(predicted)
    if target.shape != predicted.shape or not target.size:
        raise ValueError(
            f"target has shape {target.shape}, predicted {predicted.shape}; "
            "give two lists of equal length, at least 1."
        )
    return float(np.mean(target == predicted))


def macro_f1(target: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Mean over all `classes` of the F1 score; a class never seen nor predicted counts 0.

    >>> macro_f1([0, 0, 1], [0, 1, 1], classes=2)  # both F1 are 2/3
    0.6666666666666666
    """
    return float(np.mean(_precision_recall_f1(target, predicted, classes)[2]))


def weighted_f1(target: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Mean of the classes' F1 scores, weighted by how many pictures each truly has.

    >>> weighted_f1([0, 0, 0, 1], [0, 0, 0, 0], classes=2)  # 3/4 of 6/7, 1/4 of 0
    0.6428571428571428
    """
    _, _, f1, support = _precision_recall_f1(target, predicted, classes)
    return float(np.average(f1, weights=support))


def per_class_table(
    target: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> pd.DataFrame:
    """Tabulate precision, recall, F1 and support per class, then their two averages.

    Args:
        target: (N,) class indices, N >= 1.
        predicted: (N,) class indices.
        names: the class names; the position is the class index.

    Returns:
        Columns class, precision, recall, f1, support: one row a class in the order of
        `names`, then the rows "macro" (plain mean) and "weighted" (mean by support).

    >>> per_class_table([0, 0, 1, 1], [0, 0, 1, 0], ["open", "closed"]).round(2)
          class  precision  recall    f1  support
    0      open       0.67    1.00  0.80        2
    1    closed       1.00    0.50  0.67        2
    2     macro       0.83    0.75  0.73        4
    3  weighted       0.83    0.75  0.73        4
    """
    *scores, support = _precision_recall_f1(target, predicted, len(names))
    columns = {
        name: [*score, np.mean(score), np.average(score, weights=support)]
        for name, score in zip(("precision", "recall", "f1"), scores, strict=True)
    }
    total = int(support.sum())
    return pd.DataFrame(
        {"class": [*names, "macro", "weighted"], **columns, "support": [*support, total, total]}
    )


def classification_scores(target: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Score seven-way predictions finely and, by the site of each class, coarsely.

    Args:
        target: (N,) official class indices, N >= 1.
        predicted: (N,) official class indices.

    Returns:
        accuracy, macro_f1 and weighted_f1 over the classes; coarse_accuracy and
        coarse_macro_f1 over the sites.

    >>> scores = classification_scores([0, 2], [1, 2])  # a right nose taken for a left one
    >>> scores["accuracy"], scores["coarse_accuracy"]
    (0.5, 1.0)
    """
    classes, sites = len(CLASS_NAMES), len(SITE_NAMES)
    fine = {
        "accuracy": accuracy(target, predicted),
        "macro_f1": macro_f1(target, predicted, classes),
        "weighted_f1": weighted_f1(target, predicted, classes),
    }
    site_of = np.array(SITE_OF)
    target, predicted = site_of[target], site_of[predicted]
    return fine | {
        "coarse_accuracy": accuracy(target, predicted),
        "coarse_macro_f1": macro_f1(target, predicted, sites),
    }


def bootstrap_interval(
    values: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, resampling whole groups.

    Pictures of one examination are right or wrong together; resampling single pictures
    would make the interval too narrow. A mean of 0/1 `values` is an accuracy or a
    recall; the difference of two methods' `values` gives a paired interval. Where all
    values agree the interval has no width, which says little about a small sample.

    Args:
        values: (N,) one value a picture or query, N >= 1.
        groups: (N,) group of each value; None: every value for itself.
        level: coverage, between 0 and 1.
        draws: resamples.
        seed: the same seed gives the same interval.

    Returns:
        The lower and the upper end.

    >>> low, high = bootstrap_interval([0, 0, 1, 1, 1, 1, 1, 1], seed=0)
    >>> low < 0.75 < high
    True
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share between 0 and 1, got {level}.")
    means = _bootstrap_means(values, groups, draws=draws, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    values_a: np.ndarray,
    values_b: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Compare the means of two methods on the same pictures, resampling whole groups.

    Args:
        values_a: (N,) one value a picture of the first method, 0/1 for right or wrong.
        values_b: (N,) of the second, in the same order.
        groups: (N,) group of each picture; None: every picture for itself.
        level: coverage of the interval.
        draws: resamples.
        seed: the same seed gives the same numbers.

    Returns:
        difference (mean of a less mean of b), low and high (`bootstrap_interval`) and p,
        two-sided: twice the share of resamples on the other side of zero, where a resample
        at zero is on both sides. It cannot go below 2 / (draws + 1).

    >>> both = paired_bootstrap([1, 1, 1, 1, 0, 1, 1, 1], [1, 0, 1, 0, 0, 0, 1, 0])
    >>> both["difference"], both["low"] > 0, both["p"] < 0.05
    (0.5, True, True)
    """
    values_a, values_b = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64)
    if values_a.shape != values_b.shape:
        raise ValueError(
            f"values_a has shape {values_a.shape}, values_b {values_b.shape}; "
            "give both methods' values of the same pictures."
        )
    difference = values_a - values_b
    low, high = bootstrap_interval(difference, groups, level=level, draws=draws, seed=seed)
    means = _bootstrap_means(difference, groups, draws=draws, seed=seed).round(12)
    fewer = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    p = min(1.0, 2 * (fewer + 1) / (draws + 1))
    return {"difference": float(difference.mean()), "low": low, "high": high, "p": float(p)}


def mcnemar_test(correct_a: np.ndarray, correct_b: np.ndarray) -> dict[str, float]:
    """Exact two-sided McNemar test: is one method right more often on the same pictures?

    Only pictures on which one method is right and the other wrong tell; if the methods were
    equal, each would be a coin's toss (McNemar 1947, with the exact binomial). It takes
    pictures as independent; where they come in groups, `paired_bootstrap` does not.

    Args:
        correct_a: (N,) whether the first method is right, N >= 1.
        correct_b: (N,) the second, in the same order.

    Returns:
        only_a and only_b (pictures that only this method has right) and p.

    >>> mcnemar_test([1, 1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0, 0])
    {'only_a': 5, 'only_b': 0, 'p': 0.0625}
    """
    right_a, right_b = np.asarray(correct_a).astype(bool), np.asarray(correct_b).astype(bool)
    if right_a.shape != right_b.shape or right_a.ndim != 1 or not len(right_a):
        raise ValueError(
            f"correct_a has shape {right_a.shape}, correct_b {right_b.shape}; "
            "give two lists of equal length, at least 1."
        )
    only_a = int(np.count_nonzero(right_a & ~right_b))
    only_b = int(np.count_nonzero(right_b & ~right_a))
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": p}


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Error rate among the surest pictures, for every share of pictures that is answered.

    El-Yaniv and Wiener, JMLR 11, 2010. Pictures of equal confidence count as if answered in
    random order (the expected risk), so the order of the rows does not matter.

    Args:
        confidence: (N,) higher is surer, N >= 1; minus an outlier score serves as well.
        correct: (N,) whether the answer is right.

    Returns:
        ((N,) coverage 1/N, 2/N, ..., 1; (N,) risk at that coverage).

    >>> risk_coverage([0.9, 0.8, 0.3], [True, False, True])[1].round(2).tolist()
    [0.0, 0.5, 0.33]
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct)
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(correct):
        raise ValueError(
            f"confidence has shape {confidence.shape}, correct {correct.shape}; "
            "give one of each a picture, at least one picture."
        )
    _, level = np.unique(-confidence, return_inverse=True)  # 0: the surest
    sizes = np.bincount(level)
    wrong = np.bincount(level, weights=1.0 - correct.astype(float)) / sizes
    answered = np.arange(1, len(correct) + 1)
    return answered / len(correct), np.cumsum(np.repeat(wrong, sizes)) / answered


def area_under_risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean of the risk over all coverages of `risk_coverage`: 0 is best, lower is better.

    >>> area_under_risk_coverage([0.9, 0.8, 0.7, 0.6], [True, True, True, False])
    0.0625
    """
    return float(risk_coverage(confidence, correct)[1].mean())


def detection_scores(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """How well an outlier score tells pictures of one kind from pictures of another.

    Args:
        inside: (N,) scores of pictures like the training's, N >= 1.
        outside: (M,) scores of others, M >= 1; higher is farther out.

    Returns:
        auroc, the chance that an outside picture scores above an inside one (ties half);
        fpr95, the share of outside pictures at or below the score that 95 % of the inside
        ones do not exceed.

    >>> detection_scores([0.1, 0.2, 0.3, 0.4], [0.35, 0.9])
    {'auroc': 0.875, 'fpr95': 0.5}
    """
    inside, outside = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    if not len(inside) or not len(outside):
        raise ValueError(
            f"there are {len(inside)} scores inside and {len(outside)} outside; "
            "give at least one of each."
        )
    kind = np.repeat([0, 1], [len(inside), len(outside)])
    threshold = np.quantile(inside, 0.95, method="higher")
    return {
        "auroc": float(roc_auc_score(kind, np.concatenate([inside, outside]))),
        "fpr95": float(np.mean(outside <= threshold)),
    }


def score_by_part(pictures: pd.DataFrame, predicted: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """Score predictions on the development (out-of-fold) and on the held-out pictures.

    Args:
        pictures: N rows with the columns class_index, part ("dev", "heldout" or else) and group.
        predicted: (N,) class indices.
        seed: of the bootstrap.

    Returns:
        Index part, one row for each of "dev" and "heldout" that has pictures. Columns:
        pictures, then coarse and fine accuracy, each with the ends `_low` and `_high` of its
        95 % interval over groups, and macro_f1 and weighted_f1 of the classes.
    """
    rows = {}
    site_of = np.array(SITE_OF)
    for part in ("dev", "heldout"):
        chosen = (pictures["part"] == part).to_numpy()
        if not chosen.any():
            continue
        target, guess = pictures["class_index"].to_numpy()[chosen], predicted[chosen]
        groups = pictures["group"].to_numpy()[chosen]
        scores = classification_scores(target, guess)
        row: dict[str, float] = {"pictures": int(chosen.sum())}
        for name, right, mean in (
            ("coarse", site_of[target] == site_of[guess], scores["coarse_accuracy"]),
            ("fine", target == guess, scores["accuracy"]),
        ):
            low, high = bootstrap_interval(right, groups, seed=seed)
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows[part] = row | {name: scores[name] for name in ("macro_f1", "weighted_f1")}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("part")


def reliability_table(probs: np.ndarray, target: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Compare confidence and accuracy of the top class in equal bins of confidence.

    Args:
        probs: (N, C) class probabilities, rows sum to 1, N >= 1.
        target: (N,) class indices.
        bins: how many bins divide (0, 1]; a bin holds its upper edge.

    Returns:
        One row a bin that holds pictures: bin, count, confidence, accuracy (means).

    >>> reliability_table(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]), bins=2)
       bin  count  confidence  accuracy
    0    1      2        0.75       0.5
    """
    probs, target = np.asarray(probs, dtype=np.float64), np.asarray(target)
    if probs.ndim != 2 or target.shape != probs.shape[:1] or not len(probs):
        raise ValueError(
            f"probs has shape {probs.shape}, target {target.shape}; "
            "give (N, C) probabilities and N class indices, N >= 1."
        )
    confidence = probs.max(axis=1)
    if not (confidence.min() > 0 and confidence.max() <= 1 + 1e-5):  # also refuses NaN
        raise ValueError(
            f"probs: expected values 0..1 with a positive one in every row, got row maxima "
            f"{confidence.min()}..{confidence.max()}; apply softmax to logits first."
        )
    right = probs.argmax(axis=1) == target
    edges = np.arange(1, bins) / bins
    rows = pd.DataFrame({"bin": np.digitize(confidence, edges, right=True)})
    rows["confidence"], rows["accuracy"] = confidence, right.astype(float)
    table = rows.groupby("bin").agg(
        count=("bin", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    return table.reset_index()


def expected_calibration_error(probs: np.ndarray, target: np.ndarray, bins: int = 10) -> float:
    """Mean gap between confidence and accuracy over the bins of `reliability_table`.

    Each bin counts by its pictures (Guo et al. 2017, equation 3). 0: as often right as sure.

    >>> expected_calibration_error(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]), bins=2)
    0.25
    """
    table = reliability_table(probs, target, bins)
    gap = (table["confidence"] - table["accuracy"]).abs()
    return float(np.average(gap, weights=table["count"]))


def _bootstrap_means(
    values: np.ndarray, groups: np.ndarray | None, *, draws: int, seed: int
) -> np.ndarray:
    """(draws,) means of `values` (N,), groups drawn with replacement."""
    values = np.asarray(values, dtype=np.float64)
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape or not len(values):
        raise ValueError(
            f"values has shape {values.shape}, groups {groups.shape}; "
            "give one group a value, at least one value."
        )
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    sums = np.bincount(group, weights=values)
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(draws, len(sizes)))
    return sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)


def _precision_recall_f1(
    target: np.ndarray, predicted: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall, F1 and support, each (classes,); 0 where the divisor is 0."""
    matrix = confusion_matrix(target, predicted, classes)
    right, named, support = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros(classes), where=whole > 0)

    return share(right, named), share(right, support), share(2 * right, named + support), support

"""The hybrid: one answer from several opinions, by the reference's rule or by weighing all.

The rule ("Fusion at the Foregut"): prototypes name the site when they are sure, else the
backbone; its heads name the side. Ours: a product of experts (Hinton, Neural Computation
14(8), 2002, with a weight an expert), one for the site and one for each site's
two-way question, their weights fitted on out-of-fold opinions. Arrays in, arrays out: where
the probabilities come from is not this module's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from entrep.labels import CLASS_NAMES, FINE_PAIRS, FINE_SITES, SITE_NAMES, SITE_OF

# Probabilities are kept with six decimals: 0 says "less than this", not "never".
FLOOR = 1e-6

# What an expert says of N pictures: (N, 4) probability of each site, and (N, 3) probability
# of the second class of each pair, given its site, in `FINE_SITES` order.
Opinion = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Combiner:
    """How much each expert counts; all of it fits into JSON (`dataclasses.asdict`).

    Weight 1 takes an expert's probabilities as they are, 0 ignores it, and with one expert
    the weight is one over its temperature.
    """

    experts: tuple[str, ...]
    site_weights: tuple[float, ...]
    side_weights: tuple[tuple[float, ...], ...]  # of each question, in `FINE_SITES` order


def choose_site(
    prototype_sites: np.ndarray, backbone_sites: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Site of each picture, and where the fallback decided it.

    Args:
        prototype_sites: (N, 4) site probabilities of the prototypes.
        backbone_sites: (N, 4) site probabilities of the fine-tuned backbone.
        threshold: the prototypes decide where their highest probability reaches it;
            0 always trusts them, more than 1 never does.

    Returns:
        ((N,) site indices, (N,) bool, True where the backbone decided).
    """
    fallback = np.round(prototype_sites.max(axis=1), 6) < threshold
    sites = np.where(fallback, _first_best(backbone_sites), _first_best(prototype_sites))
    return sites, fallback


def predict_classes(sites: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Class of each picture from its site and that site's binary answer.

    Args:
        sites: (N,) site indices.
        second: (N, 3) probability of the second class of each pair, in `FINE_SITES` order.

    Returns:
        (N,) class indices. A probability of exactly one half goes to the first class.
    """
    classes = np.empty(len(sites), int)
    for index, name in enumerate(SITE_NAMES):
        rows = sites == index
        if name in FINE_PAIRS:
            first, other = FINE_PAIRS[name]
            answer = np.round(second[rows, FINE_SITES.index(name)], 6) > 0.5
            classes[rows] = np.where(answer, other, first)
        else:
            classes[rows] = SITE_OF.index(index)
    return classes


def hybrid_probs(
    prototype_sites: np.ndarray,
    backbone_sites: np.ndarray,
    second: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """Class probabilities (N, 7) of the hybrid: P(site) of whoever decided, times P(answer)."""
    _, fallback = choose_site(prototype_sites, backbone_sites, threshold)
    return join_classes(np.where(fallback[:, None], backbone_sites, prototype_sites), second)


def sweep_threshold(
    prototype_sites: np.ndarray,
    backbone_sites: np.ndarray,
    class_index: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[float, np.ndarray]:
    """Coarse accuracy and fallback share of every threshold, and the best one.

    Args:
        prototype_sites: (N, 4) out-of-fold site probabilities.
        backbone_sites: (N, 4) out-of-fold site probabilities.
        class_index: (N,) true class indices.
        thresholds: (T,) candidates, rising.

    Returns:
        (best threshold, (T, 2) coarse accuracy and share of pictures that fell back). The
        threshold decides about sites only, so it is chosen by site; of equally good ones
        the one in the middle, which is the least fragile choice.
    """
    truth = np.array(SITE_OF)[class_index]
    scores = np.empty((len(thresholds), 2))
    for row, threshold in enumerate(thresholds):
        sites, fallback = choose_site(prototype_sites, backbone_sites, threshold)
        scores[row] = (sites == truth).mean(), fallback.mean()
    best = np.flatnonzero(scores[:, 0] == scores[:, 0].max())
    return float(thresholds[best[len(best) // 2]]), scores


def join_classes(sites: np.ndarray, second: np.ndarray) -> np.ndarray:
    """P(class) as P(site) times P(answer | site): (N, 4) and (N, 3) to (N, 7).

    The throat has no question: its class has the probability of its site.
    """
    probs = np.empty((len(sites), len(CLASS_NAMES)))
    for index, site in enumerate(SITE_OF):
        name = SITE_NAMES[site]
        share = np.ones(len(sites))
        if name in FINE_PAIRS:
            answer = second[:, FINE_SITES.index(name)]
            share = answer if FINE_PAIRS[name][1] == index else 1 - answer
        probs[:, index] = sites[:, site] * share
    return probs


def split_classes(probs: np.ndarray) -> Opinion:
    """Sites and answers that class probabilities (N, 7) imply; `join_classes` turned round.

    Where a site has next to no probability, its answer tends to one half: nothing is left
    there to tell the two classes apart by.
    """
    sites = np.stack(
        [probs[:, np.array(SITE_OF) == site].sum(axis=1) for site in range(len(SITE_NAMES))], axis=1
    )
    pairs = np.array([FINE_PAIRS[name] for name in FINE_SITES])
    both = probs[:, pairs] + FLOOR  # (N, 3, 2)
    return sites, both[:, :, 1] / both.sum(axis=2)


def product_of_experts(experts: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Multiply probabilities, each to the power of its expert's weight, and let rows sum to 1.

    Args:
        experts: E arrays (N, C) of probabilities; less than `FLOOR` counts as `FLOOR`.
        weights: E numbers >= 0. Where they sum to 1 this is the weighted geometric mean.

    Returns:
        (N, C). One expert with weight w: its probabilities at temperature 1 / w.

    Raises:
        ValueError: for arrays of unequal shape, or not one weight >= 0 an expert.
    """
    weights = np.asarray(weights, dtype=np.float64)
    logs = _log_experts(experts)
    if weights.shape != logs.shape[:1] or not (weights >= 0).all():
        raise ValueError(
            f"weights: expected {len(logs)} numbers >= 0, one an expert, got {weights.tolist()}."
        )
    return softmax(np.tensordot(weights, logs, axes=1), axis=1)


def fuse_heads(
    classes: np.ndarray, sites: np.ndarray, second: np.ndarray, weight: float = 0.5
) -> np.ndarray:
    """One consistent answer of a backbone's flat head and its site and two-way heads.

    Args:
        classes: (N, 7) of the flat head.
        sites: (N, 4) of the site head.
        second: (N, 3) of the two-way heads, in `FINE_SITES` order.
        weight: of the flat head, 0..1; the site x side product has the rest.

    Returns:
        (N, 7): the weighted geometric mean of both. Its sums over sites and its shares
        within a site (`split_classes`) agree with it by construction.
    """
    return product_of_experts([classes, join_classes(sites, second)], [weight, 1 - weight])


def fit_product_of_experts(
    experts: Sequence[np.ndarray], target: np.ndarray, *, prior: float = 0.1
) -> np.ndarray:
    """Weights of `product_of_experts` with the highest posterior, given the true answers.

    Minimises the log-loss summed over pictures plus prior / 2 times the squared distance of the
    weights from equal shares, over weights >= 0. That is convex, so there is one answer. The
    distance is in units of each expert's own spread: an expert that whispers the right answers
    (averaged weights, smoothed labels) may be turned up as far as one that shouts is turned
    down. A set without a mistake gets a finite weight. With one expert it is temperature
    scaling (Guo et al., arXiv 1706.04599, section 4.2).

    Args:
        experts: E arrays (N, C), out-of-fold: of models that did not learn from these rows.
        target: (N,) ints in 0..C-1.
        prior: precision of the weights' Gaussian prior in these units, > 0; 0.1 means a
            spread of about 3.

    Returns:
        (E,) float64 >= 0, rounded to 6 decimals; 1 / E each where N is 0.

    Raises:
        ValueError: for shapes that do not agree, a target outside 0..C-1 or prior <= 0.
    """
    logs, target = _log_experts(experts), np.asarray(target)
    if target.shape != logs.shape[1:2]:
        raise ValueError(f"target has shape {target.shape}; give one index a row, {logs.shape[1]}.")
    if len(target) and not (target.min() >= 0 and target.max() < logs.shape[2]):
        raise ValueError(
            f"target: expected indices 0..{logs.shape[2] - 1}, got "
            f"{target.min()}..{target.max()}; leave out pictures without a label (-1)."
        )
    if not prior > 0:
        raise ValueError(f"prior: expected a precision above 0, got {prior}.")
    if not len(target):
        return np.full(len(logs), 1 / len(logs))
    # How far an expert's log-probabilities go from their mean, on average.
    centred = logs - logs.mean(axis=2, keepdims=True)
    spread = np.sqrt(np.mean(centred**2, axis=(1, 2)))
    heard = spread > 1e-9
    logs = logs / np.where(heard, spread, 1.0)[:, None, None]
    start = np.full(len(logs), 1 / len(logs))
    rows = np.arange(len(target))
    told = logs[:, rows, target]  # (E, N)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = log_softmax(np.tensordot(weights, logs, axes=1), axis=1)
        away = weights - start
        expected = np.einsum("nc,enc->en", np.exp(mixed), logs)
        value = prior / 2 * away @ away - mixed[rows, target].sum()
        return value, prior * away + (expected - told).sum(axis=1)

    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * len(logs),
        options={"ftol": 1e-15, "gtol": 1e-8, "maxiter": 1000},
    )
    return np.where(heard, found.x / np.where(heard, spread, 1.0), 0.0).round(6)


def fit_combiner(
    opinions: Mapping[str, Opinion], target: np.ndarray, *, prior: float = 0.1
) -> Combiner:
    """Learn how much each expert counts for the site, and how much for the side.

    A product of experts for the site and one for each two-way question, so that an expert that
    knows the site but not the side (the prototypes) is heard on the one and not on the other.
    One number an expert and question can be learned from a few dozen pictures.

    Args:
        opinions: of each expert, about the same N pictures, out-of-fold.
        target: (N,) class indices, 0..6.
        prior: see `fit_product_of_experts`.
    """
    target = np.asarray(target)
    site_of = np.array(SITE_OF)
    if target.size and not (target.min() >= 0 and target.max() < len(CLASS_NAMES)):
        raise ValueError(
            f"target: expected class indices 0..{len(CLASS_NAMES) - 1}, got "
            f"{target.min()}..{target.max()}; leave out pictures without a label (-1)."
        )
    site_weights = fit_product_of_experts(
        [sites for sites, _ in opinions.values()], site_of[target], prior=prior
    )
    side_weights = []
    for column, name in enumerate(FINE_SITES):
        first, second = FINE_PAIRS[name]
        rows = np.isin(target, (first, second))
        answers = [_two_way(probs[rows, column]) for _, probs in opinions.values()]
        weights = fit_product_of_experts(answers, (target[rows] == second).astype(int), prior=prior)
        side_weights.append(tuple(weights.tolist()))
    return Combiner(tuple(opinions), tuple(site_weights.tolist()), tuple(side_weights))


def combine(opinions: Mapping[str, Opinion], combiner: Combiner) -> np.ndarray:
    """Class probabilities (N, 7) of all experts together: P(site) times P(answer | site).

    Raises:
        ValueError: if an expert of the combiner has given no opinion.
    """
    missing = [name for name in combiner.experts if name not in opinions]
    if missing:
        raise ValueError(
            f"no opinion of {', '.join(missing)}; this combiner weighs "
            f"{', '.join(combiner.experts)}: give all of them, or fit one without."
        )
    chosen = [opinions[name] for name in combiner.experts]
    sites = product_of_experts([sites for sites, _ in chosen], combiner.site_weights)
    second = np.empty((len(sites), len(FINE_SITES)))
    for column in range(len(FINE_SITES)):
        pairs = [_two_way(second[:, column]) for _, second in chosen]
        second[:, column] = product_of_experts(pairs, combiner.side_weights[column])[:, 1]
    return join_classes(sites, second)


def combine_out_of_fold(
    opinions: Mapping[str, Opinion],
    target: np.ndarray,
    fold: np.ndarray,
    *,
    prior: float = 0.1,
) -> tuple[np.ndarray, Combiner]:
    """Combine for every picture, each with weights that its own label had no part in.

    Args:
        opinions: of each expert about N pictures, out-of-fold for those with fold >= 0.
        target: (N,) class indices; read where fold >= 0 only.
        fold: (N,) ints, -1 for pictures outside development (held out, or unlabelled).
        prior: see `fit_product_of_experts`.

    Returns:
        ((N, 7) probabilities, the combiner of all development pictures). Pictures of a fold
        are combined with the weights of the other folds, pictures outside development with
        those of all folds. What remains of a picture's label in its own probabilities is
        second-hand: the experts' opinions on the other folds come from models that
        trained on it. Only held-out pictures are free of that.

    Raises:
        ValueError: if fewer than two folds are left to learn from.
    """
    folds = np.unique(fold[fold >= 0])
    if len(folds) < 2:
        raise ValueError(f"fold: expected at least 2 folds (0, 1, ...), got {folds.tolist()}.")
    probs = np.empty((len(fold), len(CLASS_NAMES)))
    everyone = fit_combiner(_rows(opinions, fold >= 0), target[fold >= 0], prior=prior)
    for left_out in np.unique(fold):
        rows, kept = fold == left_out, (fold >= 0) & (fold != left_out)
        combiner = everyone
        if left_out >= 0:
            combiner = fit_combiner(_rows(opinions, kept), target[kept], prior=prior)
        probs[rows] = combine(_rows(opinions, rows), combiner)
    return probs, everyone


def _rows(opinions: Mapping[str, Opinion], chosen: np.ndarray) -> dict[str, Opinion]:
    return {name: (sites[chosen], second[chosen]) for name, (sites, second) in opinions.items()}


def _two_way(second: np.ndarray) -> np.ndarray:
    """(M,) probability of the second answer to (M, 2) of both."""
    return np.stack([1 - second, second], axis=1)


def _log_experts(experts: Sequence[np.ndarray]) -> np.ndarray:
    """(E, N, C) float64 log-probabilities, none below log `FLOOR`."""
    shapes = {np.shape(expert) for expert in experts}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"experts: expected (N, C) probabilities of the same pictures from at least one, "
            f"got the shapes {sorted(shapes)}."
        )
    probs = np.asarray(experts, dtype=np.float64)
    if not (probs >= 0).all() or not (probs <= 1 + 1e-5).all():  # also refuses NaN
        raise ValueError("experts: expected probabilities 0..1; apply softmax to logits first.")
    return np.log(np.maximum(probs, FLOOR))


def _first_best(probs: np.ndarray) -> np.ndarray:
    """Index of the highest value per row after rounding to 6 decimals; ties to the first."""
    return np.round(probs, 6).argmax(axis=1)

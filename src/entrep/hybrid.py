"""The hybrid: prototypes name the site when they are sure, else the backbone; its heads the side.

The rule is the reference's ("Fusion at the Foregut"). Arrays in, arrays out: where the
probabilities come from is not this module's business.
"""

from __future__ import annotations

import numpy as np

from entrep.labels import CLASS_NAMES, FINE_PAIRS, FINE_SITES, SITE_NAMES, SITE_OF


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
    sites = np.where(fallback[:, None], backbone_sites, prototype_sites)
    probs = np.empty((len(sites), len(CLASS_NAMES)))
    for index, site in enumerate(SITE_OF):
        name = SITE_NAMES[site]
        share = np.ones(len(sites))
        if name in FINE_PAIRS:
            answer = second[:, FINE_SITES.index(name)]
            share = answer if FINE_PAIRS[name][1] == index else 1 - answer
        probs[:, index] = sites[:, site] * share
    return probs


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


def _first_best(probs: np.ndarray) -> np.ndarray:
    """Index of the highest value per row after rounding to 6 decimals; ties to the first."""
    return np.round(probs, 6).argmax(axis=1)

"""Joint vision-language prototypes: one direction a class, from its pictures and its prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.optimize import minimize_scalar

from entrep.labels import CLASS_NAMES, SITE_NAMES, SITE_OF

# What each class is called in a prompt; the templates vary the sentence around it.
CLASS_PHRASES: Mapping[str, str] = {
    "nose-right": "the right nasal passage",
    "nose-left": "the left nasal passage",
    "ear-right": "the right ear",
    "ear-left": "the left ear",
    "vc-open": "the open vocal cords",
    "vc-closed": "the closed vocal cords",
    "throat": "the throat",
}
TEMPLATES = (
    "An endoscopic image of {}.",
    "An ENT endoscopy picture showing {}.",
    "A photo of {} taken through an endoscope.",
    "{} in endoscopic view.",
)


def class_prompts() -> list[list[str]]:
    """The prompts of each class, in `CLASS_NAMES` order: 7 lists of one text a template."""
    return [[t.format(CLASS_PHRASES[name]) for t in TEMPLATES] for name in CLASS_NAMES]


def prompt_directions(embed: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """(7, D) mean direction of each class's prompts, see `mean_directions`.

    Args:
        embed: gives (n, D) unit-norm rows of n texts.
    """
    prompts = class_prompts()
    rows = np.repeat(np.arange(len(prompts)), len(TEMPLATES))
    return mean_directions(embed([text for group in prompts for text in group]), rows)


def mean_directions(embeddings: np.ndarray, class_index: np.ndarray) -> np.ndarray:
    """Unit-norm mean embedding of each class.

    Args:
        embeddings: (N, D), unit norm per row.
        class_index: (N,) ints in 0..6.

    Returns:
        (7, D) float64. A class without a row is a row of zeros: it is nobody's nearest.
    """
    means = np.zeros((len(CLASS_NAMES), embeddings.shape[1]))
    for index in np.unique(class_index):
        means[index] = embeddings[class_index == index].mean(axis=0, dtype=np.float64)
    return _unit(means)


def join_prototypes(
    pictures: np.ndarray, prompts: np.ndarray | None, picture_weight: float
) -> np.ndarray:
    """Weighted sum of picture and prompt directions, unit norm: (7, D).

    Args:
        pictures: (7, D) from `mean_directions`.
        prompts: (7, D) likewise from the prompts; None for an image-only encoder.
        picture_weight: 1 is pictures only, 0 is prompts only (zero-shot).
    """
    if prompts is None:
        return pictures
    return _unit(picture_weight * pictures + (1 - picture_weight) * prompts)


def class_probs(embeddings: np.ndarray, prototypes: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of cosine similarity over temperature: (N, D) and (7, D) to (N, 7)."""
    logits = np.round(embeddings @ prototypes.T, 6) / temperature
    logits[:, ~prototypes.any(axis=1)] = -np.inf
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def site_probs(probs: np.ndarray) -> np.ndarray:
    """Class probabilities (N, 7) summed over the classes of each site: (N, 4)."""
    membership = np.equal.outer(np.array(SITE_OF), np.arange(len(SITE_NAMES)))
    return probs @ membership.astype(probs.dtype)


def fit_temperature(embeddings: np.ndarray, prototypes: np.ndarray, target: np.ndarray) -> float:
    """Temperature in 0.001..1 that minimises the negative log-likelihood of `target`.

    Temperature scaling of Guo et al., arXiv 1706.04599, section 4.2. `embeddings` (N, D)
    and `target` (N,) must be of pictures that the prototypes were not made of; a stack of
    per-picture prototypes (N, 7, D) serves out-of-fold embeddings.
    """
    similarity = np.round(np.einsum("nd,nkd->nk", embeddings, prototypes), 6)

    def loss(log_temperature: float) -> float:
        logits = similarity / np.exp(log_temperature)
        peak = logits.max(axis=1)
        normaliser = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
        return float(np.mean(normaliser - logits[np.arange(len(target)), target]))

    found = minimize_scalar(loss, bounds=(np.log(1e-3), 0.0), method="bounded")
    return float(np.round(np.exp(found.x), 6))


def out_of_fold_prototypes(
    embeddings: np.ndarray,
    class_index: np.ndarray,
    fold: np.ndarray,
    prompts: np.ndarray | None,
    picture_weight: float,
) -> np.ndarray:
    """For each picture the prototypes made without its fold: (N, 7, D)."""
    stack = np.empty((len(embeddings), len(CLASS_NAMES), embeddings.shape[1]))
    for left_out in np.unique(fold):
        kept = fold != left_out
        means = mean_directions(embeddings[kept], class_index[kept])
        stack[~kept] = join_prototypes(means, prompts, picture_weight)
    return stack


def sweep_picture_weight(
    embeddings: np.ndarray,
    class_index: np.ndarray,
    fold: np.ndarray,
    prompts: np.ndarray | None,
    weights: np.ndarray,
) -> tuple[float, np.ndarray]:
    """Out-of-fold accuracy of every picture weight, and the best one.

    Args:
        embeddings: (N, D) of the development pictures, unit norm per row.
        class_index: (N,) ints in 0..6.
        fold: (N,) ints.
        prompts: (7, D) or None.
        weights: (W,) candidates in 0..1.

    Returns:
        (best weight, (W, 2) coarse and fine accuracy). The best has the highest sum of the
        two; of equals, the one in the middle, which is the least fragile choice.
    """
    site = np.array(SITE_OF)
    scores = np.empty((len(weights), 2))
    for row, weight in enumerate(weights):
        stack = out_of_fold_prototypes(embeddings, class_index, fold, prompts, weight)
        similarity = np.round(np.einsum("nd,nkd->nk", embeddings, stack), 6)
        nearest = similarity.argmax(axis=1)
        scores[row] = (site[nearest] == site[class_index]).mean(), (nearest == class_index).mean()
    totals = np.round(scores.sum(axis=1), 9)
    best = np.flatnonzero(totals == totals.max())
    return float(weights[best[len(best) // 2]]), scores


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def predict_all(
    embeddings: np.ndarray,
    class_index: np.ndarray,
    fold: np.ndarray,
    prompts: np.ndarray | None,
    *,
    picture_weight: float,
    temperature: float,
) -> np.ndarray:
    """Class probabilities of every picture, each from prototypes that it is no part of.

    Args:
        embeddings: (N, D) of all pictures.
        class_index: (N,) ints; read for development pictures only.
        fold: (N,) ints, -1 for pictures outside development (held out, or unlabelled).
        prompts: (7, D) or None.
        picture_weight: see `join_prototypes`.
        temperature: see `class_probs`.

    Returns:
        (N, 7). Development pictures are judged by the prototypes of the other folds, all
        others by those of the whole development set.
    """
    probs = np.empty((len(embeddings), len(CLASS_NAMES)))
    for left_out in np.unique(fold):
        kept = (fold >= 0) & (fold != left_out)
        means = mean_directions(embeddings[kept], class_index[kept])
        prototypes = join_prototypes(means, prompts, picture_weight)
        rows = fold == left_out
        probs[rows] = class_probs(embeddings[rows], prototypes, temperature)
    return probs

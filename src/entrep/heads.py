"""What the shared network answers: 14 logits for 7 classes, 4 sites and 3 two-way questions."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from entrep.labels import CLASS_NAMES, FINE_PAIRS, FINE_SITES, MIRROR_CLASS, SITE_NAMES, SITE_OF

# Columns of the network's output: logits of the classes, of the sites, and of "the second
# class of the site's pair" (nose left, ear left, cords closed).
CLASSES = slice(0, len(CLASS_NAMES))
SITES = slice(CLASSES.stop, CLASSES.stop + len(SITE_NAMES))
BINARY = slice(SITES.stop, SITES.stop + len(FINE_SITES))

# The reference trains a network for each of these; ours learns them together.
QUESTIONS = ("classes", "sites", *FINE_SITES)

PROB_COLUMNS = (
    [f"p_{name}" for name in CLASS_NAMES]
    + [f"site_{name}" for name in SITE_NAMES]
    + [f"second_{name}" for name in FINE_SITES]
)


def mirror_logits(logits: Tensor) -> Tensor:
    """Logits of mirrored pictures, told as if the pictures were not: (B, 14) to (B, 14).

    Left and right change places among the classes; the binary logit of a lateral site
    changes its sign; sites and the cords' state stay.
    """
    lateral = [MIRROR_CLASS[FINE_PAIRS[site][0]] != FINE_PAIRS[site][0] for site in FINE_SITES]
    sign = torch.tensor([-1.0 if swap else 1.0 for swap in lateral], device=logits.device)
    classes = logits[:, CLASSES][:, list(MIRROR_CLASS)]
    return torch.cat([classes, logits[:, SITES], logits[:, BINARY] * sign], dim=1)


def to_probs(logits: np.ndarray) -> np.ndarray:
    """(N, 14) logits to (N, 14) probabilities: softmax, softmax and sigmoids, by question."""
    table = torch.from_numpy(logits).double()
    parts = [table[:, CLASSES].softmax(1), table[:, SITES].softmax(1), table[:, BINARY].sigmoid()]
    return torch.cat(parts, dim=1).numpy()


def class_weights(class_index: np.ndarray, beta: float = 0.99) -> np.ndarray:
    """Effective-number weights (Cui et al., arXiv 1901.05555, eq. 4), mean 1 over pictures.

    Returns:
        (7,) float32; 0 for a class without pictures.
    """
    counts = np.bincount(class_index, minlength=len(CLASS_NAMES))
    weights = np.where(counts > 0, (1 - beta) / (1 - beta ** np.maximum(counts, 1)), 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


def multi_task_loss(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor,
    *,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    questions: Collection[str] = QUESTIONS,
) -> Tensor:
    """Weighted sum over pictures of all questions' losses; the caller divides it.

    A question is put only to pictures that it can be asked of: "ear" to those of an ear. A
    picture mixed from two classes is asked in proportion.

    Args:
        logits: (B, 14).
        targets: (B, 7) probabilities of the classes: one-hot, or of mixed pictures.
        weight: (7,) weight of each class.
        label_smoothing: for the class and the site question.
        focal_gamma: above 0, what is already answered well counts less (Lin et al., arXiv
            1708.02002, eq. 4).
        questions: those that count, of `QUESTIONS`.

    Returns:
        Scalar: cross-entropies of class, site and own two-way question, each picture's times
        the weight of its class. Not divided by the weights' sum, so that processes and parts
        of a batch can share one.
    """
    rows = logits.new_zeros(len(logits))
    if "classes" in questions:
        rows = rows + _cross_entropy(logits[:, CLASSES], targets, label_smoothing, focal_gamma)
    if "sites" in questions:
        sites = targets.new_zeros(len(targets), len(SITE_NAMES))
        sites.index_add_(1, torch.tensor(SITE_OF, device=targets.device), targets)
        rows = rows + _cross_entropy(logits[:, SITES], sites, label_smoothing, focal_gamma)
    for column, name in enumerate(FINE_SITES):
        if name in questions:
            answer = logits[:, BINARY][:, column]
            both = torch.stack([torch.zeros_like(answer), answer], dim=1)  # softmax is sigmoid
            rows = rows + _cross_entropy(both, targets[:, list(FINE_PAIRS[name])], 0, focal_gamma)
    return (rows * (targets @ weight)).sum()


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float, gamma: float) -> Tensor:
    """(B,) cross-entropy of (B, C) targets; where they sum to 0, it is 0: nothing is asked."""
    logs = functional.log_softmax(logits.float(), dim=1)
    asked = targets.sum(dim=1, keepdim=True)
    smooth = targets * (1 - smoothing) + asked * smoothing / targets.shape[1]
    if gamma:
        logs = logs * (1 - logs.exp()) ** gamma
    return -(smooth * logs).sum(dim=1)

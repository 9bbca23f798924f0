"""A linear probe: the heads of a network fitted on its frozen features."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from entrep.heads import BINARY, CLASSES, SITES
from entrep.labels import FINE_PAIRS, FINE_SITES, SITE_OF
from entrep.network import SharedNetwork

PENALTY = 0.01  # scikit-learn's C: features outnumber pictures


@torch.inference_mode()
def frozen_features(network: SharedNetwork, pictures: Tensor, batch_size: int) -> np.ndarray:
    """What the heads see of (N, 3, S, S) uint8 pictures: (N, F) float32."""
    device = next(network.parameters()).device
    network.eval()
    rows = [
        network.features(batch.to(device)).float().cpu() for batch in pictures.split(batch_size)
    ]
    return torch.cat(rows).numpy()


# Products this small take longer on several threads, and their last digits depend on how many.
@threadpool_limits.wrap(limits=1, user_api="blas")
def fit_heads(
    head: nn.Linear, features: np.ndarray, class_index: np.ndarray, weight: np.ndarray
) -> None:
    """Fill the linear layer of all heads with logistic regressions on features, in place.

    Args:
        head: (F -> 14).
        features: (N, F).
        class_index: (N,) ints in 0..6. Classes without a picture keep weights of zero and
            a bias that speaks against them.
        weight: (7,) weight of each class.
    """
    scaler = StandardScaler().fit(features)
    rows, sites = scaler.transform(features), np.array(SITE_OF)[class_index]
    slopes, biases = np.zeros((BINARY.stop, rows.shape[1])), np.zeros(BINARY.stop)
    for columns, target in ((CLASSES, class_index), (SITES, sites)):
        biases[columns] = -5.0
        found = _logistic(rows, target, weight[class_index])
        if found is not None:
            known = columns.start + found.classes_
            slopes[known], biases[known] = one_a_class(found)
    for column, (first, second) in enumerate(FINE_PAIRS[site] for site in FINE_SITES):
        asked = np.isin(class_index, (first, second))
        target = (class_index[asked] == second).astype(int)
        found = _logistic(rows[asked], target, weight[class_index[asked]])
        if found is not None:
            slopes[BINARY.start + column] = found.coef_[0]
            biases[BINARY.start + column] = found.intercept_[0]
    slopes = slopes / scaler.scale_
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(slopes))
        head.bias.copy_(torch.from_numpy(biases - slopes @ scaler.mean_))


def _logistic(
    rows: np.ndarray, target: np.ndarray, weight: np.ndarray
) -> LogisticRegression | None:
    """A fitted model, or None where there is nothing to tell apart."""
    if len(np.unique(target)) < 2:
        return None
    model = LogisticRegression(C=PENALTY, max_iter=1000)
    return model.fit(rows, target, sample_weight=weight)


def one_a_class(found: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and biases, one a class also where scikit-learn keeps one for two."""
    if len(found.classes_) > 2:
        return found.coef_, found.intercept_
    half = np.array([-0.5, 0.5])
    return half[:, None] * found.coef_, half * found.intercept_

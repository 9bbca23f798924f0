"""Which of the known phrases would describe a picture: a linear probe on frozen rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from entrep.probe import one_a_class

# Both from drawn pictures of seeds that no benchmark uses.
PENALTY = 0.3  # scikit-learn's C
TRUST = 4.0  # pictures of a phrase from which the probe counts as much as the encoder
LEAST = 0.01  # a picture teaches no phrase that has a smaller share of what describes it
FLOOR = 1e-6  # of a probability before its logarithm is taken


@dataclass(frozen=True)
class PhraseProbe:
    """A softmax regression on L-wide rows over T phrases.

    Attributes:
        weights: (L, T).
        bias: (T,); hopeless for a phrase that nothing was taught of.
        taught: (T,), pictures that taught each phrase, counted by their shares.
    """

    weights: np.ndarray
    bias: np.ndarray
    taught: np.ndarray

    def correct(self, rows: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """(n, T) probabilities: the probe's for these rows and the encoder's, multiplied.

        Their exponents are n / (n + `TRUST`) and the rest of 1, n being the pictures that taught
        a phrase: one that few pictures carry stays as the encoder has it.
        """
        learned = softmax(rows @ self.weights + self.bias, axis=1)
        share = self.taught / (self.taught + TRUST)
        experts = share * np.log(learned + FLOOR) + (1 - share) * np.log(prior + FLOOR)
        return softmax(experts, axis=1)


# Products this small take longer on several threads, and their last digits depend on how many.
@threadpool_limits.wrap(limits=1, user_api="blas")
def fit_probe(rows: np.ndarray, described: np.ndarray) -> PhraseProbe:
    """Fit a probe; a picture that several phrases describe teaches each by its share.

    Args:
        rows: (N, L) of an encoder, best of a `LevelEncoder`.
        described: (N, T) from `lessons.soft_phrases`; rows of zeros teach nothing.

    Returns:
        The probe; where fewer than two phrases are to be told apart one that was taught nothing.
    """
    weights, bias = np.zeros((rows.shape[1], described.shape[1])), np.full(described.shape[1], -1e4)
    row, phrase = np.nonzero(described > LEAST)
    if len(np.unique(phrase)) < 2:
        return PhraseProbe(weights, bias, np.zeros(len(bias)))
    # PCA loses nothing: an L2-penalised solution lies in the span of the pictures it learns from.
    scaler, pca = StandardScaler(), PCA(svd_solver="full")
    seen = pca.fit_transform(scaler.fit_transform(rows[np.unique(row)]))
    place = np.searchsorted(np.unique(row), row)
    found = LogisticRegression(C=PENALTY, max_iter=5000)
    found.fit(seen[place], phrase, sample_weight=described[row, phrase])
    slopes, offsets = one_a_class(found)
    slopes = slopes @ pca.components_ / scaler.scale_
    weights[:, found.classes_] = slopes.T
    bias[found.classes_] = offsets - slopes @ scaler.mean_
    return PhraseProbe(weights, bias, described.sum(axis=0))

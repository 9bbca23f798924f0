"""Which known phrases would describe a picture: a linear probe, asked out-of-fold only."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Both from drawn pictures of seeds that no benchmark uses.
PENALTY = 0.3  # scikit-learn's C
TRUST = 4.0  # pictures of a phrase from which the probe counts as much as the encoder
LEAST = 0.01  # a picture teaches no phrase that has a smaller share of what describes it
FLOOR = 1e-6  # of a probability before its logarithm is taken


def learn_phrases(
    rows: np.ndarray, described: np.ndarray, fold: np.ndarray, prior: np.ndarray
) -> np.ndarray:
    """Probabilities of the known phrases for every picture, from probes that did not see it.

    A softmax regression on frozen rows, one a fold, fitted on the other folds' pictures; what
    lies outside development is answered by one that is fitted on all of that. A picture that
    several phrases describe teaches each by its share. Probe and encoder are two experts whose
    probabilities are multiplied, with exponents n / (n + `TRUST`) and the rest of 1, n being the
    pictures that taught a phrase: a phrase that few pictures carry stays as the encoder has it.

    Args:
        rows: (N, L) of an encoder, best of a `LevelEncoder`.
        described: (N, T) from `lessons.soft_phrases`; read for development pictures only.
        fold: (N,) ints, -1 for pictures outside development.
        prior: (N, T), what the encoder says without the probe; rows sum to 1.

    Returns:
        (N, T) float64, rows sum to 1; a fold whose probe would have fewer than two phrases to
        tell apart keeps its `prior`.
    """
    said = prior.copy()
    for number in np.unique(fold):
        study = (fold >= 0) & (fold != number) & (described.sum(axis=1) > 0)
        if np.count_nonzero((described[study] > LEAST).any(axis=0)) < 2:
            continue
        asked = fold == number
        learned = _fit_and_ask(rows[study], described[study], rows[asked])
        taught = described[study].sum(axis=0)
        share = taught / (taught + TRUST)
        experts = share * np.log(learned + FLOOR) + (1 - share) * np.log(prior[asked] + FLOOR)
        said[asked] = softmax(experts, axis=1)
    return said


def _fit_and_ask(rows: np.ndarray, described: np.ndarray, asked: np.ndarray) -> np.ndarray:
    # PCA loses nothing: an L2-penalised solution lies in the span of the pictures it learns from.
    reduce = make_pipeline(StandardScaler(), PCA(svd_solver="full")).fit(rows)
    row, phrase = np.nonzero(described > LEAST)
    probe = LogisticRegression(C=PENALTY, max_iter=500)
    probe.fit(reduce.transform(rows)[row], phrase, sample_weight=described[row, phrase])
    said = np.zeros((len(asked), described.shape[1]))
    said[:, probe.classes_] = probe.predict_proba(reduce.transform(asked))
    return said

"""As little as a matcher can hold, and what asks it."""

from __future__ import annotations

import dataclasses

import numpy as np

from entrep.config import load_config
from entrep.matching import Matcher, Ranking
from entrep.spaces import Phrases, Space, says_by_cosine

PLAIN = dataclasses.replace(
    load_config(),
    same_class_weight=0.0,
    named_class_weight=0.0,
    finding_weight=0.0,
    hubness="none",
)


def six_pictures() -> Matcher:
    """Six pictures of two dimensions, named a to f, in folds 0, 0, 0, 1, 1 and outside."""
    angles = np.deg2rad([0, 10, 80, 5, 60, 2])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    probs = np.full((6, 7), 1 / 7)
    space = Space(rows, texts=np.eye(2))
    return Matcher(
        np.array(list("abcdef")), np.array(list("aBBdef")), np.arange(6), probs,
        (space,), (1.0,), space, says_by_cosine(space), PLAIN,
    )  # fmt: skip


def whole(texts: list[str], rows: np.ndarray) -> Phrases:
    """Phrases that join nothing."""
    return Phrases(tuple(texts), rows, tuple(row[None] for row in rows))


def first(ranking: Ranking) -> list[str]:
    """The name of each query's first answer."""
    return [answers[0][0] for answers in ranking]

"""What is known of the training pictures: classes, phrases that describe them, findings they share.

Learned from by the adapter of a space and by the probe of phrases, both of which see a picture's
lessons only if it is not of the fold that they answer for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import softmax

from entrep.artifacts import sha256_json
from entrep.labels import SITE_OF

SAME_WORDS = 0.02  # temperature at which cosines of phrases tell how far they say the same


@dataclass(frozen=True)
class Lessons:
    """What is known of N pictures and T phrases.

    Attributes:
        class_index: (N,) ints in 0..6.
        site: (N,) ints, of the class.
        carries: (N, T) bool, phrases that a picture is described by; many have none.
        finding: (N,) ints; pictures of one number show the same finding, as pairs say.
    """

    class_index: np.ndarray
    site: np.ndarray
    carries: np.ndarray
    finding: np.ndarray

    def digest(self) -> str:
        """SHA-256 of all that they say."""
        return sha256_json([getattr(self, field.name).tolist() for field in fields(self)])

    def of(self, rows: np.ndarray) -> Lessons:
        """The lessons of some pictures."""
        parts = (self.class_index, self.site, self.carries, self.finding)
        return Lessons(*(part[rows] for part in parts))


def collect_lessons(
    image_ids: Sequence[str],
    class_index: np.ndarray,
    site_of: Sequence[int],
    described: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    phrases: Sequence[tuple[str, str]],
) -> tuple[Lessons, list[str]]:
    """Put together what the challenge's lists say about pictures.

    Two pictures of a pair show the same finding, and so do pairs that share a picture; what one
    of them is described by fits the others.

    Args:
        image_ids: N file names.
        class_index: (N,).
        site_of: site of each class.
        described: N descriptions, "" where there is none.
        pairs: (query, match) of `i2i.json`; names that are not in `image_ids` are passed over.
        phrases: (phrase, match) of `t2i.json`, likewise.

    Returns:
        (lessons, T different phrases in sorted order).
    """
    row_of = {name: row for row, name in enumerate(image_ids)}
    said = [(row, text) for row, text in enumerate(described) if text]
    said += [(row_of[name], phrase) for phrase, name in phrases if name in row_of]
    texts = sorted({text for _, text in said})
    column_of = {text: column for column, text in enumerate(texts)}
    carries = np.zeros((len(image_ids), len(texts)), bool)
    for row, text in said:
        carries[row, column_of[text]] = True
    links = [(row_of[a], row_of[b]) for a, b in pairs if a in row_of and b in row_of]
    ends = np.array(links, np.int32).reshape(-1, 2).T  # 64 bits are too many for old SciPys
    graph = coo_array((np.ones(len(links)), tuple(ends)), shape=(len(image_ids),) * 2)
    finding = connected_components(graph, directed=False)[1]
    together = np.zeros((int(finding.max(initial=-1)) + 1, len(texts)), bool)
    np.logical_or.at(together, finding, carries)
    site = np.asarray(site_of)[class_index]
    return Lessons(np.asarray(class_index), site, together[finding], finding), texts


def development_lessons(
    pictures: pd.DataFrame,
    fold: np.ndarray,
    pairs: Sequence[tuple[str, str]],
    phrases: Sequence[tuple[str, str]],
) -> tuple[Lessons, list[str]]:
    """Put together what is known of development pictures; of others nothing that is said is read.

    Args:
        pictures: N rows with `image_id`, `class_index` and `description_en`.
        fold: (N,) ints, -1 for pictures outside development.
        pairs: see `collect_lessons`.
        phrases: see `collect_lessons`.

    Returns:
        See `collect_lessons`; what stands there of the other pictures is not to be learned.
    """
    names = np.where(fold >= 0, pictures["image_id"], "")  # no list names the others so
    said = np.where(fold >= 0, pictures["description_en"], "")
    classes = pictures["class_index"].to_numpy()
    return collect_lessons(names, classes, SITE_OF, said, pairs, phrases)


def soft_phrases(carries: np.ndarray, texts: np.ndarray | None) -> np.ndarray:
    """What each picture is described by, spread over phrases that say nearly the same.

    Args:
        carries: (N, T) bool of `Lessons`.
        texts: (T, D) unit-norm embeddings of the phrases; None where the encoder reads none:
            then only equal phrases say the same.

    Returns:
        (N, T) float64, rows sum to 1, or to 0 where nobody said what a picture shows.
    """
    described = carries.astype(float)
    if texts is not None and len(texts):
        described = described @ softmax(texts @ texts.T / SAME_WORDS, axis=1)
    return described / np.maximum(described.sum(axis=1, keepdims=True), 1e-9)

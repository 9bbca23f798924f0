"""Steps that change similarities before they are ranked, each to be switched on by itself.

A step takes a matrix of similarities (Q, G), higher is liker, and gives one of the same shape;
weight 0 changes nothing. Minus infinity marks a pair that may not be answered
(`retrieval.forbid`) and stays. Where the nearest count, all that tie to 6 decimals count, so no
result depends on the order in which the gallery was read. Nothing here sees a label of a test
picture, and what is fitted on others (probabilities, a bank of queries) is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.special import logsumexp, softmax

from entrep.retrieval import DECIMALS, forbid, rank_similarities


def prefer_same_class(
    similarity: np.ndarray,
    query_probs: np.ndarray,
    gallery_probs: np.ndarray,
    *,
    weight: float,
    floor: float = 1e-3,
) -> np.ndarray:
    """Add weight * log P(query and candidate are of one class).

    P is the sum over the classes of the query's probability times the candidate's, so a doubtful
    picture moves little. The same form serves sites, and a phrase whose site was read in its
    words; a phrase that names none has equal probabilities and is left as it was.

    Args:
        similarity: (Q, G).
        query_probs: (Q, C) calibrated probabilities, rows sum to 1.
        gallery_probs: (G, C) likewise.
        weight: in units of similarity per natural logarithm, >= 0.
        floor: share of the probability that is spread on "same, whatever the classifier says":
            log P is at least log floor. 0 < floor < 1.

    Returns:
        (Q, G) float64, at most `similarity`.
    """
    similarity = _matrix(similarity)
    if not 0 < floor < 1:
        raise ValueError(f"floor: expected a share between 0 and 1, got {floor}.")
    if weight < 0:
        raise ValueError(f"weight: expected 0 or more, got {weight}.")
    same = _products(similarity, query_probs, gallery_probs)
    if not ((same >= 0) & (same <= 1 + 1e-6)).all():  # also refuses NaN
        raise ValueError(
            f"the probabilities give P(same) from {same.min()} to {same.max()}; "
            "apply softmax to logits first."
        )
    return similarity + weight * np.log(floor + (1 - floor) * np.minimum(same, 1))


def phrase_distribution(similarity: np.ndarray, temperature: float) -> np.ndarray:
    """What a picture, or a phrase, says as a distribution over P known phrases.

    Args:
        similarity: (N, P) to the embeddings of the phrases, of training only.
        temperature: > 0; the smaller, the more the nearest phrase alone counts.

    Returns:
        (N, P) float64: the softmax of similarity / temperature.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: expected more than 0, got {temperature}.")
    return softmax(_matrix(similarity) / temperature, axis=1)


def prefer_same_finding(
    similarity: np.ndarray,
    query_phrases: np.ndarray,
    gallery_phrases: np.ndarray,
    *,
    weight: float,
) -> np.ndarray:
    """Blend in how far two distributions over known phrases agree.

    They agree by the Bhattacharyya coefficient, the sum of sqrt(p q): 1 for equal ones, 0 for
    those without a phrase in common. Unlike the inner product it does not favour candidates
    that are sure of one phrase. A phrase query has a distribution too, by its similarity to the
    known phrases.

    Args:
        similarity: (Q, G), best of cosine's scale.
        query_phrases: (Q, P) from `phrase_distribution`.
        gallery_phrases: (G, P) likewise.
        weight: 0 leaves the similarity, 1 leaves the agreement.

    Returns:
        (Q, G) float64.
    """
    similarity = _matrix(similarity)
    query_phrases, gallery_phrases = _matrix(query_phrases), _matrix(gallery_phrases)
    agreement = _products(similarity, np.sqrt(query_phrases), np.sqrt(gallery_phrases))
    return _blend(similarity, agreement, weight)


def k_reciprocal(
    similarity: np.ndarray,
    queries: np.ndarray,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.7,
) -> np.ndarray:
    """Blend in how far two pictures share neighbours that have them as neighbours too.

    Zhong et al., arXiv 1701.08398, sections 3.2 to 3.5. A picture is described by its
    k-reciprocal neighbours, widened by those of its neighbours where two thirds of them are its
    own, each with weight exp(-distance); the description is averaged with those of the nearest
    pictures (local query expansion); two pictures are as like as one less the Jaccard distance
    of their descriptions.

    All pictures of the pool are each other's neighbours, queries among them: in the challenge
    every query is a gallery picture anyway. Where queries may not know of each other, call it
    for one query at a time. Phrases are far from every picture, so it is for pictures only.
    Memory grows with the square of the pool.

    Args:
        similarity: (N, N) of the pool's pictures, at most about 1 (distance is 1 - similarity).
            A picture is its own nearest, whatever the diagonal says.
        queries: (Q,) rows that ask.
        k1: neighbours that describe a picture, besides itself; best below the number of
            pictures of the rarest class. At most N - 1 are taken.
        k2: pictures whose descriptions are averaged, itself among them; 1: no expansion.
        weight: 0 leaves the similarity, 1 leaves the shared neighbours; 1 less the paper's
            lambda of 0.3.

    Returns:
        (Q, N) float64; the columns are the pool.

    Raises:
        ValueError: if the pool is not square, or for k1 or k2 below 1.
    """
    similarity = _matrix(similarity)
    count = len(similarity)
    if similarity.shape != (count, count):
        raise ValueError(
            f"similarity has shape {similarity.shape}; give the pool's pictures against each other."
        )
    if k1 < 1 or k2 < 1:
        raise ValueError(f"k1 and k2: expected at least 1, got {k1} and {k2}.")
    to_others = similarity.copy()
    np.fill_diagonal(to_others, np.inf)  # its own nearest

    near = _reciprocal(to_others, k1)
    core = _reciprocal(to_others, (k1 + 1) // 2)
    # How many of the other's core are near, for all pairs; 3 a >= 2 b is exact, a >= 2/3 b is not.
    of_core = csr_array(core.astype(np.int32))
    shared = (csr_array(near.astype(np.int32)) @ of_core).toarray()
    admitted = near & (3 * shared >= 2 * core.sum(axis=1))
    described = near | ((csr_array(admitted.astype(np.int32)) @ of_core).toarray() > 0)

    weights = np.where(described, np.exp(np.minimum(to_others, 1) - 1), 0.0)
    nearest = _nearest(to_others, k2)
    weights = csr_array(nearest / nearest.sum(axis=1, keepdims=True)) @ weights

    totals = weights.sum(axis=1)
    jaccard = np.empty((len(queries), count))
    for row, query in enumerate(queries):
        used = np.flatnonzero(weights[query])
        smaller = np.minimum(weights[:, used], weights[query, used]).sum(axis=1)
        jaccard[row] = smaller / (totals + totals[query] - smaller)
    return _blend(similarity[queries], jaccard, weight)


def expand(
    vectors: np.ndarray,
    gallery: np.ndarray,
    similarity: np.ndarray,
    *,
    neighbours: int,
    alpha: float = 3.0,
) -> np.ndarray:
    """Move each vector towards its nearest gallery pictures, the more so the liker they are.

    Alpha query expansion, Radenovic et al., arXiv 1711.02512: the query plus its nearest
    pictures, each times cosine ** alpha. A gallery expanded by itself is database-side
    augmentation: forbid the diagonal, since a picture counts once as it is.

    Args:
        vectors: (Q, D), unit norm per row: pictures or phrases.
        gallery: (G, D), unit norm per row, of the same space.
        similarity: (Q, G) that names the nearest. It may be another step's result: a first
            answer of the wrong side does harm, so ask `prefer_same_class` before.
        neighbours: how many move a vector; 0 changes nothing. More than the pictures that share
            a finding bring in strangers.
        alpha: 0 weighs all alike; the larger, the more the nearest count. Opposite pictures
            (cosine <= 0) have no say.

    Returns:
        (Q, D) float64, unit norm per row.
    """
    vectors, gallery = _matrix(vectors), _matrix(gallery)
    similarity = _matrix(similarity)
    cosine = _products(similarity, vectors, gallery)
    counted = _nearest(similarity, neighbours) & (cosine > 0)
    weights = np.where(counted, np.maximum(cosine, 0) ** alpha, 0.0)
    moved = vectors + weights @ gallery
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def csls(
    similarity: np.ndarray, bank: np.ndarray, *, k: int = 10, weight: float = 1.0
) -> np.ndarray:
    """Take from each candidate how near it is to queries at large: a hub is near to all.

    Cross-domain similarity local scaling, Conneau et al., arXiv 1710.04087, section 2.3:
    2 s(x, y) - r(x) - r(y), where r is the mean similarity to the k nearest of the other kind.

    Args:
        similarity: (Q, G).
        bank: (B, G) similarities of other queries to the same gallery: training captions, or
            training pictures; forbid the pairs of a picture and itself. Never the test's own
            queries, unless they are known together and that is allowed.
        k: how many nearest count, at most all that there are.
        weight: 1 is the equation, 0 leaves the similarity.

    Returns:
        (Q, G) float64.
    """
    similarity = _matrix(similarity)
    bank = _bank(bank, similarity)
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}.")
    query_mean = _mean_of_largest(similarity, k)[:, None]
    gallery_mean = _mean_of_largest(bank.T, k)
    # Not similarity + weight * (...): 0 times a forbidden pair would be no number.
    return (1 + weight) * similarity - weight * (query_mean + gallery_mean)


def inverted_softmax(
    similarity: np.ndarray,
    bank: np.ndarray,
    *,
    temperature: float,
    weight: float = 1.0,
    only_hubs: bool = False,
) -> np.ndarray:
    """Take from each candidate how probable it is for queries at large.

    Smith et al., arXiv 1702.03859: exp(s / t) over its sum over the bank. This is its logarithm
    times t, and the mean instead of the sum: on the scale of the similarity, in the same order.

    Args:
        similarity: (Q, G).
        bank: (B, G), see `csls`.
        temperature: t > 0; the smaller, the more the bank's nearest query alone counts.
        weight: 1 is the paper's, 0 leaves the similarity.
        only_hubs: correct only queries whose first answer is also the first of a query of the
            bank: the dynamic inverted softmax of Bogolin et al. (QB-norm), arXiv 2112.12777.

    Returns:
        (Q, G) float64.
    """
    similarity = _matrix(similarity)
    bank = _bank(bank, similarity)
    if not temperature > 0:
        raise ValueError(f"temperature: expected more than 0, got {temperature}.")
    count = np.isfinite(bank).sum(axis=0)
    expected = temperature * (logsumexp(bank / temperature, axis=0) - np.log(count))
    corrected = similarity - weight * expected
    if not only_hubs:
        return corrected
    hubs = _nearest(bank, 1).any(axis=0)
    answered_by_hub = (_nearest(similarity, 1) & hubs).any(axis=1)
    return np.where(answered_by_hub[:, None], corrected, similarity)


def average_spaces(
    similarities: Sequence[np.ndarray], weights: Sequence[float] | None = None
) -> np.ndarray:
    """Average the similarities of several spaces, each in units of its spread for the query.

    Networks of different folds, and different encoders, have cosines of different height and
    spread; per query they are brought to mean 0 and deviation 1 (Montague and Aslam, CIKM 2001).
    Fusing ranks instead (Cormack et al., SIGIR 2009) would forget by how much the first answer
    leads, which is what a small gallery has most of.

    Args:
        similarities: at least one (Q, G), all of the same queries and gallery.
        weights: one a space, >= 0; None: all alike.

    Returns:
        (Q, G) float64 in standard deviations, so weights of later steps are to be chosen on this
        scale. A space that tells a query's candidates apart by less than 1e-6 has no say in it.
        A pair that one space forbids is forbidden.

    Raises:
        ValueError: for no space, different shapes, or weights that do not fit.
    """
    spaces = [_matrix(similarity) for similarity in similarities]
    weights = np.ones(len(spaces)) if weights is None else np.asarray(weights, np.float64)
    if not spaces or any(space.shape != spaces[0].shape for space in spaces):
        shapes = [space.shape for space in spaces]
        raise ValueError(f"expected one or more matrices of one shape, got shapes {shapes}.")
    if weights.shape != (len(spaces),) or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(
            f"weights: expected {len(spaces)} numbers >= 0, one above 0, got {weights.tolist()}."
        )
    total = np.zeros_like(spaces[0])
    for space, weight in zip(spaces, weights / weights.sum(), strict=True):
        allowed = np.isfinite(space)
        counts = np.maximum(allowed.sum(axis=1, keepdims=True), 1)
        mean = np.where(allowed, space, 0).sum(axis=1, keepdims=True) / counts
        centred = np.where(allowed, space - mean, 0)
        deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / counts)
        # Rounding noise must not become an opinion: without contrast the row stays near 0.
        scale = np.where(deviation < 10.0**-DECIMALS, 1, deviation)
        total += np.where(allowed, weight * centred / scale, -np.inf)
    return total


def rank_one_to_one(
    similarity: np.ndarray,
    gallery_ids: Sequence[str],
    *,
    k: int = 10,
    excluded: Sequence[set[str]] | None = None,
) -> list[list[tuple[str, float]]]:
    """Rank like `rank_similarities`, but no two queries share their first answer.

    The first answers are the assignment with the largest sum of similarities (to 6 decimals). It
    uses all queries together, so it is right only where each gallery picture answers one of
    them. The rest of each ranking keeps its order.

    Args:
        similarity: see `rank_similarities`; Q <= G.
        gallery_ids: see there.
        k: how many neighbours to keep at most, the assigned one first.
        excluded: see there; a forbidden pair is never assigned.

    Returns:
        Q lists of at most k (file name, similarity); the first may be less similar than the
        second.

    Raises:
        ValueError: if the queries cannot all have an answer of their own, and as there.
    """
    allowed = forbid(similarity, gallery_ids, excluded)
    by_name = np.argsort(np.array(gallery_ids, dtype=object), kind="stable")
    # Whole millionths are added without rounding errors: every machine finds the same optimum.
    gains = np.round(allowed[:, by_name] * 10**DECIMALS)
    queries, gallery = allowed.shape
    try:
        if queries > gallery:
            raise ValueError("more queries than pictures")
        _, columns = linear_sum_assignment(gains, maximize=True)
    except ValueError as error:
        raise ValueError(
            f"{queries} queries cannot each have an answer of their own among {gallery} pictures: "
            f"{error}; rank them without assignment, or exclude less."
        ) from error
    ranking = []
    usual = rank_similarities(allowed, gallery_ids, k=k)
    for values, column, answers in zip(allowed, by_name[columns], usual, strict=True):
        first = gallery_ids[column], float(np.round(values[column], DECIMALS))
        ranking.append([first, *(answer for answer in answers if answer != first)][:k])
    return ranking


def _matrix(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"expected a matrix with one row a query or picture, got {values.shape}.")
    return values


def _products(similarity: np.ndarray, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Inner products of rows (Q, C) and (G, C), in the shape of the similarities."""
    queries, gallery = _matrix(queries), _matrix(gallery)
    if (len(queries), len(gallery)) != similarity.shape or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"similarity has shape {similarity.shape}, the queries' rows {queries.shape}, the "
            f"gallery's {gallery.shape}; give one row a query and one a picture, equally wide."
        )
    return queries @ gallery.T


def _blend(similarity: np.ndarray, other: np.ndarray, weight: float) -> np.ndarray:
    """(1 - weight) * similarity + weight * other, where the pair is allowed."""
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: expected a share from 0 to 1, got {weight}.")
    allowed = np.isfinite(similarity)
    blended = (1 - weight) * np.where(allowed, similarity, 0) + weight * other
    return np.where(allowed, blended, -np.inf)


def _nearest(similarity: np.ndarray, k: int) -> np.ndarray:
    """Which of a row's allowed pairs are its k most similar; all that tie with the k-th are."""
    if k < 0:
        raise ValueError(f"expected 0 neighbours or more, got {k}.")
    if k == 0:
        return np.zeros(similarity.shape, bool)
    rounded = np.round(similarity, DECIMALS)
    k = min(k, rounded.shape[1])
    least = np.partition(rounded, -k, axis=1)[:, -k, None]
    return (rounded >= least) & (rounded > -np.inf)


def _reciprocal(to_others: np.ndarray, k: int) -> np.ndarray:
    """(N, N) where two pictures are each among the other's k nearest besides itself."""
    near = _nearest(to_others, k + 1)
    return near & near.T


def _bank(bank: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    bank = _matrix(bank)
    if bank.shape[1] != similarity.shape[1]:
        raise ValueError(
            f"similarity has {similarity.shape[1]} gallery pictures, bank {bank.shape[1]}; "
            "compare both with the same gallery."
        )
    unknown = np.flatnonzero(~np.isfinite(bank).any(axis=0))
    if len(unknown):
        raise ValueError(
            f"bank: {len(unknown)} gallery picture(s) have no query that counts, such as column "
            f"{unknown[0]}; give more queries."
        )
    return bank


def _mean_of_largest(similarity: np.ndarray, k: int) -> np.ndarray:
    """Mean of the k largest allowed values of each row, of all if there are fewer: (N,)."""
    largest = -np.sort(-similarity, axis=1)[:, :k]
    allowed = np.isfinite(largest)
    return np.where(allowed, largest, 0).sum(axis=1) / np.maximum(allowed.sum(axis=1), 1)

"""Ranking a gallery of pictures for a picture or a phrase, and what may answer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

# Similarities are compared after rounding to this many decimals: float32 sums differ in
# their last bits between processors, and rounding hides that from every decision.
DECIMALS = 6

COPIES = ("none", "identical", "near")  # of a query: which may not answer it


def rank_gallery(
    query: np.ndarray,
    gallery: np.ndarray,
    gallery_ids: Sequence[str],
    *,
    k: int = 10,
    excluded: Sequence[set[str]] | None = None,
) -> list[list[tuple[str, float]]]:
    """Rank gallery pictures for each query by cosine similarity, best first.

    Args:
        query: (Q, D) float32, unit L2 norm per row.
        gallery: (G, D) float32, unit L2 norm per row, from the same encoder.
        gallery_ids: G file names in the row order of `gallery`.
        k: how many neighbours to keep at most.
        excluded: Q sets of file names that may not answer, such as the query itself.

    Returns:
        Q lists of at most k (file name, similarity). Ties (to 6 decimals) go to the smaller
        name, so the order in which the gallery was read does not matter.

    Raises:
        ValueError: if widths or counts differ, or if a query has no candidate left.
    """
    if query.shape[1:] != gallery.shape[1:]:
        raise ValueError(
            f"query is {query.shape[1]} wide, gallery is {gallery.shape[1]} wide; "
            "embed both with the same encoder."
        )
    products = query.astype(np.float64) @ gallery.T.astype(np.float64)
    return rank_similarities(products, gallery_ids, k=k, excluded=excluded)


def rank_similarities(
    similarity: np.ndarray,
    gallery_ids: Sequence[str],
    *,
    k: int = 10,
    excluded: Sequence[set[str]] | None = None,
) -> list[list[tuple[str, float]]]:
    """Rank gallery pictures for each query by given similarities, best first.

    Args:
        similarity: (Q, G), higher is liker, of any scale; minus infinity for a pair that may
            not be answered (`forbid`).
        gallery_ids: G file names in the order of the columns.
        k: how many neighbours to keep at most.
        excluded: Q sets of file names that may not answer, such as the query itself.

    Returns:
        Q lists of at most k (file name, similarity). Ties (to 6 decimals) go to the smaller
        name, so the order in which the gallery was read does not matter.

    Raises:
        ValueError: if counts differ, for NaN or plus infinity, or if a query has no candidate
            left.
    """
    # Sorting by name first makes a stable sort by similarity break ties by name.
    by_name = np.argsort(np.array(gallery_ids, dtype=object), kind="stable")
    names = [gallery_ids[column] for column in by_name]
    rounded = np.round(forbid(similarity, gallery_ids, excluded)[:, by_name], DECIMALS)
    ranking = []
    for row, order in enumerate(np.argsort(-rounded, axis=1, kind="stable")[:, :k]):
        kept = [(names[c], float(rounded[row, c])) for c in order if rounded[row, c] > -np.inf]
        if not kept:
            raise ValueError(f"query {row}: all {len(names)} gallery pictures are excluded.")
        ranking.append(kept)
    return ranking


def forbid(
    similarity: np.ndarray, gallery_ids: Sequence[str], excluded: Sequence[set[str]] | None
) -> np.ndarray:
    """A copy of the similarities (Q, G) with minus infinity for pairs that may not be answered.

    Arguments and errors are those of `rank_similarities`.
    """
    similarity = np.array(similarity, dtype=np.float64)
    if similarity.ndim != 2 or similarity.shape[1] != len(gallery_ids):
        raise ValueError(
            f"similarity has shape {similarity.shape} but there are {len(gallery_ids)} names; "
            "give one column a gallery picture."
        )
    strange = np.flatnonzero(~(similarity < np.inf).all(axis=1))  # NaN is not below either
    if len(strange):
        raise ValueError(f"similarity: query {strange[0]} has a value that is NaN or infinity.")
    if excluded is None:
        return similarity
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(gallery_ids):
        columns.setdefault(name, []).append(column)
    for values, names in zip(similarity, excluded, strict=True):
        values[[column for name in names for column in columns.get(name, ())]] = -np.inf
    return similarity


def copies_of(image_ids: Sequence[str], sha256: Sequence[Hashable]) -> dict[str, set[str]]:
    """For each file name the names of all byte-identical pictures, itself among them.

    Any other key of a picture serves as well, such as the number of its group of near copies.
    """
    by_digest: dict[Hashable, set[str]] = {}
    for name, digest in zip(image_ids, sha256, strict=True):
        by_digest.setdefault(digest, set()).add(name)
    copies: dict[str, set[str]] = {}
    for name, digest in zip(image_ids, sha256, strict=True):
        copies[name] = copies.get(name, set()) | by_digest[digest]
    return copies


def excluded_answers(
    queries: Sequence[str],
    image_ids: Sequence[str],
    *,
    copies: str,
    sha256: Sequence[str],
    groups: Sequence[Hashable],
) -> list[set[str]]:
    """For each query picture the names that may not answer: itself, and its copies if asked.

    A copy shows the same finding, so it is a right answer, and finding it proves nothing. Whether
    it may answer is for the caller to decide knowingly.

    Args:
        queries: Q file names.
        image_ids: N file names, the gallery and the queries among them.
        copies: which copies may not answer: "none", "identical" (the same bytes under another
            name) or "near" (those, and pictures of the same group).
        sha256: N digests.
        groups: N ids of groups of near copies, such as `folds.duplicate_groups` with
            `examinations=False`.

    Returns:
        Q sets for `rank_similarities`. A query is never its own answer.

    Raises:
        ValueError: for another word, or a query that is not among `image_ids`.
    """
    if copies not in COPIES:
        raise ValueError(f"copies: expected one of {', '.join(COPIES)}, got {copies!r}.")
    identical, near = copies_of(image_ids, sha256), copies_of(image_ids, groups)
    missing = sorted(set(queries) - identical.keys())
    if missing:
        raise ValueError(f"{len(missing)} query picture(s) are unknown, such as {missing[0]!r}.")
    if copies == "none":
        return [{query} for query in queries]
    if copies == "identical":
        return [identical[query] for query in queries]
    return [identical[query] | near[query] for query in queries]


def ranked_names(ranking: Sequence[Sequence[tuple[str, float]]]) -> list[list[str]]:
    """The file names of a ranking, without the similarities."""
    return [[name for name, _ in answers] for answers in ranking]


def ranking_rows(
    queries: Sequence[str], ranking: Sequence[Sequence[tuple[str, float]]]
) -> list[tuple[str, int, str, float]]:
    """Rankings as rows of a table: (query, rank from 1, answer, similarity)."""
    return [
        (query, rank, name, similarity)
        for query, answers in zip(queries, ranking, strict=True)
        for rank, (name, similarity) in enumerate(answers, start=1)
    ]

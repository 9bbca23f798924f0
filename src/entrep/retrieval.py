"""Ranking a gallery of pictures for a picture or a phrase, by cosine similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Similarities are compared after rounding to this many decimals: float32 sums differ in
# their last bits between processors, and rounding hides that from every decision.
DECIMALS = 6


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
    if len(gallery) != len(gallery_ids):
        raise ValueError(f"{len(gallery)} gallery rows but {len(gallery_ids)} names.")
    # Sorting by name first makes a stable sort by similarity break ties by name.
    by_name = np.argsort(np.array(gallery_ids, dtype=object), kind="stable")
    names = [gallery_ids[row] for row in by_name]
    products = query.astype(np.float64) @ gallery[by_name].T.astype(np.float64)
    similarity = np.round(products, DECIMALS)
    ranking = []
    for row, values in enumerate(similarity):
        forbidden = excluded[row] if excluded is not None else set()
        order = (column for column in np.argsort(-values, kind="stable"))
        kept = [(names[c], float(values[c])) for c in order if names[c] not in forbidden][:k]
        if not kept:
            raise ValueError(f"query {row}: all {len(names)} gallery pictures are excluded.")
        ranking.append(kept)
    return ranking


def copies_of(image_ids: Sequence[str], sha256: Sequence[str]) -> dict[str, set[str]]:
    """For each file name the names of all byte-identical pictures, itself among them."""
    by_digest: dict[str, set[str]] = {}
    for name, digest in zip(image_ids, sha256, strict=True):
        by_digest.setdefault(digest, set()).add(name)
    copies: dict[str, set[str]] = {}
    for name, digest in zip(image_ids, sha256, strict=True):
        copies[name] = copies.get(name, set()) | by_digest[digest]
    return copies


def relevant_pictures(
    answers: Sequence[str],
    descriptions: Sequence[str],
    description_of: Mapping[str, str],
) -> list[set[str]]:
    """For each query the pictures that are a right answer.

    Args:
        answers: Q file names, the answers that the challenge lists.
        descriptions: Q texts, what the query shows; "" where nobody wrote it down.
        description_of: what each gallery picture shows, by file name; "" as above.

    Returns:
        Q sets: the listed answer, and every picture described in the same words, since a
        finding is often on more than one picture.
    """
    by_text: dict[str, set[str]] = {}
    for name, text in description_of.items():
        by_text.setdefault(text, set()).add(name)
    by_text[""] = set()
    return [{a} | by_text.get(d, set()) for a, d in zip(answers, descriptions, strict=True)]


def chance_recall(
    relevant: Sequence[set[str]], gallery_ids: Sequence[str], excluded: Sequence[set[str]]
) -> float:
    """Recall@1 of an answer drawn at random: the mean share of right ones among candidates."""
    shares = []
    for right, forbidden in zip(relevant, excluded, strict=True):
        candidates = set(gallery_ids) - forbidden
        shares.append(len(right & candidates) / len(candidates))
    return float(np.mean(shares))


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

"""Scores of rankings, and how unevenly a gallery answers: lists of names in, numbers out.

A query has one right answer or several; every score looks at the best placed of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import skew

from entrep.metrics import bootstrap_interval


def first_right_rank(
    ranked: Sequence[Sequence[Hashable]],
    relevant: Sequence[Hashable | Collection[Hashable]],
) -> np.ndarray:
    """Find the rank of the first right answer of each query, 1 for the best place.

    Args:
        ranked: Q lists of answers, best first; they may stop early.
        relevant: Q right answers; a list, tuple or set where several are right.

    Returns:
        (Q,) float64 ranks; infinity where no right answer is in the list.

    Raises:
        ValueError: for no query, unequal lengths or a query without any right answer.

    >>> first_right_rank([["a", "b", "c"], ["a", "b"]], [{"b", "c"}, "z"]).tolist()
    [2.0, inf]
    """
    if len(ranked) != len(relevant) or not len(ranked):
        raise ValueError(
            f"ranked has {len(ranked)} queries, relevant {len(relevant)}; "
            "give as many of both, at least 1."
        )
    ranks = np.full(len(ranked), np.inf)
    for query, (answers, right) in enumerate(zip(ranked, relevant, strict=True)):
        several = isinstance(right, list | tuple | set | frozenset)
        right = set(right) if several else {right}
        if not right:
            raise ValueError(f"query {query} has no right answer; leave it out of the score.")
        ranks[query] = next((r for r, a in enumerate(answers, start=1) if a in right), np.inf)
    return ranks


def recall_at_k(
    ranked: Sequence[Sequence[Hashable]],
    relevant: Sequence[Hashable | Collection[Hashable]],
    k: int,
) -> float:
    """Share of the queries with at least one right answer among the first k, k >= 1.

    Arguments and errors are those of `first_right_rank`.

    >>> recall_at_k([["a", "b"], ["a", "b"]], ["a", "b"], k=1)
    0.5
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}.")
    return float(np.mean(first_right_rank(ranked, relevant) <= k))


def mrr(
    ranked: Sequence[Sequence[Hashable]],
    relevant: Sequence[Hashable | Collection[Hashable]],
) -> float:
    """Mean over the queries of 1 / rank of the first right answer, 0 where there is none.

    Arguments and errors are those of `first_right_rank`.

    >>> mrr([["a", "b"], ["a", "b"]], ["a", "b"])
    0.75
    """
    return float(np.mean(1 / first_right_rank(ranked, relevant)))


def median_rank(
    ranked: Sequence[Sequence[Hashable]],
    relevant: Sequence[Hashable | Collection[Hashable]],
) -> float:
    """Median over the queries of the first right answer's rank; infinity if most have none.

    Arguments and errors are those of `first_right_rank`.

    >>> median_rank([["a", "b"], ["a", "b"]], ["a", "b"])
    1.5
    """
    return float(np.median(first_right_rank(ranked, relevant)))


def score_ranking(
    ranked: Sequence[Sequence[Hashable]],
    relevant: Sequence[Hashable | Collection[Hashable]],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Score rankings: queries, recall@1, 5 and 10, MRR and median rank, with 95 % intervals.

    Args:
        ranked: see `first_right_rank`, as for its errors.
        relevant: see `first_right_rank`.
        groups: Q ids of queries that are right or wrong together, such as copies of a picture
            or phrasings of one finding; the bootstrap draws whole groups. None: every query
            for itself.
        seed: of the bootstrap.

    Returns:
        queries, recall@1 and its interval (low, high), recall@5, recall@10, mrr and its
        interval (mrr_low, mrr_high), median_rank.

    >>> scores = score_ranking([["a", "b"], ["a", "b"]], ["a", "b"])
    >>> scores["recall@1"], scores["recall@5"], scores["mrr"]
    (0.5, 1.0, 0.75)
    """
    ranks = first_right_rank(ranked, relevant)
    groups = None if groups is None else np.asarray(groups)
    low, high = bootstrap_interval(ranks <= 1, groups, seed=seed)
    mrr_low, mrr_high = bootstrap_interval(1 / ranks, groups, seed=seed)
    return {
        "queries": len(ranked),
        "recall@1": recall_at_k(ranked, relevant, 1),
        "low": low,
        "high": high,
        "recall@5": recall_at_k(ranked, relevant, 5),
        "recall@10": recall_at_k(ranked, relevant, 10),
        "mrr": mrr(ranked, relevant),
        "mrr_low": mrr_low,
        "mrr_high": mrr_high,
        "median_rank": median_rank(ranked, relevant),
    }


def score_ranking_by(
    ranked: Sequence[Sequence[Hashable]],
    relevant: Sequence[Hashable | Collection[Hashable]],
    labels: Sequence[Hashable],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Tabulate `score_ranking` of all queries, and of those of each label.

    Args:
        ranked: see `first_right_rank`, as for its errors.
        relevant: see `first_right_rank`.
        labels: Q labels, such as the site or the finding of each query.
        groups: see `score_ranking`.
        seed: of the bootstrap.

    Returns:
        Index label: "all", then one row a label in the order in which the labels first come.
        Columns as in `score_ranking`.

    >>> table = score_ranking_by([["a"], ["b"], ["b"]], ["a", "b", "a"], ["ear", "nose", "nose"])
    >>> table["recall@1"].round(2).to_dict()
    {'all': 0.67, 'ear': 1.0, 'nose': 0.5}
    """
    if len(labels) != len(ranked):
        raise ValueError(f"{len(labels)} labels for {len(ranked)} queries; give one a query.")
    parts = {"all": list(range(len(ranked)))}
    for query, label in enumerate(labels):
        parts.setdefault(label, []).append(query)
    if len(parts["all"]) != len(ranked):
        raise ValueError('a label is called "all", like the row of all queries; rename it.')
    scores = [
        score_ranking(
            [ranked[query] for query in rows],
            [relevant[query] for query in rows],
            groups=None if groups is None else [groups[query] for query in rows],
            seed=seed,
        )
        for rows in parts.values()
    ]
    return pd.DataFrame(scores, index=pd.Index(parts, name="label"))


def answer_counts(
    ranked: Sequence[Sequence[Hashable]], gallery_ids: Sequence[Hashable], *, k: int = 10
) -> np.ndarray:
    """Count for each gallery picture the queries that have it among their first k answers.

    The k-occurrences N_k of Radovanovic et al., JMLR 11, 2010. A hub has many; a picture with
    none is never found.

    Args:
        ranked: Q lists of answers, best first.
        gallery_ids: G names; every answer is one of them.
        k: how many answers count, k >= 1.

    Returns:
        (G,) int64 in the order of `gallery_ids`; the mean is Q k / G for lists of k or more.

    Raises:
        ValueError: if k is below 1, or for an answer that is not in the gallery.

    >>> answer_counts([["a", "b"], ["a", "c"]], ["a", "b", "c"], k=1).tolist()
    [2, 0, 0]
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}.")
    counts = Counter(answer for answers in ranked for answer in answers[:k])
    strange = counts.keys() - set(gallery_ids)
    if strange:
        raise ValueError(
            f"{len(strange)} answer(s) are not in the gallery, such as {min(strange, key=str)!r}; "
            "give the names that were ranked."
        )
    return np.array([counts[name] for name in gallery_ids], dtype=np.int64)


def hubness(counts: np.ndarray) -> float:
    """Skewness of the counts (G,) of `answer_counts`: the larger, the more a few answer all.

    Their third standardised moment (Radovanovic et al., JMLR 11, 2010); 0 where all pictures
    answer equally often.

    >>> round(hubness(np.array([4, 0, 0, 0])), 3)
    1.155
    """
    counts = np.asarray(counts, dtype=np.float64)
    return float(skew(counts)) if np.ptp(counts) > 0 else 0.0

"""Questions whose answers are known, put to a matcher: to score its steps, and to choose by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from entrep.matching import Matcher, Ranking
from entrep.ranking_metrics import mrr
from entrep.spaces import Phrases

STRENGTHS = (1.0, 0.5, 0.0)  # of adapters, to choose from


def pairs_to_ask(
    pictures: pd.DataFrame, pairs: Sequence[tuple[str, str]]
) -> tuple[np.ndarray, list[set[int]]]:
    """The challenge's pairs as queries of `ask_pictures`, and their right answers.

    Args:
        pictures: with `image_id` and `description_en`; the index gives their rows.
        pairs: (query, match), names of these pictures.

    Returns:
        ((Q,) rows, Q sets of rows: the match, and every picture described in the same words as
        the query, since a finding is often on more than one picture).
    """
    row_of = dict(zip(pictures["image_id"], pictures.index, strict=True))
    queries = np.array([row_of[query] for query, _ in pairs], int)
    texts = pictures["description_en"].loc[queries]
    return queries, _right_answers(pictures, [match for _, match in pairs], texts)


def phrases_to_ask(
    pictures: pd.DataFrame, phrases: Sequence[tuple[str, str]]
) -> tuple[list[str], list[set[int]]]:
    """The challenge's phrases, to be read for `ask_phrases`, and their right answers.

    Args:
        pictures: see `pairs_to_ask`.
        phrases: (phrase, match), the match being a name of these pictures.

    Returns:
        (Q phrases, Q sets of rows: the match, and every picture described in these words).
    """
    texts = [text for text, _ in phrases]
    return texts, _right_answers(pictures, [match for _, match in phrases], texts)


def _right_answers(
    pictures: pd.DataFrame, answers: Sequence[str], texts: Sequence[str]
) -> list[set[int]]:
    row_of = dict(zip(pictures["image_id"], pictures.index, strict=True))
    described = pictures[pictures["description_en"] != ""]
    rows_of = described.groupby("description_en").groups
    return [{row_of[a], *rows_of.get(t, ())} for a, t in zip(answers, texts, strict=True)]


@dataclass(frozen=True)
class Asked:
    """A query put to one part of the pictures, for scoring.

    Attributes:
        query: its place among the queries.
        ranked: names of the part's pictures, best first.
        similarities: of these answers.
        relevant: names of the right ones in this part.
    """

    query: int
    ranked: list[str]
    similarities: list[float]
    relevant: set[str]


def parts_of(fold: np.ndarray, known: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(fold, rows) of each fold, and (-1, rows) of the held-out pictures, if there are any.

    Args:
        fold: (N,) ints, -1 outside development.
        known: (N,) bool, the labelled pictures.
    """
    parts = [(number, np.flatnonzero(known & (fold == number))) for number in np.unique(fold)]
    return [(int(number), rows) for number, rows in parts if len(rows)]


def ask_pictures(
    matcher: Matcher,
    parts: Sequence[tuple[int, np.ndarray]],
    queries: np.ndarray,
    relevant: Sequence[set[int]],
) -> list[Asked]:
    """Put each query picture to its own part, where that holds a right answer.

    Args:
        matcher: that answers.
        parts: from `parts_of`.
        queries: (Q,) rows.
        relevant: of each query the rows of all right answers; the query itself does not count,
            nor do copies of it that may not answer.
    """
    found = []
    for fold, gallery in parts:
        inside = set(gallery.tolist())
        asked = [
            place
            for place, row in enumerate(queries)
            if row in inside
            and any(matcher.may_answer(row, other) for other in relevant[place] & inside)
        ]
        if asked:
            answers = matcher.answer_pictures(queries[asked], gallery, fold=fold, k=len(gallery))
            found += _judged(matcher, asked, answers, relevant, inside)
    return found


def ask_phrases(
    matcher: Matcher,
    parts: Sequence[tuple[int, np.ndarray]],
    phrases: Phrases,
    relevant: Sequence[set[int]],
) -> list[Asked]:
    """Put each phrase to every part that holds a right answer.

    Args:
        matcher: that answers.
        parts: from `parts_of`.
        phrases: Q of them.
        relevant: of each phrase the rows of all right answers.
    """
    found = []
    for fold, gallery in parts:
        inside = set(gallery.tolist())
        asked = [place for place, right in enumerate(relevant) if right & inside]
        if asked:
            chosen = phrases.of(asked)
            answers = matcher.answer_phrases(chosen, gallery, fold=fold, k=len(gallery))
            found += _judged(matcher, asked, answers, relevant, inside)
    return found


def choose_for_pictures(
    matcher: Matcher,
    parts: Sequence[tuple[int, np.ndarray]],
    queries: np.ndarray,
    relevant: Sequence[set[int]],
    fallback: tuple[float, float],
) -> Matcher:
    """The matcher with those weights and strengths of its spaces that answer pairs best.

    A guard against forgetting, too: where few pictures teach little, the frozen encoders answer
    better, and strength 0 is what is chosen. Fine-tuned weights moved part of the way back are
    often better than both ends (Wortsman et al., arXiv 2109.01903).

    Args:
        matcher: with two spaces.
        parts: of development, see `parts_of`: every answer is out-of-fold.
        queries: see `ask_pictures`.
        relevant: see `ask_pictures`.
        fallback: weights where there is no query to choose by; the strength is then 1.

    Returns:
        The best by mean reciprocal rank among quarters and `STRENGTHS`; of equally good ones
        the first, most even and strongest.
    """
    scores: list[tuple[float, Matcher]] = []
    for strength in STRENGTHS:
        spaces = tuple(replace(space, strength=strength) for space in matcher.spaces)
        for share in (0.5, 0.25, 0.75, 0.0, 1.0):
            tried = replace(matcher, spaces=spaces, weights=(share, 1 - share))
            asked = ask_pictures(tried, parts, queries, relevant)
            if not asked:
                return replace(matcher, weights=fallback)
            scores.append((round(mrr(*rankings_of(asked)), 6), tried))
    return max(scores, key=lambda scored: scored[0])[1]


def choose_for_phrases(
    matcher: Matcher,
    parts: Sequence[tuple[int, np.ndarray]],
    phrases: Phrases,
    relevant: Sequence[set[int]],
) -> Matcher:
    """The matcher with that strength of its joint space that answers known phrases best.

    Arguments are those of `ask_phrases`; without a phrase the joint space stays frozen.
    """
    scores: list[tuple[float, Matcher]] = []
    for strength in STRENGTHS:
        tried = replace(matcher, joint=replace(matcher.joint, strength=strength))
        asked = ask_phrases(tried, parts, phrases, relevant)
        scores.append((round(mrr(*rankings_of(asked)), 6) if asked else -strength, tried))
    return max(scores, key=lambda scored: scored[0])[1]


def rankings_of(asked: Sequence[Asked]) -> tuple[list[list[str]], list[set[str]]]:
    """(ranked, relevant), as the measures of `ranking_metrics` take them."""
    return [one.ranked for one in asked], [one.relevant for one in asked]


def _judged(
    matcher: Matcher,
    asked: Sequence[int],
    answers: Ranking,
    relevant: Sequence[set[int]],
    inside: set[int],
) -> list[Asked]:
    found = []
    for place, ranking in zip(asked, answers, strict=True):
        names, similarities = zip(*ranking, strict=True)
        right = {str(matcher.image_ids[row]) for row in relevant[place] & inside}
        right &= set(names)  # a copy that may not answer is no right answer
        if right:
            found.append(Asked(place, list(names), list(similarities), right))
    return found

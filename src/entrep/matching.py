"""From embeddings to answers: spaces learned out-of-fold, and the steps before the ranking.

No picture is compared in a space that learned from it: pictures of a fold are compared among
themselves by the adapter of the other folds, pictures outside development (held out, or of a
test set) by all of them. A test gallery is new to every adapter, so this is how it will be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from sklearn.decomposition import PCA

from entrep.adapter import Adapter, fit_adapter
from entrep.artifacts import keep_arrays, sha256_json
from entrep.config import RunConfig
from entrep.lessons import SAME_WORDS, Lessons, soft_phrases
from entrep.phrase_probe import PhraseProbe, fit_probe
from entrep.phrases import (
    combine_parts,
    fine_prior,
    log_evidence,
    phrase_variants,
    split_findings,
    to_english,
)
from entrep.ranking_metrics import mrr
from entrep.rerank import (
    average_spaces,
    csls,
    expand,
    inverted_softmax,
    k_reciprocal,
    phrase_distribution,
    prefer_same_class,
    prefer_same_finding,
    rank_one_to_one,
)
from entrep.retrieval import excluded_answers, rank_similarities

SAYS_TEMPERATURE = 0.05  # of a picture's distribution over phrases, by cosine alone
HUB_TEMPERATURE = 0.05  # of the inverted softmax

Ranking = list[list[tuple[str, float]]]
T = TypeVar("T")


@dataclass(frozen=True)
class Space:
    """Where pictures, and phrases if its encoder reads them, are compared.

    Attributes:
        rows: (N, L) of all pictures: embeddings, or a `LevelEncoder`'s rows.
        texts: (T, D) embeddings of the known phrases; None for an image-only encoder.
        prompts: (7, D) of the classes' sentences; None likewise.
        adapters: one a fold, or none: the frozen encoder.
        strength: how far the adapters move it, 0 not at all.
    """

    rows: np.ndarray
    texts: np.ndarray | None = None
    prompts: np.ndarray | None = None
    adapters: tuple[Adapter, ...] = ()
    strength: float = 1.0

    def judges(self, fold: int) -> list[Adapter | None]:
        """The adapters that never saw a picture of this fold, -1 being outside of all."""
        if not self.adapters or not self.strength:
            return [None]
        return list(self.adapters) if fold < 0 else [self.adapters[fold]]

    def pictures(self, chosen: np.ndarray, judge: Adapter | None) -> np.ndarray:
        """(n, D) of some rows, as a judge sees them."""
        if judge is not None:
            return judge.move_pictures(self.rows[chosen], self.strength)
        width = self.rows.shape[1] if self.texts is None else self.texts.shape[1]
        rows = self.rows[chosen, :width].astype(np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def phrases(self, embeddings: np.ndarray, judge: Adapter | None) -> np.ndarray:
        """(n, D) of embedded phrases, as a judge sees them."""
        if judge is not None:
            return judge.move_texts(embeddings, self.strength)
        return np.asarray(embeddings, np.float64)


def learn_space(
    space: Space,
    lessons: Lessons,
    fold: np.ndarray,
    *,
    epochs: int,
    seed: int,
    kept: Path | None = None,
    identity: object = None,
) -> Space:
    """The space with an adapter for each fold, fitted on the other folds.

    Args:
        space: with its N pictures.
        lessons: about the N pictures and T phrases; read for development pictures only.
        fold: (N,) ints, -1 for pictures outside development.
        epochs: see `fit_adapter`; 0 leaves the space as it is.
        seed: adapter i takes seed + i.
        kept: first part of the files' names, `<kept><i>.safetensors`, see `keep_arrays`; None:
            nothing is kept.
        identity: what `space` is made of, as JSON: encoder, pictures, phrases. An adapter
            that was saved with another one, or with other arguments here, is learned anew.
    """
    key = _key(identity, fold, lessons, epochs, seed)
    adapters = []
    for number in range(int(fold.max()) + 1 if epochs else 0):
        rows = np.flatnonzero((fold >= 0) & (fold != number))
        study = (space.rows[rows], space.texts, space.prompts, lessons.of(rows))
        learn = partial(fit_adapter, *study, epochs=epochs, seed=seed + number)
        adapters.append(_learned(Adapter, learn, _place(kept, number), key))
    _forget(kept, len(adapters))
    return replace(space, adapters=tuple(adapters))


def _learned(kind: type[T], learn: Callable[[], T], path: Path | None, key: str) -> T:
    return kind(**keep_arrays(path, key, lambda: vars(learn())))


def _key(identity: object, fold: np.ndarray, lessons: Lessons, *settings: object) -> str:
    known = lessons.of(np.flatnonzero(fold >= 0)).digest()
    return sha256_json([identity, fold.tolist(), known, *settings])


def _place(kept: Path | None, number: int) -> Path | None:
    return None if kept is None else kept.with_name(f"{kept.name}{number}.safetensors")


def _forget(kept: Path | None, count: int) -> None:
    """Remove what an earlier run with more folds kept."""
    if kept is not None:
        places = {_place(kept, number) for number in range(count)}
        for path in {*kept.parent.glob(f"{kept.name}*")} - places:
            path.unlink()


def whiten(space: Space, known: np.ndarray, dims: int) -> Space:
    """An image-only space with rows whose directions vary alike (PCA whitening).

    Args:
        space: with its N pictures.
        known: (N,) bool, the pictures that it is fitted on; no label is read.
        dims: directions to keep, at most as many as there are or as pictures to fit on.

    Raises:
        ValueError: for a joint space, whose pictures would not meet their phrases any more.
    """
    if space.texts is not None:
        raise ValueError("whiten: a joint space's pictures have to meet its phrases; leave it.")
    dims = min(dims, int(known.sum()), space.rows.shape[1])
    pca = PCA(dims, whiten=True, svd_solver="full").fit(space.rows[known])
    return replace(space, rows=pca.transform(space.rows))


def says_by_cosine(space: Space) -> np.ndarray:
    """(N, T) distributions of pictures over the known phrases, as the frozen encoder has them.

    (N, 0) where no phrase is known, or the encoder reads none.
    """
    if space.texts is None or not len(space.texts):
        return np.empty((len(space.rows), 0))
    seen = space.pictures(np.arange(len(space.rows)), None)
    return phrase_distribution(seen @ space.texts.T, SAYS_TEMPERATURE)


def learn_says(
    space: Space,
    lessons: Lessons,
    fold: np.ndarray,
    *,
    kept: Path | None = None,
    identity: object = None,
) -> np.ndarray:
    """(N, T) distributions as in `says_by_cosine`, corrected by probes that did not see a picture.

    A probe a fold, fitted on the other folds; what lies outside development is answered by one
    that is fitted on all of that.

    Args:
        space: the joint one, with its N pictures and T phrases.
        lessons: about them.
        fold: (N,) ints, -1 for pictures outside development.
        kept: see `learn_space`.
        identity: see `learn_space`.
    """
    says = says_by_cosine(space)
    if not says.size:
        return says
    key = _key(identity, fold, lessons)
    described = soft_phrases(lessons.carries, space.texts)
    groups = [*range(int(fold.max()) + 1), -1]
    for number, group in enumerate(groups):
        rows, asked = np.flatnonzero((fold >= 0) & (fold != group)), fold == group
        learn = partial(fit_probe, space.rows[rows], described[rows])
        probe = _learned(PhraseProbe, learn, _place(kept, number), key)
        says[asked] = probe.correct(space.rows[asked], says[asked])
    _forget(kept, len(groups))
    return says


def embed_phrases(
    texts: Sequence[str], embed: Callable[[list[str]], np.ndarray], *, variants: bool = False
) -> np.ndarray:
    """(T, D) unit-norm rows of phrases in English or Vietnamese; (0, D) of none.

    Args:
        texts: T phrases, to the letter.
        embed: gives (n, D) unit-norm rows of n English texts.
        variants: take the mean direction of several wordings of each.
    """
    if not len(texts):
        return embed(["none"])[:0]
    wordings = [phrase_variants(t) if variants else [t] for t in map(to_english, texts)]
    rows = embed([wording for group in wordings for wording in group])
    ends = np.cumsum([0, *map(len, wordings)])
    means = [rows[start:end].mean(axis=0) for start, end in zip(ends, ends[1:], strict=False)]
    return np.stack([mean / np.linalg.norm(mean) for mean in means])


@dataclass(frozen=True)
class Phrases:
    """Phrases that ask, with their embeddings and those of the findings that they join.

    Attributes:
        texts: Q phrases, to the letter.
        rows: (Q, D).
        parts: Q arrays (P, D) of the findings that each joins; (1, D), the whole, where it is one.
    """

    texts: tuple[str, ...]
    rows: np.ndarray
    parts: tuple[np.ndarray, ...]

    def of(self, places: Sequence[int]) -> Phrases:
        """Some of them."""
        texts, parts = (tuple(each[place] for place in places) for each in (self.texts, self.parts))
        return Phrases(texts, self.rows[list(places)], parts)


def read_phrases(
    texts: Sequence[str],
    embed: Callable[[list[str]], np.ndarray],
    *,
    variants: bool = False,
    split: bool = True,
) -> Phrases:
    """Embed phrases that ask, and the findings that they join.

    Args:
        texts: Q phrases in English or Vietnamese, to the letter.
        embed: see `embed_phrases`.
        variants: see `embed_phrases`.
        split: whether a phrase may join several findings, see `phrases.split_findings`.
    """
    groups = [split_findings(text) if split else [text] for text in texts]
    said = [text for group in groups if len(group) > 1 for text in group]
    both = embed_phrases([*texts, *said], embed, variants=variants)
    rows, below = both[: len(texts)], iter(both[len(texts) :])
    parts = tuple(
        row[None] if len(group) == 1 else np.stack([next(below) for _ in group])
        for row, group in zip(rows, groups, strict=True)
    )
    return Phrases(tuple(texts), rows, parts)


@dataclass(frozen=True)
class Matcher:
    """Answers pictures and phrases with pictures of a gallery.

    Attributes:
        image_ids: N file names.
        sha256: N digests of the pictures' bytes.
        near: (N,) ids of groups of near copies, see `retrieval.excluded_answers`.
        probs: (N, 7) calibrated class probabilities, out-of-fold for development pictures.
        spaces: in which pictures are compared with pictures.
        weights: of the spaces, >= 0.
        joint: in which phrases are compared with pictures.
        says: (N, T) distributions over the known phrases, those of `joint.texts`, out-of-fold
            for development pictures, see `learn_says` and `says_by_cosine`.
        config: switches the steps: `copies`, `same_class_weight`, `named_class_weight`,
            `hubness`, `finding_weight`, `k_reciprocal_weight` and `expansion`.
    """

    image_ids: np.ndarray
    sha256: np.ndarray
    near: np.ndarray
    probs: np.ndarray
    spaces: tuple[Space, ...]
    weights: tuple[float, ...]
    joint: Space
    says: np.ndarray
    config: RunConfig

    def answer_pictures(
        self, queries: np.ndarray, gallery: np.ndarray, *, fold: int = -1, k: int = 10
    ) -> Ranking:
        """Rank the gallery for each query picture, see `rank_similarities`.

        Args:
            queries: (Q,) rows, all of them of the gallery too.
            gallery: (G,) rows.
            fold: that all these pictures are of, -1 outside development.
            k: answers to keep.
        """
        column_of = {row: column for column, row in enumerate(gallery)}
        columns = np.array([column_of[row] for row in queries])
        names = self.image_ids[gallery].tolist()
        excluded = excluded_answers(
            [names[column] for column in columns],
            names,
            copies=self.config.copies,
            sha256=self.sha256[gallery].tolist(),
            groups=self.near[gallery].tolist(),
        )
        similarity = self._between_pictures(gallery, fold)[columns]
        similarity = prefer_same_class(
            similarity,
            self.probs[queries],
            self.probs[gallery],
            weight=self.config.same_class_weight,
        )
        return rank_similarities(similarity, names, k=k, excluded=excluded)

    def answer_phrases(
        self,
        phrases: Phrases,
        gallery: np.ndarray,
        *,
        fold: int = -1,
        k: int = 10,
        one_to_one: bool = False,
    ) -> Ranking:
        """Rank the gallery for each phrase.

        Args:
            phrases: whose words may name a site, a side or a state.
            gallery: (G,) rows.
            fold: that all these pictures are of, -1 outside development.
            k: answers to keep.
            one_to_one: no two phrases share their first answer, see `rank_one_to_one`.
        """
        similarity = self._to_pictures(phrases.rows, gallery, fold)
        for place, parts in enumerate(phrases.parts):
            if len(parts) > 1:
                below = self._to_pictures(parts, gallery, fold)
                similarity[place] = combine_parts(similarity[place], below)
        if self.config.named_class_weight:
            prior = np.stack([fine_prior(text) for text in phrases.texts])
            evidence = log_evidence(prior, self.probs[gallery])
            similarity = similarity + self.config.named_class_weight * evidence
        rank = rank_one_to_one if one_to_one else rank_similarities
        return rank(similarity, self.image_ids[gallery].tolist(), k=k)

    def _to_pictures(self, rows: np.ndarray, gallery: np.ndarray, fold: int) -> np.ndarray:
        """(Q, G) similarities of embedded phrases, before what their words name is weighed."""
        config, found = self.config, []
        for judge in self.joint.judges(fold):
            seen = self.joint.pictures(gallery, judge)
            known = self.joint.phrases(self.joint.texts, judge)
            similarity, bank = self.joint.phrases(rows, judge) @ seen.T, known @ seen.T
            if len(known) and config.hubness == "csls":
                similarity = csls(similarity, bank)
            elif len(known) and config.hubness == "inverted_softmax":
                similarity = inverted_softmax(similarity, bank, temperature=HUB_TEMPERATURE)
            found.append(similarity)
        similarity = np.mean(found, axis=0)
        if config.finding_weight and self.says.size:
            means = phrase_distribution(rows @ self.joint.texts.T, SAME_WORDS)
            says = self.says[gallery]
            similarity = prefer_same_finding(similarity, means, says, weight=config.finding_weight)
        return similarity

    def may_answer(self, query: int, row: int) -> bool:
        """Whether a picture may answer another one, as `config.copies` has it."""
        same = {"none": (), "identical": (self.sha256,), "near": (self.sha256, self.near)}
        return query != row and not any(ids[query] == ids[row] for ids in same[self.config.copies])

    def _between_pictures(self, gallery: np.ndarray, fold: int) -> np.ndarray:
        """(G, G) of all spaces and judges together."""
        config, found, shares = self.config, [], []
        for space, weight in zip(self.spaces, self.weights, strict=True):
            for judge in space.judges(fold) if weight else []:
                seen = space.pictures(gallery, judge)
                if config.expansion:
                    others = seen @ seen.T
                    np.fill_diagonal(others, -np.inf)
                    seen = expand(seen, seen, others, neighbours=config.expansion)
                found.append(seen @ seen.T)
                shares.append(weight / len(space.judges(fold)))
        similarity = found[0]
        if len(found) > 1:
            # Back on the scale of a cosine, in which the next steps' weights are told.
            apart = ~np.eye(len(gallery), dtype=bool)
            others = [np.where(apart, one, -np.inf) for one in found]
            mean = average_spaces(others, shares)
            similarity = np.where(apart, mean, 1.0) * found[0][apart].std()
        if config.finding_weight and self.says.size:
            says = self.says[gallery]
            similarity = prefer_same_finding(similarity, says, says, weight=config.finding_weight)
        if config.k_reciprocal_weight:
            rows, weight = np.arange(len(gallery)), config.k_reciprocal_weight
            similarity = k_reciprocal(similarity, rows, weight=weight)
        return similarity


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


def ladder(matcher: Matcher) -> dict[str, Matcher]:
    """The same matcher step by step: plain cosine, then what is learned, then what is known."""

    def frozen(space: Space) -> Space:
        return replace(space, adapters=())

    off = {"same_class_weight": 0.0, "named_class_weight": 0.0, "hubness": "none"}
    off |= {"finding_weight": 0.0, "k_reciprocal_weight": 0.0, "expansion": 0}
    plain = replace(matcher, config=replace(matcher.config, **off))
    weights = ("same_class_weight", "named_class_weight")
    classes = {name: getattr(matcher.config, name) for name in weights}
    return {
        "plain cosine": replace(
            plain,
            spaces=(frozen(matcher.joint),),
            weights=(1.0,),
            joint=frozen(matcher.joint),
        ),
        "all spaces": replace(
            plain, spaces=tuple(map(frozen, matcher.spaces)), joint=frozen(matcher.joint)
        ),
        "+ adapter": plain,
        "+ classes": replace(plain, config=replace(plain.config, **classes)),
        "+ the other steps (default)": matcher,
    }


STRENGTHS = (1.0, 0.5, 0.0)


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

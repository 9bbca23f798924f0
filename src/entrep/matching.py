"""From similarities in spaces to answers: the steps before the ranking."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from entrep.config import RunConfig
from entrep.lessons import SAME_WORDS
from entrep.phrases import combine_parts, fine_prior, log_evidence
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
from entrep.spaces import Phrases, Space

HUB_TEMPERATURE = 0.05  # of the inverted softmax

Ranking = list[list[tuple[str, float]]]


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

"""Spaces in which pictures and phrases are compared, and what is learned in them out-of-fold.

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
from entrep.lessons import Lessons, soft_phrases
from entrep.phrase_probe import PhraseProbe, fit_probe
from entrep.phrases import phrase_variants, split_findings, to_english
from entrep.registry import pack_digest
from entrep.rerank import phrase_distribution

SAYS_TEMPERATURE = 0.05  # of a picture's distribution over phrases, by cosine alone

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


def learn_spaces(
    joint: Space,
    image: Space,
    lessons: Lessons,
    fold: np.ndarray,
    config: RunConfig,
    *,
    kept: Path | None = None,
    identity: Sequence[object] = (),
) -> tuple[tuple[Space, Space], np.ndarray]:
    """Learn in both spaces what the configuration asks for.

    Args:
        joint: N pictures and T phrases as `config.text_encoder` has them.
        image: the pictures as `config.backbone` has them.
        lessons: about them.
        fold: (N,) ints, -1 for pictures outside development.
        config: says what is learned: `whiten_dims`, `adapter_epochs`, `phrase_probe`; and `seed`.
        kept: folder for `learned_*.safetensors`, see `learn_space`; None: nothing is kept.
        identity: which pictures and phrases these are, as JSON, see `learn_space`.

    Returns:
        (both spaces with their adapters, (N, T) of `learn_says` or `says_by_cosine`).
    """
    if config.whiten_dims:
        image = whiten(image, fold >= 0, config.whiten_dims)
    settings = [config.crop, config.fine_scale, config.precision, config.whiten_dims]

    def keep(name: str, encoder: str) -> dict[str, object]:
        made_of = [encoder, pack_digest(encoder, config.weights_dir), *identity, *settings]
        return {"kept": kept and kept / name, "identity": made_of}

    study, options = (lessons, fold), {"epochs": config.adapter_epochs, "seed": config.seed}
    spaces = (
        learn_space(joint, *study, **options, **keep("learned_space0_", config.text_encoder)),
        learn_space(image, *study, **options, **keep("learned_space1_", config.backbone)),
    )
    if not config.phrase_probe:
        return spaces, says_by_cosine(joint)
    return spaces, learn_says(joint, *study, **keep("learned_phrases", config.text_encoder))


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

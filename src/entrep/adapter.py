"""A small correction of a frozen joint space, learned from few pairs of pictures and phrases.

A frozen joint encoder was made for other captions than a clinic's, and sees no side. Some
hundred pictures cannot teach its millions of weights without spoiling them, but they can teach
a linear map from what its blocks saw to a shift of its embedding: the adapter starts at zero, so
what it has not learned stays as the encoder had it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from entrep.lessons import Lessons, soft_phrases

PERHAPS = 0.1  # how much of a positive is a picture of the same class whose finding is unknown
HARDER = 2.0  # how often a picture of the same site counts among those to be told apart
BATCH = 128
LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 1e-3, 1e-2, 0.2


@dataclass(frozen=True)
class Adapter:
    """Shifts of the embeddings of pictures and of phrases, (D,) each.

    Attributes:
        mean: (L,) of the training pictures' rows.
        scale: (L,) one over their standard deviation.
        pictures: (L, D).
        texts: (D, D).
    """

    mean: np.ndarray
    scale: np.ndarray
    pictures: np.ndarray
    texts: np.ndarray

    def move_pictures(self, rows: np.ndarray, strength: float = 1.0) -> np.ndarray:
        """(N, L) rows of a `LevelEncoder` to (N, D) unit-norm float64; strength 0 is frozen."""
        shift = ((rows - self.mean) * self.scale) @ self.pictures
        return _unit(_unit(rows[:, : self.pictures.shape[1]]) + strength * shift)

    def move_texts(self, embeddings: np.ndarray, strength: float = 1.0) -> np.ndarray:
        """(T, D) unit-norm embeddings to the same in float64; strength 0 is frozen."""
        return _unit(embeddings + strength * (embeddings @ self.texts))


def fit_adapter(
    rows: np.ndarray,
    texts: np.ndarray | None,
    prompts: np.ndarray | None,
    lessons: Lessons,
    *,
    epochs: int = 60,
    seed: int = 0,
) -> Adapter:
    """Learn an adapter by a contrastive loss with several positives.

    Each picture is drawn to the phrases that it is described by, and to phrases that say nearly
    the same (soft targets by the frozen cosine of the phrases); each phrase to its pictures;
    each picture to pictures of its class with the same finding ("supervised contrastive",
    Khosla et al., arXiv 2004.11362; "UniCL", Yang et al., arXiv 2204.03610), or, where nobody
    said what it shows, to all of its class; and each picture to the sentence of its class.
    Pictures of the same site with another finding count `HARDER` times among those to be told
    apart.

    Args:
        rows: (N, L) of a `LevelEncoder`, or of an image-only encoder (N, D).
        texts: (T, D) unit-norm embeddings of the phrases; None where the encoder reads none:
            then only equal phrases say the same.
        prompts: (7, D) of the classes' sentences; None likewise.
        lessons: about the N pictures and T phrases.
        epochs: passes over the pictures, in batches of 128.
        seed: of order and dropout.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    spread = rows.std(axis=0)
    mean, scale = rows.mean(axis=0), np.where(spread > 1e-9, 1 / np.maximum(spread, 1e-9), 0.0)
    seen = torch.from_numpy((rows - mean) * scale).float()
    width = rows.shape[1] if texts is None else texts.shape[1]
    frozen = torch.from_numpy(_unit(rows[:, :width])).float()
    targets = _Targets(lessons, texts)
    texts, prompts = (np.empty((0, width)) if p is None else p for p in (texts, prompts))
    words, sentences = (torch.from_numpy(np.array(part)).float() for part in (texts, prompts))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        pictures, phrases = (nn.Linear(n, width, bias=False) for n in (seen.shape[1], width))
        temperature = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        weights = [pictures.weight, phrases.weight]
        for weight in weights:
            nn.init.zeros_(weight)
        optimizer = torch.optim.AdamW(
            [
                {"params": weights, "weight_decay": WEIGHT_DECAY},
                {"params": [temperature], "weight_decay": 0.0},
            ],
            lr=LEARNING_RATE,
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for epoch in range(epochs):
            for batch in torch.randperm(len(rows)).split(BATCH):
                shift = pictures(functional.dropout(seen[batch], DROPOUT))
                moved = functional.normalize(frozen[batch] + shift, dim=1)
                said, named = (
                    functional.normalize(part + phrases(part), dim=1) for part in (words, sentences)
                )
                loss = targets.loss(batch, temperature.exp() * moved, moved, said, named)
                if not torch.isfinite(loss):
                    raise FloatingPointError(
                        f"adapter: the loss is {loss.item()} in epoch {epoch}; look for rows of "
                        "the encoder that are not finite."
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
    found = (part.detach().double().numpy().T for part in weights)
    return Adapter(mean, scale, *found)


class _Targets:
    """The loss of a batch: what each row should be near, as probabilities."""

    def __init__(self, lessons: Lessons, texts: np.ndarray | None) -> None:
        self.class_index = torch.from_numpy(lessons.class_index)
        self.site = torch.from_numpy(lessons.site)
        self.finding = torch.from_numpy(lessons.finding)
        self.described = torch.from_numpy(soft_phrases(lessons.carries, texts)).float()

    def loss(
        self, batch: Tensor, scaled: Tensor, moved: Tensor, said: Tensor, named: Tensor
    ) -> Tensor:
        """Mean cross-entropies of the four questions; one that nothing is known of counts 0."""
        described, classes = self.described[batch], self.class_index[batch]
        loss = 0.0 * scaled.sum()  # of a batch that nothing is known of
        if len(named):
            loss = functional.cross_entropy(scaled @ named.T, classes)
        if len(said) and described.any():
            to_texts = scaled @ said.T
            loss = loss + _soft_cross_entropy(to_texts, described)
            loss = loss + _soft_cross_entropy(to_texts.T, described.T)
        own = torch.eye(len(batch), dtype=torch.bool)
        unknown = described.sum(dim=1) == 0
        same = torch.where(
            _pairs(unknown, torch.logical_or), PERHAPS, described @ described.T
        ) * _pairs(classes, torch.eq)
        same = same + _pairs(self.finding[batch], torch.eq).float()
        same = torch.where(own | (same < 1e-3), 0.0, same)
        harder = np.log(HARDER) * (_pairs(self.site[batch], torch.eq) & (same == 0)).float()
        to_pictures = (scaled @ moved.T + harder).masked_fill(own, -1e4)
        return loss + _soft_cross_entropy(to_pictures, same)


def _soft_cross_entropy(logits: Tensor, weights: Tensor) -> Tensor:
    """Mean over the rows that have a target; their weights become probabilities."""
    rows = weights.sum(dim=1) > 1e-3
    if not rows.any():
        return logits.new_zeros(())
    return functional.cross_entropy(logits[rows], _shares(weights[rows]))


def _pairs(values: Tensor, compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Every value of a batch with every other: (B,) to (B, B)."""
    return compare(values[:, None], values[None])


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

"""Which parts of a picture an answer rests on: cover one after the other, see what it costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from entrep.heads import BINARY, CLASSES
from entrep.labels import CLASS_NAMES, FINE_PAIRS, FINE_SITES
from entrep.network import predict_logits

FILLS = ("blur", "mean")  # what a covered place shows
HEADS = ("both", "classes", "binary")  # whose log-odds

Score = Callable[[Tensor, Tensor], Tensor]  # (B, 14) logits, (B,) classes to (B,)


def side_log_odds(logits: Tensor, class_index: Tensor, *, head: str = "both") -> Tensor:
    """How sure a network is of a class's side or state: its log-odds against its partner.

    Nose and ear are right or left, the cords open or closed. The throat has no such question:
    its log-odds are those of its class against all others.

    Args:
        logits: (B, 14), see `entrep.heads`.
        class_index: (B,) ints in 0..6, the class to speak for in each row.
        head: "classes" asks the 7-class head (difference of two logits), "binary" the two-way
            head, "both" takes the mean of the two. The throat's is always of the 7-class head.

    Returns:
        (B,), natural logarithm; above 0 the class is preferred to its partner.
    """
    if head not in HEADS:
        raise ValueError(f"head: expected one of {', '.join(HEADS)}; got {head!r}.")
    classes, own = logits[:, CLASSES], class_index[:, None]
    rest = classes.scatter(1, own, -torch.inf).logsumexp(1)
    odds = classes.gather(1, own)[:, 0] - rest
    for column, site in enumerate(FINE_SITES):
        first, second = FINE_PAIRS[site]
        flat, binary = classes[:, second] - classes[:, first], logits[:, BINARY][:, column]
        asked = {"classes": flat, "binary": binary, "both": (flat + binary) / 2}[head]
        odds = torch.where(class_index == first, -asked, odds)
        odds = torch.where(class_index == second, asked, odds)
    return odds


def occlusion_maps(
    network: nn.Module,
    prepared: np.ndarray,
    class_index: np.ndarray | None = None,
    *,
    score: Score = side_log_odds,
    patches: int = 8,
    width: float = 0.25,
    fill: str = "blur",
    flip_tta: bool = True,
    batch_size: int = 32,
) -> np.ndarray:
    """How much a score falls when a soft-edged patch of a picture is covered, place by place.

    Zeiler and Fergus, "Visualizing and understanding convolutional networks", arXiv 1311.2901,
    who cover with grey. It only calls the network, so any backbone will do, and costs
    N (patches^2 + 1) answers of the network. A map shows places that matter one at a time: of two
    cues that say the same, neither falls much as long as the other is seen.

    Args:
        network: (B, 3, S, S) uint8 to (B, 14) logits.
        prepared: (N, S, S, 3) uint8.
        class_index: (N,) ints in 0..6, the class that the score speaks for; None: the
            network's own answer to the whole picture.
        score: from logits (B, 14) and classes (B,) to (B,).
        patches: places a side, evenly spaced; patch centres are 1 / patches apart.
        width: of a patch at half its strength, as a share of the picture's side. It fades out
            over as much again, because a hard edge would be a structure of its own.
        fill: "blur" leaves colour and shade and takes the structure; "mean" covers with the
            picture's mean colour, black surround and all.
        flip_tta: explain the mean of the picture's and the mirrored picture's answer, see
            `predict_logits`; mirrored pictures then have mirrored maps.
        batch_size: pictures a forward pass; the maps do not depend on it.

    Returns:
        (N, patches, patches) float32 in units of the score, top left first: positive where
        the picture speaks for the class, negative where it speaks against it.

    Raises:
        ValueError: for pictures that are no (N, S, S, 3) bytes, classes that do not fit
            them, or an option out of range.
    """
    prepared = np.asarray(prepared)
    _check(prepared, class_index, patches, width, fill)
    if not len(prepared):
        return np.empty((0, patches, patches), np.float32)
    options = {"batch_size": batch_size, "flip_tta": flip_tta}
    whole = torch.from_numpy(predict_logits(network, prepared, **options))
    answered = whole[:, CLASSES].argmax(1)
    asked = answered if class_index is None else torch.from_numpy(np.asarray(class_index, np.int64))
    masks = _patch_masks(prepared.shape[1], patches, width)
    maps = []
    for picture, own, before in zip(prepared, asked, score(whole, asked), strict=True):
        cover = _cover(picture, fill)
        logits = [
            predict_logits(network, _blend(picture, cover, some), **options)
            for some in np.split(masks, range(batch_size, len(masks), batch_size))
        ]
        after = score(torch.from_numpy(np.concatenate(logits)), own.expand(len(masks)))
        maps.append((before - after).reshape(patches, patches))
    return torch.stack(maps).numpy().astype(np.float32)


def _check(
    prepared: np.ndarray, class_index: np.ndarray | None, patches: int, width: float, fill: str
) -> None:
    square = prepared.ndim == 4 and prepared.shape[1:] == (*prepared.shape[1:2] * 2, 3)
    if not square or prepared.dtype != np.uint8:
        raise ValueError(
            f"prepared: expected (N, S, S, 3) uint8, got {prepared.shape} {prepared.dtype}."
        )
    if class_index is not None:
        if np.shape(class_index) != prepared.shape[:1]:
            raise ValueError(
                f"class_index has shape {np.shape(class_index)}; "
                f"give one class a picture, ({len(prepared)},)."
            )
        unknown = np.setdiff1d(class_index, np.arange(len(CLASS_NAMES)))
        if len(unknown):
            raise ValueError(
                f"class_index: expected 0..{len(CLASS_NAMES) - 1}, got {unknown.tolist()}."
            )
    if not 1 <= patches <= prepared.shape[1]:
        raise ValueError(f"patches: expected 1..{prepared.shape[1]} a side, got {patches}.")
    if not 0 < width <= 1:
        raise ValueError(f"width: expected a share of the side in 0..1, got {width}.")
    if fill not in FILLS:
        raise ValueError(f"fill: expected one of {', '.join(FILLS)}; got {fill!r}.")


def _patch_masks(size: int, patches: int, width: float) -> np.ndarray:
    """Raised cosines, `width` wide at half height: (patches^2, size, size, 1), row by row."""
    centres = (np.arange(patches) + 0.5) / patches
    pixels = (np.arange(size) + 0.5) / size
    distance = np.minimum(np.abs(pixels - centres[:, None]) / width, 1)
    window = (0.5 + 0.5 * np.cos(np.pi * distance)).astype(np.float32)
    return np.einsum("iy,jx->ijyx", window, window).reshape(-1, size, size, 1)


def _cover(picture: np.ndarray, fill: str) -> np.ndarray:
    """What shows in place of an (S, S, 3) picture: the same shape, or its mean colour, float32."""
    picture = picture.astype(np.float32)
    if fill == "mean":
        return picture.mean(axis=(0, 1))
    sigma = len(picture) / 16
    return gaussian_filter(picture, (sigma, sigma, 0), mode="nearest")


def _blend(picture: np.ndarray, cover: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The picture under each of M masks (M, S, S, 1): (M, S, S, 3) uint8."""
    return np.rint(picture + masks * (cover - picture)).astype(np.uint8)

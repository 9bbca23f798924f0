"""From a picture file to its lit square, and mirroring that swaps left and right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from entrep.disc import crop_disc, crop_square
from entrep.labels import MIRROR_CLASS


def load_picture(path: str | Path) -> Image.Image:
    """Open a picture as RGB, every pixel decoded.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be decoded to the end; a picture is never substituted.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such picture.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: not a readable picture ({error}); replace it with an intact copy."
        ) from error


def prepare_picture(path: str | Path, size: int, *, crop: bool = True) -> np.ndarray:
    """Load a picture, crop it to its disc and resize it: (size, size, 3) uint8.

    Without `crop` the whole frame is kept, made square with black.

    Pillow resizes bytes in fixed-point arithmetic, so the result is the same on every processor.
    """
    return prepare_image(load_picture(path), size, crop=crop)


def prepare_image(picture: Image.Image, size: int, *, crop: bool = True) -> np.ndarray:
    """`prepare_picture` of an RGB picture that is in memory."""
    square = crop_disc(picture) if crop else crop_square(picture, (0, 0, *picture.size))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0))


def as_batch(prepared: np.ndarray) -> Tensor:
    """(N, S, S, 3) uint8 array to (N, 3, S, S) uint8 tensor, without copying."""
    return torch.from_numpy(prepared).permute(0, 3, 1, 2)


def normalise(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, 3, S, S) uint8 to float32 as an encoder expects it: (x / 255 - mean) / std."""
    scale = torch.tensor(std, device=batch.device).view(3, 1, 1) * 255
    shift = torch.tensor(mean, device=batch.device).view(3, 1, 1) * 255
    return (batch.float() - shift) / scale


def mirror(batch: Tensor) -> Tensor:
    """Pictures mirrored left to right: flips the last axis."""
    return batch.flip(-1)


def mirror_classes(class_index: Tensor) -> Tensor:
    """Class indices of the mirrored pictures: left and right of nose and ear change places."""
    return torch.tensor(MIRROR_CLASS, device=class_index.device)[class_index]

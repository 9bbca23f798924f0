"""From a picture file to its lit square, and the augmentations that respect left and right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2

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
    picture = load_picture(path)
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


def training_augmentation() -> v2.Transform:
    """Photometric and geometric changes of one prepared picture that keep its class.

    The turn stays within 15 degrees and nothing is mirrored here: which side a structure
    lies on is the label. Mirroring with the label swapped is the training loop's business.
    """
    return v2.Compose(
        [
            v2.RandomAffine(degrees=15, translate=(0.06, 0.06), scale=(0.9, 1.2)),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
        ]
    )

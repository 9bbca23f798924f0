"""What kind of frame a picture is, in a dozen plain numbers: light, colour, grain, and its disc.

An encoder that has seen nothing but endoscopy maps pixel noise, a black frame or a page of text
to some place among its tissues. These statistics know no anatomy; they notice that a picture was
not taken by an endoscope, or with its lamp off.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from entrep.decode import count_cores
from entrep.preprocess import load_picture

# The columns of `describe_pictures`. "Lit" are the pixels above `LIT`, or all if hardly any are.
STATISTICS = (
    "light",  # mean of the brightest channel, 0..1
    "spread of light",  # its standard deviation
    "lit",  # share of the frame
    "white",  # share of the frame whose darkest channel is above `WHITE`
    "lit border",  # share of the frame's border: 0 around a disc, 1 without a mask
    "roundness",  # lit area to that of the ellipse in its box: 1 a disc, 1.27 a full frame
    "saturation",  # mean of the lit
    "redness",  # mean of red less the mean of green and blue, in units of the light
    "greenness",  # mean of green less blue, likewise
    "one colour",  # 1: all lit pixels have the same hue; 0: all hues cancel
    "coarse detail",  # log10 of the mean step between lit neighbours 4 pixels apart
    "fine detail",  # log10 of the mean curvature of brightness between neighbouring pixels
    "grain",  # log10 of its median over the picture: noise, not a few sharp edges
    "colour grain",  # the same of red less green
)
LIT, WHITE = 26, 235  # grey levels
FAINT = 8  # grey levels by which the light is raised: what is nearly black has no colour
SOME = 0.05  # share of a row or column that must be lit to belong to the lit box
SHORT_SIDE = 480  # larger pictures are reduced to this or up to twice as much
LEAST_SIDE = 32  # a side with fewer pixels is stretched to so many
STEP = 4  # colour is looked at in blocks of so many pixels a side
ROW_STEP, BLOCK = 8, 16  # grain is looked at on every eighth row, in stretches of so many pixels


def describe_pictures(root: str | Path, paths: Sequence[str]) -> np.ndarray:
    """Statistics of the whole frame of every picture, decoded in threads.

    Nothing is cropped: that there is a disc on black is one of the things to notice. A picture is
    described by itself, so neither order nor number of threads matters.

    Args:
        root: folder that `paths` are relative to.
        paths: N POSIX paths.

    Returns:
        (N, 14) float64, rounded to 6 decimals; the columns are `STATISTICS`.

    Raises:
        FileNotFoundError: if a picture is missing.
        ValueError: if one cannot be decoded.
    """
    root, paths = Path(root), list(paths)
    with ThreadPoolExecutor(count_cores()) as pool:
        rows = list(pool.map(lambda path: describe_picture(load_picture(root / path)), paths))
    return np.array(rows).reshape(len(paths), len(STATISTICS))


def describe_picture(picture: Image.Image) -> np.ndarray:
    """`STATISTICS` of one picture of any size and mode: (14,) float64."""
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    if min(picture.size) < LEAST_SIDE:
        wanted = tuple(max(side, LEAST_SIDE) for side in picture.size)
        picture = picture.resize(wanted, Image.Resampling.NEAREST)
    excess = min(picture.size) // SHORT_SIDE
    picture = picture.reduce(excess) if excess > 1 else picture
    small = _planes(picture.reduce(STEP))
    level = np.maximum(np.maximum(*small[:2]), small[2])
    lit = _lit(level)
    found = [*_light(small, level), *_colour(small[:, lit]), *_detail(level, lit)]
    return np.array([*found, *_grain(_planes(picture)[:, ::ROW_STEP])]).round(6)


def _light(small: np.ndarray, level: np.ndarray) -> tuple[float, ...]:
    lit = level > LIT
    border = np.concatenate([lit[0], lit[-1], lit[:, 0], lit[:, -1]])
    columns = np.flatnonzero(lit.mean(axis=0) > SOME)
    rows = np.flatnonzero(lit.mean(axis=1) > SOME)
    ellipse = 0.0
    if columns.size and rows.size:
        ellipse = np.pi / 4 * (np.ptp(columns) + 1) * (np.ptp(rows) + 1)
    return (
        level.mean() / 255,
        level.std() / 255,
        lit.mean(),
        (np.minimum(np.minimum(*small[:2]), small[2]) > WHITE).mean(),
        border.mean(),
        lit.sum() / ellipse if ellipse else 0.0,
    )


def _colour(lit: np.ndarray) -> tuple[float, ...]:
    """Of the (3, L) lit pixels."""
    red, green, blue = lit.astype(np.float32)
    most = np.maximum(np.maximum(red, green), blue)
    least = np.minimum(np.minimum(red, green), blue)
    redness, greenness = red - (green + blue) / 2, (green - blue) * 0.866
    chroma = np.sqrt(redness * redness + greenness * greenness).mean(dtype=np.float64)
    across, down = redness.mean(dtype=np.float64), greenness.mean(dtype=np.float64)
    light = most.mean(dtype=np.float64) + FAINT
    return (
        ((most - least) / (most + FAINT)).mean(dtype=np.float64),
        across / light,
        down / light,
        (np.hypot(across, down) + 1) / (chroma + 1),
    )


def _detail(level: np.ndarray, lit: np.ndarray) -> tuple[float]:
    steps = np.abs(np.diff(level.astype(np.int16), axis=1))
    both = lit[:, 1:] & lit[:, :-1]
    return (_log(steps[both].mean() if both.any() else 0.0),)


def _grain(rows: np.ndarray) -> tuple[float, ...]:
    """Of (3, R, W) rows at the picture's own resolution."""
    red, green, blue = rows.astype(np.int16)
    brightness, hue = _curvature(red + green + blue), _curvature(red - green)
    inside = _lit(_blocks(np.maximum(np.maximum(red, green), blue)[:, 1:-1]))
    curved = brightness[inside]
    return _log(curved.mean()), _log(np.median(curved)), _log(np.median(hue[inside]))


def _planes(picture: Image.Image) -> np.ndarray:
    """(3, H, W) uint8, a view: one colour after the other is quicker than three at a time."""
    return np.asarray(picture).transpose(2, 0, 1)


def _lit(level: np.ndarray) -> np.ndarray:
    """Where it is lit; everywhere if that is less than a hundredth of the picture."""
    lit = level > LIT
    return lit if lit.mean() >= 0.01 else np.ones_like(lit)


def _curvature(rows: np.ndarray) -> np.ndarray:
    """Mean absolute second difference along the rows of (R, W), in blocks: (R, W // BLOCK)."""
    return _blocks(np.abs(rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2]))


def _blocks(rows: np.ndarray) -> np.ndarray:
    """Means of (R, W) over stretches of `BLOCK` pixels; a rest at the right is left out."""
    length = min(BLOCK, rows.shape[1])
    rest = rows.shape[1] % length
    kept = rows[:, : rows.shape[1] - rest]
    # Whole numbers first: a sum of them is exact, whatever the order.
    return kept.reshape(len(rows), -1, length).sum(axis=2, dtype=np.int32) / length


def _log(value: float) -> float:
    """log10, for which a quarter of a grey level and nothing are much the same."""
    return float(np.log10(value + 0.25))

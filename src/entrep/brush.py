"""Exact random numbers, smooth fields and soft shapes: what pictures are drawn with.

The same key gives the same pixels on every machine. Random numbers come from PCG64's raw
stream, which numpy promises to keep. Arrays only meet operations that IEEE 754 rounds exactly
(+, -, *, /, sqrt, floor, comparisons, integers); there is no array sine, power or exponential,
no matrix product and no floating-point sum over an array, because those round differently
between processors and library builds. Angles go through the rational circle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Array = np.ndarray
Color = tuple[float, float, float]

# The disc is drawn at half resolution on this grid, its centre in the middle column.
HEIGHT, WIDTH = 240, 256


class Draws:
    """Random numbers that are the same everywhere: PCG64's raw stream for a key.

    Args:
        key: whole numbers >= 0 and words; equal keys give equal streams.
    """

    def __init__(self, *key: int | str) -> None:
        self.key = key
        words = []
        for part in key:
            if isinstance(part, str):
                words += [int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little"), 1]
            else:
                words += [int(part), 0]
        self._bits = np.random.PCG64(np.random.SeedSequence(words))

    def child(self, *key: int | str) -> Draws:
        """A stream of its own, whatever was drawn from this one."""
        return Draws(*self.key, *key)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((self._bits.random_raw() >> 11) * 2.0**-53)

    def integers(self, low: int, high: int) -> int:
        """A whole number in low .. high - 1."""
        return low + ((self._bits.random_raw() >> 32) * (high - low) >> 32)

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.uniform() < p

    def choice(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.integers(0, len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order (Fisher-Yates)."""
        items = list(items)
        for i in range(len(items) - 1, 0, -1):
            j = self.integers(0, i + 1)
            items[i], items[j] = items[j], items[i]
        return items

    def octets(self, count: int) -> Array:
        """(count,) uint8, uniform."""
        raw = self._bits.random_raw(-(-count // 8))
        return raw.astype("<u8").view(np.uint8)[:count]

    def lattice(self, rows: int, columns: int) -> Array:
        """(rows, columns) float32 in [-1, 1), multiples of 1/128."""
        octets = self.octets(rows * columns).reshape(rows, columns)
        return octets.astype(np.float32) / 128 - 1

    def turn(self, low: float, high: float) -> tuple[float, float]:
        """A unit vector (cos, sin) at an angle in [low, high) degrees, roughly uniform."""
        return unit(self.uniform(low, high))


def unit(degrees: float) -> tuple[float, float]:
    """(cos, sin) of an angle to about 0.01, from the rational circle, which rounds exactly."""
    quarters, rest = divmod(degrees / 90.0, 1.0)
    t = rest * (0.7854 + 0.2146 * rest * rest)  # close to tan(rest * 45 degrees)
    c, s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    return ((c, s), (-s, c), (-c, -s), (s, -c))[int(quarters) % 4]


@lru_cache(maxsize=1)
def grid() -> tuple[Array, Array]:
    """Steps to the right of and below the grid's centre."""
    column = np.arange(WIDTH, dtype=np.float32) + np.float32(0.5 - WIDTH / 2)
    row = np.arange(HEIGHT, dtype=np.float32) + np.float32(0.5 - HEIGHT / 2)
    return np.broadcast_to(column, (HEIGHT, WIDTH)), row[:, None] + np.zeros_like(column)


@lru_cache(maxsize=32)
def _lerp_steps(count: int, cells: int) -> tuple[Array, Array]:
    place = (np.arange(count, dtype=np.float32) + 0.5) * np.float32(cells / count)
    left = place.astype(np.intp)
    rest = place - left.astype(np.float32)
    return left, rest * rest * (3 - 2 * rest)


def noise(draws: Draws, cells: int) -> Array:
    """Smooth noise in [-1, 1] with `cells` bumps across the picture."""
    knots = draws.lattice(cells + 1, cells + 1)
    top, w = _lerp_steps(HEIGHT, cells)
    rows = knots[top] + w[:, None] * (knots[top + 1] - knots[top])
    left, w = _lerp_steps(WIDTH, cells)
    start = rows.take(left, axis=1)
    return start + w * (rows.take(left + 1, axis=1) - start)


def clip01(v: Array) -> Array:
    """Clip to 0..1."""
    return np.minimum(np.maximum(v, 0), 1)


def step(v: Array, low: float, high: float) -> Array:
    """Smooth step: 0 at `low`, 1 at `high` (which may be the smaller one)."""
    t = clip01((v - low) * (1.0 / (high - low)))
    return t * t * (3 - 2 * t)


def bump(r2: Array) -> Array:
    """(1 - r²)² inside the unit circle of r², 0 outside."""
    t = np.maximum(1 - r2, 0)
    return t * t


def dome(r2: Array) -> Array:
    """Height of a lump over r²: 1 on top, 0 on the rim, where it is steep but not upright."""
    return np.sqrt(np.maximum(1 - r2, 0) * 1.2 + 0.16) * 1.305 - 0.522


def oval(
    x: Array, y: Array, at: tuple[float, float], a: float, b: float, tilt: float = 0.0
) -> Array:
    """r² of an ellipse with half axes a and b, turned by `tilt` degrees: 1 on its rim."""
    dx, dy = x - at[0], y - at[1]
    if tilt:
        c, s = unit(tilt)
        dx, dy = dx * c + dy * s, dy * c - dx * s
    dx, dy = dx * (1 / a), dy * (1 / b)
    return dx * dx + dy * dy


def along(
    x: Array, y: Array, start: tuple[float, float], end: tuple[float, float]
) -> tuple[Array, Array]:
    """Position t (0 at start, 1 at end, clipped) and squared distance to a segment."""
    ex, ey = end[0] - start[0], end[1] - start[1]
    dx, dy = x - start[0], y - start[1]
    t = clip01((dx * ex + dy * ey) * (1 / (ex * ex + ey * ey)))
    dx, dy = dx - t * ex, dy - t * ey
    return t, dx * dx + dy * dy


def slopes(z: Array) -> tuple[Array, Array]:
    """Central differences per grid step, 0 at the border."""
    zx, zy = np.zeros_like(z), np.zeros_like(z)
    zx[:, 1:-1] = (z[:, 2:] - z[:, :-2]) * 0.5
    zy[1:-1] = (z[2:] - z[:-2]) * 0.5
    return zx, zy


def blur(v: Array, times: int) -> Array:
    """Average with the neighbours, `times` times."""
    for _ in range(times):
        v = v.copy()
        v[..., 1:-1] = v[..., 1:-1] * 0.5 + (v[..., :-2] + v[..., 2:]) * 0.25
        v[..., 1:-1, :] = v[..., 1:-1, :] * 0.5 + (v[..., :-2, :] + v[..., 2:, :]) * 0.25
    return v


def vessels(draws: Draws, cells: int, width: float) -> Array:
    """Thin winding lines, 0..1: where smooth noise crosses zero, broken up by other noise."""
    field = noise(draws, cells) + 0.35 * noise(draws, 3 * cells)
    zx, zy = slopes(field)
    steep = np.sqrt(zx * zx + zy * zy) + 0.004
    lines = clip01(1 - np.abs(field) / (width * steep))
    return lines * step(noise(draws, cells), -0.1, 0.5)


class Scene:
    """What the scope sees before light: colour (3, H, W), depth (H, W) and wetness (H, W).

    x and y are anatomical coordinates, turned, zoomed and shifted; about -1..1 in the disc.
    """

    def __init__(self, x: Array, y: Array) -> None:
        self.x, self.y = x, y
        self.rgb = np.zeros((3, *x.shape), np.float32)
        self.z = np.full_like(x, 3.0)
        self.wet = np.full_like(x, 0.6)

    def paint(
        self,
        mask: Array,
        color: Color,
        depth: Array | float | None = None,
        wet: float | None = None,
    ) -> None:
        """Cover what is there by `mask` (0..1)."""
        for plane, value in zip(self.rgb, color, strict=True):
            plane += mask * (value - plane)
        if depth is not None:
            self.z += mask * (depth - self.z)
        if wet is not None:
            self.wet += mask * (wet - self.wet)

    def ball(
        self,
        at: tuple[float, float],
        a: float,
        b: float,
        color: Color,
        base: float,
        height: float,
        tilt: float = 0.0,
        wet: float | None = None,
        shadow: float = 0.5,
    ) -> Array:
        """A rounded lump with a soft shadow around it; returns its mask."""
        r2 = oval(self.x, self.y, at, a, b, tilt)
        self.darken(bump(r2 * 0.6), shadow)
        mask = step(r2, 1.04, 0.82)
        self.paint(mask, color, base - height * dome(r2), wet)
        return mask

    def darken(self, mask: Array, strength: float) -> None:
        """Take away up to `strength` of the light where mask is 1."""
        self.rgb *= 1 - strength * mask

    def tint(self, mask: Array, gain: Color) -> None:
        """Multiply the colour by `gain` where mask is 1."""
        for plane, value in zip(self.rgb, gain, strict=True):
            plane *= 1 + mask * (value - 1)

    def flip(self) -> None:
        """The mirror image."""
        self.rgb = self.rgb[:, :, ::-1].copy()
        self.z = self.z[:, ::-1].copy()
        self.wet = self.wet[:, ::-1].copy()


def mix(a: Color, b: Color, t: float) -> Color:
    """From a (t = 0) to b (t = 1)."""
    return tuple(u + t * (v - u) for u, v in zip(a, b, strict=True))


def scaled(color: Color, gain: float) -> Color:
    """A brighter or darker colour."""
    return tuple(v * gain for v in color)

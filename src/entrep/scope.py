"""The endoscope: where it is held, its lamp, its lens and its camera.

Everything here is nuisance. It is drawn from streams that know neither class nor finding, and
after a left side has been mirrored, so it cannot give a label away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from entrep.brush import (
    HEIGHT,
    WIDTH,
    Array,
    Draws,
    Scene,
    along,
    blur,
    clip01,
    grid,
    noise,
    oval,
    slopes,
    step,
)


@dataclass(frozen=True)
class View:
    """Where the scope is held, as the viewer sees it."""

    turn: float  # degrees, clockwise
    zoom: float
    right: float  # the anatomy's shift in the disc, in disc radii
    down: float
    radius: float  # of the disc, in steps of the grid
    drop: float  # of the disc's centre, in steps of the grid

    def mirrored(self) -> View:
        """The view that a mirror would show."""
        return replace(self, turn=-self.turn, right=-self.right)


def hold_scope(draws: Draws, difficulty: float) -> View:
    """Hold the scope: mostly near enough, sometimes too near and off the mark."""
    spread, push = 0.4 + difficulty, 1.0
    if draws.chance(0.35 * difficulty):
        spread, push = 1.8 * spread, draws.uniform(1.2, 1.6)
    return View(
        turn=draws.uniform(-25, 25) * min(spread, 1.0),
        zoom=push * (1.0 + draws.uniform(-0.22, 0.30) * min(spread, 1.0)),
        right=draws.uniform(-0.22, 0.22) * spread,
        down=draws.uniform(-0.18, 0.18) * spread,
        radius=draws.uniform(117.0, 124.5),
        drop=draws.uniform(-4.0, 4.0),
    )


def place(view: View) -> tuple[Array, Array]:
    """Coordinates in the disc, to the right and down: 1 on its rim."""
    x, y = grid()
    return x * (1 / view.radius), (y - view.drop) * (1 / view.radius)


def light_scene(scene: Scene, view: View, draws: Draws, difficulty: float) -> Array:
    """Lit colour (3, H, W), 0..1 and above: a lamp beside the lens, falling off with distance."""
    u, v = place(view)
    reach = 0.15 + 0.35 * difficulty
    lx, ly = draws.uniform(-reach, reach), draws.uniform(-reach, reach)
    wet = draws.uniform(0.4, 1.0)
    z = scene.z + 0.012 * noise(draws, 24) + 0.03 * noise(draws, 10)
    zx, zy = slopes(z)
    slope = 0.55 * view.radius
    zx = np.minimum(np.maximum(zx * slope, -1.7), 1.7)
    zy = np.minimum(np.maximum(zy * slope, -1.7), 1.7)
    dx, dy = lx - u, ly - v
    dist2 = dx * dx + dy * dy + z * z
    facing = (zx * dx + zy * dy + z) / np.sqrt((zx * zx + zy * zy + 1) * dist2)
    facing = np.maximum(facing, 0)
    dist = np.sqrt(dist2)
    shade = (0.22 + 0.78 * facing) / (dist * np.sqrt(dist))
    lit = scene.rgb * shade
    # expose for the middle of the picture, like the camera's automatic does
    middle = lit[0, 36:204:8, 44:212:8]
    level = float(np.sort(middle, axis=None)[int(middle.size * 0.72)])
    exposure = draws.uniform(0.62, 0.95) + 0.35 * difficulty * draws.uniform(-0.5, 1.0)
    lit = lit * (exposure / max(level, 0.02))
    # glints on wet tissue: a high power of the cosine, by squaring
    shine = facing * facing
    for _ in range(5):
        shine = shine * shine
    glint = step(noise(draws, 45) + 0.5 * noise(draws, 21), 0.35, 0.75)
    glint = glint * step(noise(draws, 7), 0.0, 0.5)
    lit = lit + 1.2 * wet * scene.wet * shine * glint
    return lit


def spoil(lit: Array, view: View, draws: Draws, difficulty: float) -> Array:
    """Colour cast, glare, mucus, blood, haze and blur of one shot."""
    u, v = place(view)
    cast = 0.06 + 0.10 * difficulty
    warm, green = draws.uniform(-cast, cast), draws.uniform(-0.4 * cast, 0.4 * cast)
    for plane, gain in zip(lit, (1 + warm, 1 + green, 1 - warm), strict=True):
        plane *= gain
    if draws.chance(0.15 + 0.4 * difficulty):  # one side burns out
        c, q = draws.turn(0, 360)
        side = step(u * c + v * q, 0.25, 1.15)
        lit += draws.uniform(0.3, 0.9) * side * (0.4 + lit)
    for _ in range(draws.integers(0, 3 + int(6 * difficulty))):  # reflections
        at = (draws.uniform(-0.8, 0.8), draws.uniform(-0.8, 0.8))
        size = draws.uniform(0.012, 0.035)
        tilt = draws.uniform(0, 180)
        spot = step(oval(u, v, at, size, size * draws.uniform(0.5, 2.2), tilt), 1.2, 0.5)
        lit += 0.9 * spot
    if draws.chance(0.08 + 0.25 * difficulty):  # a strand of mucus
        at = (draws.uniform(-0.7, 0.7), draws.uniform(-0.7, 0.7))
        c, q = draws.turn(0, 360)
        end = (at[0] + 0.7 * c, at[1] + 0.7 * q)
        t, d2 = along(u + 0.05 * noise(draws, 6), v, at, end)
        strand = step(d2 * (1 / 0.03**2), 1.0, 0.4)
        lit += strand * (0.22 + 0.3 * step(noise(draws, 20), 0.3, 0.6))
    if draws.chance(0.03 + 0.08 * difficulty):  # a streak of blood
        at = (draws.uniform(-0.9, 0.9), draws.uniform(-0.9, 0.9))
        tilt = draws.uniform(0, 180)
        smear = oval(u, v, at, draws.uniform(0.05, 0.10), draws.uniform(0.12, 0.25), tilt)
        stain = 0.85 * step(smear + 0.9 * noise(draws, 14), 1.0, 0.3)
        for plane, gain in zip(lit, (0.62, 0.30, 0.28), strict=True):
            plane *= 1 - stain * (1 - gain)
    haze = draws.uniform(0.0, 0.05 + 0.10 * difficulty)
    lit = lit * (1 - haze) + 0.6 * haze
    lit *= 1.06 - draws.uniform(0.12, 0.30) * (u * u + v * v)  # vignetting
    return blur(lit, draws.integers(0, 2 + int(5 * difficulty)))


def _double(planes: Array) -> Array:
    """Twice as many columns, each the 3:1 mean of its two nearest; (3, H, W) int16."""
    out = np.empty((*planes.shape[:2], 2 * planes.shape[2]), np.int16)
    triple = 3 * planes + 2
    out[..., 0] = planes[..., 0]
    out[..., -1] = planes[..., -1]
    out[..., 2::2] = (triple[..., 1:] + planes[..., :-1]) >> 2
    out[..., 1:-1:2] = (triple[..., :-1] + planes[..., 1:]) >> 2
    return out


def photograph(lit: Array, view: View, draws: Draws) -> Array:
    """(480, 640, 3) uint8: tone curve, twice the size, disc with notch, sensor noise."""
    tone = lit / np.sqrt(lit * lit + 0.55)  # soft shoulder: bright parts run to white
    half = (clip01(1.13 * tone) * 252 + 0.5).astype(np.int16)
    full = _double(_double(half).swapaxes(1, 2)).swapaxes(1, 2)
    # sensor noise: the difference of two random nibbles, scaled down
    octets = draws.octets(full[0].size).reshape(full.shape[1:])
    grain = (octets & 15).astype(np.int16) - (octets >> 4).astype(np.int16)
    full += grain >> draws.choice((2, 3))

    column = np.arange(2 * WIDTH, dtype=np.float32) + np.float32(0.5 - WIDTH)
    row = np.arange(2 * HEIGHT, dtype=np.float32) + np.float32(0.5 - HEIGHT - 2 * view.drop)
    radius = 2 * view.radius
    inside = column * column + (row * row)[:, None]
    edge = draws.uniform(1.0, 3.5)
    ramp = clip01((radius * radius - inside) * (1 / (2 * radius * edge)))
    # the notch marks which way is up on the scope; where it sits says nothing of the class
    c, q = draws.turn(0, 360)
    size, length = draws.uniform(7, 12), draws.uniform(8, 14)
    bright = draws.chance(0.6)
    out = column * c + (row * q)[:, None] - radius
    off = np.abs(row[:, None] * c - column * q)
    if bright:  # a small tooth outside the rim
        tooth = (out > -3) & (off < size * (1 - out * (1 / length)))
    else:  # a small dent in the rim
        tooth = (out < 3) & (off < size * (1 + out * (1 / length)))
    alpha = (ramp * 256).astype(np.uint16)
    if bright:
        full[:, tooth] = (full[:, tooth] + 510) // 3
        alpha[tooth] = 256
    else:
        alpha[tooth] = 20
    black = draws.integers(0, 6)
    disc = np.minimum(np.maximum(full - black, 0), 255 - black).astype(np.uint16)
    disc = ((disc * alpha) >> 8).astype(np.uint8) + np.uint8(black)  # 255 * 256 fits 16 bits
    picture = np.full((480, 640, 3), black, np.uint8)
    start = draws.integers(24, 105)
    for channel, plane in enumerate(disc):
        picture[:, start : start + 2 * WIDTH, channel] = plane
    return picture


def disc_circle(view: View, draws: Draws) -> tuple[float, float, float]:
    """The disc that `photograph` shows of this view with the same draws: the truth for tests.

    Measured on the photograph of a white wall, so it cannot fall out of step with the drawing.

    Args:
        view: as given to `photograph`.
        draws: a stream of the same key, unused.

    Returns:
        x, y and radius in pixels from the picture's top left corner, to a tenth of a pixel or so;
        the rim is where the light has fallen to half.
    """
    white = photograph(np.full((3, HEIGHT, WIDTH), 9, np.float32), view, draws)[..., 0] > 126
    y = HEIGHT + 2 * view.drop
    # Away from the widest row a chord's length tells the radius; the notch spoils a few rows.
    rows = np.arange(HEIGHT // 2, 3 * HEIGHT // 2)
    first = white[rows].argmax(axis=1)
    last = white.shape[1] - white[rows, ::-1].argmax(axis=1)
    half = (last - first) / 2
    radius = np.median(np.sqrt(half * half + (rows + 0.5 - y) ** 2))
    return float(np.median((first + last) / 2)), y, float(radius)

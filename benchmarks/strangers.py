"""Pictures that show no ear, nose or throat: drawn to try an out-of-distribution score on.

Five kinds, each with many faces. Every second one is seen through the phantoms' own endoscope, with
its disc, notch, lamp and sensor noise, so that the frame alone gives nothing away. The same seed
draws the same pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageColor, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from entrep.brush import HEIGHT, WIDTH, Draws
from entrep.scope import hold_scope, photograph, place

SIZE = (640, 480)  # width and height, in pixels
WORDS = (
    "endoscopy course schedule morning session lecture hall questions break case report history "
    "anatomy review of the methods results table figure conclusion thank you slide page part one"
).split()
SKIN = ("#ffdbbe", "#f1c2a0", "#e0ac7d", "#c68660", "#8d553a", "#5e3a28")
PAPER = ("#ffffff", "#faf8f0", "#183678", "#0a1a3c", "#e1ecfa", "#141416")


def draw_stranger(kind: str, seed: int, index: int, *, masked: bool) -> Image.Image:
    """One picture of a kind of `KINDS`: 640 x 480, RGB."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind), index])
    picture = KINDS[kind](rng)
    return _through_scope(picture, Draws("stranger", kind, seed, index)) if masked else picture


def write_strangers(folder: str | Path, each: int, *, seed: int = 0) -> pd.DataFrame:
    """Draw `each` pictures of every kind into a folder, half of them masked.

    Returns:
        path (relative to the folder), kind, and whether it is masked; one row a picture.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in KINDS:
        for index in range(each):
            masked = index % 2 == 1
            name = f"{kind.replace(' ', '-')}-{index:03d}.png"
            picture = draw_stranger(kind, seed, index, masked=masked)
            picture.save(folder / name, compress_level=1)
            rows.append({"path": name, "kind": kind, "masked": masked})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- kinds


def _noise(rng: np.random.Generator) -> Image.Image:
    """Pixel noise: grey or coloured, fine or in blobs, faint or loud, also tissue-coloured."""
    coarse = int(rng.choice([1, 1, 2, 4, 8, 24]))
    planes = 3 if rng.random() < 0.6 else 1
    grain = rng.normal(size=(-(-480 // coarse), -(-640 // coarse), planes))
    grain = np.repeat(np.repeat(grain, coarse, axis=0), coarse, axis=1)[:480, :640]
    middle = rng.uniform(60, 190, 3) if planes == 3 else rng.uniform(60, 190)
    if rng.random() < 0.3:
        middle = np.array([190.0, 95.0, 85.0]) * rng.uniform(0.5, 1.2)
    return _picture(middle + rng.uniform(25, 90) * grain)


def _black(rng: np.random.Generator) -> Image.Image:
    """The lamp is off or covered: black, sensor noise on black, a faint glow somewhere."""
    level = rng.choice([0.0, rng.uniform(1, 6)])
    light = np.full((480, 640, 3), level)
    if rng.random() < 0.5:
        light += _glow(rng)[..., None] * rng.uniform(4, 16) * rng.uniform(0.4, 1, 3)
    if rng.random() < 0.7:
        light += rng.uniform(0.5, 3) * rng.normal(size=light.shape)
    return _picture(light)


def _scene(rng: np.random.Generator) -> Image.Image:
    """Somewhere else: a landscape, a room, a close-up of a texture, or a crowded photograph."""
    drawn = rng.choice([_landscape, _room, _texture, _clutter])(rng)
    drawn = ImageEnhance.Color(drawn).enhance(rng.uniform(0.2, 1.0))
    return _grainy(drawn, rng)


def _skin(rng: np.random.Generator) -> Image.Image:
    """Skin near the lens: its tone, soft shading, pores; some hairs and moles."""
    tone = np.array(ImageColor.getrgb(rng.choice(SKIN))) * rng.uniform(0.75, 1.05)
    shade = 1 + 0.25 * _fractal(rng, 2.2) + rng.uniform(0.01, 0.06) * _fractal(rng, 0.8)
    picture = _picture(tone * (shade * rng.uniform(0.7, 1.0) + 0.35 * _glow(rng))[..., None])
    pen = ImageDraw.Draw(picture)
    dark = tuple(int(value) for value in 0.45 * tone)
    for _ in range(rng.choice([0, 0, 12, 60])):  # hairs
        x, y, turn = rng.uniform(0, 640), rng.uniform(0, 480), rng.uniform(0, np.pi)
        length = rng.uniform(30, 120)
        end = (x + length * np.cos(turn), y + length * np.sin(turn))
        pen.line((x, y, *end), fill=dark, width=1)
    for _ in range(rng.integers(0, 5)):  # moles
        x, y, r = rng.uniform(0, 640), rng.uniform(0, 480), rng.uniform(2, 12)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=dark)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 2.5)))
    return _grainy(picture, rng)


def _slide(rng: np.random.Generator) -> Image.Image:
    """A page of a lecture: title, lines of words, boxes, a diagram."""
    paper = ImageColor.getrgb(rng.choice(PAPER))
    ink = (15, 20, 40) if sum(paper) > 380 else (245, 245, 235)
    picture = Image.new("RGB", SIZE, paper)
    pen = ImageDraw.Draw(picture)
    if rng.random() < 0.5:
        pen.rectangle((0, 0, 640, 70), fill=_colour(rng))
    pen.text((30, 18), _words(rng, 4).title(), fill=ink, font=ImageFont.load_default(34))
    size = int(rng.integers(14, 26))
    font = ImageFont.load_default(size)
    for line in range(rng.integers(4, 12)):
        words = "- " + _words(rng, rng.integers(3, 9))
        pen.text((40, 90 + line * int(1.5 * size)), words, fill=ink, font=font)
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(300, 540), rng.uniform(100, 400)
        box = (x, y, x + rng.uniform(30, 90), y + rng.uniform(20, 75))
        pen.rectangle(box, fill=_colour(rng), outline=ink, width=2)
    return picture


KINDS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "noise": _noise,
    "black": _black,
    "scene": _scene,
    "skin": _skin,
    "slide": _slide,
}


# ---------------------------------------------------------------- scenes


def _landscape(rng: np.random.Generator) -> Image.Image:
    """Sky, a few ridges one behind the other, perhaps a sun."""
    down = np.linspace(0, 1, 480)[:, None, None]
    sky = (1 - down) * rng.uniform([40, 90, 150], [130, 180, 255]) + down * rng.uniform(170, 250, 3)
    sky = np.broadcast_to(sky, (480, 640, 3)) * (1 + 0.08 * _fractal(rng, 1.6))[..., None]
    picture = _picture(sky)
    pen = ImageDraw.Draw(picture)
    if rng.random() < 0.5:
        x, y, r = rng.uniform(60, 580), rng.uniform(30, 160), rng.uniform(12, 45)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 248, 215))
    ground = rng.uniform([30, 60, 20], [120, 140, 90])
    for ridge in range(rng.integers(2, 5)):
        steps = np.cumsum(rng.normal(size=41)) * 14 + 190 + 75 * ridge
        top = [(16 * i, float(y)) for i, y in enumerate(steps)]
        colour = tuple(int(v) for v in np.clip(ground * (1.25 - 0.25 * ridge), 0, 255))
        pen.polygon([*top, (640, 480), (0, 480)], fill=colour)
    return picture


def _room(rng: np.random.Generator) -> Image.Image:
    """Walls, floor and ceiling in perspective, a window, a door, a few pieces of furniture."""
    picture = Image.new("RGB", SIZE, _colour(rng))
    pen = ImageDraw.Draw(picture)
    left, top = rng.uniform(90, 240), rng.uniform(70, 170)
    right, bottom = 640 - rng.uniform(90, 240), 480 - rng.uniform(90, 190)
    wall = rng.uniform(120, 240, 3)
    for corners, share in (
        (((0, 0), (left, top), (left, bottom), (0, 480)), 0.8),
        (((640, 0), (right, top), (right, bottom), (640, 480)), 0.7),
        (((0, 480), (left, bottom), (right, bottom), (640, 480)), 0.5),
        (((left, top), (right, top), (right, bottom), (left, bottom)), 1.0),
    ):
        pen.polygon(corners, fill=tuple(int(v) for v in share * wall))
    x, y = rng.uniform(left, right - 70), rng.uniform(top, top + 40)
    pen.rectangle((x, y, x + 65, y + 75), fill=(235, 245, 255), outline=(90, 70, 60), width=4)
    for _ in range(rng.integers(2, 7)):
        x, y = rng.uniform(0, 520), rng.uniform(230, 430)
        pen.rectangle((x, y, x + rng.uniform(40, 160), y + rng.uniform(30, 90)), fill=_colour(rng))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))


def _texture(rng: np.random.Generator) -> Image.Image:
    """Bark, cloth, clouds: fractal noise between two colours."""
    share = 0.5 + 0.35 * _fractal(rng, rng.uniform(0.8, 1.8))
    dark, light = rng.uniform(0, 130, 3), rng.uniform(100, 255, 3)
    return _picture(dark + np.clip(share, 0, 1)[..., None] * (light - dark))


def _clutter(rng: np.random.Generator) -> Image.Image:
    """Many shaded things before a soft background, in bright light."""
    planes = [rng.uniform(80, 220) * (1 + 0.3 * _fractal(rng, 1.8)) for _ in range(3)]
    picture = _picture(np.stack(planes, axis=-1))
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.integers(8, 40)):
        x, y, w, h = (float(v) for v in rng.uniform([-40, -40, 15, 15], [600, 440, 200, 160]))
        if rng.random() < 0.5:
            pen.ellipse((x, y, x + w, y + h), fill=_colour(rng))
        else:
            pen.polygon([(x, y), (x + w, y + h / 3), (x + w / 2, y + h)], fill=_colour(rng))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 3)))


# ---------------------------------------------------------------- pieces


def _fractal(rng: np.random.Generator, power: float) -> np.ndarray:
    """(480, 640) noise whose amplitude falls as frequency ** -power; mean 0, spread 1."""
    across = np.hypot(np.fft.fftfreq(480)[:, None], np.fft.rfftfreq(640)[None] * 640 / 480)
    across[0, 0] = np.inf
    waves = np.fft.rfft2(rng.normal(size=(480, 640))) * across**-power
    field = np.fft.irfft2(waves, s=(480, 640))
    return field / field.std()


def _glow(rng: np.random.Generator) -> np.ndarray:
    """(480, 640) in 0..1: light that falls off around a place."""
    x, y, reach = rng.uniform(150, 490), rng.uniform(100, 380), rng.uniform(60, 200)
    off = np.hypot(np.arange(640)[None] - x, np.arange(480)[:, None] - y)
    return np.exp(-((off / reach) ** 2) / 2)


def _through_scope(picture: Image.Image, draws: Draws) -> Image.Image:
    """What the phantoms' endoscope would show of it: the same disc, notch, lamp and sensor."""
    view = hold_scope(draws, 0.4)
    half = picture.crop((64, 0, 576, 480)).resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    # `photograph` has a soft shoulder; undo it, so that the picture keeps its levels.
    level = np.asarray(half, np.float64).transpose(2, 0, 1) / 255 / 1.14
    lit = level * np.sqrt(0.55 / (1 - level * level))
    u, v = place(view)
    lit *= 1.06 - draws.uniform(0.12, 0.30) * (u * u + v * v)  # darker to its rim
    return Image.fromarray(photograph(lit.astype(np.float32), view, draws))


def _grainy(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """With a camera's grey noise."""
    grain = rng.uniform(0.5, 4) * rng.normal(size=(480, 640, 1))
    return _picture(np.asarray(picture, np.float64) + grain)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(int(value) for value in rng.integers(20, 245, 3))


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(WORDS, count))


def _picture(values: np.ndarray) -> Image.Image:
    """(480, 640, 3 or 1) of any range to RGB."""
    levels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(levels, (480, 640, 3)).copy())

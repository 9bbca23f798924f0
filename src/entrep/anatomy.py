"""Draws one synthetic endoscopy picture: the anatomy with its finding, seen through the scope.

The same key gives the same pixels on every machine; `brush` says how. PNG *bytes* still depend
on the zlib in use.

A left nose or ear is a right one seen in a mirror: the scene is drawn as a right one, flipped,
and only then lit and photographed. So nothing but anatomy tells the side.
"""

from __future__ import annotations

import numpy as np

from entrep.brush import (
    Draws,
    Scene,
    along,
    bump,
    clip01,
    dome,
    mix,
    noise,
    oval,
    scaled,
    step,
    unit,
    vessels,
)
from entrep.labels import CLASS_NAMES
from entrep.scope import View, hold_scope, light_scene, photograph, place, spoil

_NOSE = (
    "polyp",
    "septal_spur",
    "pale_mucosa",
    "mucopurulent_discharge",
    "turbinate_hypertrophy",
    "nasal_blood",
)
_EAR = (
    "cerumen",
    "perforation",
    "effusion",
    "white_discharge",
    "foreign_body",
    "retraction",
    "red_drum",
)
_CORDS = ("cord_oedema", "cord_erythema", "cord_nodule", "cord_polyp", "leukoplakia")
_THROAT = ("tonsil_hypertrophy", "pharyngitis", "papilloma", "granular_wall", "white_exudate")

# What can be drawn: class name -> findings, "normal" first.
FINDINGS_OF_CLASS: dict[str, tuple[str, ...]] = {
    "nose-right": ("normal", *_NOSE),
    "nose-left": ("normal", *_NOSE),
    "ear-right": ("normal", *_EAR),
    "ear-left": ("normal", *_EAR),
    "vc-open": ("normal", *_CORDS),
    "vc-closed": ("normal", *_CORDS, "incomplete_closure"),
    "throat": ("normal", *_THROAT),
}


# ---------------------------------------------------------------- nose


def _draw_nose(s: Scene, finding: str, look: Draws) -> None:
    """A right nasal cavity: septum on the viewer's right, turbinates left, the meatus between."""
    x, y = s.x, s.y
    skin = mix((0.86, 0.58, 0.45), (0.84, 0.50, 0.50), look.uniform())
    if finding == "pale_mucosa":
        skin = mix(skin, (0.80, 0.77, 0.80), 0.85)
    deep = mix(scaled(skin, 0.22), (0.16, 0.06, 0.06), 0.5)
    edge = look.uniform(0.12, 0.30)  # where the septum begins, at mid-height
    lean, bow = look.uniform(-0.22, 0.22), look.uniform(-0.18, 0.18)
    swollen = finding == "turbinate_hypertrophy"

    s.paint(np.ones_like(x), deep, 3.0)
    # lateral wall, near at the rim and far at the meatus
    wall = look.uniform(-0.55, -0.38)
    d = clip01((wall + 0.25 - x + 0.12 * y * y) * 1.0)
    s.paint(step(d, 0.02, 0.12), scaled(skin, 0.82), 2.6 - 1.4 * np.sqrt(d))
    s.darken(bump((x - wall) * (x - wall) * 30), 0.45)  # groove of the inferior meatus
    # floor
    floor = look.uniform(0.72, 0.95)
    d = clip01((y - floor + 0.1 * x * x) * 2)
    s.paint(step(d, 0.0, 0.4), scaled(skin, 0.6), 3.0 - 1.2 * d)

    if look.chance(0.65):  # middle turbinate, behind and above
        at = (look.uniform(-0.12, 0.04), look.uniform(-0.55, -0.38))
        s.ball(at, look.uniform(0.13, 0.19), 0.48, scaled(skin, 0.78), 2.7, 0.5, lean * -40)

    a = look.uniform(0.27, 0.37)
    at = (edge - a - look.uniform(0.06, 0.16), look.uniform(-0.12, 0.22))
    color = skin
    if swollen:
        a, at = look.uniform(0.46, 0.54), (edge - 0.40, at[1])
        color = mix(skin, (0.88, 0.38, 0.38), 0.6)
    b = look.uniform(0.64, 0.88) * (1.18 if swollen else 1.0)
    tilt = look.uniform(-14, 14)
    shine = s.ball(at, a, b, color, 2.1, 1.0 if swollen else 0.75, tilt, wet=1.0, shadow=0.75)
    s.tint(shine * clip01(0.5 + noise(look, 5)), (0.98, 0.86, 0.84))
    s.tint(shine * vessels(look, 6, 1.2), (0.92, 0.74, 0.74))

    if finding == "polyp":
        spot = (edge - look.uniform(0.20, 0.28), look.uniform(-0.1, 0.35))
        grey = mix((0.80, 0.80, 0.66), (0.78, 0.76, 0.74), look.uniform())
        size = look.uniform(0.22, 0.28)
        s.ball(
            spot, size, size * look.uniform(1.2, 1.6), grey, 1.8, 0.8, look.uniform(-20, 20), 1.0
        )
        if look.chance(0.5):
            spot = (spot[0] - 0.12, spot[1] - 0.33)
            s.ball(spot, 0.15, 0.18, scaled(grey, 0.95), 1.9, 0.5, 0, 1.0)

    # septum: a flat wall that comes towards the scope
    start = edge + lean * y + bow * y * y
    if finding == "septal_spur":  # a pointed ridge that juts into the cavity
        dy = (y - look.uniform(0.0, 0.3)) * (1 / 0.24)
        start = start - look.uniform(0.32, 0.42) * clip01(1 - np.abs(dy))
    d = clip01((x - start) * 1.1)
    s.darken(bump((x - start) * (x - start) * 60), 0.7)
    mask = step(x - start, 0.0, 0.05)
    s.paint(mask, mix(skin, (0.93, 0.72, 0.68), 0.45), 2.3 - 1.35 * np.sqrt(d), 0.35)
    if finding == "septal_spur":
        ridge = bump(dy * dy) * mask * step(d, 0.75, 0.0)
        s.paint(0.75 * ridge, (0.97, 0.86, 0.78))
        s.z -= 0.35 * ridge
    s.tint(mask * vessels(look, 6, 1.3), (0.88, 0.66, 0.68))

    if finding == "mucopurulent_discharge":
        pus = mix((0.86, 0.80, 0.42), (0.78, 0.80, 0.52), look.uniform())
        fall = edge - look.uniform(0.02, 0.10) + 0.06 * noise(look, 5) + lean * y
        width = 0.11 + 0.10 * clip01(y + 0.3) + 0.05 * noise(look, 7)
        strand = step(np.abs(x - fall) - width, 0.03, -0.02) * step(y, -0.75, -0.45)
        pool = step(oval(x, y, (edge - 0.2, 0.75), 0.5, 0.24) + 0.4 * noise(look, 6), 1.0, 0.8)
        mask = np.maximum(strand, pool)
        s.paint(0.95 * mask, pus, s.z * 0.9 - 0.12 * mask, 1.0)
    if finding == "nasal_blood":
        n = noise(look, 4) + 0.5 * noise(look, 9)
        spot = oval(x, y, (edge + look.uniform(-0.1, 0.1), look.uniform(-0.1, 0.3)), 0.42, 0.55)
        mask = step(spot + 0.8 * n, 0.95, 0.75)
        s.paint(0.95 * mask, (0.52, 0.03, 0.03), s.z - 0.05 * mask, 1.0)
        s.tint(mask * clip01(0.5 + n), (0.55, 0.5, 0.5))


# ---------------------------------------------------------------- ear


def _draw_ear(s: Scene, finding: str, look: Draws) -> None:
    """A right ear: malleus from one o'clock to the umbo, cone of light at five o'clock."""
    x, y = s.x, s.y
    skin = mix((0.88, 0.70, 0.56), (0.84, 0.66, 0.64), look.uniform())
    a, b = look.uniform(0.50, 0.58), look.uniform(0.54, 0.62)
    tilt = look.uniform(8, 26)  # the drum leans: its upper pole points to the front
    rim2 = oval(x, y, (0.0, 0.0), a, b, tilt) * (1 + 0.12 * noise(look, 7))
    r = np.sqrt(rim2)

    # canal: a tube that narrows towards the drum
    s.paint(np.ones_like(x), skin, 2.6 - 1.5 * clip01((r - 1) * 0.75), 0.4)
    s.tint(clip01(0.5 + noise(look, 4)), (0.92, 0.80, 0.74))
    s.tint(vessels(look, 6, 1.3), (0.84, 0.55, 0.53))

    # drum
    pearl = mix((0.66, 0.66, 0.60), (0.60, 0.64, 0.68), look.uniform())
    bone = (0.86, 0.78, 0.62)
    lamp = 1.0  # strength of the cone of light
    if finding == "effusion":
        pearl, lamp = mix((0.80, 0.60, 0.24), (0.74, 0.52, 0.26), look.uniform()), 0.55
    elif finding == "red_drum":
        pearl, lamp = (0.80, 0.26, 0.22), 0.4
    elif finding == "retraction":
        pearl, lamp = (0.42, 0.40, 0.40), 0.0
    drum = step(r, 1.02, 0.95)
    s.darken(bump(rim2 * 0.45), 0.4)
    lean = 0.22 * (y * 0.7 + x * 0.7)  # front and bottom lie deeper
    s.paint(drum, pearl, 2.5 + 0.3 * (1 - r) + lean, 0.5)
    s.tint(drum * clip01(0.5 + noise(look, 6)), (0.82, 0.80, 0.78))
    s.tint(drum * step(r, 0.55, 1.0), (1.02, 0.90, 0.84))
    ring = bump((r - 0.97) * (r - 0.97) * 160)
    s.paint(0.75 * ring, mix(bone, (0.92, 0.88, 0.80), 0.5))
    if finding == "red_drum":
        s.tint(drum * vessels(look, 8, 1.6), (0.75, 0.35, 0.35))

    umbo = (look.uniform(-0.06, 0.02), look.uniform(0.04, 0.12))
    head = (look.uniform(0.15, 0.24), look.uniform(-0.42, -0.34))
    if finding == "retraction":  # foreshortened handle, hollows on both sides
        head = (head[0] + 0.10, head[1] + 0.08)
        umbo = (umbo[0] - 0.06, umbo[1] - 0.06)
    # niches that shine through behind the drum
    s.darken(drum * bump(oval(x, y, (-0.26, 0.20), 0.16, 0.13)), 0.3)
    s.darken(drum * bump(oval(x, y, (-0.20, -0.22), 0.12, 0.18)), 0.25)
    if finding == "retraction":
        for at in ((-0.22, -0.06), (0.20, 0.12)):
            hollow = bump(oval(x, y, at, 0.26, 0.32, -25))
            s.darken(drum * hollow, 0.55)
            s.z += 0.45 * hollow * drum
    if finding == "effusion":  # bubbles or a fluid level behind the drum
        level = look.uniform(-0.16, 0.02)
        line = bump((y - level - 0.12 * x) * (y - level - 0.12 * x) * 900)
        s.paint(0.7 * drum * line, (0.97, 0.92, 0.76))
        s.tint(drum * step(y - level - 0.12 * x, -0.02, 0.02), (0.95, 0.80, 0.55))
        for _ in range(look.integers(1, 4)):
            at = (look.uniform(-0.3, 0.25), level + look.uniform(0.10, 0.3))
            bubble = np.sqrt(oval(x, y, at, 0.09, 0.08))
            s.paint(0.7 * drum * bump((bubble - 1) * (bubble - 1) * 12), (0.98, 0.94, 0.8))

    # cone of light, from the umbo forwards and down
    c, q = unit(62 + look.uniform(-9, 9))
    t, d2 = along(x, y, umbo, (umbo[0] + 0.40 * c, umbo[1] + 0.40 * q))
    width = 0.015 + 0.13 * t
    cone = step(d2 / (width * width), 1.0, 0.35) * step(t, 0.02, 0.15) * drum
    s.paint(0.85 * lamp * cone, (1.25, 1.25, 1.18))
    # malleus: handle and short process
    t, d2 = along(x, y, umbo, head)
    width = 0.035 + 0.025 * t
    hilt = step(d2 / (width * width), 1.1, 0.5) * drum
    s.tint(drum * bump(d2 * (1 / (0.10 * 0.10))), (1.0, 0.80, 0.76))
    s.paint(0.85 * hilt, mix(bone, pearl, 0.15), s.z - 0.12 * hilt)
    s.ball((head[0] + 0.02, head[1]), 0.065, 0.055, (0.97, 0.93, 0.82), 2.5, 0.25, 0, 0.9, 0.2)
    s.tint(bump(oval(x, y, (head[0] + 0.02, head[1] - 0.14), 0.2, 0.12)), (1.0, 0.8, 0.74))

    if finding == "perforation":
        at = (look.uniform(-0.16, 0.16), look.uniform(0.12, 0.22))
        hole = oval(x, y, at, look.uniform(0.20, 0.28), look.uniform(0.17, 0.24), 20)
        hole = hole + 0.25 * noise(look, 9)
        s.paint(bump((hole - 1) * (hole - 1) * 4), (0.93, 0.86, 0.72))
        s.paint(step(hole, 1.0, 0.8), (0.13, 0.05, 0.04), 3.6, 0.2)
        s.paint(0.6 * step(hole, 0.5, 0.2), (0.42, 0.20, 0.16))

    # front canal wall bulges over the drum's front margin
    at = (look.uniform(0.92, 1.0), look.uniform(-0.05, 0.2))
    r2 = oval(x, y, at, 0.52, 0.95, 8)
    s.darken(bump(r2 * 0.55), 0.35)
    bulge = mix(skin, (0.95, 0.78, 0.68), 0.3)
    s.paint(step(r2, 1.08, 0.72), bulge, np.minimum(s.z, 2.3) - 0.8 * dome(r2), 0.4)
    s.tint(step(r2, 1.0, 0.7) * clip01(0.4 + noise(look, 6)), (0.94, 0.84, 0.80))

    if finding == "cerumen":
        n = noise(look, 7) + 0.5 * noise(look, 17)
        at = (look.uniform(-0.35, 0.1), look.uniform(0.25, 0.5))
        lump = oval(x, y, at, look.uniform(0.48, 0.62), look.uniform(0.36, 0.48)) + 0.5 * n
        mask = step(lump, 1.0, 0.85)
        wax = mix((0.52, 0.26, 0.07), (0.72, 0.47, 0.14), look.uniform())
        s.darken(bump(lump * 0.6), 0.5)
        s.paint(mask, wax, 1.9 - 0.5 * dome(lump) + 0.12 * n, 0.9)
        s.tint(mask * step(n, 0.0, 0.5), (1.35, 1.35, 1.2))
    if finding == "white_discharge":
        n = noise(look, 6) + 0.6 * noise(look, 14)
        at = (look.uniform(-0.25, 0.15), look.uniform(0.25, 0.45))
        lump = oval(x, y, at, 0.62, 0.42) + 0.75 * n
        mask = step(lump, 1.0, 0.8)
        s.darken(bump(lump * 0.6), 0.3)
        s.paint(mask, (0.95, 0.93, 0.82), 2.0 - 0.25 * dome(lump) + 0.1 * n, 1.0)
    if finding == "foreign_body":  # a hair across the canal, and its shadow
        angle = look.uniform(-50, 50)
        c, q = unit(angle + 90 if look.chance(0.5) else angle)
        at = (look.uniform(-0.15, 0.15), look.uniform(-0.05, 0.25))
        u, v = (x - at[0]) * c + (y - at[1]) * q, (y - at[1]) * c - (x - at[0]) * q
        v = v - look.uniform(-0.35, 0.35) * u * u
        ends = step(np.abs(u), 0.92, 0.8)
        s.darken(ends * bump((v - 0.05) * (v - 0.05) * 600), 0.5)
        s.paint(ends * step(np.abs(v), 0.034, 0.018), (0.06, 0.03, 0.02), 1.9, 0.4)


# ---------------------------------------------------------------- larynx


def _draw_cords(s: Scene, finding: str, look: Draws, *, is_open: bool, difficulty: float) -> None:
    """A larynx from above: arytenoids behind (top), epiglottis in front (bottom)."""
    x, y = s.x, s.y
    flesh = mix((0.66, 0.27, 0.22), (0.70, 0.34, 0.32), look.uniform())
    ivory = mix((0.93, 0.88, 0.78), (0.90, 0.80, 0.74), look.uniform())
    if finding == "cord_erythema":
        ivory = (0.84, 0.24, 0.22)
    elif finding == "cord_oedema":
        ivory = mix(ivory, (0.90, 0.72, 0.68), 0.6)
    gap = look.uniform(0.20 - 0.06 * difficulty, 0.34) if is_open else look.uniform(0.0, 0.012)
    top, tip = look.uniform(-0.36, -0.28), look.uniform(0.34, 0.42)

    # hypopharynx
    s.paint(np.ones_like(x), scaled(flesh, 0.62), 2.2 + 0.15 * noise(look, 5))
    for side in (-1, 1):
        s.darken(bump(oval(x, y, (side * 0.82, -0.15), 0.3, 0.42, 20 * side)), 0.75)
    # the ring of the aryepiglottic folds
    rr = np.sqrt(oval(x, y, (0.0, 0.02), look.uniform(0.62, 0.72), look.uniform(0.58, 0.64)))
    s.paint(step(rr, 1.28, 1.1), flesh, 2.0, 0.8)
    s.z -= 0.40 * bump((rr - 1) * (rr - 1) * 12)
    s.paint(step(rr, 1.0, 0.8), scaled(flesh, 0.72), 2.45 - 0.1 * rr)
    s.darken(step(rr, 0.95, 0.7), 0.12)

    # glottis half-width at y, the cords beside it, the false folds beside them
    t = clip01((tip - y) * (1 / (tip - top)))
    half = gap * t * (1.15 - 0.15 * t) + 0.004
    if finding == "incomplete_closure":
        half = half + look.uniform(0.085, 0.115) * bump((t - 0.5) * (t - 0.5) * 3.6)
    ax = np.abs(x)
    inside = step(y, top - 0.05, top + 0.03) * step(y, tip + 0.04, tip - 0.03)
    thick = 0.085 + 0.035 * t
    if finding == "cord_oedema":
        thick = thick + 0.10 * bump((t - 0.45) * (t - 0.45) * 3)
    bed = oval(ax, y, (half + 0.10, 0.5 * (top + tip) + 0.02), 0.34, 0.56 * (tip - top) + 0.04)
    fold = step(bed, 1.05, 0.75) * step(ax - half, 0.0, 0.03)
    s.paint(fold, scaled(flesh, 0.95), 2.45 - 0.30 * dome(bed), 0.9)
    groove = bump((ax - half - thick - 0.02) * (ax - half - thick - 0.02) * 900)
    s.darken(groove * inside, 0.65)
    cord = step(ax - half - thick, 0.015, -0.015) * inside
    swell = 0.32 if finding == "cord_oedema" else 0.12
    mid = (ax - half - 0.5 * thick) / thick
    s.paint(cord, ivory, 2.55 - swell * dome(3.2 * mid * mid), 0.9)
    if finding == "cord_erythema":
        s.tint(cord * vessels(look, 9, 1.8), (0.7, 0.4, 0.4))

    # the airway, with tracheal rings when one can look in
    airway = step(ax - half, 0.006, -0.012) * inside
    s.paint(airway, (0.055, 0.025, 0.025), 4.0, 0.1)
    if is_open:
        wave = 6.5 * y + 9 * x * x
        wave = wave - np.floor(wave)
        ring = bump((wave - 0.5) * (wave - 0.5) * 5)
        s.paint(airway * ring * step(y, tip - 0.12, top), (0.34, 0.17, 0.15), 3.4)

    # findings on a cord's free edge
    side = look.choice((-1, 1))
    if finding == "cord_nodule":
        for sign in (-1, 1):
            at_y = top + 0.52 * (tip - top)
            at = (sign * (gap * 0.48 + 0.012 + (0.0 if is_open else 0.03)), at_y)
            s.ball(at, 0.070, 0.080, (0.97, 0.90, 0.84), 2.3, 0.25, 0, 1.0, 0.5)
    elif finding == "cord_polyp":
        at_y = top + look.uniform(0.45, 0.65) * (tip - top)
        at = (side * (gap * 0.45 + 0.03), at_y)
        s.ball(at, 0.15, 0.17, (0.86, 0.36, 0.34), 2.2, 0.4, 0, 1.0, 0.6)
    elif finding == "leukoplakia":
        n = 0.7 * noise(look, 16)
        for sign in (side, -side)[: look.integers(1, 3)]:
            at = (sign * (gap * 0.5 + 0.085), top + look.uniform(0.4, 0.6) * (tip - top))
            patch = step(oval(x, y, at, 0.13, 0.20, -12 * sign) + n, 1.0, 0.7)
            s.paint(patch, (1.15, 1.15, 1.12), s.z - 0.12 * patch * (1 + n), 0.3)

    # arytenoids
    apart = 0.14 + 0.55 * gap
    at = (apart, top - look.uniform(0.08, 0.14))
    r2 = oval(ax, y, at, look.uniform(0.19, 0.25), look.uniform(0.17, 0.21), 25)
    s.darken(bump(r2 * 0.6), 0.3)
    mask = step(r2, 1.1, 0.6)
    s.paint(mask, scaled(flesh, 1.08), 2.2 - 0.4 * dome(r2), 1.0)
    s.tint(mask * clip01(0.4 + noise(look, 8)), (1.0, 0.82, 0.80))

    # epiglottis: a near bright sheet or a trough-shaped crescent
    leaf = mix(flesh, (0.93, 0.62, 0.56), 0.75)
    if look.chance(0.5):
        rise = look.uniform(0.58, 0.74)
        edge = y - rise + 0.16 * (1 - x * x) * look.uniform(-1.0, 0.4) + 0.04 * noise(look, 4)
        near = clip01(edge * 1.6)
        mask = step(edge, 0.0, 0.06)
        depth = 1.75 - 0.8 * np.sqrt(near)
        s.darken(step(edge, -0.14, 0.0), 0.3)
    else:
        rim = np.sqrt(oval(x, y, (0.0, 0.22), look.uniform(0.62, 0.74), look.uniform(0.50, 0.58)))
        low = step(y, look.uniform(0.05, 0.2), 0.45)
        across = (rim - 1.05) * (1 / (0.06 + 0.20 * low))
        mask = step(across * across, 1.0, 0.7) * step(low, 0.0, 0.2)
        depth = 1.75 - 0.45 * dome(across * across)
    s.paint(mask, leaf, depth, 0.7)
    s.tint(mask * vessels(look, 7, 1.3), (0.84, 0.5, 0.5))


# ---------------------------------------------------------------- throat


def _draw_throat(s: Scene, finding: str, look: Draws) -> None:
    """A mouth's back: palate arch and uvula above, tonsils beside, tongue below."""
    x, y = s.x, s.y
    pink = mix((0.88, 0.60, 0.46), (0.76, 0.48, 0.46), look.uniform())
    red = 0.0
    if finding == "pharyngitis":
        red = 0.8
    back = mix(scaled(pink, 0.86), (0.80, 0.15, 0.13), red)

    # posterior wall
    streaks = noise(look, 5)
    s.paint(np.ones_like(x), back, 2.5 + 0.05 * streaks - 0.25 * x * x, 0.9)
    s.tint(clip01(0.4 + streaks), (0.93, 0.80, 0.78))
    s.tint(vessels(look, 7, 1.5), (0.86, 0.45, 0.42))
    if finding == "granular_wall":
        for _ in range(look.integers(15, 20)):
            at = (look.uniform(-0.40, 0.40), look.uniform(-0.20, 0.55))
            size = look.uniform(0.06, 0.10)
            s.ball(at, size, size * 0.9, (0.88, 0.36, 0.30), 2.45, 0.22, 0, 1.0, 0.3)

    # back arch, tonsils, front arch
    wide, high = look.uniform(0.58, 0.70), look.uniform(0.50, 0.62)
    for scale, depth, tone in ((0.80, 2.40, 0.84), (1.0, 2.22, 1.0)):
        up = np.minimum(y - 0.22, 0)
        a, b = 1 / (wide * scale), 1 / (high * scale + 0.04)
        arch = np.sqrt(x * x * (a * a) + up * up * (b * b))
        arch = arch + 0.04 * noise(look, 5)
        s.darken(step(arch, 0.62, 1.0), 0.35)
        near = clip01((arch - 1) * 1.1)
        color = mix(scaled(pink, tone), (0.84, 0.24, 0.20), 0.75 * red)
        mask = step(arch, 0.94, 1.08)
        s.paint(mask, color, depth - (1.15 if scale == 1.0 else 0.3) * near)
        s.tint(mask * clip01(0.4 + noise(look, 7)), (0.97, 0.84, 0.80))
        s.tint(mask * vessels(look, 8, 1.4), (0.88, 0.60, 0.56))
        if scale < 1.0:
            swell = look.uniform(1.75, 2.0) if finding == "tonsil_hypertrophy" else 1.0
            tonsil = mix(scaled(pink, 0.92), (0.82, 0.30, 0.26), 0.45 + 0.4 * (swell > 1))
            tonsil = mix(tonsil, (0.84, 0.20, 0.18), 0.6 * red)
            for sign in (-1, 1):
                at = (sign * (wide * 0.93 - 0.16 * (swell - 1)), look.uniform(0.16, 0.28))
                mask = s.ball(at, 0.16 * swell, 0.27 * (0.6 + 0.4 * swell), tonsil, 2.2, 0.55)
                s.darken(mask * step(noise(look, 11), 0.35, 0.7), 0.35)  # crypts
                if finding == "white_exudate":
                    spots = step(noise(look, 9) + 0.5 * noise(look, 19), 0.05, 0.3)
                    s.paint(0.95 * mask * spots, (1.05, 1.02, 0.88), None, 0.8)
    if finding == "white_exudate":
        spots = step(noise(look, 8) + 0.5 * noise(look, 16), 0.45, 0.65)
        s.paint(0.9 * spots * step(arch, 1.2, 1.05), (1.05, 1.02, 0.88), None, 0.8)

    # uvula
    tip = (look.uniform(-0.05, 0.05), look.uniform(-0.14, 0.06))
    t, d2 = along(x, y, (0.0, 0.20 - high), tip)
    width = 0.16 - 0.14 * t * (1 - 0.55 * t)  # a broad root, a slender neck, a drop at the end
    r2 = d2 / (width * width)
    s.darken(bump(r2 * 0.4) * step(y, -high, 0.3 - high), 0.4)
    color = mix(scaled(pink, 1.02), (0.86, 0.22, 0.20), 0.8 * red)
    s.paint(step(r2, 1.05, 0.75), color, 2.15 - 0.3 * dome(r2), 1.0)

    # tongue
    rise = look.uniform(0.58, 0.80)
    edge = y - rise + 0.16 * x * x + 0.02 * noise(look, 6)
    near = clip01(edge * 1.8)
    coat = mix((0.78, 0.44, 0.42), (0.86, 0.76, 0.70), look.uniform(0.0, 0.8))
    s.darken(step(np.abs(edge), 0.12, 0.0), 0.5)
    mask = step(edge, 0.0, 0.05)
    grain = noise(look, 40)
    s.paint(mask, coat, 1.9 - 0.95 * np.sqrt(near) + 0.015 * grain, 0.6)

    if finding == "papilloma":
        at = (look.uniform(-0.35, 0.35), look.uniform(0.0, 0.35))
        lump = (0.95, 0.90, 0.74)
        size = look.uniform(0.17, 0.22)
        s.ball(at, size, size, lump, 1.8, 0.5, 0, 1.0, 0.6)
        for _ in range(5):
            c, q = look.turn(0, 360)
            spot = (at[0] + 0.75 * size * c, at[1] + 0.75 * size * q)
            s.ball(spot, 0.45 * size, 0.45 * size, scaled(lump, 0.97), 1.75, 0.3, 0, 1.0, 0.15)


# ---------------------------------------------------------------- picture


def draw_scene(
    class_name: str, finding: str, look: Draws, view: View, *, difficulty: float = 0.4
) -> Scene:
    """The anatomy as the scope sees it, unlit; `look` decides shape and colour."""
    left = class_name.endswith("-left")
    if left:  # mirrored twice, the view stays as it was and the anatomy changes sides
        view = view.mirrored()
    u, v = place(view)
    u, v = u - view.right, v - view.down
    c, s = unit(view.turn)
    x, y = (u * c + v * s) * (1 / view.zoom), (v * c - u * s) * (1 / view.zoom)
    # living tissue has no straight lines
    bend = look.child("bend")
    x, y = x + 0.035 * noise(bend, 4), y + 0.035 * noise(bend, 4)
    shape = look.child("shape")
    scene = Scene(x, y)
    site = class_name.split("-")[0]
    if site == "nose":
        _draw_nose(scene, finding, shape)
    elif site == "ear":
        _draw_ear(scene, finding, shape)
    elif site == "vc":
        is_open = class_name == "vc-open"
        if look.child("posture").chance(0.12):  # the scope is held upside down
            scene.y = -y
        _draw_cords(scene, finding, shape, is_open=is_open, difficulty=difficulty)
    else:
        near = finding not in ("tonsil_hypertrophy", "white_exudate")
        if near and look.child("posture").chance(0.25):  # close to the posterior wall
            scene.x, scene.y = 0.62 * x, 0.62 * y + 0.15
        _draw_throat(scene, finding, shape)
    grain = look.child("grain")
    texture = 1 + 0.06 * noise(grain, 9) + 0.05 * noise(grain, 31)
    scene.rgb *= texture
    if left:
        scene.flip()
    return scene


def draw_picture(
    class_name: str,
    finding: str,
    draws: Draws,
    *,
    difficulty: float = 0.4,
    look: Draws | None = None,
) -> np.ndarray:
    """Draw one picture.

    Args:
        class_name: one of `CLASS_NAMES`.
        finding: "normal" or a finding of that class, see `FINDINGS_OF_CLASS`.
        draws: the picture's own stream; nuisance (view, light, colour, glare, blur) comes from
            sub-streams that know neither class nor finding.
        difficulty: 0 (clean, centred) .. 1 (much nuisance).
        look: stream of the anatomy's shape and colour; pictures of one examination share it.
            By default the picture's own.

    Returns:
        (480, 640, 3) uint8 RGB.

    Raises:
        ValueError: for an unknown class, a finding the class cannot have, or a difficulty
            outside 0..1.
    """
    if class_name not in CLASS_NAMES:
        raise ValueError(f"class {class_name!r}: expected one of {', '.join(CLASS_NAMES)}.")
    if finding not in FINDINGS_OF_CLASS[class_name]:
        known = ", ".join(FINDINGS_OF_CLASS[class_name])
        raise ValueError(f"finding {finding!r} of {class_name}: expected one of {known}.")
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty: expected 0 (easy) to 1 (hard), got {difficulty}.")
    view = hold_scope(draws.child("view"), difficulty)
    scene = draw_scene(
        class_name, finding, look or draws.child("look"), view, difficulty=difficulty
    )
    lit = light_scene(scene, view, draws.child("light"), difficulty)
    lit = spoil(lit, view, draws.child("shot"), difficulty)
    return photograph(lit, view, draws.child("camera"))

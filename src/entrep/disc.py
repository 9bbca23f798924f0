"""The endoscope's lit disc: where it lies in a picture, and the square around it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom excluded
Circle = tuple[float, float, float]  # x, y, radius

# The search works on a reduced picture whose shorter side has this many pixels, up to twice as
# many: averaging takes away noise, the fit over many points brings the precision back.
WORKING_PX = 120
# Thresholds tried, as shares 1 / d of the contrast above the surround, until a circle is sure.
DIVISORS = (8, 16, 4, 32)
# A circle is sure, or just good enough, when this share of its rim in the frame is an edge from
# lit to dark. The inside of a throat is dark at one side: there is no edge there.
SURE_SUPPORT, LEAST_SUPPORT = 0.85, 0.4
# Edges on fewer rays than this are too short an arc to tell a circle by.
LEAST_EDGES = 24
# Light outside along more than this share of the rim: the circle is not the lit region's. Glare
# that bleeds over the rim stays below.
MOST_BEYOND = 0.3
# A lit region smaller than this share of the frame's shorter side is a reflection or a text.
LEAST_SIDE = 0.25
# Light along more than this share of the frame's border: there is no disc to look for.
MOST_BORDER = 0.75
# A side of the lit region is straight when this share of its rows (columns) end at one column
# (row); a disc's do for a fifth. Smaller regions than this many rows are too coarse to tell.
STRAIGHT_SHARE, STRAIGHT_ROWS = 0.33, 60
# The lit region's box without a circle: rows and columns with this share of the shorter side lit.
LIT_SHARE = 0.06
TRIPLES = 160  # circles through three points that are tried per threshold
ANGLES = 128  # rays on which a circle's rim is looked at
FITS = 3  # of the circle to the edge near the last one
REACH = 4  # how far on both sides of the rim, in steps of the reduced picture
FINE = 16  # positions are multiples of 1 / FINE step


def find_disc(picture: Image.Image) -> Box | None:
    """Bounding box of the part of the lit disc that the frame shows.

    The picture is reduced to about 160 x 120 and its brightest channel taken. For a few
    thresholds between the black surround and the light: the outermost points of the lit region
    that are not on the frame's border; the circle that most of them lie on (RANSAC, Fischler
    and Bolles, CACM 24, 1981); then, three times, a circle fitted (Kasa, IEEE Trans. Instrum.
    Meas. 25, 1976) to the places where the light falls to half its level across that rim. A
    circle must explain the picture: enough of its rim is an edge from lit to dark, and there is
    little light beyond it. Dark tissue at the rim, a notch, glare across the rim and text outside
    only cost points.

    A lit region that is no disc (some endoscopes show a rectangle, or cut the disc's sides off)
    gives its own bounding box; an octagon passes for a disc, its box a few pixels too large.

    Equal pixels give an equal box on every processor, as far as we know: sums are over whole
    numbers, and other arithmetic is element by element in operations that IEEE 754 rounds
    exactly. Other pixels (another JPEG decoder, another Pillow's `reduce`) may move it by one.

    Returns:
        (left, top, right, bottom) in pixels, within the frame; None when nothing stands out: a
        black frame, or one that is lit to its edges.
    """
    circle, lit = _search(picture)
    size = picture.size
    box = _visible_box(circle, size) if circle is not None else lit
    if box is None or box == (0, 0, *size):
        return None
    small = min(box[2] - box[0], box[3] - box[1]) < LEAST_SIDE * min(size)
    return None if small else box


def find_circle(picture: Image.Image) -> Circle | None:
    """The lit disc's rim, where the light has fallen to half: x, y, radius in pixels.

    x and y count from the frame's top left corner; the middle of the first pixel is (0.5, 0.5).
    None when no circle explains the picture. A circle that holds the whole frame is given, although
    `find_disc` has nothing to cut there.
    """
    return _search(picture)[0]


def crop_disc(picture: Image.Image) -> Image.Image:
    """Cut the square around the lit disc, or around the whole frame if there is none.

    The aspect ratio is kept: where the square reaches beyond the frame it is black. A disc that
    the frame cuts is centred by what is visible of it.
    """
    return crop_square(picture, find_disc(picture) or (0, 0, *picture.size))


def crop_square(picture: Image.Image, box: Box) -> Image.Image:
    """Cut the square around the middle of a box; what lies beyond the frame is black."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    left -= (side - (right - left)) // 2
    top -= (side - (bottom - top)) // 2
    return picture.crop((left, top, left + side, top + side))


# ---------------------------------------------------------------- search


def _search(picture: Image.Image) -> tuple[Circle | None, Box | None]:
    """The disc's circle, if there is one, and without it the lit region's box, if there is one."""
    small, step = _reduce(picture)
    counts = np.bincount(small.ravel(), minlength=256).cumsum()
    black, dark, bright = np.searchsorted(counts, np.array([5, 20, 98]) * counts[-1] // 100)
    least = 2 + 4 * _noise(small, int(dark))
    if bright - black <= 2 * least:
        return None, None
    best, highest, lit, angular = None, 0.0, None, False
    black, bright = int(black), int(bright)
    for level in _thresholds(black, bright, least):
        region = _lit_region(small, level)
        if lit is None:
            lit = region  # the first threshold is above the noise and below most tissue
            if _border_share(lit) > MOST_BORDER:
                break
        circle = _ransac(*_outline(small, region, level), small.shape)
        score, sure = 0.0, False
        for _ in range(FITS):
            if circle is not None:
                circle, score, sure = _settle(small, circle, black, least)
        if circle is not None and score > highest:
            best, highest = circle, score
        if sure:
            break
    else:
        angular = _straight_sides(lit) >= 2
    if best is None or angular:
        return None, _lit_box(lit, step, picture.size)
    x, y, radius = best
    # The middle of the reduced picture's first pixel is half a step from the frame's corner.
    return ((x + 0.5) * step, (y + 0.5) * step, radius * step), None


def _reduce(picture: Image.Image) -> tuple[np.ndarray, int]:
    """The brightest channel of the reduced picture, (h, w) uint8, and the pixels of a step."""
    step = max(1, min(picture.size) // WORKING_PX)
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    rgb = np.asarray(picture.reduce(step))
    return np.maximum(np.maximum(rgb[..., 0], rgb[..., 1]), rgb[..., 2]), step


def _noise(small: np.ndarray, level: int) -> int:
    """Mean difference of neighbours in a row that are no brighter than `level`, rounded up."""
    left, right = small[:, :-1].astype(np.int16), small[:, 1:].astype(np.int16)
    dark = (left <= level) & (right <= level)
    total, count = int(np.abs(left - right)[dark].sum()), int(dark.sum())
    return -(-total // count) if count else 0


def _thresholds(black: int, bright: int, least: int) -> list[int]:
    """Grey levels between the surround and the light, each once, the best guess first."""
    levels = (black + max((bright - black) // divisor, least) for divisor in DIVISORS)
    return list(dict.fromkeys(levels))


# ---------------------------------------------------------------- lit region


def _lit_region(small: np.ndarray, level: int) -> np.ndarray:
    """(h, w) bool: what is lit, without thin lines, specks and small parts such as letters."""
    thick = _dilated(_eroded(small > level))
    labels, count = ndimage.label(thick)
    if count < 2:
        return thick
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    # A dark slit may divide the disc, so its second half must count.
    return (8 * areas >= areas.max())[labels]


def _eroded(mask: np.ndarray) -> np.ndarray:
    """What is set along with its eight neighbours; nothing is set beyond the frame."""
    for _ in range(2):
        kept = np.zeros_like(mask)
        kept[1:-1] = mask[1:-1] & mask[:-2] & mask[2:]
        mask = kept.T
    return mask


def _dilated(mask: np.ndarray) -> np.ndarray:
    """What is set or next to it."""
    for _ in range(2):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        mask = grown.T
    return mask


def _outline(small: np.ndarray, region: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Outermost lit points of all rows and columns, in 1 / FINE steps: x (n,), y (n,) int64.

    Points on the frame's border are left out: there the frame ends the light, not the disc.
    """
    x1, y1 = _ends(small, region, level)
    y2, x2 = _ends(small.T, region.T, level)
    return np.concatenate([x1, x2]), np.concatenate([y1, y2])


def _ends(small: np.ndarray, region: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last lit place of each row: along it (interpolated), and the row."""
    rows = np.flatnonzero(region.any(axis=1))
    last_column = region.shape[1] - 1
    along, row = [], []
    for ends, out in (
        (region[rows].argmax(axis=1), -1),
        (last_column - region[rows, ::-1].argmax(axis=1), 1),
    ):
        free = (ends > 0) & (ends < last_column)
        at, line = ends[free], rows[free]
        lit, dark = small[line, at].astype(np.int64), small[line, at + out].astype(np.int64)
        # Where the light passes the threshold, between the last lit pixel and the next.
        part = FINE * (lit - level) // np.maximum(lit - dark, 1)
        along.append(FINE * at + out * np.clip(part, 0, FINE))
        row.append(FINE * line)
    return np.concatenate(along), np.concatenate(row)


def _border_share(region: np.ndarray) -> float:
    """Share of the frame's border that is lit."""
    border = np.concatenate([region[0], region[-1], region[:, 0], region[:, -1]])
    return int(border.sum()) / len(border)


def _straight_sides(region: np.ndarray) -> int:
    """How many sides of the lit region are straight and upright or level, the frame's apart."""
    sides = 0
    for mask in (region, region.T):
        rows = mask[mask.any(axis=1)]
        if len(rows) < STRAIGHT_ROWS:
            continue
        for ends in (rows.argmax(axis=1), rows[:, ::-1].argmax(axis=1)):
            most = np.bincount(ends)[1:]
            sides += bool(len(most)) and int(most.max()) >= STRAIGHT_SHARE * len(rows)
    return sides


def _lit_box(region: np.ndarray, step: int, size: tuple[int, int]) -> Box | None:
    """Bounding box in pixels of the rows and columns that are lit for a good part."""
    needed = LIT_SHARE * min(region.shape)
    columns = np.flatnonzero(region.sum(axis=0) > needed)
    rows = np.flatnonzero(region.sum(axis=1) > needed)
    if len(columns) == 0 or len(rows) == 0:
        return None
    right, bottom = (int(last[-1] + 1) * step for last in (columns, rows))
    return int(columns[0]) * step, int(rows[0]) * step, min(right, size[0]), min(bottom, size[1])


# ---------------------------------------------------------------- circle


@lru_cache(maxsize=64)
def _triples(count: int) -> np.ndarray:
    """(3, TRIPLES) indices below `count`, spread evenly (Roberts' R3 sequence) and fixed."""
    steps = np.array([[53671], [43953], [36002]], dtype=np.int64)  # 65536 / 1.2207 ** (1, 2, 3)
    return (np.arange(1, TRIPLES + 1) * steps % 65536) * count // 65536


def _ransac(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> Circle | None:
    """The circle through three points that the most points lie on and the fewest outside of."""
    x, y = x[::2], y[::2]
    if len(x) < 12:
        return None
    one, two, three = _triples(len(x))
    x = x.astype(np.float64)
    y = y.astype(np.float64)
    ax, ay = x[one], y[one]
    bx, by = x[two] - ax, y[two] - ay
    cx, cy = x[three] - ax, y[three] - ay
    twice = 2 * (bx * cy - by * cx)
    flat = np.abs(twice) < 1
    twice[flat] = 1
    b2, c2 = bx * bx + by * by, cx * cx + cy * cy
    ox, oy = (cy * b2 - by * c2) / twice, (bx * c2 - cx * b2) / twice
    radius = np.sqrt(ox * ox + oy * oy)
    ox, oy = ox + ax, oy + ay
    least, most = LEAST_SIDE / 2 * min(shape) * FINE, 1.5 * max(shape) * FINE
    good = ~flat & (radius >= least) & (radius <= most)
    if not good.any():
        return None
    ox, oy, radius = ox[good], oy[good], radius[good]
    dx, dy = x - ox[:, None], y - oy[:, None]
    off = np.sqrt(dx * dx + dy * dy) - radius[:, None]
    within = np.maximum(1.0 * FINE, 0.012 * radius)[:, None]
    score = 2 * (np.abs(off) <= within).sum(axis=1) - (off > within).sum(axis=1)
    best = int(score.argmax())
    return ox[best] / FINE, oy[best] / FINE, radius[best] / FINE


@lru_cache(maxsize=1)
def _rays() -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of ANGLES directions, (ANGLES, 1), rounded so that all processors agree."""
    turns = [2 * math.pi * index / ANGLES for index in range(ANGLES)]
    table = [[round(4096 * math.cos(turn)), round(4096 * math.sin(turn))] for turn in turns]
    cosine, sine = np.array(table).T / 4096
    return cosine[:, None], sine[:, None]


def _settle(
    small: np.ndarray, circle: Circle, black: int, least: int
) -> tuple[Circle | None, float, bool]:
    """Fit a circle to the edge near a circle's rim.

    Args:
        small: (h, w) uint8 levels.
        circle: a first guess.
        black: the surround's grey level.
        least: grey levels by which light must fall across the rim to be an edge.

    Returns:
        The circle, or None when too few rays meet an edge or too many light beyond it; a score,
        which is high for many edges on most of the rim; whether there can be no doubt.
    """
    height, width = small.shape
    x, y, radius = circle
    cosine, sine = _rays()
    rim_x, rim_y = (x + radius * cosine)[:, 0], (y + radius * sine)[:, 0]
    seen = (rim_x >= 1.5) & (rim_x <= width - 2.5) & (rim_y >= 1.5) & (rim_y <= height - 2.5)
    if seen.sum() < LEAST_EDGES:
        return None, 0.0, False
    cosine, sine = cosine[seen], sine[seen]
    offsets = np.arange(-2 * REACH, 2 * REACH + 1) / 2
    distance = radius + offsets
    profile = _sample(small, x + distance * cosine, y + distance * sine)
    profile -= black * FINE * FINE
    inside, outside = profile[:, :5].sum(axis=1), profile[:, -5:].sum(axis=1)
    half = inside + outside  # of ten samples
    faint = 5 * least * FINE * FINE
    # The outermost place where the level falls below half of both sides.
    above = 10 * profile >= half[:, None]
    falls = above[:, :-1] & ~above[:, 1:]
    column = falls.shape[1] - 1 - falls[:, ::-1].argmax(axis=1)
    ray = np.arange(len(profile))
    high, low = 10 * profile[ray, column], 10 * profile[ray, column + 1]
    part = (high - half) / np.maximum(high - low, 1)
    crossing = offsets[column] + part / 2
    within = max(1.0, 0.012 * radius)
    # Outside it is black, or nearly so: from bright to dim is an edge within the tissue.
    edge = falls.any(axis=1) & (inside - outside >= faint) & (3 * outside <= inside + faint)
    edge &= np.abs(crossing) <= 1.5 * within
    beyond = (10 * profile[:, -1] >= half) & (outside >= 3 * faint)
    edges, rays = int(edge.sum()), len(edge)
    if edges < max(LEAST_EDGES, LEAST_SUPPORT * rays) or beyond.sum() > MOST_BEYOND * rays:
        return None, 0.0, False
    at = radius + crossing[edge]
    fitted = _fit_circle(
        np.rint(FINE * (x + at * cosine[edge, 0])).astype(np.int64),
        np.rint(FINE * (y + at * sine[edge, 0])).astype(np.int64),
    )
    return fitted, edges * edges / rays, edges >= SURE_SUPPORT * rays


def _sample(small: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Levels between pixels, times FINE², int64; beyond the frame those of its border."""
    height, width = small.shape
    column = np.clip(np.rint(FINE * x).astype(np.int64), 0, FINE * (width - 1) - 1)
    row = np.clip(np.rint(FINE * y).astype(np.int64), 0, FINE * (height - 1) - 1)
    left, right_part = column // FINE, column % FINE
    top, low_part = row // FINE, row % FINE
    flat = small.ravel().astype(np.int64)
    corner = top * width + left
    upper = flat[corner] * (FINE - right_part) + flat[corner + 1] * right_part
    corner += width
    lower = flat[corner] * (FINE - right_part) + flat[corner + 1] * right_part
    return upper * (FINE - low_part) + lower * low_part


def _fit_circle(x: np.ndarray, y: np.ndarray) -> Circle | None:
    """Kasa's least-squares circle, solved exactly; x and y are (n,) int64 in 1 / FINE steps."""
    n = len(x)
    z = x * x + y * y
    sx, sy, sz = int(x.sum()), int(y.sum()), int(z.sum())
    xx, yy = n * int((x * x).sum()) - sx * sx, n * int((y * y).sum()) - sy * sy
    xy = n * int((x * y).sum()) - sx * sy
    xz, yz = n * int((x * z).sum()) - sx * sz, n * int((y * z).sum()) - sy * sz
    twice = 2 * (xx * yy - xy * xy)
    if twice == 0:
        return None
    a, b = (xz * yy - yz * xy) / twice, (yz * xx - xz * xy) / twice
    radius = math.sqrt(max((sz - 2 * a * sx - 2 * b * sy) / n + a * a + b * b, 0.0))
    return a / FINE, b / FINE, radius / FINE


def _visible_box(circle: Circle, size: tuple[int, int]) -> Box | None:
    """Bounding box in pixels of the part of a circle that lies in the frame."""
    (x, y, radius), (width, height) = circle, size
    # If the centre is outside, the frame shows less than the diameter.
    away_x, away_y = x - min(max(x, 0), width), y - min(max(y, 0), height)
    if max(abs(away_x), abs(away_y)) >= radius:
        return None
    half_width = math.sqrt(radius * radius - away_y * away_y)
    half_height = math.sqrt(radius * radius - away_x * away_x)
    left, top = math.floor(x - half_width + 0.5), math.floor(y - half_height + 0.5)
    right, bottom = math.floor(x + half_width + 0.5), math.floor(y + half_height + 0.5)
    box = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    return box if box[0] < box[2] and box[1] < box[3] else None

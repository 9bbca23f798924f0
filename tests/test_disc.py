from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from entrep.anatomy import FINDINGS_OF_CLASS, draw_picture
from entrep.brush import Draws
from entrep.disc import crop_disc, find_circle, find_disc
from entrep.labels import CLASS_NAMES
from entrep.preprocess import load_picture
from entrep.scope import disc_circle, hold_scope

FRAME = (640, 480)
SHAPES = {
    "rectangle": (lambda pen: pen.rectangle((80, 40, 559, 439), fill=255), (80, 40, 560, 440)),
    "rounded rectangle": (
        lambda pen: pen.rounded_rectangle((120, 40, 519, 439), 100, fill=255),
        (120, 40, 520, 440),
    ),
    "letterbox": (lambda pen: pen.rectangle((0, 60, 639, 419), fill=255), (0, 60, 640, 420)),
    "octagon": (
        lambda pen: pen.regular_polygon((320, 240, 216.5), 8, rotation=22.5, fill=255),
        (120, 40, 520, 440),
    ),
}


def disc_picture(centre=(320, 240), radius=200, size=FRAME, colour=(200, 120, 100)):
    """A lit disc on black, with a notch on its rim as the real ones have."""
    picture = Image.new("RGB", size)
    draw = ImageDraw.Draw(picture)
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    draw.polygon([(x - 8, y + radius), (x + 8, y + radius), (x, y + radius + 14)], fill=colour)
    return picture


@cache
def phantom(index: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A phantom and the true bounding box of its visible disc; difficulty rises to 1 at 20."""
    class_name, difficulty = CLASS_NAMES[index % len(CLASS_NAMES)], index / 20
    findings = FINDINGS_OF_CLASS[class_name]
    draws = Draws("test disc", index)
    finding = findings[index % len(findings)]
    pixels = draw_picture(class_name, finding, draws, difficulty=difficulty)
    view = hold_scope(draws.child("view"), difficulty)
    return Image.fromarray(pixels), box_of(disc_circle(view, draws.child("camera")), FRAME)


def box_of(circle, size):
    """Bounding box of the disc's pixels in the frame."""
    x, y, radius = circle
    right = np.arange(size[0]) + 0.5 - x
    down = np.arange(size[1])[:, None] + 0.5 - y
    mask = right * right + down * down <= radius * radius
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def iou(one, two):
    width = max(min(one[2], two[2]) - max(one[0], two[0]), 0)
    height = max(min(one[3], two[3]) - max(one[1], two[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return width * height / (sum(areas) - width * height)


def as_picture(pixels):
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def glow(at, width):
    """(H, W, 1) a blob of light."""
    right = np.arange(FRAME[0]) - at[0]
    down = np.arange(FRAME[1])[:, None] - at[1]
    return np.exp(-(right * right + down * down) / (2 * width * width))[..., None]


# ---------------------------------------------------------------- what is spoilt


def darkened(picture, box):
    return as_picture(0.15 * np.asarray(picture))


def one_side_dark(picture, box):
    falling = np.clip((np.arange(FRAME[0]) - box[0] - 20) / (box[2] - box[0]), 0, 1)
    return as_picture(np.asarray(picture) * falling[None, :, None])


def glare_over_the_rim(picture, box):
    at = (box[2] - 5, (box[1] + box[3]) / 2)
    return as_picture(np.asarray(picture) + 400 * glow(at, 40))


def text_outside(picture, box):
    picture = picture.copy()
    pen = ImageDraw.Draw(picture)
    for line in range(4):
        pen.text((4, 4 + 14 * line), "ID 00000", fill=(255, 255, 255))
    pen.rectangle((580, 430, 636, 476), fill=(40, 90, 230))
    return picture


def a_thin_frame(picture, box):
    picture = picture.copy()
    ImageDraw.Draw(picture).rectangle((9, 9, 630, 470), outline=(220, 220, 220), width=3)
    return picture


def coloured_noise(picture, box):
    pixels = np.asarray(picture)
    return as_picture(pixels + np.random.default_rng(0).normal(0, 10, pixels.shape))


def coarse_jpeg(picture, box):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=30)
    return Image.open(stream).convert("RGB")


def without_colour(picture, box):
    return picture.convert("L")


def nothing_spoilt(picture, box):
    return picture


@pytest.mark.parametrize(
    "spoil",
    [
        nothing_spoilt,
        darkened,
        one_side_dark,
        glare_over_the_rim,
        text_outside,
        a_thin_frame,
        coloured_noise,
        coarse_jpeg,
        without_colour,
    ],
)
def test_the_disc_of_phantoms_is_found_with_iou_over_97_percent(spoil):
    found = [
        iou(find_disc(spoil(picture, box)) or (0, 0, *FRAME), box)
        for picture, box in map(phantom, range(21))
    ]
    assert np.mean(found) >= 0.97
    assert min(found) >= 0.9


# ---------------------------------------------------------------- discs


def test_the_disc_is_found_to_two_pixels():
    for centre, radius in (((320, 240), 200), ((250, 200), 150), ((400, 260), 180)):
        x, y = centre
        expected = np.array([x - radius, y - radius, x + radius + 1, y + radius + 1])
        found = np.array(find_disc(disc_picture(centre, radius)))
        assert np.abs(found - expected).max() <= 2


def test_the_circle_is_where_it_was_drawn():
    x, y, radius = find_circle(disc_picture((300, 250), 170))
    assert (x, y, radius) == pytest.approx((300.5, 250.5, 170.5), abs=1)


def test_a_disc_that_leaves_the_frame_gives_the_box_of_what_is_seen():
    left, top, right, bottom = find_disc(disc_picture(radius=260))
    assert (top, bottom) == (0, 480)
    assert right - left == pytest.approx(520, abs=4)
    # The centre is outside: the widest row that is seen is the frame's first one.
    left, top, right, bottom = find_disc(disc_picture((320, -80), 250))
    half = np.sqrt(250**2 - 80**2)
    assert (left, top, right, bottom) == pytest.approx((320 - half, 0, 320 + half, 170), abs=3)


def test_two_halves_of_a_disc_are_one_disc():
    picture = disc_picture()
    ImageDraw.Draw(picture).polygon([(250, 0), (290, 0), (400, 480), (340, 480)], fill=(0, 0, 0))
    assert iou(find_disc(picture), (120, 40, 521, 441)) > 0.98


def test_the_notch_does_not_count():
    assert find_disc(disc_picture())[3] <= 442


@pytest.mark.parametrize("size", [(64, 48), (85, 64), (224, 224), (1920, 1080)])
def test_discs_of_small_and_large_pictures_are_found(size):
    height = size[1]
    radius = 0.4 * height
    large = disc_picture((2 * size[0], 2 * height), 4 * radius, (4 * size[0], 4 * height))
    expected = box_of((size[0] / 2, height / 2, radius), size)
    assert iou(find_disc(large.resize(size, Image.Resampling.BOX)), expected) > 0.94


circles = st.tuples(st.integers(220, 420), st.integers(190, 290), st.integers(90, 180))


@settings(max_examples=25, deadline=None)
@given(circles, st.integers(-40, 40), st.integers(-40, 40))
def test_shifting_the_picture_shifts_the_box(circle, right, down):
    x, y, radius = circle
    here = np.array(find_disc(disc_picture((x, y), radius)))
    there = find_disc(disc_picture((x + right, y + down), radius))
    seen = np.clip(here + [right, down] * 2, 0, FRAME * 2)
    assert np.abs(seen - there).max() <= 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20))
def test_mirroring_the_picture_mirrors_the_box(index):
    picture, _ = phantom(index)
    left, top, right, bottom = find_disc(picture)
    mirrored = np.array(find_disc(ImageOps.mirror(picture)))
    assert np.abs(mirrored - [640 - right, top, 640 - left, bottom]).max() <= 2


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 20), st.floats(0.4, 2.0))
def test_scaling_the_picture_scales_the_box(index, scale):
    picture, _ = phantom(index)
    scaled = picture.resize((round(640 * scale), round(480 * scale)))
    expected = scale * np.array(find_disc(picture))
    assert np.abs(np.array(find_disc(scaled)) - expected).max() <= 1 + 4 * max(scale, 1)


def test_the_same_pixels_give_the_same_box():
    picture, _ = phantom(15)
    assert {find_disc(picture.copy()) for _ in range(5)} == {find_disc(picture)}


# ---------------------------------------------------------------- no disc


@pytest.mark.parametrize("name", SHAPES)
def test_a_view_that_is_no_disc_gives_the_box_of_its_light(name):
    draw, expected = SHAPES[name]
    mask = Image.new("L", FRAME)
    draw(ImageDraw.Draw(mask))
    tissue = phantom(3)[0].crop((220, 120, 460, 300)).resize(FRAME)
    picture = Image.composite(tissue, Image.new("RGB", FRAME), mask)
    assert iou(find_disc(picture), expected) > 0.95


@pytest.mark.parametrize("level", [0, 4, 120, 255])
@pytest.mark.parametrize("noise", [0, 6])
def test_nothing_is_found_in_an_even_frame(level, noise):
    pixels = level + np.random.default_rng(1).normal(0, noise, (480, 640, 3))
    picture = as_picture(pixels)
    assert find_disc(picture) is None
    assert find_circle(picture) is None
    assert crop_disc(picture).size == (640, 640)


def test_nothing_is_found_in_tissue_up_to_the_edges():
    for index in range(7):
        picture = phantom(index)[0].crop((230, 140, 430, 290)).resize(FRAME)
        box = find_disc(picture)
        assert box is None or iou(box, (0, 0, *FRAME)) > 0.7


def test_letters_on_black_are_nothing():
    picture = Image.new("RGB", FRAME)
    pen = ImageDraw.Draw(picture)
    for line in range(6):
        pen.text((250, 180 + 14 * line), "NO SIGNAL 0123456", fill=(255, 255, 255))
    assert find_disc(picture) is None


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 300), (300, 3), (5, 5), (17, 16)])
def test_pictures_of_few_pixels_are_taken(size):
    picture = phantom(2)[0].resize(size)
    box = find_disc(picture) or (0, 0, *size)
    assert 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]
    assert crop_disc(picture).width == crop_disc(picture).height


# ---------------------------------------------------------------- crop


def test_cropping_keeps_the_aspect_ratio():
    square = crop_disc(disc_picture())
    assert square.width == square.height == pytest.approx(401, abs=3)
    lit = np.asarray(square).max(axis=2) > 50
    height, width = lit.any(axis=1).sum(), lit.any(axis=0).sum()
    assert width == pytest.approx(height, rel=0.02)


def test_a_cut_disc_is_centred_by_what_is_seen_and_black_beyond():
    square = np.asarray(crop_disc(disc_picture((320, 180), 200))).max(axis=2) > 50
    assert square.shape[0] == square.shape[1] == pytest.approx(401, abs=3)
    rows = np.flatnonzero(square.sum(axis=1) > 30)  # the notch is narrower
    assert (rows[0], square.shape[0] - 1 - rows[-1]) == pytest.approx((10, 10), abs=3)


def test_a_soft_rim_is_cut_at_half_of_its_light():
    soft = disc_picture().filter(ImageFilter.GaussianBlur(6))
    assert np.abs(np.subtract(find_disc(soft), (120, 40, 521, 441))).max() <= 3


# ---------------------------------------------------------------- truth and real pictures


def test_the_phantoms_truth_is_the_disc_that_is_drawn():
    for index in range(3):
        draws = Draws("truth", index)
        view = hold_scope(draws.child("view"), 0.5)
        x, y, radius = disc_circle(view, draws.child("camera"))
        pixels = draw_picture("ear-right", "normal", draws, difficulty=0.5)
        right = np.arange(640) + 0.5 - x
        down = np.arange(480)[:, None] + 0.5 - y
        distance = np.hypot(right, down)
        assert y == 240 + 2 * view.drop
        assert 0 <= 2 * view.radius - radius <= 2.5
        # Beyond the rim only the notch, a small tooth, is lit.
        assert (pixels[distance > radius + 3].max(axis=1) > 24).mean() < 0.01


def test_each_real_picture_has_a_plausible_disc(real_sample):
    suffixes = {".png", ".jpg", ".jpeg"}
    paths = [path for path in sorted(real_sample.rglob("*")) if path.suffix.lower() in suffixes]
    assert paths
    for path in paths:
        picture = load_picture(path)
        left, top, right, bottom = find_disc(picture)
        width, height = right - left, bottom - top
        assert 0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height
        assert width * height >= 0.25 * picture.width * picture.height, path.name
        assert 0.8 <= width / height <= 1.25, path.name
        assert find_circle(picture) is not None, path.name

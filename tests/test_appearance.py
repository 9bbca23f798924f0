"""What kind of frame a picture is, and that strangers stand out by it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from entrep import appearance, trust
from entrep.appearance import STATISTICS, describe_picture, describe_pictures
from entrep.metrics import detection_scores
from entrep.phantom import draw_pictures

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
COLUMN = {name: place for place, name in enumerate(STATISTICS)}


@pytest.fixture(scope="module")
def strangers():
    """The benchmark's module, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("strangers", BENCHMARKS / "strangers.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of 42 phantoms and their names."""
    folder = tmp_path_factory.mktemp("phantoms")
    for index, (pixels, *_) in enumerate(draw_pictures(42, seed=5)):
        Image.fromarray(pixels).save(folder / f"{index:02d}.png", compress_level=0)
    return folder, [f"{index:02d}.png" for index in range(42)]


def test_plain_frames_by_hand():
    black = dict(zip(STATISTICS, describe_picture(Image.new("RGB", (640, 480))), strict=True))
    nothing = ("light", "spread of light", "lit", "white", "lit border", "roundness", "redness")
    assert [black[name] for name in nothing] == [0] * 7
    assert black["grain"] == black["fine detail"] == pytest.approx(np.log10(0.25), abs=1e-6)

    white = describe_picture(Image.new("RGB", (640, 480), "white"))
    for name in ("light", "lit", "white", "lit border"):
        assert white[COLUMN[name]] == 1
    assert white[COLUMN["roundness"]] == pytest.approx(4 / np.pi, abs=1e-6)
    assert white[COLUMN["saturation"]] == 0

    red = describe_picture(Image.new("RGB", (640, 480), (200, 0, 0)))
    assert red[COLUMN["redness"]] == pytest.approx(200 / 208, abs=1e-6)
    assert red[COLUMN["saturation"]] == pytest.approx(200 / 208, abs=1e-6)
    assert red[COLUMN["one colour"]] == pytest.approx(1, abs=1e-6)


def test_a_disc_on_black_is_round_and_leaves_the_border_dark():
    off = np.hypot(np.arange(640)[None] - 320, np.arange(480)[:, None] - 240)
    disc = np.where(off < 200, 180, 0).astype(np.uint8)
    found = describe_picture(Image.fromarray(disc))
    assert found[COLUMN["roundness"]] == pytest.approx(1, abs=0.03)
    assert found[COLUMN["lit border"]] == 0
    assert found[COLUMN["lit"]] == pytest.approx(np.pi * 200**2 / (640 * 480), abs=0.01)


def test_noise_raises_the_grain_and_a_few_sharp_edges_do_not():
    smooth = np.full((480, 640, 3), 120, np.uint8)
    edges = smooth.copy()
    edges[:, 100::200] = 250
    noisy = smooth + np.random.default_rng(0).integers(0, 40, smooth.shape, dtype=np.uint8)
    plain, sharp, grainy = (describe_picture(Image.fromarray(p)) for p in (smooth, edges, noisy))
    assert sharp[COLUMN["fine detail"]] > plain[COLUMN["fine detail"]] + 0.5
    for name in ("grain", "colour grain"):
        assert sharp[COLUMN[name]] == plain[COLUMN[name]]
        assert grainy[COLUMN[name]] > plain[COLUMN[name]] + 1


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (33, 47), (700, 20)])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "CMYK", "I"])
def test_any_size_and_mode_gives_finite_statistics(size, mode):
    found = describe_picture(Image.new(mode, size))
    assert found.shape == (len(STATISTICS),)
    assert np.isfinite(found).all()


def test_a_larger_copy_looks_alike(drawn):
    folder, names = drawn
    picture = Image.open(folder / names[0])
    large = picture.resize((2560, 1920), Image.Resampling.NEAREST)
    np.testing.assert_allclose(describe_picture(large), describe_picture(picture), atol=1e-6)


def test_neither_order_nor_company_nor_threads_change_a_row(drawn, monkeypatch):
    folder, names = drawn
    together = describe_pictures(folder, names[:8])
    assert together.shape == (8, len(STATISTICS)) and together.dtype == np.float64
    np.testing.assert_array_equal(describe_pictures(folder, names[:8][::-1]), together[::-1])
    monkeypatch.setattr(appearance, "count_cores", lambda: 1)
    alone = [describe_pictures(folder, [name])[0] for name in names[:8]]
    np.testing.assert_array_equal(alone, together)
    assert describe_pictures(folder, []).shape == (0, len(STATISTICS))


def test_a_missing_or_broken_picture_is_named(drawn, tmp_path):
    folder, names = drawn
    with pytest.raises(FileNotFoundError, match=r"gone\.png: there is no such picture"):
        describe_pictures(folder, [names[0], "gone.png"])
    whole = (folder / names[0]).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.png: not a readable picture"):
        describe_pictures(tmp_path, ["half.png"])


def test_strangers_of_all_kinds_stand_out_also_through_the_same_endoscope(drawn, strangers):
    folder, names = drawn
    inside = describe_pictures(folder, names)
    for masked in (False, True):
        outside = [
            describe_picture(strangers.draw_stranger(kind, 0, index, masked=masked))
            for kind in strangers.KINDS
            for index in range(3)
        ]
        rows = np.concatenate([inside, outside])
        # The last third of the phantoms is not learned from: so new pictures look.
        fold = np.where(np.arange(len(rows)) < 28, np.arange(len(rows)) % 2, -1)
        scores = trust.mahalanobis_scores(rows, np.zeros(len(rows), int), fold)
        assert detection_scores(scores[28:42], scores[42:])["auroc"] >= 0.95


def test_strangers_are_the_same_for_a_seed_and_differ_otherwise(strangers, tmp_path):
    for kind in strangers.KINDS:
        first = strangers.draw_stranger(kind, 0, 1, masked=True)
        assert first.size == (640, 480) and first.mode == "RGB"
        assert strangers.draw_stranger(kind, 0, 1, masked=True) == first
        assert strangers.draw_stranger(kind, 1, 1, masked=True) != first
    table = strangers.write_strangers(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(table["path"])
    assert table.groupby("kind")["masked"].sum().tolist() == [1] * 5

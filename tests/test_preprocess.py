import numpy as np
import pytest
import torch
from PIL import Image
from test_disc import disc_picture

from entrep.disc import crop_disc, crop_square
from entrep.labels import CLASS_NAMES, MIRROR_CLASS
from entrep.preprocess import (
    as_batch,
    load_picture,
    mirror,
    mirror_classes,
    normalise,
    prepare_picture,
)


def test_a_picture_is_prepared_with_and_without_the_crop(tmp_path):
    picture = disc_picture(centre=(250, 200), radius=150)
    picture.save(tmp_path / "a.png")
    size = {"size": (32, 32), "resample": Image.Resampling.BICUBIC, "reducing_gap": 3.0}
    cropped, whole = crop_disc(picture), crop_square(picture, (0, 0, 640, 480))
    assert cropped.size[0] < 320 and whole.size == (640, 640)
    for crop, square in ((True, cropped), (False, whole)):
        prepared = prepare_picture(tmp_path / "a.png", 32, crop=crop)
        np.testing.assert_array_equal(prepared, np.asarray(square.resize(**size)))


def test_the_crop_is_the_default(tmp_path):
    disc_picture(radius=120).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    np.testing.assert_array_equal(prepare_picture(path, 32), prepare_picture(path, 32, crop=True))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_an_unreadable_picture_raises_and_is_never_replaced(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png: not a readable picture"):
        load_picture(path)
    with pytest.raises(ValueError, match="not a readable picture"):
        prepare_picture(path, 32)


def test_a_truncated_picture_raises(tmp_path):
    path = tmp_path / "cut.png"
    disc_picture().save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"cut\.png: not a readable picture"):
        load_picture(path)


def test_normalise_subtracts_mean_and_divides_by_std():
    batch = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    pixels = normalise(batch, (0.5, 0.5, 0.0), (0.5, 0.25, 1.0))
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, 2.0, 1.0]))


def test_mirroring_twice_changes_nothing():
    batch = as_batch(np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), np.uint8))
    assert torch.equal(mirror(mirror(batch)), batch)
    classes = torch.arange(len(CLASS_NAMES))
    assert torch.equal(mirror_classes(mirror_classes(classes)), classes)
    assert mirror_classes(classes).tolist() == list(MIRROR_CLASS)

import numpy as np
import pytest
import torch
from PIL import Image

from entrep import embed
from entrep.encoders import ENCODERS, Encoder

SPEC = ENCODERS["demo-clip"]


class Mean(torch.nn.Module):
    """Stands in for a joint network: mean colours, and letters counted."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.batches = []

    def encode_image(self, pixels):
        self.batches.append(len(pixels))
        return pixels.mean((2, 3)) * self.scale

    def encode_text(self, tokens):
        return tokens.float()


@pytest.fixture
def encoder():
    def tokenize(texts):
        return torch.tensor([[text.count(c) + 0.5 for c in "abc"] for text in texts])

    return Encoder(SPEC, Mean(), (0.0,) * 3, (1.0,) * 3, torch.device("cpu"), tokenize)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abcde":
        pixels = rng.integers(60, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


PATHS = [f"{name}.png" for name in "abcde"]
DIGESTS = list("12345")


def test_embeddings_are_unit_vectors_in_the_order_given(encoder, folder):
    embeddings = embed.embed_pictures(encoder, folder, PATHS, batch_size=2)
    assert embeddings.shape == (5, 3) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    backwards = embed.embed_pictures(encoder, folder, PATHS[::-1], batch_size=3)
    np.testing.assert_allclose(embeddings, backwards[::-1], atol=1e-6)


def test_texts_are_unit_vectors_too(encoder):
    texts = embed.embed_texts(encoder, ["ab", "c", "abc"], batch_size=2)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-6)


def test_embeddings_are_kept_until_pictures_or_weights_change(encoder, folder):
    file = folder / "embeddings.safetensors"

    def get(digests=DIGESTS):
        before = len(encoder.model.batches)
        result = embed.load_or_embed(file, encoder, folder, PATHS, digests, batch_size=2)
        return result, len(encoder.model.batches) - before

    first, passes = get()
    assert passes == 3
    again, passes = get()
    assert passes == 0
    np.testing.assert_array_equal(first, again)
    assert get([*"1234", "new"])[1] == 3
    with torch.no_grad():
        encoder.model.scale.mul_(2)
    assert get([*"1234", "new"])[1] == 3


def test_a_broken_picture_stops_embedding_and_leaves_no_file(encoder, folder):
    (folder / "c.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"c\.png: not a readable picture"):
        embed.load_or_embed(folder / "e.safetensors", encoder, folder, PATHS, DIGESTS)
    assert not list(folder.glob("*.safetensors"))

import numpy as np
import pytest
import torch
from torch import nn

from entrep.attribution import HEADS, occlusion_maps, side_log_odds
from entrep.heads import BINARY, CLASSES, mirror_logits
from entrep.labels import CLASS_NAMES, CLASS_TO_INDEX, MIRROR_CLASS
from entrep.network import build_network

NOSE_RIGHT, NOSE_LEFT = CLASS_TO_INDEX["nose-right"], CLASS_TO_INDEX["nose-left"]
THROAT = CLASS_TO_INDEX["throat"]
SIZE = 32


class NoseStub(nn.Module):
    """Says "nose-right" as strongly as `evidence`, (B, 3, S, S) float to (B,), finds it."""

    def __init__(self, evidence):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.evidence = evidence

    def forward(self, batch):
        found = self.evidence(batch.float())
        logits = torch.zeros(len(batch), BINARY.stop)
        logits[:, NOSE_RIGHT], logits[:, BINARY.start] = found / 2, -found
        logits[:, NOSE_LEFT] = -found / 2
        return logits


def texture(batch):
    """How much neighbouring rows of pixels differ: a cover of either kind takes it away."""
    return batch.diff(dim=2).abs().mean((1, 2, 3))


def quadrant_texture(batch):
    return texture(batch[:, :, : SIZE // 2, : SIZE // 2])


def texture_balance(batch):
    """Left half against right half: changes its sign with a mirrored picture."""
    return texture(batch[..., : SIZE // 2]) - texture(batch[..., SIZE // 2 :])


@pytest.fixture(scope="module")
def pictures():
    """Three pictures of noise, denser in the left half: (3, 32, 32, 3) uint8."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (3, SIZE, SIZE, 3), np.uint8)
    pictures[:, :, SIZE // 2 :] //= 2
    return pictures


def mirrored(pictures):
    return pictures[:, :, ::-1].copy()


# The score


@pytest.mark.parametrize("name", CLASS_NAMES[:6])
def test_side_log_odds_agree_with_probabilities(name):
    logits = torch.randn(4, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    index = CLASS_TO_INDEX[name]
    partner, asked = index ^ 1, torch.full((4,), index)
    probs, second = logits[:, CLASSES].softmax(1), logits[:, BINARY].sigmoid()[:, index // 2]
    flat = (probs[:, index] / probs[:, partner]).log()
    yes = second if index % 2 else 1 - second
    binary = (yes / (1 - yes)).log()
    torch.testing.assert_close(side_log_odds(logits, asked, head="classes"), flat)
    torch.testing.assert_close(side_log_odds(logits, asked, head="binary"), binary)
    torch.testing.assert_close(side_log_odds(logits, asked), (flat + binary) / 2)


@pytest.mark.parametrize("head", HEADS)
def test_the_throat_stands_against_all_other_classes(head):
    logits = torch.randn(4, 14, generator=torch.Generator().manual_seed(0))
    found = side_log_odds(logits, torch.full((4,), THROAT), head=head)
    torch.testing.assert_close(found, logits[:, CLASSES].softmax(1)[:, THROAT].logit())


def test_a_mirrored_answer_has_the_log_odds_of_the_mirrored_class():
    logits = torch.randn(7, 14, generator=torch.Generator().manual_seed(0))
    want = side_log_odds(logits, torch.arange(7))
    found = side_log_odds(mirror_logits(logits), torch.tensor(MIRROR_CLASS))
    torch.testing.assert_close(found, want)


# The maps


@pytest.mark.parametrize("fill", ["blur", "mean"])
def test_only_the_quadrant_that_decides_lights_up(pictures, fill):
    network, classes = NoseStub(quadrant_texture), np.full(3, NOSE_RIGHT)
    maps = occlusion_maps(network, pictures, classes, fill=fill, flip_tta=False)
    assert maps.shape == (3, 8, 8) and maps.dtype == np.float32
    inside = maps[:, :4, :4]
    assert inside.min() > 0
    assert inside.max() == maps.max()
    # A patch reaches two places beyond its own: those further off touch nothing that counts.
    elsewhere = np.concatenate([maps[:, 6:].ravel(), maps[:, :, 6:].ravel()])
    assert np.abs(elsewhere).max() < 1e-6 < 0.1 < inside[:, 1:3, 1:3].min()
    against = occlusion_maps(network, pictures, np.full(3, NOSE_LEFT), fill=fill, flip_tta=False)
    np.testing.assert_allclose(against, -maps, atol=1e-5)


def test_a_map_agrees_with_a_plain_loop():
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    weights = torch.from_numpy(rng.random((SIZE, SIZE)))
    network = NoseStub(lambda batch: (batch * weights).sum((1, 2, 3)) / 100)
    want = np.zeros((4, 4))
    for row, column in np.ndindex(4, 4):
        mask = np.zeros((SIZE, SIZE))
        for y, x in np.ndindex(SIZE, SIZE):
            down = abs((y + 0.5) / SIZE - (row + 0.5) / 4) / 0.3
            right = abs((x + 0.5) / SIZE - (column + 0.5) / 4) / 0.3
            if max(down, right) < 1:
                mask[y, x] = (1 + np.cos(np.pi * down)) * (1 + np.cos(np.pi * right)) / 4
        lost = mask[:, :, None] * (picture - picture.mean(axis=(0, 1)))
        want[row, column] = (lost.sum(axis=2) * weights.numpy()).sum() / 100
    found = occlusion_maps(
        network,
        picture[None],
        np.array([NOSE_RIGHT]),
        patches=4,
        width=0.3,
        fill="mean",
        flip_tta=False,
    )
    # The network sees whole bytes: 3 x 32 x 32 of them, each rounded.
    np.testing.assert_allclose(found[0], want, atol=0.4)
    assert np.ptp(want) > 10


@pytest.mark.parametrize(("evidence", "flip_tta"), [(texture_balance, False), (texture, True)])
def test_a_mirrored_picture_has_the_mirrored_map(pictures, evidence, flip_tta):
    # Once the network itself is even-handed, once the mean over both views makes it so.
    network = NoseStub(evidence)
    here = occlusion_maps(network, pictures, np.full(3, NOSE_RIGHT), flip_tta=flip_tta)
    there = occlusion_maps(network, mirrored(pictures), np.full(3, NOSE_LEFT), flip_tta=flip_tta)
    np.testing.assert_allclose(there, here[:, :, ::-1], atol=0.02)


def test_without_classes_the_network_is_asked_for_its_own_answer(pictures):
    network = NoseStub(texture_balance)
    assert texture_balance(torch.from_numpy(pictures).permute(0, 3, 1, 2).float()).min() > 0
    found = occlusion_maps(network, pictures, patches=3)
    want = occlusion_maps(network, pictures, np.full(3, NOSE_RIGHT), patches=3)
    np.testing.assert_array_equal(found, want)


def test_another_score_can_be_asked_for(pictures):
    network, classes = NoseStub(texture), np.zeros(3, int)
    only = occlusion_maps(network, pictures, classes, patches=2, flip_tta=False)
    twice = occlusion_maps(
        network,
        pictures,
        classes,
        patches=2,
        flip_tta=False,
        score=lambda logits, asked: 2 * side_log_odds(logits, asked),
    )
    np.testing.assert_allclose(twice, 2 * only, rtol=1e-5)


def test_maps_of_a_real_backbone_repeat_and_do_not_depend_on_the_batch(pictures):
    torch.manual_seed(0)
    network = build_network("demo-dino", 56)
    large = np.kron(pictures, np.ones((1, 2, 2, 1), np.uint8))[:, 4:60, 4:60]
    maps = occlusion_maps(network, large, patches=3)
    assert np.ptp(maps) > 0
    np.testing.assert_array_equal(occlusion_maps(network, large, patches=3), maps)
    for batch_size in (1, 4):
        found = occlusion_maps(network, large, patches=3, batch_size=batch_size)
        np.testing.assert_allclose(found, maps, atol=1e-4)
    alone = occlusion_maps(network, large[[1]], patches=3)
    np.testing.assert_allclose(alone[0], maps[1], atol=1e-4)


def test_no_pictures_give_no_maps(pictures):
    assert occlusion_maps(NoseStub(texture), pictures[:0]).shape == (0, 8, 8)


NETWORK, BLANK, ZEROS = NoseStub(texture), np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, int)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: occlusion_maps(NETWORK, BLANK[0]), r"expected \(N, S, S, 3\) uint8"),
        (lambda: occlusion_maps(NETWORK, BLANK[:, 1:]), r"expected \(N, S, S, 3\) uint8"),
        (lambda: occlusion_maps(NETWORK, BLANK / 255), "float64"),
        (lambda: occlusion_maps(NETWORK, BLANK, ZEROS[:1]), "one class a picture"),
        (lambda: occlusion_maps(NETWORK, BLANK, ZEROS - 1), r"0..6, got \[-1\]"),
        (lambda: occlusion_maps(NETWORK, BLANK, ZEROS + 7), r"0..6, got \[7\]"),
        (lambda: occlusion_maps(NETWORK, BLANK, patches=0), "patches: expected 1..8"),
        (lambda: occlusion_maps(NETWORK, BLANK, patches=9), "patches: expected 1..8"),
        (lambda: occlusion_maps(NETWORK, BLANK, width=25), "share of the side"),
        (lambda: occlusion_maps(NETWORK, BLANK, fill="grey"), "one of blur, mean; got 'grey'"),
        (lambda: side_log_odds(torch.zeros(2, 14), torch.zeros(2).long(), head="flat"), "head:"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()

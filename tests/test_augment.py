import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from entrep import augment
from entrep.labels import SITE_OF
from entrep.preprocess import mirror

SIDE, RADIUS = 64, 0.25  # of the disc, in sides
STRENGTHS = (0.3, 1.0, 2.0)
SEEDS = range(40)


def lit_disc(colour=(200, 120, 100)):
    """A disc on black, its lower half darker: (3, SIDE, SIDE) uint8."""
    picture = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).repeat(1, SIDE, SIDE)
    picture[:, SIDE // 2 :] //= 2
    return picture * (from_middle() < RADIUS)


def from_middle():
    """Distance of every pixel from the picture's middle in sides, (SIDE, SIDE)."""
    at = (torch.arange(SIDE) + 0.5) / SIDE - 0.5
    return (at[None, :].square() + at[:, None].square()).sqrt()


def view_of(picture, *, strength=1.0, seed=0):
    change = augment.training_augmentation(strength)
    return augment.training_view(picture, change, seed=seed)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Views


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("side", [32, 65])
def test_a_view_is_shaped_like_the_picture(strength, side):
    picture = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator())
    for seed in SEEDS:
        view = view_of(picture, strength=strength, seed=seed)
        assert view.shape == picture.shape and view.dtype == torch.uint8
        assert not torch.equal(view, picture)


def test_strength_zero_changes_nothing():
    assert torch.equal(view_of(lit_disc(), strength=0), lit_disc())


def test_a_stronger_augmentation_changes_more():
    picture = lit_disc().float()
    changes = [
        np.mean([(view_of(lit_disc(), strength=s, seed=i) - picture).abs().mean() for i in SEEDS])
        for s in STRENGTHS
    ]
    assert changes == sorted(changes)


@given(st.integers(0, 2**40), st.integers(0, 2**40))
@settings(max_examples=20, deadline=None)
def test_a_view_depends_on_picture_and_seed_alone(seed, other):
    torch.manual_seed(other)
    before = torch.get_rng_state()
    view = view_of(lit_disc(), seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    view_of(lit_disc((90, 90, 200)), seed=other)
    torch.rand(3)
    assert torch.equal(view_of(lit_disc(), seed=seed), view)


def test_other_seeds_give_other_views():
    views = {view_of(lit_disc(), seed=seed).numpy().tobytes() for seed in SEEDS}
    assert len(views) == len(SEEDS)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_black_around_the_disc_stays_black(strength):
    # As far as the disc can reach, zoomed and shifted both ways, and two pixels.
    reach = RADIUS * (1 + 0.2 * strength) + 0.06 * strength * math.sqrt(2) + 2 / SIDE
    outside = from_middle() > reach
    black = from_middle() >= RADIUS
    assert outside.sum() > 100
    *_, change, _ = augment.training_augmentation(strength).transforms  # all but the affine one
    for seed in SEEDS:
        assert not view_of(lit_disc(), strength=strength, seed=seed)[:, outside].any()
        torch.manual_seed(seed)
        after = change(lit_disc() / 255)
        assert not after[:, black].any() and after[:, ~black].any()


def markers():
    """A red spot to the left and a blue one to the right, on black."""
    picture = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    middle = slice(SIDE // 2 - 3, SIDE // 2 + 3)
    picture[0, middle, 20:26], picture[2, middle, 38:44] = 220, 220
    return picture


def test_a_view_is_never_mirrored_nor_turned_far():
    x, y = torch.arange(float(SIDE))[None, :], torch.arange(float(SIDE))[:, None]
    turns = []
    for strength in STRENGTHS:
        for seed in range(100):
            red, green, blue = view_of(markers(), strength=strength, seed=seed).float()
            red, blue = (red - green).clamp(0), (blue - green).clamp(0)  # without what is white
            red, blue = red * (red > 2 * blue), blue * (blue > 2 * red)
            dx = (blue * x).sum() / blue.sum() - (red * x).sum() / red.sum()
            dy = (blue * y).sum() / blue.sum() - (red * y).sum() / red.sum()
            assert dx > 0
            turns.append(math.degrees(math.atan2(dy, dx)))
    assert 15 < max(np.abs(turns)) < 20 + 3  # what glare and noise do to the spots' middles


def test_a_mirrored_view_is_the_view_mirrored():
    change = augment.training_augmentation()
    for seed in range(10):
        plain, turned = (
            augment.training_view(markers(), change, seed=seed, mirrored=mirrored)
            for mirrored in (False, True)
        )
        assert torch.equal(turned, mirror(plain)) and not torch.equal(turned, plain)


@pytest.mark.parametrize("strength", [-0.1, 2.1, math.nan])
def test_a_strength_out_of_range_is_named(strength):
    with pytest.raises(ValueError, match="strength: expected 0 .no change. to 2"):
        augment.training_augmentation(strength)


# Each transform does what it says


def changed_by(transform, picture, seed):
    torch.manual_seed(seed)
    after = transform(picture)
    assert after.shape == picture.shape and after.dtype == picture.dtype
    assert after.isfinite().all()
    return after - picture


@pytest.mark.parametrize("seed", range(10))
def test_light_falls_off_from_a_centre(seed):
    torch.manual_seed(seed)
    light = augment.LightFallOff(0.6)(torch.ones(3, SIDE, SIDE))
    assert light.max() > 0.98 and 0.3 < light.min() < 0.9
    row, column = divmod(int(light[0].argmax()), SIDE)
    assert SIDE // 4 - 2 <= row <= 3 * SIDE // 4 + 2
    # Nowhere brighter when one goes away from it.
    for line in (light[0, row, column:], light[0, row, : column + 1].flip(0)):
        assert (line.diff() <= 1e-6).all()


@pytest.mark.parametrize("seed", range(10))
def test_glare_brightens_small_spots_to_nearly_white(seed):
    change = changed_by(augment.Glare(4), torch.full((3, 96, 96), 0.4), seed)
    assert change.min() >= 0
    spots = (change.amin(dim=0) > 0.05).float().mean()
    assert 0 < spots < 0.04
    assert change.max() > 0.25


def test_glare_prefers_bright_tissue():
    picture = torch.full((3, SIDE, SIDE), 0.1)
    picture[:, :, SIDE // 2 :] = 0.6
    change = sum(changed_by(augment.Glare(4), picture, seed) > 0.05 for seed in range(20))[0]
    assert change[:, SIDE // 2 :].sum() > 5 * change[:, : SIDE // 2].sum()


@pytest.mark.parametrize("seed", range(10))
def test_mucus_pales_one_place(seed):
    picture = torch.tensor([0.7, 0.2, 0.2])[:, None, None].expand(3, SIDE, SIDE)
    change = changed_by(augment.Mucus(0.7), picture, seed)
    covered = change[1] > 0.05
    assert 0.002 < covered.float().mean() < 0.35
    after = picture + change
    saturation = after.amax(dim=0) - after.amin(dim=0)
    assert saturation[covered].max() < 0.5
    untouched = change.abs().amax(dim=0) < 1e-6
    assert untouched.float().mean() > 0.5


def test_white_balance_weakens_channels_by_factors():
    change = changed_by(augment.WhiteBalance(1.25), torch.full((3, 4, 4), 0.5), 0)
    gain = 1 + change / 0.5
    torch.testing.assert_close(gain, gain[:, :1, :1].expand(3, 4, 4))
    assert 0.8 <= gain.min() < gain.max() <= 1


def test_gamma_keeps_black_and_white_and_goes_both_ways():
    ramp = torch.linspace(0, 1, 11).expand(3, 4, 11)
    middles = []
    for seed in range(20):
        after = ramp + changed_by(augment.Gamma(1.3), ramp, seed)
        assert after[0, 0, 0] == 0 and after[0, 0, -1] == 1
        middles.append(after[0, 0, 5].item())
    assert 0.5**1.3 <= min(middles) < 0.5 < max(middles) <= 0.5 ** (1 / 1.3)


def test_defocus_blurs_and_keeps_the_light():
    picture = (torch.rand(1, SIDE, SIDE, generator=generator()) > 0.5).float().expand(3, -1, -1)
    for seed in range(10):
        after = picture + changed_by(augment.Defocus(2), picture, seed)
        assert after.std() < 0.9 * picture.std()
        assert after.mean().item() == pytest.approx(picture.mean().item(), abs=0.02)


def test_lit_only_leaves_dark_pixels_and_changes_lit_ones():
    levels = torch.tensor([0.0, 8, 20, 32, 200]) / 255
    picture = levels.expand(3, 2, 5).clone()
    after = augment.LitOnly([v2.Lambda(lambda pixels: torch.full_like(pixels, 0.9))])(picture)
    torch.testing.assert_close(after[0, 0], torch.tensor([0, 8 / 255, 0.489216, 0.9, 0.9]))
    # One bright channel is enough to be lit.
    picture[1] = 1.0
    after = augment.LitOnly([v2.Lambda(torch.zeros_like)])(picture)
    assert not after.any()


# Mixtures

classes_of_a_batch = st.lists(st.integers(0, 6), min_size=1, max_size=40)


@given(classes_of_a_batch, st.floats(0, 1), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_a_left_picture_is_never_mixed_with_a_right_one_of_its_site(classes, share, seed):
    classes = torch.tensor(classes)
    partner, weight = augment.draw_partners(classes, share, generator(seed))
    assert partner.dtype == torch.int64 and weight.dtype == torch.float32
    assert ((weight >= 0.5) & (weight <= 1)).all()
    for row, (other, kept) in enumerate(zip(partner.tolist(), weight.tolist(), strict=True)):
        one, two = int(classes[row]), int(classes[other])
        assert one == two or SITE_OF[one] != SITE_OF[two]
        assert other != row or kept == 1


def test_partners_are_drawn_for_the_asked_share_of_pictures():
    throats = torch.full((4000,), 6)
    for share in (0.0, 0.25, 1.0):
        partner, _ = augment.draw_partners(throats, share, generator())
        mixed = partner != torch.arange(4000)
        assert mixed.float().mean() == pytest.approx(share, abs=0.03)


def test_weights_are_of_a_folded_beta_distribution():
    _, weight = augment.draw_partners(torch.full((20_000,), 6), 1.0, generator())
    drawn = np.random.default_rng(0).beta(augment.MIX_ALPHA, augment.MIX_ALPHA, 20_000)
    want = np.quantile(np.maximum(drawn, 1 - drawn), [0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(np.quantile(weight, [0.1, 0.3, 0.5, 0.7, 0.9]), want, atol=0.015)


def test_draws_depend_on_the_size_of_the_batch_alone():
    plans = []
    for classes, share in ((torch.arange(12) % 7, 0.3), (torch.zeros(12, dtype=torch.long), 0.9)):
        drawn = generator(5)
        partner, weight = augment.draw_partners(classes, share, drawn)
        pictures = torch.full((12, 3, 8, 8), int(100 * share), dtype=torch.uint8)
        augment.mix_views(pictures, classes, partner, weight, generator=drawn)
        plans.append(drawn.get_state())
    assert torch.equal(*plans)


def constant_pictures(count, side):
    """Grey pictures of levels 0, 20, 40, ...: (count, 3, side, side)."""
    levels = torch.arange(count) * 20
    return levels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, side, side).contiguous()


@given(st.integers(0, 2**31), st.integers(8, 40))
@settings(max_examples=40, deadline=None)
def test_soft_targets_are_the_shares_of_the_pixels(seed, side):
    classes = torch.arange(7)
    pictures = constant_pictures(7, side)
    partner = classes.roll(3)
    weight = torch.rand(7, generator=generator(seed))
    mixed, targets = augment.mix_views(
        pictures, classes, partner, weight, generator=generator(seed + 1)
    )
    assert mixed.dtype == torch.uint8 and targets.shape == (7, 7)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(7))
    assert torch.equal(pictures, constant_pictures(7, side))
    levels = torch.arange(7.0) * 20
    for row in range(7):
        own, other = targets[row, row].item(), targets[row, partner[row]].item()
        want = own * levels[row] + other * levels[partner[row]]
        assert mixed[row].float().mean().item() == pytest.approx(want.item(), abs=0.51)
        # Whole pixels: each side of a pasted rectangle is off by half a pixel at most.
        assert own == pytest.approx(weight[row].item(), abs=1.5 / side)


def test_both_ways_of_mixing_occur_and_a_patch_is_pasted_in_its_own_place():
    rng = generator(1)
    pictures = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8, generator=rng)
    partner = torch.arange(200).roll(1)
    mixed, targets = augment.mix_views(
        pictures, torch.zeros(200).long(), partner, torch.full((200,), 0.6), generator=rng
    )
    assert torch.equal(targets[:, 0], torch.ones(200))  # of one class, mixed or not
    own, other = (mixed == pictures).all(dim=1), (mixed == pictures[partner]).all(dim=1)
    pasted = (own | other).all(dim=(1, 2))
    assert 70 < pasted.sum() < 130
    for patch in (~own)[pasted]:  # a filled rectangle
        rows, columns = patch.any(dim=1), patch.any(dim=0)
        assert patch.sum() >= 0.95 * rows.sum() * columns.sum()
        assert patch.float().mean() == pytest.approx(0.4, abs=0.08)
    blended = (0.6 * pictures.float() + 0.4 * pictures[partner].float()).round()
    assert ((mixed - blended).abs().amax(dim=(1, 2, 3)) <= 1)[~pasted].all()


def test_weight_one_keeps_the_pictures_and_their_classes():
    pictures = constant_pictures(7, 16)
    mixed, targets = augment.mix_views(
        pictures, torch.arange(7), torch.arange(7).roll(2), torch.ones(7), generator=generator()
    )
    assert torch.equal(mixed, pictures)
    assert torch.equal(targets, torch.eye(7))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_that_is_no_probability_is_named(share):
    with pytest.raises(ValueError, match="share: expected a probability"):
        augment.draw_partners(torch.arange(7), share, generator())

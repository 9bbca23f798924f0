"""What a picture looks like in training: views that keep its class, and mixtures of two views.

Which side a structure lies on is the label, so no view is mirrored unless its class is too,
none is turned far, and a left picture is never mixed with a right one of the same site.

Views depend on a picture and its seed alone, mixtures on a generator that the caller seeds:
the same plan gives the same pictures in any order, process or number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from scipy.special import betaincinv
from torch import Generator, Tensor
from torch.nn import functional as nn_functional
from torchvision.transforms import InterpolationMode, v2

from entrep.labels import CLASS_NAMES, SITE_OF
from entrep.preprocess import mirror

TURN, MOST_TURN = 15.0, 20.0  # degrees at strength 1, and at any
MOST_JITTER = 0.45  # of brightness, contrast, saturation; more makes some pictures unreadable
# Levels (of 1) between which a pixel passes from the black surround to the lit tissue.
DARK, LIT = 8 / 255, 32 / 255
COARSE_PX = 24  # side on which smooth fields are computed before they are scaled up
GLARE_PX = 96  # side of the least grid that shows the smallest reflection
MIX_ALPHA = 0.4  # of the Beta distribution of weights


def training_augmentation(strength: float = 1.0) -> v2.Transform:
    """Changes of one prepared picture, (3, S, S) uint8 to the same, that keep its class.

    The scope is held a little differently (turned by at most 15 degrees, shifted, nearer or
    farther), its light and camera differ (brightness, contrast, colour, gamma, fall-off of the
    light, blur, sensor noise), and there are wet reflections and mucus where there were none.
    Nothing is mirrored, and what is black stays black.

    Random numbers come from PyTorch's global generator alone.

    Args:
        strength: 0 (the picture as it is) .. 2; scales how often and how much. The turn never
            exceeds 20 degrees.

    Raises:
        ValueError: if strength is outside 0..2.
    """
    if not 0 <= strength <= 2:
        raise ValueError(f"strength: expected 0 (no change) to 2, got {strength}.")
    if strength == 0:
        return v2.Identity()
    turn = min(TURN * strength, MOST_TURN)
    jitter = min(0.3 * strength, MOST_JITTER)
    # In the order in which light meets them: tissue, lamp, lens, camera.
    changes = [
        v2.RandomApply([Mucus(min(0.7 * strength, 0.9))], p=0.15 * strength),
        v2.RandomApply([Glare(math.ceil(4 * strength))], p=0.3 * strength),
        v2.RandomApply([LightFallOff(0.6 * strength)], p=0.4 * strength),
        v2.RandomApply([Defocus(1 + strength)], p=0.2 * strength),
        v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter),
        v2.RandomApply([WhiteBalance(1 + 0.1 * strength)], p=0.4 * strength),
        v2.RandomApply([Gamma(1 + 0.3 * strength)], p=0.3 * strength),
        v2.RandomApply([v2.GaussianNoise(sigma=0.015 * strength)], p=0.3 * strength),
    ]
    return v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomAffine(
                degrees=turn,
                translate=(0.06 * strength, 0.06 * strength),
                scale=(1 - 0.1 * strength, 1 + 0.2 * strength),
                interpolation=InterpolationMode.BILINEAR,
            ),
            LitOnly(changes),
            v2.ToDtype(torch.uint8, scale=True),
        ]
    )


def training_view(
    picture: Tensor, augment: v2.Transform, *, seed: int, mirrored: bool = False
) -> Tensor:
    """One view of a picture: the same for the same picture and seed, whatever ran before.

    Neither reads nor moves PyTorch's global generators.

    Args:
        picture: (3, S, S) uint8.
        augment: changes that keep the class, such as `training_augmentation()`.
        seed: of this view; two that agree in their lower 32 bits are one.
        mirrored: turn the view left to right. Its class is then `preprocess.mirror_classes`'s.

    Returns:
        (3, S, S) uint8.
    """
    with torch.random.fork_rng(devices=[]):
        # Unlike torch.manual_seed this leaves the accelerators' generators alone.
        torch.default_generator.manual_seed(seed)
        view = augment(picture)
    return mirror(view) if mirrored else view


# ---------------------------------------------------------------- scope and tissue


class LitOnly(v2.Transform):
    """Applies other transforms one after the other, but only where the picture is lit.

    Pixels whose brightest channel is below `DARK` stay what they are, those above `LIT` are
    wholly changed: contrast, blur, reflections and noise leave the black around the disc black.
    """

    def __init__(self, transforms: Sequence[v2.Transform]) -> None:
        super().__init__()
        self.inner = v2.Compose(transforms)

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(3, H, W) float in 0..1 to the same."""
        lit = ((inpt.amax(dim=-3, keepdim=True) - DARK) / (LIT - DARK)).clamp_(0, 1)
        return torch.lerp(inpt, self.inner(inpt), lit).clamp_(0, 1)


class WhiteBalance(v2.Transform):
    """Weakens each channel by a factor of its own between 1 / `most` and 1."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factors, (3,)."""
        return {"gain": self.most ** _draws(-1, 0, 3)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(3, H, W) float in 0..1 to the same."""
        return inpt * params["gain"].view(3, 1, 1).to(inpt)


class Gamma(v2.Transform):
    """Raises the levels to a power between 1 / `most` and `most`: both are as likely."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the power."""
        return {"power": self.most ** _draw(-1, 1)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(3, H, W) float in 0..1 to the same."""
        return inpt.pow(params["power"])


class LightFallOff(v2.Transform):
    """Darkens with the distance from where the lamp points: by 1 / (1 + fall r²).

    r is 1 at half a side; `fall` lies between 0.2 `most` and `most`. The lamp's centre is within
    a quarter of the side from the picture's.
    """

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the fall and the centre."""
        at = (_draw(-0.5, 0.5), _draw(-0.5, 0.5))
        return {"fall": self.most * _draw(0.2, 1), "at": at}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(3, H, W) float in 0..1 to the same, nowhere brighter."""
        x, y = _plane(COARSE_PX)
        dx, dy = x - params["at"][0], y - params["at"][1]
        light = 1 / (1 + params["fall"] * (dx * dx + dy * dy))
        return inpt * _scaled_up(light, inpt)


class Defocus(v2.Transform):
    """Blurs a picture: scales it down, by at most `most`, and up again.

    Four times as fast as a Gaussian filter, and as strong on a small picture as on a large one.
    """

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the scale."""
        return {"scale": self.most ** _draw(0.3, 1)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(3, H, W) float in 0..1 to the same."""
        size = list(inpt.shape[-2:])
        small = [max(1, round(length / params["scale"])) for length in size]
        return v2.functional.resize(v2.functional.resize(inpt, small, antialias=True), size)


class Glare(v2.Transform):
    """Adds 1 to `most` reflections of the lamp on wet tissue, more often where it is bright.

    A reflection is a small bright spot, up to four times as long as it is wide, with a smaller
    one beside it.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the spots: places, half axes and tilt, and their colour (3,)."""
        count = int(torch.randint(1, self.most + 1, ()))
        grey = _brightness(flat_inputs[0], COARSE_PX).flatten()
        cell = torch.multinomial(grey.square() + 1e-6, count, replacement=True)
        x, y = (
            (at + _draws(0, 1, count)) * (2 / COARSE_PX) - 1
            for at in (cell % COARSE_PX, cell // COARSE_PX)
        )
        # Each has a smaller companion, which it hides where they are close.
        turn, away = _draws(0, 2 * math.pi, count), _draws(0, 0.12, count)
        short = _draws(0.012, 0.035, count)
        short = torch.cat([short, short * _draws(0.4, 0.9, count)])
        spots = {
            "x": torch.cat([x, x + away * turn.cos()]),
            "y": torch.cat([y, y + away * turn.sin()]),
            "short": short,
            "long": short * 4 ** _draws(0, 1, 2 * count),
            "tilt": _draws(0, math.pi, 2 * count),
        }
        colour = 1 - _draw(0, 0.12) * torch.tensor([0.2, 0.4, 1.0])
        return {**spots, "colour": colour, "opacity": _draw(0.75, 1)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(3, H, W) float in 0..1 to the same, brighter where there is a reflection."""
        x, y = _plane(max(inpt.shape[-1] // 2, GLARE_PX))
        dx, dy = x - params["x"][:, None, None], y - params["y"][:, None, None]
        cosine, sine = (part(params["tilt"])[:, None, None] for part in (torch.cos, torch.sin))
        along = (dx * cosine + dy * sine) / params["long"][:, None, None]
        across = (dy * cosine - dx * sine) / params["short"][:, None, None]
        # 1 in the middle; it falls to 0 between 0.6 and 1.4 of the half axes.
        distance = (along * along + across * across).sqrt_().amin(dim=0)
        spot = ((1.4 - distance) / 0.8).clamp_(0, 1)
        cover = params["opacity"] * _scaled_up(spot, inpt)
        bright = torch.maximum(inpt, params["colour"].view(3, 1, 1).to(inpt))
        return torch.lerp(inpt, bright, cover)


class Mucus(v2.Transform):
    """Lays a half-transparent strand or blob of whitish or yellowish mucus over the tissue.

    Covers at most `most` of the light that comes from below it.
    """

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the strand's middle, direction, half length and width, its outline and colour."""
        return {
            "at": (_draw(-0.6, 0.6), _draw(-0.6, 0.6)),
            "tilt": _draw(0, math.pi),
            "half": _draw(0, 0.5),
            "width": _draw(0.06, 0.16),
            "waves": torch.randn(1, 1, 6, 6),
            "colour": torch.lerp(
                torch.tensor([0.95, 0.93, 0.88]), torch.tensor([0.90, 0.82, 0.52]), _draw(0, 1)
            ),
            "opacity": self.most * _draw(0.5, 1),
        }

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(3, H, W) float in 0..1 to the same."""
        side = 2 * COARSE_PX
        x, y = _plane(side)
        waves = nn_functional.interpolate(params["waves"], size=(side, side), mode="bicubic")[0, 0]
        dx, dy = x - params["at"][0], y - params["at"][1]
        cosine, sine = math.cos(params["tilt"]), math.sin(params["tilt"])
        along, across = dx * cosine + dy * sine, dy * cosine - dx * sine + 0.06 * waves
        beyond = (along.abs() - params["half"]).clamp(min=0)
        distance = (beyond.square() + across.square()).sqrt() / params["width"]
        cover = (2 - 1.5 * distance + 0.3 * waves).clamp(0, 1) * params["opacity"]
        # Mucus is lit as the tissue around it is.
        light = _brightness(inpt, COARSE_PX)
        light = 0.2 + 0.8 * (light / light.max().clamp(min=DARK)).sqrt()
        paint = params["colour"].view(3, 1, 1).to(inpt) * _scaled_up(light, inpt)
        return torch.lerp(inpt, paint, _scaled_up(cover, inpt))


def _draw(low: float, high: float) -> float:
    """A number from low to high by the global generator, all as likely."""
    return low + (high - low) * float(torch.rand(()))


def _draws(low: float, high: float, count: int) -> Tensor:
    """`count` such numbers, (count,) float32."""
    return low + (high - low) * torch.rand(count)


def _plane(side: int) -> tuple[Tensor, Tensor]:
    """Where the pixels' middles lie from -1 (left, top) to 1: x (1, side) and y (side, 1)."""
    at = (torch.arange(side) + 0.5) * (2 / side) - 1
    return at[None, :], at[:, None]


def _brightness(picture: Tensor, side: int) -> Tensor:
    """(3, H, W) float to the mean of its channels on a coarse grid, (side, side)."""
    return nn_functional.adaptive_avg_pool2d(picture.mean(dim=0, keepdim=True), side)[0]


def _scaled_up(field: Tensor, picture: Tensor) -> Tensor:
    """A coarse (h, w) field on the pixels of a picture (3, H, W): (1, H, W)."""
    size = tuple(picture.shape[-2:])
    return nn_functional.interpolate(field[None, None], size=size, mode="bilinear")[0].to(picture)


# ---------------------------------------------------------------- mixtures


def draw_partners(class_index: Tensor, share: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw which other picture of the batch each picture is mixed with, and how much of it stays.

    Weights follow mixup (Zhang et al., arXiv 1710.09412), w from Beta(0.4, 0.4), folded to
    max(w, 1 - w): the first picture is the one that dominates. Partners follow a random
    permutation of the batch, as there, except that they are of the same class or of another
    site: between a left and a right nose there is nothing.

    Args:
        class_index: (B,) int64, the classes of the views, after any mirroring.
        share: probability 0..1 that a picture is mixed, given that its partner suits it.
        generator: on the CPU; what is drawn from it depends on B alone.

    Returns:
        partner (B,) int64 and weight (B,) float32 in 0.5..1, both on the CPU. Pictures that are
        not mixed are their own partners and have weight 1.

    Raises:
        ValueError: if share is outside 0..1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a probability from 0 to 1, got {share}.")
    classes = class_index.cpu()
    count = len(classes)
    partner = torch.randperm(count, generator=generator)
    chosen = torch.rand(count, generator=generator) < share
    # Beta(a, a) is symmetric, so its upper half is the folded distribution. By the inverse of
    # its distribution function each weight takes one number, where a sampler takes any number.
    upper = 0.5 + 0.5 * torch.rand(count, generator=generator, dtype=torch.float64)
    weight = torch.from_numpy(betaincinv(MIX_ALPHA, MIX_ALPHA, upper.numpy())).float()
    site = torch.tensor(SITE_OF)[classes]
    suits = (classes == classes[partner]) | (site != site[partner])
    own = torch.arange(count)
    mixed = chosen & suits & (partner != own)
    return torch.where(mixed, partner, own), torch.where(mixed, weight, 1.0)


def mix_views(
    pictures: Tensor,
    class_index: Tensor,
    partner: Tensor,
    weight: Tensor,
    *,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Mix pictures with their partners, and their classes in the same shares.

    A coin decides for each picture: mixup (Zhang et al., arXiv 1710.09412) blends the two;
    CutMix (Yun et al., arXiv 1905.04899) pastes a rectangle of the partner, from the same place
    so that anatomy stays where it was. Unlike Yun's, the rectangle lies wholly in the picture:
    its area is 1 - weight, up to whole pixels.

    Args:
        pictures: (B, 3, S, S) uint8.
        class_index: (B,) int64.
        partner: (B,) int64, row of the picture to mix with.
        weight: (B,) float32 in 0..1, the share of the picture itself.
        generator: on the CPU; what is drawn from it depends on B alone.

    Returns:
        Mixed pictures, shaped like the given ones, which are not changed; and targets
        (B, 7) float32 in rows that sum to 1, by the shares of the pixels.
    """
    count, side = len(pictures), pictures.shape[-1]
    coin, left, top, stretch = torch.rand(4, count, generator=generator)
    weight, device = weight.cpu(), pictures.device
    kept = torch.where(
        (coin < 0.5)[:, None, None],
        weight[:, None, None].expand(count, side, side),
        ~_rectangles(1 - weight, left, top, stretch, side),
    ).to(device)
    class_index, partner = class_index.to(device), partner.to(device)
    own = kept.mean(dim=(1, 2))[:, None]
    one_hot = nn_functional.one_hot(class_index, len(CLASS_NAMES)).float()
    targets = own * one_hot + (1 - own) * one_hot[partner]
    rows = torch.nonzero(weight < 1)[:, 0].to(device)
    mixed = pictures.clone()
    blend = torch.lerp(
        pictures[partner[rows]].float(), pictures[rows].float(), kept[rows].unsqueeze(1)
    )
    mixed[rows] = blend.round_().to(torch.uint8)
    return mixed, targets


def _rectangles(area: Tensor, left: Tensor, top: Tensor, stretch: Tensor, side: int) -> Tensor:
    """One rectangle in each of B squares of `side` pixels: (B, side, side) bool.

    Args:
        area: (B,) shares of the square that they cover.
        left: (B,) in 0..1, where they lie between the left edge and the right.
        top: (B,) in 0..1, between the upper edge and the lower.
        stretch: (B,) in 0..1: how much wider than high, from 1 : 2 to 2 : 1.
        side: pixels.
    """
    # Not so long that it would reach beyond the square.
    aspect = (2 ** (2 * stretch - 1)).clamp(area, 1 / area.clamp(min=1e-6))
    width = (side * (area * aspect).sqrt()).round()
    height = (side * (area / aspect).sqrt()).round()
    at = torch.arange(side)
    x, y = ((start * (side - length)).round() for start, length in ((left, width), (top, height)))
    across = (at >= x[:, None]) & (at < (x + width)[:, None])
    down = (at >= y[:, None]) & (at < (y + height)[:, None])
    return down[:, :, None] & across[:, None, :]

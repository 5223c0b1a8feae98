"""Damaged real pictures, by which the metric itself is checked: what each figure should see."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from demo.world.catalogue import BACKGROUNDS

PAIRS = (  # (worse, better, figure); "" is undamaged
    ("blur_3", "", "swd"), ("blur_5", "blur_3", "swd"), ("blur_5", "blur_3", "fd"), ("blur_5", "blur_3", "kid"),
    ("half_size", "", "swd"), ("noise_5", "", "swd"), ("noise_10", "noise_5", "swd"), ("noise_10", "noise_5", "fd"),
    ("noise_10", "noise_5", "kid"), ("one_style", "", "fd"), ("one_style", "", "kid"), ("one_style", "", "spread"),
    ("one_style", "", "style"), ("blocks", "blur_5", "fd"), ("blocks", "blur_5", "concept"), ("grey", "blur_5", "fd"),
    ("grey", "", "concept"), ("wrong_prompts", "", "concept"), ("wrong_prompts", "", "doubt"),
)  # fmt: skip
HIGHER_IS_BETTER = ("concept", "style", "background", "worst_concept", "spread")


@dataclass(frozen=True)
class Damage:
    """One kind of damage: its name in files, and in the table."""

    name: str
    title: str

    def apply(self, pictures):
        """Damage pictures (N, 3, S, S) in -1..1 that lie in the order of the prompts."""
        return _APPLY[self.name](pictures).clamp(-1, 1)

    def prompts(self, prompts):
        """The prompts whose real pictures are damaged, in place of the right ones."""
        return [text.replace(" fluent ", " noto ") for text in prompts] if self.name == "one_style" else list(prompts)


def violations(figures):
    """The PAIRS that do not hold for ``{damage name: figures}``; pairs with a missing one are left out."""
    found = []
    for worse, better, name in PAIRS:
        if worse in figures and better in figures:
            gap = figures[worse][name] - figures[better][name]
            if (-gap if name in HIGHER_IS_BETTER else gap) <= 0:
                found.append((worse, better, name))
    return found


def _blur(side):
    return lambda x: F.avg_pool2d(F.pad(x, [side // 2] * 4, mode="reflect"), side, stride=1)


def _half_size(x):
    small = F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)


def _noise(share):
    # of the range, which is 2 wide
    return lambda x: x + 2 * share * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def _blocks(x, side=16):
    count = x.shape[-1] // side
    tiles = x.unfold(2, side, side).unfold(3, side, side).flatten(2, 3)
    generator = torch.Generator().manual_seed(2)
    order = torch.stack([torch.randperm(count * count, generator=generator) for _ in x])
    tiles = tiles.gather(2, order[:, None, :, None, None].expand_as(tiles)).unflatten(2, (count, count))
    return tiles.permute(0, 1, 2, 4, 3, 5).reshape(x.shape)


_APPLY = {
    "blur_3": _blur(3),
    "blur_5": _blur(5),
    "half_size": _half_size,
    "noise_5": _noise(0.05),
    "noise_10": _noise(0.10),
    "one_style": lambda x: x,
    "blocks": _blocks,
    "grey": lambda x: x.mean(1, keepdim=True).expand_as(x),
    "wrong_prompts": lambda x: x.roll(len(BACKGROUNDS), 0),  # the next concept's
}
DAMAGES = (
    Damage("blur_3", "blurred, 3 x 3"),
    Damage("blur_5", "blurred, 5 x 5"),
    Damage("half_size", "64 px scaled up"),
    Damage("noise_5", "noise, 5 %"),
    Damage("noise_10", "noise, 10 %"),
    Damage("blocks", "blocks shuffled"),
    Damage("grey", "grey"),
    Damage("wrong_prompts", "right pictures, wrong prompts"),
    Damage("one_style", "one style only"),  # last: it starts from other pictures
)

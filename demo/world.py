"""What the demo's models are trained and judged on: prompts without a text encoder, and jittered drawings.

Each word of a prompt has one fixed Gaussian vector, seeded by its text. Images come at any size, from an explicit
generator.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional as F

# concept word in a prompt -> icon name in the Iconify packages
CONCEPTS = {
    "apple": "red-apple",
    "watermelon": "watermelon",
    "heart": "red-heart",
    "panda": "panda",
    "sunglasses": "smiling-face-with-sunglasses",
    "frog": "frog",
    "mushroom": "mushroom",
    "doughnut": "doughnut",
    "tree": "evergreen-tree",
    "star": "star",
    "burger": "hamburger",
    "penguin": "penguin",
}

# more of them, for a larger world (benchmarks.gpu_world)
MORE_CONCEPTS = {
    "banana": "banana",
    "strawberry": "strawberry",
    "pizza": "pizza",
    "balloon": "balloon",
    "cactus": "cactus",
    "tulip": "tulip",
    "sunflower": "sunflower",
    "pig": "pig-face",
    "fox": "fox",
    "chick": "hatching-chick",
    "octopus": "octopus",
    "fish": "tropical-fish",
    "rocket": "rocket",
    "house": "house",
    "umbrella": "umbrella",
    "gift": "wrapped-gift",
    "moon": "crescent-moon",
    "guitar": "guitar",
}

# style word in a prompt -> Iconify package; the teacher learns the first two
STYLES = {
    "noto": "noto",
    "fluent": "fluent-emoji-flat",
    "blob": "noto-v1",
    "twemoji": "twemoji",
    "emojione": "emojione",
}
TEACHER_STYLES = ("noto", "fluent")
SEEN_STYLES = ("noto", "fluent", "blob", "twemoji")  # autoencoder and classifier train on these
HELD_OUT_STYLES = ("emojione",)  # no model ever trains on these drawings

# word in a prompt -> sRGB
BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (32, 32, 36),
    "blue": (70, 110, 200),
    "green": (60, 140, 90),
    "orange": (235, 150, 60),
    "pink": (240, 170, 190),
}

TOKENS = 3  # concept, style, background
WIDTH = 64
ENCODER = "rmd-demo-words-3x64"

DRAWINGS_FILE = Path(__file__).parent / "data" / "drawings.npz"
SIDE = 256  # px of the stored drawings

# one jitter is (scale, angle in degrees, dx, dy as shares of the image); each range is cut into
# cells, and the cells on one diagonal of eight are held out, so both halves have the same marginals
JITTER_LOW = torch.tensor([0.80, -8.0, -0.05, -0.05])
JITTER_HIGH = torch.tensor([0.98, 8.0, 0.05, 0.05])
JITTER_CELLS = 8


def prompt(concept, style, background):
    """The prompt of one kind of image, such as ``apple noto on-blue``."""
    return f"{concept} {style} on-{background}"


def word_vector(word):
    """The vector (WIDTH,) of one word, the same on every machine."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big")
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def embed(prompt):
    """Up to TOKENS words in order as (TOKENS, WIDTH); the slots of missing words, or of ``*``, are zero."""
    words = prompt.split()
    if len(words) > TOKENS:
        raise ValueError(f"{prompt!r} has {len(words)} words; the demo world knows at most {TOKENS}")
    slots = [torch.zeros(WIDTH) if word == "*" else word_vector(word) for word in words]
    return torch.stack(slots + [torch.zeros(WIDTH)] * (TOKENS - len(slots)))


def sample_jitter(count, generator, *, held_out):
    """Jitters (count, 4) from the training cells, or from the held-out cells that no model trains on."""
    kept = []
    while sum(len(part) for part in kept) < count:
        unit = torch.rand(16 * count, 4, generator=generator)
        diagonal = (unit * JITTER_CELLS).long().sum(1) % JITTER_CELLS
        kept.append(unit[(diagonal == 0) == held_out])
    return JITTER_LOW + torch.cat(kept)[:count] * (JITTER_HIGH - JITTER_LOW)


class Drawings:
    """The drawings of some styles, rendered as batches of jittered images on flat backgrounds.

    ``pairs``: of style and concept; None: every one of CONCEPTS in each of the ``styles``.
    """

    def __init__(self, styles, pairs=None):
        pairs = pairs or [(style, concept) for style in styles for concept in CONCEPTS]
        with np.load(DRAWINGS_FILE) as archive:
            rgba = np.stack([archive[f"{style}/{concept}"] for style, concept in pairs])
        rgba = rearrange(torch.from_numpy(rgba), "n h w c -> n c h w").float() / 255
        self.premultiplied_BCHW = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
        self.styles = [style for style, _ in pairs]
        self.concepts = [concept for _, concept in pairs]
        self.backgrounds = list(BACKGROUNDS)
        self._background_rgb = torch.tensor(list(BACKGROUNDS.values())).float() / 255

    def to(self, device):
        """Render on this device from now on; returns itself."""
        self.premultiplied_BCHW = self.premultiplied_BCHW.to(device)
        self._background_rgb = self._background_rgb.to(device)
        return self

    def __len__(self):
        return len(self.concepts)

    def render(self, index, background, jitter, *, side):
        """Images (B, 3, side, side) in -1..1.

        index, background: (B,) integers into ``concepts`` and ``backgrounds``; jitter: (B, 4) as from
        ``sample_jitter``; side: px, at most SIDE.
        """
        device = self.premultiplied_BCHW.device
        index, background, jitter = index.to(device), background.to(device), jitter.to(device)
        scale, angle, dx, dy = jitter.unbind(1)
        radians = angle * (math.pi / 180)
        cos, sin = torch.cos(radians) / scale, torch.sin(radians) / scale
        theta = rearrange([cos, -sin, -2 * dx, sin, cos, -2 * dy], "(r c) b -> b r c", r=2)
        canvas = 2 * side if 2 * side <= SIDE else SIDE
        source = self.premultiplied_BCHW[index]
        if SIDE // canvas > 1:
            source = F.avg_pool2d(source, SIDE // canvas)
        grid = F.affine_grid(theta, [len(index), 4, canvas, canvas], align_corners=False)
        drawn = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        image = drawn[:, :3] + (1 - drawn[:, 3:]) * rearrange(self._background_rgb[background], "b c -> b c 1 1")
        image = F.interpolate(image, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        return image * 2 - 1

    def sample(self, count, generator, *, side, held_out=False):
        """Random drawings, backgrounds and jitters: (images, index (count,), background (count,))."""
        index = torch.randint(len(self), (count,), generator=generator)
        background = torch.randint(len(self.backgrounds), (count,), generator=generator)
        jitter = sample_jitter(count, generator, held_out=held_out)
        return self.render(index, background, jitter, side=side), index, background

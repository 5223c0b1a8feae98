"""A small network that enlarges a clean latent: the learned upsampler of a switch, and its safetensors file.

It adds what it learned to a bicubic resize, so an untrained one is the bicubic resize, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch.nn import Conv2d, Module, Sequential, SiLU
from torch.nn.init import zeros_

from .boundary import check_enlargement, upsample
from .errors import RMDError, short_repr
from .files import finite_weights, read_tensors, save_safetensors, weights_digest

UPSAMPLER_KEY = "rmd.upsampler"
UPSAMPLER_VERSION = 1
LARGEST_STEP = 2
"""The largest ratio of an axis in one pass; a larger one takes several."""

_LIMITS = {"channels": (1, 4096), "width": (1, 4096), "blocks": (0, 64)}


class LatentUpsampler(Module):
    """Enlarges clean latents by any ratio: bicubic plus a learned residual; each frame of a video by itself.

    Latents are those that the diffusion network itself sees, scaled or normalised as its family does. channels: theirs;
    width: of the hidden layers; blocks: residual blocks at each of the two sizes; latents: the model family that it
    was trained for, such as `wan`. The residual starts at zero. Between the two sizes a cell receives its offset from
    the small cell under it and both ratios, after Chen et al., LIIF (arXiv 2012.09161). Raises RMDError for sizes that
    no file may have.
    """

    def __init__(self, *, channels: int, width: int, blocks: int, latents: str) -> None:
        super().__init__()
        self.channels, self.width, self.blocks, self.latents = channels, width, blocks, latents
        for name, (least, most) in _LIMITS.items():
            size = getattr(self, name)
            if type(size) is not int or not least <= size <= most:
                raise RMDError(
                    f"the upsampler's {name} is {short_repr(size, 40)}, not a whole number from {least} to {most}"
                )
        self.enter = Conv2d(channels, width, 3, padding=1)
        self.low = Sequential(*(_Block(width) for _ in range(blocks)))
        self.cross = Conv2d(width + 4, width, 3, padding=1)
        self.high = Sequential(*(_Block(width) for _ in range(blocks)))
        self.leave = Conv2d(width, channels, 3, padding=1)
        for weight in self.leave.parameters():
            zeros_(weight)

    def forward(self, x0: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
        """The latent `(B, C, [T,] h, w)` at a larger (height, width), in its dtype; at equal size `x0` itself.

        It computes in the dtype of the weights, and gradients flow through it. Raises RMDError for another number of
        channels or axes, or a target smaller than x0 in either axis.
        """
        height, width = check_enlargement(x0, size_hw)
        if x0.shape[1] != self.channels:
            raise RMDError(
                f"this upsampler is for latents of {self.channels} channels, not {x0.shape[1]}; "
                f"use one that was trained for this model (this one was for {self.latents})"
            )
        if x0.shape[-2:] == (height, width):
            return x0
        if x0.ndim == 5:
            frames = self(rearrange(x0, "b c t h w -> (b t) c h w"), (height, width))
            return rearrange(frames, "(b t) c h w -> b c t h w", b=len(x0))
        between = min(height, LARGEST_STEP * x0.shape[-2]), min(width, LARGEST_STEP * x0.shape[-1])
        if between != (height, width):
            return self(self(x0, between), (height, width))
        features = self.low(self.enter(x0.to(self.enter.weight.dtype)))
        features = upsample(features, (height, width), "nearest")
        features = self.high(self.cross(torch.cat((features, _places(features, x0.shape[-2:])), 1)))
        return upsample(x0, (height, width), "bicubic") + self.leave(features).to(x0.dtype)

    def digest(self) -> str:
        """The `files.weights_digest` by which a boundary and a recipe know these weights."""
        return weights_digest(self.state_dict().values())

    def save(self, path: str | Path) -> Path:
        """Write weights and configuration as one safetensors file. Raises RMDError as `save_safetensors` does."""
        config = {"version": UPSAMPLER_VERSION, "latents": self.latents}
        config |= {name: getattr(self, name) for name in _LIMITS}
        return save_safetensors(path, self.state_dict(), {UPSAMPLER_KEY: json.dumps(config)})


class _Block(Module):
    """x + convolution(SiLU(convolution(x))), 3 x 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = Sequential(Conv2d(width, width, 3, padding=1), SiLU(), Conv2d(width, width, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def _places(x: torch.Tensor, low_hw: tuple[int, int] | torch.Size) -> torch.Tensor:
    """For each cell of x `(B, _, H, W)`, `(B, 4, H, W)`: offsets from the centre of the small cell under it, ratios.

    Offsets are in small cells, -0.5 to 0.5; a ratio is small over large.
    """
    height, width = x.shape[-2:]
    axes = []
    for cells, low in ((height, low_hw[0]), (width, low_hw[1])):
        centres = (torch.arange(cells, device=x.device, dtype=x.dtype) + 0.5) * (low / cells)
        axes.append(centres - centres.floor() - 0.5)
    rows, columns = repeat(axes[0], "h -> h w", w=width), repeat(axes[1], "w -> h w", h=height)
    ratios = [torch.full_like(rows, low / cells) for cells, low in zip((height, width), low_hw)]
    return repeat(torch.stack([rows, columns, *ratios]), "c h w -> b c h w", b=len(x))


def read_upsampler(path: str | Path) -> LatentUpsampler:
    """The LatentUpsampler in a file, frozen, in float32 on the CPU.

    Raises RMDError, naming the file, for one that is not an RMD upsampler, is damaged, or comes from a newer version.
    """
    tensors, metadata = read_tensors(path)
    network = _outline(path, metadata)
    shapes = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    if shapes != {name: tuple(weight.shape) for name, weight in tensors.items()}:
        raise RMDError(f"{path}: its tensors are not those of its configuration; the file is damaged, use another one")
    network.load_state_dict(finite_weights(tensors, path, dtype=torch.float32), assign=True)
    return network.eval().requires_grad_(False)


def _outline(path: str | Path, metadata: Mapping[str, str]) -> LatentUpsampler:
    """The network on the meta device that the metadata of a file describe."""
    if UPSAMPLER_KEY not in metadata:
        raise RMDError(
            f"{path}: this is not an RMD upsampler; make one with training/train_upsampler.py, or give LTX's and "
            "HunyuanVideo's upscale models to the node through Load Latent Upscale Model"
        )
    try:
        config = json.loads(metadata[UPSAMPLER_KEY])
        version, latents = config["version"], config["latents"]
        sizes = {name: config[name] for name in _LIMITS}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RMDError(f"{path}: its configuration is damaged; copy or download the file again") from None
    if version != UPSAMPLER_VERSION:
        raise RMDError(
            f"{path}: the upsampler has version {short_repr(version, 40)}, this code reads version "
            f"{UPSAMPLER_VERSION}; update ComfyUI-RMD"
        )
    try:
        with torch.device("meta"):
            return LatentUpsampler(**sizes, latents=str(latents)[:80])
    except RMDError as error:
        raise RMDError(f"{path}: {error}; the file is damaged, use another one") from None

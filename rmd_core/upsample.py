"""Upsampling of latents: height and width only, half-pixel centres, no antialias."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from .broadcast import widened
from .errors import RMDError

UPSAMPLERS = ("nearest", "bicubic", "bilinear", "area")

_TORCH_MODES = {"bicubic": "bicubic", "nearest": "nearest-exact", "bilinear": "bilinear"}


def upsample(x: torch.Tensor, size_hw: tuple[int, int], method: str) -> torch.Tensor:
    """Enlarge the last two axes of a latent to `size_hw`; time and every other axis stay as they are.

    x is `(B, C, H, W)` or `(B, C, T, H, W)` of any floating dtype (half precisions are computed in float32 and cast
    once at the end); the result has the same rank, dtype and device, and gradients flow through it. At equal size `x`
    itself comes back. The kernels have torch's semantics: half-pixel centres, no antialias, bicubic a = -0.75. `area`
    is exact fractional box averaging: each target cell is the mean of the source over the box it covers. It is chosen
    over `interpolate(mode="area")`, which gives every source cell a box touches the same weight however thin the
    sliver, because only the exact form keeps the mean of the picture and shifts nothing; the two agree at whole
    ratios (where both equal `nearest`) and at 2:3.

    Raises RMDError for an unknown method, another rank, or a target smaller than the source in either axis.
    Source: docs/method.md, the boundary operation.
    """
    if method not in UPSAMPLERS:
        raise RMDError(f"upsampler {method!r} is unknown; use one of {', '.join(UPSAMPLERS)}")
    height, width = check_enlargement(x, size_hw)
    if x.shape[-2:] == (height, width):
        return x
    if method == "area":
        return area_average(x, (height, width))
    maps = widened(x).reshape(x.shape[0], -1, *x.shape[-2:])  # (B, C*T, H, W): time shares the channel axis
    mode = _TORCH_MODES[method]
    align = None if method == "nearest" else False
    enlarged = F.interpolate(maps, size=(height, width), mode=mode, align_corners=align)
    return enlarged.reshape(*x.shape[:-2], height, width).to(x.dtype)


def area_average(x: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """The exact box average of a tensor `(..., H, W)` at another size, larger or smaller, in its own dtype and place.

    At equal size `x` itself comes back.
    """
    height, width = size_hw
    if x.shape[-2:] == (height, width):
        return x
    working = widened(x)
    rows, columns = box_average(x.shape[-2], height).to(working), box_average(x.shape[-1], width).to(working)
    return (rows @ working @ columns.T).to(x.dtype)


def check_enlargement(x: torch.Tensor, size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return `size_hw` as two ints; RMDError unless x is 4-D or 5-D and neither axis gets smaller."""
    if x.ndim not in (4, 5):
        raise RMDError(f"a latent of shape {tuple(x.shape)} has {x.ndim} axes; use (B, C, H, W) or (B, C, T, H, W)")
    height, width = (int(cells) for cells in size_hw)
    if height < x.shape[-2] or width < x.shape[-1]:
        raise RMDError(
            f"cannot go from {x.shape[-2]}x{x.shape[-1]} to {height}x{width} cells: stages may only grow; "
            "give each stage at least the height and width of the one before"
        )
    return height, width


@lru_cache(maxsize=128)
def box_average(n_source: int, n_target: int) -> torch.Tensor:
    """Row-stochastic matrix (n_target, n_source), float64: each target cell averages the source over its own extent.

    Works in both directions; entry [i, j] is the share of target box i, `[i, i+1) * n_source/n_target`, that lies in
    source cell j. Integer arithmetic keeps the overlaps exact. The result is shared: treat it as read-only.
    """
    target = torch.arange(n_target, dtype=torch.int64).unsqueeze(1)
    source = torch.arange(n_source, dtype=torch.int64).unsqueeze(0)
    # In units of 1/n_target source cells, target box i is [i, i+1)*n_source and source cell j is [j, j+1)*n_target.
    low = torch.maximum(target * n_source, source * n_target)
    high = torch.minimum((target + 1) * n_source, (source + 1) * n_target)
    return (high - low).clamp(min=0).double() / n_source

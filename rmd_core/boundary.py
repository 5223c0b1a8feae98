"""The boundary between two stages: how a clean estimate and its noise reach a larger size.

`Boundary.switch` is the whole of it: `Boundary.enlarged` for the estimate, `Boundary.noise` for the noise. `step_noise`
is the noise between the steps of one stage.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import pack, unpack

from .errors import RMDError, short_repr
from .noise import FreshNoise
from .noising import place, to_compute_dtype

UPSAMPLERS = ("nearest", "bicubic", "bilinear", "area")
SWITCH_NOISES = ("exact", "mix", "fresh")

Learned = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]
"""A learned upsampler: a clean estimate `(B, C, [T,] h, w)` and a larger (height, width), the estimate at that size."""


class SwitchResult(NamedTuple):
    """The start of a larger size: the upsampled clean estimate `x0` and the `noise` to mix it with."""

    x0: torch.Tensor
    noise: torch.Tensor


@dataclass(frozen=True)
class Boundary:
    """The rule at a switch, one object for the sampler, the losses and validation.

    upsampler is one of `UPSAMPLERS` or the `learned_name` of a network, switch_noise one of `SWITCH_NOISES`, eta_switch
    the share of predicted noise in [0, 1]. Raises RMDError for anything else. `learned`, where given, enlarges the
    estimate in place of the named upsampler. Source: docs/method/method.md, the boundary operation.
    """

    upsampler: str = "nearest"
    switch_noise: str = "exact"
    eta_switch: float = 0.5
    learned: Learned | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.upsampler not in UPSAMPLERS and self.learned_sha256 is None:
            raise RMDError(f"upsampler {short_repr(self.upsampler)} is unknown; use one of {', '.join(UPSAMPLERS)}")
        if self.switch_noise not in SWITCH_NOISES:
            raise RMDError(
                f"switch noise {short_repr(self.switch_noise)} is unknown; use one of {', '.join(SWITCH_NOISES)}"
            )
        object.__setattr__(self, "eta_switch", check_eta(self.eta_switch, "eta_switch"))

    @property
    def learned_sha256(self) -> str | None:
        """The digest of the network that `upsampler` names (see `learned_name`), None for one of `UPSAMPLERS`."""
        match = re.search(r" sha256:([0-9a-f]{64})\Z", str(self.upsampler))
        return match and match[1]

    @property
    def uses_prediction(self) -> bool:
        """Whether any predicted noise is used; if not, a stage need not report its noise."""
        return self.switch_noise != "fresh" and self.eta_switch > 0.0

    def between(self, low_hw: tuple[int, int], high_hw: tuple[int, int], *, eta: float) -> Boundary:
        """The rule from one size to another: this one, or at equal size an ordinary step with eta predicted noise."""
        return self if low_hw != high_hw else replace(self, switch_noise="exact", eta_switch=eta)

    def switch(
        self, x0: torch.Tensor, eps: torch.Tensor | None, size_hw: tuple[int, int], fresh: FreshNoise
    ) -> SwitchResult:
        """Take a clean estimate and its predicted noise to `size_hw`; gradients flow through x0.

        x0 and eps are `(B, C, h, w)` or `(B, C, T, h, w)`; eps may be None when `uses_prediction` is false. fresh as in
        `noise`. Raises RMDError when eps is missing, or the target is smaller than x0 in either axis.
        """
        if eps is None and self.uses_prediction:
            raise RMDError(
                "the stage reported no predicted noise, which this boundary re-injects; "
                "use a sampler that reports it, or set eta_switch to 0 or switch_noise to fresh"
            )
        noise = self.noise(x0.detach() if eps is None else eps, size_hw, fresh)
        return SwitchResult(self.enlarged(x0, size_hw), noise)

    def enlarged(self, x0: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
        """The clean estimate `(B, C, [T,] h, w)` at `size_hw`, by `learned` where given; at equal size `x0` itself.

        Raises RMDError for a target smaller than x0, a network that is named and not given, or a result of another
        shape.
        """
        size = check_enlargement(x0, size_hw)
        if x0.shape[-2:] == size:
            return x0
        if self.learned is None:
            if self.learned_sha256 is not None:
                raise RMDError(f"the switch needs the learned upsampler {self.upsampler}; load it and give it here")
            return upsample(x0, size, self.upsampler)
        result = self.learned(x0, size)
        if result.shape != (*x0.shape[:-2], *size):
            raise RMDError(
                f"the learned upsampler turned {tuple(x0.shape)} into {tuple(result.shape)}, not "
                f"{(*x0.shape[:-2], *size)}; use one for the latents of this model"
            )
        return result.to(x0)

    def noise(self, eps: torch.Tensor, size_hw: tuple[int, int], fresh: FreshNoise) -> torch.Tensor:
        """Noise for the first state at a larger size, from the noise predicted at the smaller one.

        eps is `(B, C, H, W)` or `(B, C, T, H, W)`; the result has its dtype and device and the height and width of
        `size_hw`. By `switch_noise`, with eta = eta_switch:

        - `exact`: `Q^T (eta eps + sqrt(1-eta^2) zeta) + (I - Q^T Q) xi` with the orthonormal rows Q of
          `orthonormal_rows` per axis. White for every ratio and every eta when eps is; reading it back with Q returns
          what went in.
        - `mix`: `eta upsample(eps) + sqrt(1-eta^2) xi`, the authors' interpolated noise, coloured for eta > 0 (bicubic
          where `upsampler` names a network).
        - `fresh`: xi alone.

        xi is `fresh("switch", shape at size_hw)` and zeta `fresh("switch-low", eps.shape)`; only what a rule uses is
        asked for. eta 0 uses nothing of eps; eta 1 no zeta; at equal size Q is the identity, so xi drops out.

        Raises RMDError for a target smaller than eps. Source: docs/method/method.md, the boundary operation.
        """
        rule, eta = self.switch_noise, self.eta_switch
        height, width = check_enlargement(eps, size_hw)
        high_shape = (*eps.shape[:-2], height, width)
        working = to_compute_dtype(eps)
        if rule == "exact":
            zeta = None if eta == 1.0 else fresh("switch-low", tuple(eps.shape))
            noise = step_noise(working, eta, zeta)
            if eps.shape[-2:] != (height, width):
                noise = embed_noise(noise, fresh("switch", high_shape))
        elif rule == "fresh" or eta == 0.0:
            noise = place(fresh("switch", high_shape), working.device, working.dtype)
        else:
            kernel = "bicubic" if self.learned_sha256 else self.upsampler
            predicted = upsample(working, (height, width), kernel)
            noise = step_noise(predicted, eta, None if eta == 1.0 else fresh("switch", high_shape))
        return noise.to(eps.dtype)


def learned_name(name: str, sha256: str) -> str:
    """How a boundary and a recipe name a learned upsampler: its name and the `files.weights_digest` of its weights."""
    return f"{name} sha256:{sha256}"


def check_eta(eta: float, name: str = "eta") -> float:
    """Return eta as a float; RMDError unless it is a number in [0, 1]."""
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0.0 <= eta <= 1.0:
        raise RMDError(f"{name} is {eta!r}; it must be a number from 0 (all fresh noise) to 1 (all predicted noise)")
    return float(eta)


def step_noise(eps: torch.Tensor, eta: float, fresh: torch.Tensor | None) -> torch.Tensor:
    """Mix predicted and fresh noise inside a stage: `eta eps + sqrt(1 - eta^2) fresh`.

    eps and fresh have one shape, any rank; fresh is moved to the dtype and device of eps. eta 0 uses nothing of eps
    (not even its NaNs), eta 1 nothing of fresh, which may then be None. Raises RMDError for eta outside [0, 1] or
    shapes that differ. Source: docs/method/method.md, the sampler.
    """
    eta = check_eta(eta)
    if eta == 1.0:
        return eps
    if fresh is None or fresh.shape != eps.shape:
        shape = None if fresh is None else tuple(fresh.shape)
        raise RMDError(f"fresh noise is {shape}, predicted noise {tuple(eps.shape)}; give both the same shape")
    fresh = place(fresh, eps.device, eps.dtype)
    return fresh if eta == 0.0 else eta * eps + sqrt(1.0 - eta * eta) * fresh


_TORCH_MODES = {"bicubic": "bicubic", "nearest": "nearest-exact", "bilinear": "bilinear"}


def upsample(x: torch.Tensor, size_hw: tuple[int, int], method: str) -> torch.Tensor:
    """Enlarge the last two axes of a latent to `size_hw`; time and every other axis stay as they are.

    method is one of `UPSAMPLERS`. x is `(B, C, H, W)` or `(B, C, T, H, W)` of any floating dtype (half precisions are
    computed in float32 and cast once at the end); the result has the same rank, dtype and device, and gradients flow
    through it. At equal size `x` itself comes back. The kernels have torch's semantics: half-pixel centres, no
    antialias, bicubic a = -0.75. `area` is exact fractional box averaging: each target cell is the mean of the source
    over the box it covers. It is chosen over `interpolate(mode="area")`, which gives every source cell a box touches
    the same weight however thin the sliver, because only the exact form keeps the mean of the image and shifts
    nothing; the two agree at whole ratios (where both equal `nearest`) and at 2:3.

    Raises RMDError for another rank, or a target smaller than the source in either axis.
    Source: docs/method/method.md, the boundary operation.
    """
    height, width = check_enlargement(x, size_hw)
    if x.shape[-2:] == (height, width):
        return x
    if method == "area":
        return area_average(x, (height, width))
    maps, inner = pack([to_compute_dtype(x)], "b * h w")  # time shares the channel axis
    align = None if method == "nearest" else False
    enlarged = F.interpolate(maps, size=(height, width), mode=_TORCH_MODES[method], align_corners=align)
    return unpack(enlarged, inner, "b * h w")[0].to(x.dtype)


def resize(x: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """A latent `(B, C, [T,] H, W)` at any size: an axis that grows is interpolated, bicubic, one that shrinks averaged.

    It brings the result of a learned upsampler of a fixed scale to a stage's size. At equal size `x` itself comes back.
    """
    height, width = size_hw
    grown = (max(height, x.shape[-2]), max(width, x.shape[-1]))
    return area_average(upsample(x, grown, "bicubic"), size_hw)


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


def area_average(x: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """The exact box average of a tensor `(..., H, W)` at another size, larger or smaller, in its dtype, on its device.

    At equal size `x` itself comes back.
    """
    height, width = size_hw
    if x.shape[-2:] == (height, width):
        return x
    working = to_compute_dtype(x)
    rows, columns = (_placed(box_average, *pair, working) for pair in zip(x.shape[-2:], size_hw))
    return (rows @ working @ columns.T).to(x.dtype)


@lru_cache(maxsize=128)
def box_average(n_source: int, n_target: int) -> torch.Tensor:
    """Row-stochastic matrix (n_target, n_source), float64: each target cell averages the source over its own extent.

    Works in both directions; entry [i, j] is the share of target box i, `[i, i+1) * n_source/n_target`, inside
    source cell j. Integer arithmetic keeps the overlaps exact. The result is shared: treat it as read-only.
    """
    target = torch.arange(n_target, dtype=torch.int64).unsqueeze(1)
    source = torch.arange(n_source, dtype=torch.int64).unsqueeze(0)
    # In units of 1/n_target source cells, target box i is [i, i+1)*n_source and source cell j is [j, j+1)*n_target.
    low = torch.maximum(target * n_source, source * n_target)
    high = torch.minimum((target + 1) * n_source, (source + 1) * n_target)
    return (high - low).clamp(min=0).double() / n_source


def embed_noise(low: torch.Tensor, xi: torch.Tensor) -> torch.Tensor:
    """White noise at the size of xi whose low band is `low`: `xi + Q^T (low - Q xi)`.

    low is `(B, C, [T,] h, w)` in float32 or float64, xi `(B, C, [T,] H, W)` with H >= h and W >= w; the result takes
    dtype and device of low. Each batch item is computed by itself, so its bits do not depend on its neighbours.
    """
    rows, columns = (_placed(orthonormal_rows, *pair, low) for pair in zip(low.shape[-2:], xi.shape[-2:]))
    items = []
    for low_item, xi_item in zip(low, place(xi, low.device, low.dtype), strict=True):
        missing = low_item.clone() - rows @ xi_item.clone() @ columns.T  # clone: one memory alignment for any batch
        items.append(xi_item + rows.T @ missing @ columns)
    return torch.stack(items)


@lru_cache(maxsize=128)
def orthonormal_rows(n_low: int, n_high: int) -> torch.Tensor:
    """Area-Loewdin matrix Q (n_low, n_high), float64, with orthonormal rows: Q = (B B^T)^(-1/2) B, B = box averaging.

    Q reads n_high cells down to n_low; Q^T embeds them back. A constant maps to a constant times sqrt(n_high/n_low),
    and at a whole ratio Q is sqrt(ratio) times the block mean. Equal sizes give the identity. The result is shared:
    treat it as read-only. Raises RMDError unless 1 <= n_low <= n_high.
    Source: docs/method/method.md, exact noise at a switch; symmetric orthogonalisation after Loewdin (1950).
    """
    if not 1 <= n_low <= n_high:
        raise RMDError(f"no orthonormal rows from {n_high} down to {n_low} cells; need 1 <= low <= high")
    if n_low == n_high:
        return torch.eye(n_low, dtype=torch.float64)
    average = box_average(n_high, n_low)
    eigenvalues, vectors = torch.linalg.eigh(average @ average.T)
    inverse_root = vectors @ torch.diag(eigenvalues.rsqrt()) @ vectors.T
    return inverse_root @ average


def _placed(matrix: Callable[[int, int], torch.Tensor], n_first: int, n_second: int, x: torch.Tensor) -> torch.Tensor:
    """`matrix(n_first, n_second)` in the dtype and on the device of x, moved there once."""
    return _placed_once(matrix, n_first, n_second, x.device, x.dtype)


@lru_cache(maxsize=128)
def _placed_once(
    matrix: Callable[[int, int], torch.Tensor], n_first: int, n_second: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    with torch.inference_mode(False):  # it is kept, and may be used with gradients later
        return place(matrix(n_first, n_second), device, dtype)

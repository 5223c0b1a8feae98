"""Noise re-injection: what is added to a clean estimate before the next step, inside a stage and at a switch."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import torch

from .broadcast import widened
from .errors import RMDError
from .noise_sources import FreshNoise
from .upsample import box_average, check_enlargement, upsample

SWITCH_NOISES = ("exact", "mix", "fresh")


def check_eta(eta: float, name: str = "eta") -> float:
    """Return eta as a float; RMDError unless it is a number in [0, 1]."""
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0.0 <= eta <= 1.0:
        raise RMDError(f"{name} is {eta!r}; it must be a number from 0 (all fresh noise) to 1 (all predicted noise)")
    return float(eta)


def step_noise(eps: torch.Tensor, eta: float, fresh: torch.Tensor | None) -> torch.Tensor:
    """Mix predicted and fresh noise inside a stage: `eta eps + sqrt(1 - eta^2) fresh`.

    eps and fresh have one shape, any rank; fresh is moved to the dtype and device of eps. eta 0 uses nothing of eps
    (not even its NaNs), eta 1 nothing of fresh, which may then be None. Raises RMDError for eta outside [0, 1] or
    shapes that differ. Source: docs/method.md, the sampler.
    """
    eta = check_eta(eta)
    if eta == 1.0:
        return eps
    if fresh is None or fresh.shape != eps.shape:
        came = None if fresh is None else tuple(fresh.shape)
        raise RMDError(f"fresh noise is {came} beside predicted noise {tuple(eps.shape)}; draw it in the same shape")
    fresh = fresh.to(eps)
    return fresh if eta == 0.0 else eta * eps + sqrt(1.0 - eta * eta) * fresh


def switch_noise(
    eps: torch.Tensor, size_hw: tuple[int, int], *, rule: str, eta: float, fresh: FreshNoise, upsampler: str
) -> torch.Tensor:
    """Noise for the first state at a larger size, from the noise predicted at the smaller one.

    eps is `(B, C, H, W)` or `(B, C, T, H, W)`; the result has its dtype and device and the height and width of
    `size_hw`. Rules:

    - `exact`: `Q^T (eta eps + sqrt(1-eta^2) zeta) + (I - Q^T Q) xi` with the orthonormal rows Q of `orthonormal_rows`
      per axis. White for every ratio and every eta when eps is; reading it back with Q returns what went in.
    - `mix`: `eta upsample(eps) + sqrt(1-eta^2) xi`, the authors' interpolated noise, coloured for eta > 0.
    - `fresh`: xi alone.

    xi is `fresh("switch", shape at size_hw)` and zeta `fresh("switch-low", eps.shape)`; only what a rule uses is
    drawn. eta 0 uses nothing of eps; eta 1 draws no zeta; at equal size Q is the identity, so xi drops out.

    Raises RMDError for an unknown rule, eta outside [0, 1], or a target smaller than eps.
    Source: docs/method.md, the boundary operation.
    """
    eta = check_eta(eta)
    if rule not in SWITCH_NOISES:
        raise RMDError(f"switch noise {rule!r} is unknown; use one of {', '.join(SWITCH_NOISES)}")
    height, width = check_enlargement(eps, size_hw)
    high_shape = (*eps.shape[:-2], height, width)
    working = widened(eps)
    if rule == "exact":
        zeta = None if eta == 1.0 else fresh("switch-low", tuple(eps.shape))
        noise = step_noise(working, eta, zeta)
        if eps.shape[-2:] != (height, width):
            noise = embed_noise(noise, fresh("switch", high_shape))
    elif rule == "fresh" or eta == 0.0:
        noise = fresh("switch", high_shape).to(working)
    else:
        predicted = upsample(working, (height, width), upsampler)
        noise = step_noise(predicted, eta, None if eta == 1.0 else fresh("switch", high_shape))
    return noise.to(eps.dtype)


def embed_noise(low: torch.Tensor, xi: torch.Tensor) -> torch.Tensor:
    """White noise at the size of xi whose low band is `low`: `xi + Q^T (low - Q xi)`.

    low is `(B, C, [T,] h, w)` in float32 or float64, xi `(B, C, [T,] H, W)` with H >= h and W >= w; the result takes
    dtype and device of low. Each batch item is computed by itself, so its bits do not depend on its neighbours.
    """
    rows = orthonormal_rows(low.shape[-2], xi.shape[-2]).to(low)
    columns = orthonormal_rows(low.shape[-1], xi.shape[-1]).to(low)
    items = []
    for low_item, xi_item in zip(low, xi.to(low), strict=True):
        missing = low_item.clone() - rows @ xi_item.clone() @ columns.T  # clone: one memory alignment for any batch
        items.append(xi_item + rows.T @ missing @ columns)
    return torch.stack(items)


@lru_cache(maxsize=128)
def orthonormal_rows(n_low: int, n_high: int) -> torch.Tensor:
    """Area-Loewdin matrix Q (n_low, n_high), float64, with orthonormal rows: Q = (B B^T)^(-1/2) B, B = box averaging.

    Q reads n_high cells down to n_low; Q^T embeds them back. A constant maps to a constant times sqrt(n_high/n_low),
    and at a whole ratio Q is sqrt(ratio) times the block mean. Equal sizes give the identity. The result is shared:
    treat it as read-only. Raises RMDError unless 1 <= n_low <= n_high.
    Source: docs/method.md, exact noise at a switch; symmetric orthogonalisation after Loewdin (1950).
    """
    if not 1 <= n_low <= n_high:
        raise RMDError(f"no orthonormal rows from {n_high} down to {n_low} cells; need 1 <= low <= high")
    if n_low == n_high:
        return torch.eye(n_low, dtype=torch.float64)
    average = box_average(n_high, n_low)
    eigenvalues, vectors = torch.linalg.eigh(average @ average.T)
    inverse_root = vectors @ torch.diag(eigenvalues.rsqrt()) @ vectors.T
    return inverse_root @ average

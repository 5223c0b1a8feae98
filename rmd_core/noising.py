"""Adding noise: to a clean latent, and to a state that is already noisy."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .broadcast import LevelLike, broadcast_to
from .errors import RMDError


def add_noise(x0: torch.Tensor, eps: torch.Tensor, *, alpha: LevelLike, sigma: LevelLike) -> torch.Tensor:
    """The state `alpha x0 + sigma eps`.

    x0 and eps have one shape, any rank with the batch first; alpha and sigma are floats or `(B,)` tensors. The result
    has the dtype of x0. Source: docs/method.md, notation.
    """
    return (broadcast_to(alpha, x0) * x0 + broadcast_to(sigma, x0) * eps).to(x0.dtype)


class Noised(NamedTuple):
    """A state made noisier, `x`, and the coefficient `fresh` of its new noise (float64, `(B,)` or 0-d)."""

    x: torch.Tensor
    fresh: torch.Tensor


def noise_further(
    x_s: torch.Tensor,
    *,
    alpha_s: LevelLike,
    sigma_s: LevelLike,
    alpha_t: LevelLike,
    sigma_t: LevelLike,
    noise: torch.Tensor,
) -> Noised:
    """Take a state from level s to the noisier level t: `x_t = (a_t/a_s) x_s + b noise`, b^2 = s_t^2 - (a_t s_s/a_s)^2.

    x_s and noise have one shape, any rank with the batch first; the levels are floats or `(B,)` tensors, worked out
    in float64. `Noised.fresh` is b, which the sub-interval target of the fake score needs. At t = s, b is 0 and x_s
    comes back; a pure-noise s (alpha_s 0) admits only a pure-noise t. Never NaN for t at or above s.

    Raises RMDError if t is less noisy than s for any sample. Source: docs/method.md, training objective.
    """
    scale, fresh = further_coefficients(alpha_s=alpha_s, sigma_s=sigma_s, alpha_t=alpha_t, sigma_t=sigma_t)
    x_t = broadcast_to(scale, x_s) * x_s + broadcast_to(fresh, x_s) * noise
    return Noised(x_t.to(x_s.dtype), fresh)


def further_coefficients(
    *, alpha_s: LevelLike, sigma_s: LevelLike, alpha_t: LevelLike, sigma_t: LevelLike
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two coefficients of `noise_further`, (alpha_t/alpha_s, b), as float64 tensors. RMDError if t < s."""
    a_s, s_s, a_t, s_t = (torch.as_tensor(level, dtype=torch.float64) for level in (alpha_s, sigma_s, alpha_t, sigma_t))
    # Comparing alpha_t sigma_s with sigma_t alpha_s compares the two noise-to-signal ratios without a division.
    if bool((a_t * s_s > s_t * a_s * (1.0 + 1e-9) + 1e-12).any()):
        raise RMDError(
            f"cannot noise from sigma {_show(s_s)} to the less noisy sigma {_show(s_t)}; draw t at or above s"
        )
    scale = torch.where(a_s > 0.0, a_t / torch.where(a_s > 0.0, a_s, 1.0), 1.0)
    carried = scale * s_s
    return scale, ((s_t - carried).clamp(min=0.0) * (s_t + carried)).sqrt()


def _show(level: torch.Tensor) -> str:
    return ", ".join(f"{value:.6g}" for value in level.reshape(-1).tolist()[:8])

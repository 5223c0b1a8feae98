"""Clean latents, noise and states: x0 and eps from a network's output, guidance, and adding noise.

A level is one number for all samples or one for each; `broadcast_to` shapes it to multiply a latent of any rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .errors import RMDError

BatchLevel = float | torch.Tensor
"""One level for all samples (a float or a 0-d tensor), or one for each, `(B,)`."""


def place(tensor: torch.Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor on a device, in `dtype` if one is given.

    From system memory to a CUDA device it goes through page-locked memory, so the host does not wait for the device.
    """
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.to(dtype or tensor.dtype).pin_memory().to(device, non_blocking=True)
    return tensor.to(device, dtype or tensor.dtype)


def to_compute_dtype(x: torch.Tensor) -> torch.Tensor:
    """A tensor in the dtype of the computation: float64 where it is that already, else float32."""
    return x.to(_compute_dtype(x))


def broadcast_to(level_B: BatchLevel, x: torch.Tensor) -> BatchLevel:
    """A per-sample level `(B,)` shaped to multiply `x_B...` of any rank, on its device, float32 or x's wider type.

    A float or a 0-d level is the same for every sample. Raises RMDError for a tensor that is not `(B,)`.
    """
    if not isinstance(level_B, torch.Tensor) or level_B.dim() == 0:
        return float(level_B)
    if level_B.shape != x.shape[:1]:
        raise RMDError(f"levels of shape {tuple(level_B.shape)} do not fit {x.shape[0]} samples; give one for each")
    shape = (-1, *(1 for _ in x.shape[1:]))
    return place(level_B, x.device, _compute_dtype(x)).reshape(shape)


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


PREDICTIONS = ("eps", "v", "flow")


def to_x0_eps(
    output: torch.Tensor, x: torch.Tensor, *, alpha: BatchLevel, sigma: BatchLevel, prediction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean estimate and the noise estimate, `(x0, eps)`, of a network output at `x = alpha x0 + sigma eps`.

    output and x `(B, ...)` of any rank; alpha and sigma a float or `(B,)`; prediction is one of `PREDICTIONS`: "eps" is
    the noise, "v" is `alpha eps - sigma x0` (VP), "flow" is `eps - x0`. Half types give float32.
    Raises RMDError for another prediction. Source: docs/method/method.md, predictions.
    """
    alpha, sigma = broadcast_to(alpha, x), broadcast_to(sigma, x)
    output, x = to_compute_dtype(output), to_compute_dtype(x)
    if prediction == "eps":
        return (x - sigma * output) / alpha, output
    if prediction == "v":
        return alpha * x - sigma * output, sigma * x + alpha * output
    if prediction == "flow":
        return x - sigma * output, x + alpha * output
    raise RMDError(f"prediction {prediction!r} is unknown; use one of {', '.join(PREDICTIONS)}")


def guide(conditional: torch.Tensor, unconditional: torch.Tensor | None, scale: float | None) -> torch.Tensor:
    """Classifier-free guidance, `unconditional + scale (conditional - unconditional)`, of outputs or of x0 alike.

    With scale None or 1 the conditional one is returned as it is and the other is not needed (None).
    Raises RMDError when another scale comes without it.
    """
    if scale is None or scale == 1.0:
        return conditional
    if unconditional is None:
        raise RMDError(f"guidance of scale {scale:g} needs the unconditional prediction; pass it, or scale None")
    return torch.lerp(unconditional, conditional, float(scale))


def add_noise(x0: torch.Tensor, eps: torch.Tensor, *, alpha: BatchLevel, sigma: BatchLevel) -> torch.Tensor:
    """The state `alpha x0 + sigma eps`.

    x0 and eps have one shape, any rank with the batch first; alpha and sigma are floats or `(B,)` tensors. The result
    has the dtype of x0. Source: docs/method/method.md, notation.
    """
    return (broadcast_to(alpha, x0) * x0 + broadcast_to(sigma, x0) * eps).to(x0.dtype)


class Noised(NamedTuple):
    """A state made noisier, `x`, and the coefficient `fresh` of its new noise (float64, `(B,)` or 0-d)."""

    x: torch.Tensor
    fresh: torch.Tensor


def noise_further(
    x_s: torch.Tensor,
    *,
    alpha_s: BatchLevel,
    sigma_s: BatchLevel,
    alpha_t: BatchLevel,
    sigma_t: BatchLevel,
    noise: torch.Tensor,
) -> Noised:
    """Take a state from level s to the noisier level t: `x_t = (a_t/a_s) x_s + b noise`, b^2 = s_t^2 - (a_t s_s/a_s)^2.

    x_s and noise have one shape, any rank with the batch first; the levels are floats or `(B,)` tensors, worked out
    in float64. `Noised.fresh` is b, which the sub-interval target of the fake score needs. At t = s, b is 0 and x_s
    comes back; a pure-noise s (alpha_s 0) admits only a pure-noise t. Never NaN for t at or above s.

    Raises RMDError if t is less noisy than s for any sample. Source: docs/method/method.md, training objective.
    """
    a_s, s_s, a_t, s_t = (torch.as_tensor(level, dtype=torch.float64) for level in (alpha_s, sigma_s, alpha_t, sigma_t))
    # Comparing alpha_t sigma_s with sigma_t alpha_s compares the two noise-to-signal ratios without a division.
    if bool((a_t * s_s > s_t * a_s * (1.0 + 1e-9) + 1e-12).any()):
        raise RMDError(
            f"cannot noise from sigma {_show(s_s)} to the less noisy sigma {_show(s_t)}; choose t at or above s"
        )
    scale = torch.where(a_s > 0.0, a_t / torch.where(a_s > 0.0, a_s, 1.0), 1.0)
    carried = scale * s_s
    fresh = ((s_t - carried).clamp(min=0.0) * (s_t + carried)).sqrt()
    x_t = broadcast_to(scale, x_s) * x_s + broadcast_to(fresh, x_s) * noise
    return Noised(x_t.to(x_s.dtype), fresh)


def _show(level: torch.Tensor) -> str:
    return ", ".join(f"{value:.6g}" for value in level.reshape(-1).tolist()[:8])

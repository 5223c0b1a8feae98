"""Network outputs and what they mean: (x0, eps) from eps, v and flow predictions, and guidance."""

from __future__ import annotations

import torch

from .broadcast import LevelLike, broadcast_to, widened
from .errors import RMDError

PREDICTIONS = ("eps", "v", "flow")


def to_x0_eps(
    output: torch.Tensor, x: torch.Tensor, *, alpha: LevelLike, sigma: LevelLike, prediction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean estimate and the noise estimate, `(x0, eps)`, of a network output at `x = alpha x0 + sigma eps`.

    output and x `(B, ...)` of any rank; alpha and sigma a float or `(B,)`; prediction is one of `PREDICTIONS`: "eps" is
    the noise, "v" is `alpha eps - sigma x0` (VP), "flow" is `eps - x0`. Half types are worked and returned in float32.
    Raises RMDError for another prediction. Source: docs/method.md, predictions.
    """
    alpha, sigma = broadcast_to(alpha, x), broadcast_to(sigma, x)
    output, x = widened(output), widened(x)
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

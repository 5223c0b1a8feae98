"""The two training losses: the fake score's regression and the generator's distribution matching."""

from __future__ import annotations

from math import prod, sqrt

import torch

from .errors import RMDError
from .noising import BatchLevel, broadcast_to, to_compute_dtype

FAKE_WEIGHTINGS = ("eps", "v", "min_snr5", "legacy")

SIGMA_FLOOR = 1e-4
"""Weights treat a smaller sigma as this one, so that they stay finite at sigma 0. Every table starts above it."""

HUBER_BASE = 1e-3
HUBER_BASE_NUMEL = 4 * 64 * 64


def fake_score_weight(alpha: BatchLevel, sigma: BatchLevel, weighting: str) -> torch.Tensor:
    """Weight of the squared x0 error at noise level (alpha, sigma), float64 of the levels' shape, always finite.

    - `eps`: SNR = (alpha/sigma)^2, which makes the loss the plain error of the noise (the authors' choice);
    - `v`: 1/sigma^2, the plain error of the velocity, for flow and for VP alike;
    - `min_snr5`: min(SNR, 5);
    - `legacy`: min(1/SNR, 5), the authors' older form.

    Raises RMDError for another name. Source: docs/method/method.md, weighting of the fake score.
    """
    alpha = torch.as_tensor(alpha, dtype=torch.float64)
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    floored = sigma.clamp(min=SIGMA_FLOOR)
    if weighting == "eps":
        return (alpha / floored).square()
    if weighting == "v":
        return floored.square().reciprocal()
    if weighting == "min_snr5":
        return (alpha / floored).square().clamp(max=5.0)
    if weighting == "legacy":
        return (sigma / alpha.clamp(min=SIGMA_FLOOR)).square().clamp(max=5.0)
    raise RMDError(f"fake-score weighting {weighting!r} is unknown; use one of {', '.join(FAKE_WEIGHTINGS)}")


def fake_score_loss(
    x0_pred: torch.Tensor,
    x0_target: torch.Tensor,
    *,
    alpha: BatchLevel,
    sigma: BatchLevel,
    weighting: str,
) -> torch.Tensor:
    """Fake-score loss with the generator's x0 as target: mean over samples of `w(sigma_b) * mean (x0_pred - x0)^2`.

    x0_pred and x0_target are `(B, ...)` of any rank; the target gets no gradient. alpha and sigma, floats or `(B,)`,
    belong to the state the prediction was made from. Returns a float32 (or float64) scalar. The target is biased where
    the noise of that state was inherited from the network; see `fake_score_loss_subinterval`. Raises RMDError for an
    unknown weighting or shapes that differ. Source: docs/method/method.md, training objective.
    """
    _same_shape(x0_pred, x0_target, "x0 prediction", "x0 target")
    error = to_compute_dtype(x0_pred) - to_compute_dtype(x0_target.detach())
    weight = broadcast_to(fake_score_weight(alpha, sigma, weighting), error)
    return (weight * error.square()).mean()


def fake_score_loss_subinterval(
    x0_pred: torch.Tensor,
    *,
    x_t: torch.Tensor,
    noise: torch.Tensor,
    fresh: BatchLevel,
    alpha: BatchLevel,
    sigma: BatchLevel,
) -> torch.Tensor:
    """Fake-score loss whose target is only the last noising step, unbiased also when the noise was inherited.

    With x_t = scale x_s + b noise from `noise_further` (`fresh` is its b), the target is
    `y = (x_t - (sigma^2/b) noise) / alpha` and the weight `(b alpha/sigma^2)^2`; together they are the plain error of
    `noise`, computed here as `mean ((b/sigma^2)(x_t - alpha x0_pred) - noise)^2`, without a division by b or alpha.
    x0_pred, x_t and noise are `(B, ...)`; fresh, alpha and sigma floats or `(B,)`. Only x0_pred gets a gradient, none
    where b is 0. Source: docs/method/method.md, the fake target under inherited noise; Phased DMD, arXiv 2510.27684.
    """
    _same_shape(x0_pred, x_t, "x0 prediction", "x_t")
    _same_shape(x0_pred, noise, "x0 prediction", "noise")
    prediction = to_compute_dtype(x0_pred)
    b = torch.as_tensor(fresh, dtype=torch.float64)
    level = torch.as_tensor(sigma, dtype=torch.float64).clamp(min=SIGMA_FLOOR)
    gain = broadcast_to(b / level.square(), prediction)
    implied = gain * (x_t.detach().to(prediction) - broadcast_to(alpha, prediction) * prediction)
    return (implied - noise.detach().to(prediction)).square().mean()


def generator_loss(
    x0: torch.Tensor,
    teacher_x0: torch.Tensor,
    fake_x0: torch.Tensor,
    *,
    clip: float = 0.2,
    huber_c: float | None = None,
) -> torch.Tensor:
    """Distribution-matching loss: a pseudo-Huber of fake - teacher whose gradient moves x0 towards the teacher.

    `mean ((sqrt(d^2 + c^2) - c) / w_b)`, d = x0 - sg[x0 + teacher - fake], w_b the sample's mean |x0 - teacher| but at
    least `clip`. All three are `(B, ...)` of one shape at the final size; only x0 gets a gradient, which per element is
    `d / sqrt(d^2 + c^2) / (w_b numel)`. huber_c None takes `huber_constant` of the sample's shape. Returns a float32
    (or float64) scalar, 0 with gradient 0 where fake equals teacher. Raises RMDError for shapes that differ.
    Source: docs/method/method.md, training objective; the Huber form is TDM's, arXiv 2503.06674.
    """
    _same_shape(x0, teacher_x0, "x0", "teacher x0")
    _same_shape(x0, fake_x0, "x0", "fake x0")
    c = huber_constant(x0.shape[1:]) if huber_c is None else huber_c
    sample = to_compute_dtype(x0)
    gap = fake_x0.detach().to(sample) - teacher_x0.detach().to(sample)
    difference = gap + (sample - sample.detach())  # the value is the gap to the last bit, the slope in x0 is 1
    weight = generator_weight(x0, teacher_x0, clip=clip).to(sample)
    squared = difference.square()
    root = (squared + c * c).sqrt() + c
    return (squared / root / weight).mean()  # squared/(root + c) = root - c without the cancellation


def generator_weight(x0: torch.Tensor, teacher_x0: torch.Tensor, *, clip: float = 0.2) -> torch.Tensor:
    """Per-sample normaliser of the generator loss, `max(clip, mean |x0 - teacher|)`: `(B, 1, ..., 1)`, detached."""
    distance = (to_compute_dtype(x0.detach()) - to_compute_dtype(teacher_x0.detach())).abs()
    return distance.mean(dim=tuple(range(1, x0.ndim)), keepdim=True).clamp(min=clip)


def huber_constant(sample_shape: tuple[int, ...]) -> float:
    """Huber constant c = 1e-3 sqrt(numel / 16384) for one sample of `sample_shape`, given without the batch axis.

    (4, 64, 64) gives 0.001 and Wan's (16, 21, 90, 160) 0.01718. Source: docs/method/method.md, training objective.
    """
    return HUBER_BASE * sqrt(prod(sample_shape) / HUBER_BASE_NUMEL)


def _same_shape(left: torch.Tensor, right: torch.Tensor, left_name: str, right_name: str) -> None:
    if left.shape != right.shape:
        raise RMDError(
            f"{left_name} is {tuple(left.shape)} but {right_name} is {tuple(right.shape)}; "
            "the losses compare tensors of one shape, at the final size"
        )

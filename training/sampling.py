"""Sampling from a student or a teacher through the one cascade engine."""

from dataclasses import dataclass

import torch

from rmd_core.cascade import DenoiserRunner, run_cascade
from rmd_core.prediction import guide, to_x0_eps

from .backbones.base import join


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance in x0 space: its scale, and the null prompt's conditioning for the whole batch."""

    scale: float
    null: dict


def denoiser(backbone, network, conditioning, *, curve, guidance=None):
    """A ``denoise(x, step) -> (x0, eps)`` for the cascade, of one network under one conditioning."""

    def denoise(x, step):
        alpha = float(curve.alpha(step.sigma))
        states = x if guidance is None else torch.cat((x, x))
        given = conditioning if guidance is None else join(conditioning, guidance.null)
        sigma = torch.full((len(states),), step.sigma, dtype=torch.float64)
        output = backbone.predict(network, states, sigma, given)
        if guidance is not None:
            output = guide(*output.chunk(2), guidance.scale)
        return to_x0_eps(output, x, alpha=alpha, sigma=step.sigma, prediction=backbone.prediction)

    return denoise


def sample_latents(
    backbone, network, plan, *, conditioning, noise, boundary, eta, frames=1, guidance=None, device="cpu", on_step=None
):
    """The CascadeResult of a network on a plan, one latent for each row of ``conditioning``.

    ``noise``: where the cascade's noise comes from, such as ``SeededNoise(seed)``.
    """
    count = len(next(iter(conditioning.values())))
    denoise = denoiser(backbone, network, conditioning, curve=plan.curve, guidance=guidance)
    return run_cascade(
        plan,
        DenoiserRunner(denoise, eta=eta, device=device),
        shape=backbone.latent_shape(count, frames),
        noise=noise,
        boundary=boundary,
        on_step=on_step,
    )

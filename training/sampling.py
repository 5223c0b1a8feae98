"""Sampling from a student or a teacher through the one cascade engine."""

import torch

from rmd_core.cascade import DenoiserRunner, run_cascade

from .estimate import estimate_x0_eps


def sample_latents(
    backbone, network, plan, *, conditioning, noise, boundary, eta, frames=1, guidance=None, device="cpu"
):
    """The CascadeResult of a network on a plan, one latent for each row of ``conditioning``.

    ``noise``: where the cascade's noise comes from, such as ``SeededNoise(seed)``.
    """
    count = len(next(iter(conditioning.values())))

    def denoise(x, step):
        sigma = torch.full((len(x),), step.sigma, dtype=torch.float64)
        return estimate_x0_eps(backbone, network, x, sigma, conditioning, curve=plan.curve, guidance=guidance)

    return run_cascade(
        plan,
        DenoiserRunner(denoise, eta=eta, device=device),
        shape=backbone.latent_shape(count, frames),
        noise=noise,
        boundary=boundary,
    )

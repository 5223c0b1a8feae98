"""The boundary of a hand-built graph: from what a core sampler node put out to what the next one needs."""

from __future__ import annotations

from typing import Any

import torch

from ...rmd_core.boundary import Boundary
from ...rmd_core.errors import RMDError
from .latents import final_latent, finished
from .noise_form import NoiseForm
from .stage_noise import StageSeed, SwitchNoise, batch_items

STAGE = "rmd_stage"
"""Key of a LATENT that came out of RMD Stage Upscale: the number of its stage, 0 being the first."""

LEAST, MOST = 1 / 3, 3.0
"""Deviation of noise that a network may plausibly have predicted."""


def cross_to(
    size_hw: tuple[int, int],
    *,
    output: dict[str, Any],
    denoised_output: dict[str, Any],
    sigmas: torch.Tensor,
    model: Any,
    noise: Any,
    boundary: Boundary,
) -> tuple[dict[str, Any], SwitchNoise]:
    """The LATENT and NOISE of the next stage, of size_hw = (height, width) in cells.

    output and denoised_output are those of the stage's sampler node, sigmas what it ran, noise what it started with.
    The last step must have been Euler's (RMD Step Sampler makes it so), onto a sigma above 0: the predicted noise is
    the difference of both pictures there. Raises RMDError otherwise, and for a size below the stage's.
    """
    if len(sigmas) < 2:
        raise RMDError(f"the sigmas hold {len(sigmas)} level(s), which is no step; connect those the stage has run")
    last = sigmas[-1].cpu().double()
    if not 0.0 < last < 1.0 and NoiseForm.of(model).flow or last <= 0.0:
        raise RMDError(
            f"the stage ended at sigma {last:g}, where the predicted noise is lost; "
            "end it at the next level with RMD Stage Sigmas"
        )
    output, denoised_output = final_latent(model, output), final_latent(model, denoised_output)
    if output["samples"].shape != denoised_output["samples"].shape:
        raise RMDError("output and denoised_output differ in shape; connect both outputs of one sampler node")
    if "noise_mask" in output:
        raise RMDError(
            "a latent with a noise mask cannot cross by hand, as the full-size source is not here; "
            "use RMD Sampler or RMD Guider for inpainting"
        )
    form, to_model = NoiseForm.of(model), model.model.process_latent_in
    x0 = to_model(denoised_output["samples"].float())
    state = form.unscaled(to_model(output["samples"].float()), last.float())
    check_stage(output, noise)
    started = StageSeed.of(noise.seed)  # a NOISE may serve several samplers, so the items are the LATENT's
    seed = StageSeed(started.cascade, started.stage, batch_items(output)).next_stage()
    eps = form.eps(state, x0, last.float())
    _check_deviation(eps)
    crossing = boundary.cross(x0, eps, size_hw, seed.fresh)
    samples = finished(model.model.process_latent_out(crossing.x0))
    return {**output, "samples": samples, STAGE: seed.stage}, SwitchNoise(crossing.noise.cpu(), seed)


def check_stage(output: dict[str, Any], noise: Any) -> None:
    """Raise RMDError for a NOISE of another stage than the LATENT's: two stages would draw the same numbers."""
    came, wanted = StageSeed.of(noise.seed).stage, output.get(STAGE, 0)
    if came != wanted:
        raise RMDError(
            f"the noise is that of stage {came + 1}, the output that of stage {wanted + 1}; "
            "connect the noise which the sampler node of this output was given"
        )


def _check_deviation(eps: torch.Tensor) -> None:
    deviation = eps.std().item() if eps.numel() > 1 else 1.0
    if not LEAST < deviation < MOST:
        raise RMDError(
            f"the noise recovered from this stage has deviation {deviation:.3g} instead of about 1; connect the sigmas "
            "that the stage has run, output and denoised_output of the same node, and use RMD Step Sampler or euler"
        )

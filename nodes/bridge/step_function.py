"""The sampler function of RMD: one call a step, predicted and fresh noise mixed by eta in between."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from tqdm.auto import trange

from ...rmd_core.renoise import check_eta, step_noise
from .noise_form import NoiseForm
from .stage_noise import StageSeed


def rmd_step_sampler(eta: float) -> comfy.samplers.KSAMPLER:
    """A SAMPLER with the eta rule: 0 re-noises with fresh noise (as LCM), 1 with the predicted (as Euler).

    For flow, eps and v models. Raises RMDError for eta outside [0, 1]. Source: docs/method.md, the sampler.
    """
    return comfy.samplers.KSAMPLER(sample_rmd, {"eta": check_eta(eta)})


def sample_rmd(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    *,
    eta: float,
) -> torch.Tensor:
    """Run the sigmas from the state x `(B, C, [T,] H, W)`, in the form of ComfyUI's sampler functions.

    A last sigma above 0 is reached with the predicted noise alone, whatever eta is: what follows is a change of size,
    which must find x0 and eps again. Fresh noise comes from the seed by step, item by item, so that no item of a batch
    depends on another.
    """
    extra_args = extra_args or {}
    form = NoiseForm.of(model.inner_model.model_patcher)
    seed = StageSeed.of(extra_args.get("seed") or 0)
    batch = x.new_ones([x.shape[0]])
    last = len(sigmas) - 2
    for index in trange(len(sigmas) - 1, disable=disable):
        comfy.model_management.throw_exception_if_processing_interrupted()
        sigma, following = sigmas[index], sigmas[index + 1]
        x0 = model(x, sigma * batch, **extra_args)
        if callback is not None:
            callback({"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})
        if following == 0:
            x = x0
            continue
        share = 1.0 if index == last else eta
        fresh = seed.fresh(f"step-{index}", tuple(x.shape)) if share < 1.0 else None
        eps = x if share == 0.0 else form.eps(x, x0, sigma)  # at 0 nothing of it is used
        x = form.state(x0, step_noise(eps, share, fresh), following)
    return x

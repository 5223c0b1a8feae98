"""LATENTs: in the form that a model takes, at the size of each stage, and as a sampler node gives them."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import torch

from ...rmd_core.boundary import area_average
from ...rmd_core.errors import RMDError
from .model import NoiseForm

RATIO_KEYS = ("downscale_ratio_spacial", "downscale_ratio_temporal")


def final_latent(model: Any, latent: dict[str, Any]) -> dict[str, Any]:
    """A copy of a LATENT in the form that `model` takes, as core's sampler nodes make it.

    An empty latent gets the model's channels and scale, an image gets a time axis for a video model; the keys
    that gave the scale are removed. Raises RMDError for nested latents, values that are no finite numbers, and a
    wrong number of channels.
    """
    samples = latent["samples"]
    _check_one_tensor(samples)
    if samples.ndim < 4 or not samples.is_floating_point() or samples.is_meta:
        kind = str(samples.dtype).removeprefix("torch.")
        raise RMDError(
            f"the latent has shape {tuple(samples.shape)} and holds {kind} values; use (B, C, H, W) or (B, C, T, H, W) "
            "of floating-point numbers, from an empty latent or an encoded image"
        )
    if samples.numel() == 0:
        raise RMDError(f"the latent of shape {tuple(samples.shape)} is empty of items; give it a batch of at least 1")
    if samples.any() and not torch.isfinite(samples).all():
        raise RMDError("the latent holds values that are not finite (nan or inf); make or encode it again")
    samples = comfy.sample.fix_empty_latent_channels(model, samples, *(latent.get(key) for key in RATIO_KEYS))
    _check_one_tensor(samples)  # an empty video becomes two tensors for a model of video and audio
    expected = model.get_model_object("latent_format")
    if samples.ndim != expected.latent_dimensions + 2 or samples.shape[1] != expected.latent_channels:
        axes = "(B, C, H, W)" if expected.latent_dimensions == 2 else "(B, C, T, H, W)"
        raise RMDError(
            f"the latent has shape {tuple(samples.shape)}, this model takes {axes} with C = "
            f"{expected.latent_channels}; use an empty latent or an encoded image of the same model family"
        )
    return {**{key: value for key, value in latent.items() if key not in RATIO_KEYS}, "samples": samples}


def _check_one_tensor(samples: Any) -> None:
    if getattr(samples, "is_nested", False):
        raise RMDError(
            "this latent holds several tensors (such as video and audio), and RMD changes the size of one; "
            "use a model and a latent of images or videos alone"
        )


def to_output(samples: torch.Tensor) -> torch.Tensor:
    """A result where and in the dtype that core's sampler nodes give theirs."""
    dtype = getattr(comfy.model_management, "intermediate_dtype", lambda: torch.float32)()
    return samples.to(device=comfy.model_management.intermediate_device(), dtype=dtype)


class SourceImage:
    """What a LATENT at the final size holds: samples `(B, C, [T,] H, W)`, and a `noise_mask` where it is inpainted.

    Where the mask is 0 every stage keeps the source, averaged to the stage's size; the last one keeps it as it is.
    """

    def __init__(self, latent: dict[str, Any], model: Any) -> None:
        self._samples = latent["samples"]
        self._format = model.model
        self.empty = not self._samples.any()
        self.mask = latent.get("noise_mask")

    def resized(self, size_hw: tuple[int, int]) -> torch.Tensor:
        """The samples at a stage's size, else unchanged."""
        if self.empty:
            return self._samples.new_zeros((*self._samples.shape[:-2], *size_hw))
        return area_average(self._samples, size_hw)

    def stage_input(
        self, x0: torch.Tensor, noise: torch.Tensor, *, form: NoiseForm, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A later stage's LATENT samples and noise, from its estimate `x0` (model space) and `noise`.

        ComfyUI takes from the samples both the state a stage starts in and what it keeps under the mask. Where the mask
        is below 1 they are the source, so that it is kept as core keeps it. Where the mask is between 0 and 1 the noise
        makes up the difference: the state at the stage's first sigma is still that of x0.
        """
        if self.mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(self.mask, x0.shape, x0.device).to(x0)
            source = self.resized(tuple(x0.shape[-2:])).to(x0)
            if not self.empty:  # core does not shift an empty latent either
                source = self._format.process_latent_in(source)
            adjusted = form.eps(form.state(x0, noise.to(x0), sigma), source, sigma)
            noise = torch.where((mask > 0.0) & (mask < 1.0), adjusted, noise.to(x0))
            x0 = torch.where(mask < 1.0, source, x0)
        return self._format.process_latent_out(x0), noise

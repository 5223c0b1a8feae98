"""Learned upsamplers at a switch: our own, networks of core's LATENT_UPSCALE_MODEL, and the detour through pixels."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import comfy.model_management
import comfy.utils
import torch

from ...rmd_core.boundary import Boundary, Learned, learned_name, resize, upsample
from ...rmd_core.errors import RMDError
from ...rmd_core.files import weights_digest
from ...rmd_core.upsampler import LatentUpsampler
from .latents import video_channels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upsampler:
    """How a clean estimate is enlarged in place of the plan's upsampler: by `own` or `upscale_model`, else the `vae`.

    upscale_model is a LATENT_UPSCALE_MODEL of core's loader. The ones of LTX work on latents without the normalisation
    of their VAE, so they need the `vae` too. own is what the trainer wrote into a `file`, for latents as the diffusion
    model itself sees them.
    """

    upscale_model: Any | None
    vae: Any | None
    own: LatentUpsampler | None = None
    file: str = ""

    def __post_init__(self) -> None:
        connected = self.upscale_model is not None or self.vae is not None
        if self.own is not None and connected:
            raise RMDError(
                f"{self.file} needs neither upscale_model nor vae in RMD Upsampler; "
                "disconnect them, or set file to none"
            )
        if self.own is None and not connected:
            raise RMDError(
                "RMD Upsampler has nothing to enlarge with; connect an upscale_model or the model's vae, "
                "or choose a file"
            )
        if self.upscale_model is not None and not self._sizes_first and self._statistics is None:
            raise RMDError(
                "this upscale_model works on latents without their VAE's normalisation; connect the video VAE of the "
                "same model family to vae"
            )

    @property
    def _sizes_first(self) -> bool:
        """Whether the network keeps the size and takes an interpolated latent, like HunyuanVideo's."""
        return hasattr(self.upscale_model, "resample_latent")

    @property
    def _statistics(self) -> Any | None:
        """The normalisation of LTX's latents."""
        return getattr(getattr(self.vae, "first_stage_model", None), "per_channel_statistics", None)

    @cached_property
    def name(self) -> str:
        """The `learned_name` of the network, which a recipe may ask for; a VAE has none but `vae`."""
        if self.own is not None:
            return learned_name(self.file, self.own.digest())
        if self.upscale_model is None:
            return "vae"
        network = self.upscale_model.model
        return learned_name(type(network).__name__, weights_digest(network.state_dict().values()))

    @property
    def _channels(self) -> int:
        """The channels of the latents that it takes."""
        if self.own is not None:
            return self.own.channels
        if self.upscale_model is None:
            return self.vae.latent_channels
        return next(weight.shape[1] for weight in self.upscale_model.model.parameters() if weight.ndim > 3)

    def on(self, model: Any) -> Learned:
        """The upsampler for estimates in the latent space of a MODEL; items of a batch are enlarged one by one.

        Raises RMDError where it is for latents of another number of channels, or a VAE of videos for those of images.
        """
        channels = video_channels(model)
        if self._channels != channels:
            given = "connected vae" if self.upscale_model is None else "connected upscale_model"
            raise RMDError(
                f"the {given if self.own is None else f'file {self.file}'} of RMD Upsampler is for latents of "
                f"{self._channels} channels, this model's have {channels}; use one of the same family"
            )
        if self.own is not None:
            return self._by_own
        of_images = model.get_model_object("latent_format").latent_dimensions == 2
        if self.upscale_model is None and of_images and self.vae.latent_dim > 2:
            raise RMDError(
                "the connected vae of RMD Upsampler is for videos, this model's latents are images; use its own vae"
            )
        enlarge = self._by_vae if self.upscale_model is None else self._by_network

        @torch.no_grad()
        def learned(x0: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
            samples = model.model.process_latent_out(x0)
            items = [enlarge(item, size_hw) for item in samples.split(1)]
            return model.model.process_latent_in(torch.cat(items).to(x0))

        return learned

    @torch.no_grad()
    def _by_own(self, x0: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
        assert self.own is not None
        network = self.own.to(x0.device)  # a few MB, not worth a place in ComfyUI's memory management
        return torch.cat([network(item, size_hw) for item in x0.split(1)])

    def _by_network(self, samples: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
        """As LTXVLatentUpsampler and HunyuanVideo15LatentUpscaleWithModel do, then to the size by `resize`."""
        if self._sizes_first:
            return self.upscale_model.resample_latent(upsample(samples, size_hw, "bilinear")).float()
        patcher = self.upscale_model
        memory = math.prod(samples.shape) * 3000.0  # core's own figure
        comfy.model_management.load_models_gpu([patcher], memory_required=memory)
        raw = samples.to(dtype=patcher.model_dtype(), device=patcher.load_device)
        enlarged = patcher.model(self._statistics.un_normalize(raw))
        return resize(self._statistics.normalize(enlarged).float(), size_hw)

    def _by_vae(self, samples: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
        """As VAE Decode, Upscale Image (bicubic) and VAE Encode do."""
        cuda = [self.vae.device] if self.vae.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):  # LTX's decoder samples noise from the global generator
            torch.manual_seed(0)
            pixels = self.vae.decode(samples)
        pixels = pixels.reshape(-1, *pixels.shape[-3:])  # frames of a video, as core's IMAGE has them
        height, width = (side * self.vae.spacial_compression_encode() for side in size_hw)
        enlarged = comfy.utils.common_upscale(pixels.movedim(-1, 1), width, height, "bicubic", "disabled")
        return self.vae.encode(enlarged.movedim(1, -1))


def with_upsampler(rule: Boundary, upsampler: Upsampler | None, model: Any, *, student: bool) -> Boundary:
    """The rule of a switch with a connected upsampler in it; `student` says whether the rule is one of training.

    Raises RMDError where a student was trained with a learned upsampler and this is another one or none; warns where it
    was trained with a named one.
    """
    trained = rule.learned_sha256
    if trained is not None and (upsampler is None or not upsampler.name.endswith(trained)):
        raise RMDError(
            f"the student was trained with the upsampler {rule.upsampler}, but the connected one is "
            f"{'none' if upsampler is None else upsampler.name}; connect RMD Upsampler with that file"
        )
    if upsampler is None:
        return rule
    if trained is None and student:
        logger.warning(
            "the student was trained with the upsampler %s, and another one is connected; remove it to sample "
            "as in training",
            rule.upsampler,
        )
    return replace(rule, learned=upsampler.on(model))

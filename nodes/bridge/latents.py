"""LATENTs: in the form that a model takes, at the size of each stage, and as a sampler node gives them.

A LATENT of video and sound is nested: several tensors, its streams. The video comes first and follows the size of the
stages; the others keep theirs, so that a change of size is an ordinary step for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.utils
import torch

from ...rmd_core.boundary import area_average, step_noise
from ...rmd_core.cascade import StageEnd, StageJob
from ...rmd_core.errors import RMDError
from ...rmd_core.noise import FreshNoise
from .model import NoiseForm

RATIO_KEYS = ("downscale_ratio_spacial", "downscale_ratio_temporal")


def final_latent(model: Any, latent: dict[str, Any]) -> dict[str, Any]:
    """A copy of a LATENT in the form that `model` takes, as core's sampler nodes make it.

    An empty latent gets the model's channels and scale, an image gets a time axis for a video model; the keys
    that gave the scale are removed. Raises RMDError for values that are no finite numbers, a wrong number of channels,
    and streams, or a mask on them, that the model does not take.
    """
    samples = latent["samples"]
    for stream in streams(samples):
        if stream.ndim < 4 or not stream.is_floating_point() or stream.is_meta:
            kind = str(stream.dtype).removeprefix("torch.")
            raise RMDError(
                f"the latent has shape {tuple(stream.shape)} and holds {kind} values; use (B, C, H, W) or "
                "(B, C, T, H, W) of floating-point numbers, from an empty latent or an encoded image"
            )
        if stream.numel() == 0:
            raise RMDError(f"the latent of shape {tuple(stream.shape)} has no items; use a batch of at least 1")
        if stream.any() and not torch.isfinite(stream).all():
            raise RMDError("the latent holds values that are not finite (nan or inf); make or encode it again")
    samples = comfy.sample.fix_empty_latent_channels(model, samples, *(latent.get(key) for key in RATIO_KEYS))
    video, *others = streams(samples)  # an empty video gets its sound for a model of both
    dimensions = model.get_model_object("latent_format").latent_dimensions
    channels = video_channels(model, nested=bool(others))
    if video.ndim != dimensions + 2 or video.shape[1] != channels:
        axes = "(B, C, H, W)" if dimensions == 2 else "(B, C, T, H, W)"
        raise RMDError(
            f"the latent has shape {tuple(video.shape)}, this model takes {axes} with C = "
            f"{channels}; use an empty latent or an encoded image of the same model family"
        )
    if others:
        _check_streams(model, video, latent.get("noise_mask"))
    return {**{key: value for key, value in latent.items() if key not in RATIO_KEYS}, "samples": samples}


def streams(samples: Any) -> tuple[torch.Tensor, ...]:
    """The tensors in LATENT samples, the video first; a plain tensor is its only one."""
    return tuple(samples.unbind()) if samples.is_nested else (samples,)


def video_channels(model: Any, *, nested: bool = True) -> int:
    """The channels of a MODEL's images or videos; those of a `nested` latent may be fewer than the format says."""
    expected = model.get_model_object("latent_format")
    if not nested or expected.latent_dimensions != 3:
        return expected.latent_channels
    return streams(expected.fix_empty_latent(torch.zeros(1, expected.latent_channels, 1, 1, 1)))[0].shape[1]


def _check_streams(model: Any, video: torch.Tensor, mask: Any) -> None:
    """Raise RMDError unless a MODEL takes nested latents with a mask like this one."""
    network = model.model
    try:
        conds = network.extra_conds(latent_shapes=[], device="cpu", noise=video.new_zeros(1, video.shape[1], 1, 2, 2))
    except Exception:  # it lacks something else, which ComfyUI gives it
        conds = {"latent_shapes": []}
    if "latent_shapes" not in conds:
        raise RMDError(
            f"this latent holds several tensors (such as video and audio), but {type(network).__name__} takes one; "
            "use a latent of images or videos only"
        )
    if mask is not None and getattr(model.get_model_object("model_sampling"), "audio_shift", None):
        raise RMDError(
            f"RMD cannot mask the latent of {type(network).__name__}, whose video and audio have noise levels of their "
            "own; remove the noise mask, and use Add Guide for MiniMax H3 to fix frames"
        )


def stream_noise(fresh: FreshNoise, purpose: str, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Noise for each stream by its shape, float32 on the CPU; that of the sound does not depend on the video's size."""
    return [fresh(f"{purpose}.{index}" if index else purpose, tuple(shape)) for index, shape in enumerate(shapes)]


def to_output(samples: torch.Tensor) -> torch.Tensor:
    """A result where and in the dtype that core's sampler nodes give theirs."""
    dtype = getattr(comfy.model_management, "intermediate_dtype", lambda: torch.float32)()
    return samples.to(device=comfy.model_management.intermediate_device(), dtype=dtype)


class SourceImage:
    """What a LATENT at the final size holds, and what becomes of it from stage to stage.

    Its samples are `(B, C, [T,] H, W)` or nested, with a `noise_mask` where they are inpainted. Where the mask is 0
    every stage keeps the source, averaged to the stage's size; the last one keeps it as it is.
    """

    def __init__(self, latent: dict[str, Any], model: Any) -> None:
        self._kind = type(latent["samples"])
        self._streams = streams(latent["samples"])
        self._format = model.model
        self.shape = tuple(self._streams[0].shape)
        self.nested = len(self._streams) > 1
        self.empty = not any(stream.any() for stream in self._streams)
        self.mask = latent.get("noise_mask")
        masks = () if self.mask is None else streams(self.mask)
        self._masks = [*masks, *[None] * len(self._streams)]
        self._shapes: list[Sequence[int]] = []
        self._others: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._clean: list[Any] = []

    def start(self, job: StageJob, *, form: NoiseForm, sigma: torch.Tensor, eta: float) -> tuple[Any, Any]:
        """The LATENT samples and the noise of a stage; sigma is its first one, eta that of an ordinary step."""
        if job.x0 is None:
            parts = [(self._resized(0, job.stage.size), job.noise)]
            for index, stream in enumerate(self._streams[1:], start=1):
                parts.append((stream, job.fresh(f"start.{index}", tuple(stream.shape))))
        else:
            video, noise = self._masked(0, job.x0, job.noise, form=form, sigma=sigma)
            parts = [(self._format.process_latent_out(video), noise)]
            for index, (x0, eps) in enumerate(self._others, start=1):
                share = 0.0 if eps is None else eta
                fresh = job.fresh(f"switch.{index}", tuple(x0.shape)) if share < 1.0 else None
                noise = step_noise(x0 if eps is None else eps, share, fresh)
                if self._masks[index] is not None:
                    x0, noise = self._masked(index, self._format.process_latent_in(x0), noise, form=form, sigma=sigma)
                    x0 = self._format.process_latent_out(x0)
                parts.append((x0, noise))
        image, noise = zip(*parts)
        self._shapes = [stream.shape for stream in image]
        return (self._kind(image), self._kind(noise)) if self.nested else (image[0], noise[0])

    def end(self, x0: Any, eps: torch.Tensor | None, network: Any) -> StageEnd:
        """The end of a stage from its clean estimate and predicted noise, in the model space of its `network`.

        Those of streams may be in one tensor, as core packs them for a sampler.
        """
        if not self.nested:
            return StageEnd(x0, eps)
        if not x0.is_nested:
            x0 = self._kind(comfy.utils.unpack_latents(x0, self._shapes))
        clean = network.process_latent_out(x0)
        self._clean.append(clean)
        noises = [None] * len(self._shapes) if eps is None else comfy.utils.unpack_latents(eps, self._shapes)
        self._others = list(zip(streams(clean)[1:], noises[1:]))
        return StageEnd(streams(x0)[0], noises[0])

    def estimates(self, stage_x0: Sequence[torch.Tensor]) -> Iterator[Any]:
        """Every stage's clean estimate (those of the videos are `stage_x0`) as LATENT samples, made when asked for."""
        return map(to_output, self._clean if self.nested else map(self._format.process_latent_out, stage_x0))

    def _resized(self, index: int, size_hw: tuple[int, int]) -> torch.Tensor:
        stream = self._streams[index]
        return stream.new_zeros((*stream.shape[:-2], *size_hw)) if self.empty else area_average(stream, size_hw)

    def _masked(
        self, index: int, x0: torch.Tensor, noise: torch.Tensor, *, form: NoiseForm, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A stream's estimate (model space) and noise for a later stage, with the source where its mask is below 1.

        ComfyUI takes from the samples both the state a stage starts in and what it keeps under the mask. Where the mask
        is below 1 they are the source, so that it is kept as core keeps it. Where the mask is between 0 and 1 the noise
        makes up the difference: the state at the stage's first sigma is still that of x0.
        """
        if self._masks[index] is None:
            return x0, noise
        sigma = sigma.to(x0)
        mask = comfy.sampler_helpers.prepare_mask(self._masks[index], x0.shape, x0.device).to(x0)
        source = self._resized(index, tuple(x0.shape[-2:])).to(x0)
        if not self.empty:  # core does not shift an empty latent either
            source = self._format.process_latent_in(source)
        adjusted = form.eps(form.state(x0, noise.to(x0), sigma), source, sigma)
        noise = torch.where((mask > 0.0) & (mask < 1.0), adjusted, noise.to(x0))
        return torch.where(mask < 1.0, source, x0), noise

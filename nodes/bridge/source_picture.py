"""The picture a cascade starts from or paints into, at every stage's size."""

from __future__ import annotations

from typing import Any

import comfy.sampler_helpers
import torch

from .latents import shrink


class SourcePicture:
    """What a LATENT at the final size holds: samples `(B, C, [T,] H, W)`, and a `noise_mask` where it is inpainted.

    Where the mask is 0 every stage keeps the source, averaged to the stage's size; the last one keeps it as it is.
    """

    def __init__(self, latent: dict[str, Any], model: Any) -> None:
        self._samples = latent["samples"]
        self._format = model.model
        self.empty = bool(torch.count_nonzero(self._samples) == 0)
        self.mask = latent.get("noise_mask")

    def at(self, size_hw: tuple[int, int]) -> torch.Tensor:
        """The samples at a stage's size, as they came otherwise."""
        return shrink(self._samples, size_hw)

    def under(self, x0: torch.Tensor) -> torch.Tensor:
        """A stage's LATENT samples: the estimate `x0` (model space) where the mask is 1, the source where it is 0."""
        if self.mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(self.mask, x0.shape, x0.device).to(x0)
            source = self.at(tuple(x0.shape[-2:])).to(x0)
            if not self.empty:  # core does not shift an empty latent either
                source = self._format.process_latent_in(source)
            x0 = mask * x0 + (1.0 - mask) * source
        return self._format.process_latent_out(x0)

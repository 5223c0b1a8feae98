"""The picture a cascade starts from or paints into, at every stage's size."""

from __future__ import annotations

from typing import Any

import comfy.sampler_helpers
import torch

from ...rmd_core.upsample import area_average
from .noise_form import NoiseForm


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
        return area_average(self._samples, size_hw)

    def start(
        self, x0: torch.Tensor, white: torch.Tensor, *, form: NoiseForm, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A later stage's LATENT samples and noise, from its estimate `x0` (model space) and `white` noise.

        ComfyUI takes from the samples both the state a stage starts in and what it keeps under the mask. Where the mask
        is below 1 they are the source, so that it is kept as core keeps it. Where the mask is between 0 and 1 the noise
        makes up the difference: the state at the stage's first sigma is still that of x0.
        """
        if self.mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(self.mask, x0.shape, x0.device).to(x0)
            source = self.at(tuple(x0.shape[-2:])).to(x0)
            if not self.empty:  # core does not shift an empty latent either
                source = self._format.process_latent_in(source)
            wanted = form.eps(form.state(x0, white.to(x0), sigma), source, sigma)
            white = torch.where((mask > 0.0) & (mask < 1.0), wanted, white.to(x0))
            x0 = torch.where(mask < 1.0, source, x0)
        return self._format.process_latent_out(x0), white

"""A cascade in the form of a GUIDER, for core's sampler nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .cascade_run import sample_cascade
from .overrides import StageOverride
from .sampling_plan import SamplingPlan
from .stage_runner import Callback


class CascadeGuider:
    """Runs a whole plan when it is sampled, in place of the one size that a core node asks for.

    Noise comes from the seed, and levels from the plan: the noise and the sigmas handed to `sample` are not used.
    """

    is_rmd_cascade = True

    def __init__(
        self, guider: Any, plan: SamplingPlan, *, later_guider: Any | None, overrides: Sequence[StageOverride]
    ) -> None:
        self._guider = guider
        self._plan = plan
        self._later_guider = later_guider
        self._overrides = tuple(overrides)
        self.model_patcher = guider.model_patcher

    def sample(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: torch.Tensor | None = None,
        callback: Callback | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Sample the plan into `latent_image`, as core's guiders are called; gives LATENT samples."""
        latent = {"samples": latent_image}
        if denoise_mask is not None:
            latent["noise_mask"] = denoise_mask
        result = sample_cascade(
            self._plan,
            latent,
            guider=self._guider,
            sampler=sampler,
            seed=seed or 0,
            later_guider=self._later_guider,
            overrides=self._overrides,
            callback=callback,
        )
        return result.samples

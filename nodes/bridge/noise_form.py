"""How ComfyUI writes a noisy state: mixed for flow models, sigma on top of the picture for eps and v models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .class_names import class_names


@dataclass(frozen=True)
class NoiseForm:
    """States and predicted noise in ComfyUI's own terms, at its sigma.

    Flow: `x = sigma s eps + (1 - sigma) x0` with the model's noise scale s (1 for almost all). Others, in ComfyUI's
    variance-exploding form: `x = x0 + sigma eps`. All tensors are in the model's own latent space, any rank.
    """

    flow: bool
    scale: float = 1.0

    @classmethod
    def of(cls, model: Any) -> NoiseForm:
        """The form of a MODEL."""
        sampling = model.get_model_object("model_sampling")
        flow = "CONST" in class_names(sampling)
        return cls(flow, float(getattr(sampling, "noise_scale", 1.0)) if flow else 1.0)

    def state(self, x0: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The state at sigma of a clean picture and noise."""
        return (1.0 - sigma) * x0 + sigma * (self.scale * eps) if self.flow else x0 + sigma * eps

    def eps(self, x: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The noise in a state at sigma > 0, given its clean picture."""
        return (x - (1.0 - sigma) * x0) / (sigma * self.scale) if self.flow else (x - x0) / sigma

    def unscaled(self, output: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The state at sigma < 1 that a sampler node put out: core divides a flow's last state by 1 - sigma."""
        return output * (1.0 - sigma) if self.flow else output

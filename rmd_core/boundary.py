"""The boundary between two stages: how a clean estimate and its noise reach a larger size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from .errors import RMDError
from .noise_sources import FreshNoise
from .renoise import SWITCH_NOISES, check_eta, switch_noise
from .upsample import UPSAMPLERS, upsample


class Crossing(NamedTuple):
    """What arrives at the larger size: the upsampled clean estimate `x0` and the `noise` to mix it with."""

    x0: torch.Tensor
    noise: torch.Tensor


@dataclass(frozen=True)
class Boundary:
    """The rule at a change of size, one object for the sampler, the losses and validation.

    upsampler is one of `UPSAMPLERS`, switch_noise one of `SWITCH_NOISES`, eta_switch the share of predicted noise in
    [0, 1]. Raises RMDError for anything else. Source: docs/method.md, the boundary operation.
    """

    upsampler: str = "nearest"
    switch_noise: str = "exact"
    eta_switch: float = 0.5

    def __post_init__(self) -> None:
        if self.upsampler not in UPSAMPLERS:
            raise RMDError(f"upsampler {self.upsampler!r:.80} is unknown; use one of {', '.join(UPSAMPLERS)}")
        if self.switch_noise not in SWITCH_NOISES:
            raise RMDError(f"switch noise {self.switch_noise!r:.80} is unknown; use one of {', '.join(SWITCH_NOISES)}")
        object.__setattr__(self, "eta_switch", check_eta(self.eta_switch, "eta_switch"))

    @property
    def uses_prediction(self) -> bool:
        """Whether any predicted noise crosses; if not, a stage need not report its noise."""
        return self.switch_noise != "fresh" and self.eta_switch > 0.0

    def cross(
        self, x0: torch.Tensor, eps: torch.Tensor | None, size_hw: tuple[int, int], fresh: FreshNoise
    ) -> Crossing:
        """Take a clean estimate and its predicted noise to `size_hw`; gradients flow through x0.

        x0 and eps are `(B, C, h, w)` or `(B, C, T, h, w)`; eps may be None when `uses_prediction` is false. fresh as in
        `switch_noise`. Raises RMDError when eps is missing, or the target is smaller than x0 in either axis.
        """
        if eps is None and self.uses_prediction:
            raise RMDError(
                "the stage reported no predicted noise, which this boundary re-injects; "
                "use a sampler that reports it, or set eta_switch to 0 or switch_noise to fresh"
            )
        noise = switch_noise(
            x0.detach() if eps is None else eps,
            size_hw,
            rule=self.switch_noise,
            eta=self.eta_switch,
            fresh=fresh,
            upsampler=self.upsampler,
        )
        return Crossing(upsample(x0, size_hw, self.upsampler), noise)

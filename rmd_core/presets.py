"""Named sets of method settings: ours, the paper's, and those of the authors' releases."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from .errors import RMDError


@dataclass(frozen=True, kw_only=True)
class MethodPreset:
    """The settings that differ between published variants, ours unless given. Source: docs/method/method.md, presets.

    mapping is "on" (levels are mapped between sizes) or "none", in training and in plans made by hand. switch_noise is
    the rule at a change of size in the sampler, loss_noise the one in the losses. eta_train and eta are the share of
    predicted noise in [0, 1] in training and at inference. offset_factor and split are those of
    `TimestepIntervals.from_plan`.
    """

    mapping: str = "on"
    switch_noise: str = "exact"
    loss_noise: str = "exact"
    eta_train: float = 0.5
    eta: float = 0.5
    offset_factor: float = 0.25
    split: bool = True
    upsampler: str = "nearest"


PRESETS = MappingProxyType(
    {
        "default": MethodPreset(),
        "paper-literal": MethodPreset(switch_noise="mix", loss_noise="mix", upsampler="bilinear"),
        "official-current": MethodPreset(
            mapping="none", switch_noise="fresh", loss_noise="mix", eta=0.9, upsampler="bilinear"
        ),
        "official-first": MethodPreset(
            mapping="none",
            switch_noise="mix",
            loss_noise="mix",
            eta_train=0.9,
            eta=0.9,
            offset_factor=0.5,
            upsampler="bilinear",
        ),
        "official-7gpu": MethodPreset(
            mapping="none",
            switch_noise="fresh",
            loss_noise="fresh",
            eta_train=0.0,
            eta=0.0,
            offset_factor=0.0,
            split=False,
            upsampler="bilinear",
        ),
    }
)


def preset(name: str) -> MethodPreset:
    """The preset of a name; raises RMDError for an unknown one."""
    if name not in PRESETS:
        raise RMDError(f"method preset {name!r} is unknown; use one of {', '.join(PRESETS)}")
    return PRESETS[name]

"""Named sets of method settings: ours, the paper's, and those of the authors' releases."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from .errors import RMDError


@dataclass(frozen=True, kw_only=True)
class MethodPreset:
    """The settings that differ between published variants. Source: docs/method.md, presets.

    mapping_train and mapping are "on" (levels are mapped between sizes) or "none": in the plan that a student is
    trained with, and in a plan made by hand for another model. switch_noise is the rule at a change of size in the
    sampler, loss_noise the one in the losses. eta_train and eta are the share of predicted noise in [0, 1] in training
    and at inference. offset_factor and split are those of `TimestepIntervals.from_plan`.
    """

    name: str
    mapping_train: str
    mapping: str
    switch_noise: str
    loss_noise: str
    eta_train: float
    eta: float
    offset_factor: float
    split: bool
    upsampler: str


PRESETS = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            MethodPreset(
                name="default",
                mapping_train="none",
                mapping="on",
                switch_noise="exact",
                loss_noise="exact",
                eta_train=0.5,
                eta=0.5,
                offset_factor=0.25,
                split=True,
                upsampler="nearest",
            ),
            MethodPreset(
                name="paper-literal",
                mapping_train="on",
                mapping="on",
                switch_noise="mix",
                loss_noise="mix",
                eta_train=0.5,
                eta=0.5,
                offset_factor=0.25,
                split=True,
                upsampler="bilinear",
            ),
            MethodPreset(
                name="official-current",
                mapping_train="none",
                mapping="none",
                switch_noise="fresh",
                loss_noise="mix",
                eta_train=0.5,
                eta=0.9,
                offset_factor=0.25,
                split=True,
                upsampler="bilinear",
            ),
            MethodPreset(
                name="official-first",
                mapping_train="none",
                mapping="none",
                switch_noise="mix",
                loss_noise="mix",
                eta_train=0.9,
                eta=0.9,
                offset_factor=0.5,
                split=True,
                upsampler="bilinear",
            ),
            MethodPreset(
                name="official-7gpu",
                mapping_train="none",
                mapping="none",
                switch_noise="fresh",
                loss_noise="fresh",
                eta_train=0.0,
                eta=0.0,
                offset_factor=0.0,
                split=False,
                upsampler="bilinear",
            ),
        )
    }
)


def preset(name: str) -> MethodPreset:
    """The preset of a name; raises RMDError for an unknown one."""
    if name not in PRESETS:
        raise RMDError(f"method preset {name!r} is unknown; use one of {', '.join(PRESETS)}")
    return PRESETS[name]

"""From a configuration to the stage plan and the rules at a change of size."""

from rmd_core.boundary import Boundary
from rmd_core.errors import RMDError
from rmd_core.intervals import TimestepIntervals
from rmd_core.plan import plan_from_split, plan_from_thresholds
from rmd_core.schedule import AreaMap, FixedRatioMap, NoMap, ShiftPairMap


def build_plan(config, backbone):
    """The StagePlan of a resolved configuration. Raises RMDError for a plan that cannot be."""
    section = config.plan
    for height, width in section.sizes:
        if height % backbone.multiple or width % backbone.multiple:
            raise RMDError(
                f"plan.sizes: {height}x{width} latent cells do not fit the backbone {backbone.name}; "
                f"use multiples of {backbone.multiple}"
            )
    if section.frames > 1 and not backbone.temporal:
        raise RMDError(f"plan.frames is {section.frames}, but the backbone {backbone.name} makes single images; use 1")
    mapping = _mapping(config.method.mapping)
    if section.split is not None:
        return plan_from_split(backbone.curve, section.split, sizes=section.sizes, mapping=mapping, steps=section.steps)
    return plan_from_thresholds(
        backbone.curve, section.steps, thresholds=section.thresholds, sizes=section.sizes, mapping=mapping
    )


def build_intervals(config, plan):
    """The noise levels at which both losses look, per step."""
    method = config.method
    return TimestepIntervals.from_plan(plan, offset_factor=method.offset_factor, split=method.split_timestep)


def training_boundary(method):
    """The rule at a change of size while trajectories are made for training."""
    return Boundary(method.upsampler, method.switch_noise, _switch_eta(method, method.eta_train))


def loss_boundary(method):
    """The rule by which a low-resolution estimate reaches the final size inside the losses."""
    return Boundary(method.upsampler, method.loss_noise, _switch_eta(method, method.eta_train))


def sampling_boundary(method):
    """The rule at a change of size in validation, and in the recipe."""
    return Boundary(method.upsampler, method.switch_noise, _switch_eta(method, method.eta))


def _switch_eta(method, eta):
    return eta if method.eta_switch is None else method.eta_switch


def _mapping(choice):
    if choice == "none":
        return NoMap()
    if choice == "area":
        return AreaMap()
    return ShiftPairMap(*choice.shift) if hasattr(choice, "shift") else FixedRatioMap(choice.ratio)

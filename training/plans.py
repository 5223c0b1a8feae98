"""From a configuration to the stage plan and the rules at a change of size."""

from pathlib import Path

from rmd_core.boundary import Boundary, learned_name
from rmd_core.errors import RMDError
from rmd_core.intervals import TimestepIntervals
from rmd_core.plan import plan_from_split, plan_from_thresholds
from rmd_core.schedule import AreaMap, FixedRatioMap, NoMap, ShiftPairMap
from rmd_core.upsampler import read_upsampler

from .backbones import BACKBONES, make_backbone


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


def load_upsampler(method, backbone):
    """The LatentUpsampler that a resolved method names, frozen, on the CPU; None for a fixed kernel.

    Raises RMDError for a file of other weights than the configuration says, or for latents of another model.
    """
    if method.upsampler_sha256 is None:
        return None
    network = read_upsampler(method.upsampler)
    if network.digest() != method.upsampler_sha256:
        raise RMDError(
            f"method.upsampler: {method.upsampler} does not have the weights of method.upsampler_sha256; "
            "give the right file, or leave the digest out"
        )
    return check_upsampler(network, method.upsampler, backbone)


def check_upsampler(network, path, backbone):
    """The LatentUpsampler itself. Raises RMDError, naming its file, if it is for other latents than the backbone's."""
    latents = make_backbone(network.latents).latents if network.latents in BACKBONES else network.latents
    if (network.channels, latents) != (backbone.channels, backbone.latents):
        raise RMDError(
            f"{path} was trained on {network.latents}'s latents of {network.channels} channels, {backbone.name} has "
            f"{backbone.latents}'s of {backbone.channels}; train one with --backbone {backbone.name}"
        )
    return network


def training_boundary(method, learned=None):
    """The rule at a change of size while trajectories are made; ``learned``: the method's LatentUpsampler, if any."""
    return _boundary(method, method.switch_noise, method.eta_train, learned)


def loss_boundary(method, learned=None):
    """The rule by which a low-resolution estimate reaches the final size inside the losses."""
    return _boundary(method, method.loss_noise, method.eta_train, learned)


def sampling_boundary(method, learned=None):
    """The rule at a change of size in validation, and in the recipe."""
    return _boundary(method, method.switch_noise, method.eta, learned)


def _boundary(method, noise, eta, learned):
    name, digest = method.upsampler, method.upsampler_sha256
    name = name if digest is None else learned_name(Path(name).name, digest)
    return Boundary(name, noise, _switch_eta(method, eta), learned=learned)


def _switch_eta(method, eta):
    return eta if method.eta_switch is None else method.eta_switch


def _mapping(choice):
    if choice == "none":
        return NoMap()
    if choice == "area":
        return AreaMap()
    return ShiftPairMap(*choice.shift) if hasattr(choice, "shift") else FixedRatioMap(choice.ratio)

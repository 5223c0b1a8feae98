"""From a configuration to the stage plan and the rules at a change of size, and checks before anything loads."""

import logging

from rmd_core.boundary import Boundary
from rmd_core.errors import RMDError
from rmd_core.intervals import TimestepIntervals
from rmd_core.plan import plan_from_split, plan_from_thresholds
from rmd_core.schedule import AreaMap, FixedRatioMap, NoMap, ShiftPairMap

from .lora import adapted_layers
from .quantised import bitsandbytes_for, is_quantised

log = logging.getLogger(__name__)

STRONG = 4.0  # alpha / rank above which an adapter's steps are known to be large


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


def check_libraries(config):
    """Raise RMDError where the configuration needs bitsandbytes and it is not there."""
    if is_quantised(config.model.base_dtype):
        bitsandbytes_for(f"model.base_dtype: {config.model.base_dtype}")
    if config.optimiser.kind == "adamw8bit":
        bitsandbytes_for("optimiser.kind: adamw8bit")


def check_spread(config):
    """Raise RMDError for what networks that are spread over processes (FSDP2) do not allow for."""
    whole = config.model.mode == "three networks"
    refused = {
        f"model.base_dtype: {config.model.base_dtype}": is_quantised(config.model.base_dtype),
        "optimiser.kind: adamw8bit with three networks": whole and config.optimiser.kind == "adamw8bit",
        "train.offload: waiting with three networks": whole and config.train.offload == "waiting",
    }
    for setting, chosen in refused.items():
        if chosen:
            raise RMDError(f"{setting} does not work with networks spread over processes; launch without FSDP")


def check_rank(settings, backbone, outline):
    """Raise RMDError for a rank above the width of a layer it is for, and warn of an alpha far above the rank.

    ``settings``: the configuration's model section. Raises RMDError as ``adapted_layers``, too.
    """
    layers = adapted_layers(outline, settings.targets or backbone.adapter_targets)
    widths = {name: min(layer.weight.shape[0], layer.weight[0].numel()) for name, layer in layers.items()}
    narrow = min(widths, key=widths.get)
    if settings.rank > widths[narrow]:
        raise RMDError(
            f"model.rank is {settings.rank}, but '{narrow}' has a rank of at most {widths[narrow]}, which is the most "
            "that an adapter can add to it; lower model.rank, or leave that layer out of model.targets"
        )
    if settings.alpha > STRONG * settings.rank:
        log.warning(
            "warning: model.alpha %g at model.rank %d makes every step of the adapters %.3g times as large; "
            "1 to 2 times the rank are usual",
            *(settings.alpha, settings.rank, settings.alpha / settings.rank),
        )


def check_lora_names(settings, backbone, outline):
    """Raise RMDError for a layer with an adapter that no LoRA file of ComfyUI's can hold.

    ``settings``: as above. Only its own targets are looked at; the backbones' are known to fit.
    """
    for name in adapted_layers(outline, settings.targets or ()):
        try:
            backbone.native_layer(outline, name)
        except RMDError as error:
            raise RMDError(f"model.targets: {error}, or set output.merge=true") from None

"""What a configuration asks for that cannot be had, found before anything loads."""

import logging

import torch

from rmd_core.errors import RMDError

from .quantised import bitsandbytes_for, is_quantised

log = logging.getLogger(__name__)

STRONG = 4.0  # alpha / rank above which an adapter's steps are known to be large


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
    for setting, asked in refused.items():
        if asked:
            raise RMDError(f"{setting} does not work with networks spread over processes; launch without FSDP")


def check_rank(settings, backbone, outline):
    """Raise RMDError for a rank above the width of a layer it is for, and warn of an alpha far above the rank.

    ``settings``: the configuration's model section.
    """
    widths = {
        name: min(layer.weight.shape[0], layer.weight[0].numel())
        for name, layer in _ending_in(settings.targets or backbone.adapter_targets, outline)
        if isinstance(getattr(layer, "weight", None), torch.Tensor)
    }
    narrow = min(widths, key=widths.get, default=None)
    if narrow is not None and settings.rank > widths[narrow]:
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
    for name, _ in _ending_in(settings.targets or (), outline):
        try:
            backbone.native_layer(outline, name)
        except RMDError as error:
            raise RMDError(f"model.targets: {error}, or set output.merge=true") from None


def _ending_in(targets, outline):
    """(name, layer) pairs of the layers whose names end in one of ``targets``."""
    endings = tuple(f".{target}" for target in targets)
    return [(name, layer) for name, layer in outline.named_modules() if name and f".{name}".endswith(endings)]

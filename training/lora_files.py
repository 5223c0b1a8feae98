"""LoRA files under the names of ComfyUI, of kohya's programs and of diffusers: written, and read whatever the names.

Names of ComfyUI and kohya are those of native layers, in which several layers of a diffusers network may be stacked.
"""

import re

import torch

from rmd_core.errors import RMDError
from rmd_core.files import cast_weight, save_safetensors

from .lora import Factors

LORA_NAMES = ("comfyui", "kohya", "diffusers")

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "base_model.model.", "transformer.", "unet.", "lora_unet_")
_PAIR = re.compile(r"(.+)\.(?:(lora_A|lora_down|lora\.down)|lora_B|lora_up|lora\.up)(?:\.default)?\.weight")


def native_factors(factors, stacks):
    """``{layer: Factors}`` of a network as ``{native layer: Factors}``.

    ``stacks``: for each native layer the layers of the network that are stacked in it, all of one height, from its
    first row; a layer among them without an adapter stays as it is.
    """
    native = {}
    for name, layers in stacks.items():
        parts = [factors.get(layer) for layer in layers]
        native[name] = parts[0] if len(layers) == 1 else _stacked(parts)
    return native


def _stacked(parts):
    """Several layers over the same inputs as one: all ``down`` below each other, each ``up`` in a block of its own."""
    there = [part for part in parts if part is not None]
    down, height = torch.cat([part.down for part in there]), len(there[0].up)
    up, left = down.new_zeros(height * len(parts), len(down)), 0
    for number, part in enumerate(parts):
        if part is not None:
            width = part.up.shape[1]
            # The rank grows, so alpha / rank falls; up makes up for it, and every layer keeps its alpha.
            scale = len(down) / width * part.alpha / there[0].alpha
            up[number * height : (number + 1) * height, left : left + width] = part.up * scale
            left += width
    return Factors(down, up, there[0].alpha)


def of_one_rank(factors):
    """The same LoRA with one rank in all layers, padded by zeros, and that rank as its alpha.

    Names of diffusers have no place for an alpha: its loader, and others, then take the rank.
    """
    rank = max(len(value.down) for value in factors.values())
    padded = {}
    for layer, value in factors.items():
        down, up = (
            value.down.new_zeros(rank, *value.down.shape[1:]),
            value.up.new_zeros(len(value.up), rank, *value.up.shape[2:]),
        )
        down[: len(value.down)] = value.down
        up[:, : len(value.down)] = value.up * (value.alpha / len(value.down))
        padded[layer] = Factors(down, up, float(rank))
    return padded


def save_lora(path, factors, *, names="comfyui", component="transformer", dtype, metadata):
    """Write the Factors of native layers, or for the ``names`` of diffusers those of a network's own layers.

    Where the names have room for an alpha it is always written, in float32, so that strength 1.0 is the strength of
    training. ``component``: what diffusers calls the network in its pipeline. Raises RMDError when the file cannot be
    written, or when a weight is not finite, in training or in ``dtype``.
    """
    tensors = {}
    for layer, value in factors.items():
        if names == "kohya":
            stem, down, up = f"lora_unet_{layer.replace('.', '_')}", "lora_down", "lora_up"
        else:
            prefix = "diffusion_model" if names == "comfyui" else component
            stem, down, up = f"{prefix}.{layer}", "lora_A", "lora_B"
        for name, tensor in ((f"{stem}.{down}.weight", value.down), (f"{stem}.{up}.weight", value.up)):
            tensors[name] = cast_weight(name, tensor, dtype, path)
        if names != "diffusers":
            tensors[f"{stem}.alpha"] = torch.tensor(value.alpha, dtype=torch.float32)
    if names == "kohya":  # by which kohya's programs, and those that follow them, show a file
        ranks = {len(value.down) for value in factors.values()}
        rank, alpha = max(ranks), max(value.alpha for value in factors.values())
        metadata = metadata | {"ss_network_module": "networks.lora", "ss_network_dim": str(rank)}
        metadata |= {"ss_network_alpha": f"{alpha:g}"}
    save_safetensors(path, tensors, metadata)


def read_lora(tensors, keys, source):
    """``{layer: Factors}`` of a network's own layers, in float32, of a LoRA file under any of LORA_NAMES.

    ``keys``: the KeyMap of the network. A pair without an alpha has its rank. Raises RMDError, naming the file
    ``source``, for a tensor that belongs to no pair, or to no layer of this network.
    """
    known, pairs, alphas = _spellings(keys), {}, {}
    for name, tensor in tensors.items():
        match = _PAIR.fullmatch(name)
        if match is not None:
            pairs.setdefault(match[1], {})["up" if match[2] is None else "down"] = tensor.float()
        elif name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha")] = float(tensor)
        else:
            raise RMDError(f"{source}: {name[:80]!r} belongs to no LoRA pair; give a plain LoRA")
    found = {}
    for stem, pair in pairs.items():
        layers = _layers_of(stem, known)
        if layers is None or len(pair) < 2:
            what = "is half of a LoRA pair" if layers else "names no layer of this network"
            raise RMDError(f"{source}: {stem[:80]!r} {what}; give a LoRA of this base, for its network alone")
        down, alpha = pair["down"], alphas.get(stem, float(len(pair["down"])))
        for layer, up in zip(layers, pair["up"].chunk(len(layers))):
            if len(layers) == 1:
                found[layer] = Factors(down, up, alpha)
            elif up.any():
                found[layer] = _own_columns(down, up, alpha)
    if not found:
        raise RMDError(f"{source}: there is no LoRA in this file; give a LoRA")
    return found


def _own_columns(down, up, alpha):
    """One layer's part of a stack, without what belongs to the others."""
    own = up.any(0)
    return Factors(down[own], up[:, own] * (int(own.sum()) / len(down)), alpha)


def _spellings(keys):
    """Every way to write a layer, without prefix: ``{spelling: layers of the network in it}``."""
    known = {}
    for native, names in keys.sources.items():
        if native.endswith(".weight") and native not in keys.swapped:
            layers = tuple(name.removesuffix(".weight") for name in names)
            each = {native.removesuffix(".weight"): layers} | {layer: (layer,) for layer in layers}
            known |= {spelling: value for name, value in each.items() for spelling in (name, name.replace(".", "_"))}
    return known


def _layers_of(stem, known):
    for prefix in ("", *_PREFIXES):
        if stem.startswith(prefix) and stem.removeprefix(prefix) in known:
            return known[stem.removeprefix(prefix)]
    return None


@torch.no_grad()
def merge_lora(network, factors, source):
    """Add a LoRA, ``{layer: Factors}``, to the weights of a network, in place; returns the network.

    Raises RMDError, naming the file ``source``, for a LoRA of other sizes.
    """
    for layer, value in factors.items():
        weight = network.get_submodule(layer).weight
        delta = value.up.flatten(1) @ value.down.flatten(1) * (value.alpha / len(value.down))
        if delta.numel() != weight.numel() or len(delta) != len(weight):
            raise RMDError(
                f"{source} changes '{layer}' as one of {tuple(delta.shape)}, but it is {tuple(weight.shape)}; give the "
                "base that it was trained on"
            )
        weight.copy_(weight.float() + delta.reshape(weight.shape).to(weight.device))
    return network

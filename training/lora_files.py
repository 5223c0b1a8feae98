"""LoRA files under the names of ComfyUI, of kohya's programs and of diffusers: written, and read whatever the names.

Names of ComfyUI and kohya are those of native layers, in which several layers of a diffusers network may be stacked.
What a file changes in full is called ``diff`` (of a weight), ``diff_b`` (of a bias) and ``diff_m`` (of a modulation),
as in LightX2V's files.
"""

import logging
import math
import re

import torch

from rmd_core.errors import RMDError
from rmd_core.files import cast_weight, save_safetensors

from .lora import Factors, Lora

log = logging.getLogger(__name__)

LORA_NAMES = ("comfyui", "kohya", "diffusers")

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "base_model.model.", "transformer.", "unet.", "lora_unet_")
_PAIR = re.compile(r"(.+)\.(?:(lora_A|lora_down|lora\.down)|lora_B|lora_up|lora\.up)(?:\.default)?\.weight")
_CHANGE = re.compile(r"(.+)\.(diff|diff_b|diff_m)")
_TEXT_ENCODERS = ("lora_te", "text_encoder", "te1.", "te2.", "text_model")


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


def save_lora(path, factors, changes=None, *, names="comfyui", component="transformer", dtype, metadata):
    """Write the Factors of native layers, or for the ``names`` of diffusers those of a network's own layers.

    ``changes``: what is added to other native tensors; the names of diffusers have no room for them.
    Where the names have room for an alpha it is always written, in float32, so that strength 1.0 is the strength of
    training. ``component``: what diffusers calls the network in its pipeline. Raises RMDError when the file cannot be
    written, or when a weight is not finite, in training or in ``dtype``.
    """
    if changes and names == "diffusers":
        raise RMDError(
            f"{path}: '{next(iter(changes))}' is changed in full, which the names of diffusers cannot say; use "
            "those of comfyui or kohya, or write a whole student (output.merge)"
        )

    def spelled(layer):
        if names == "kohya":
            return f"lora_unet_{layer.replace('.', '_')}"
        return f"{'diffusion_model' if names == 'comfyui' else component}.{layer}"

    tensors = {}
    down, up = ("lora_down", "lora_up") if names == "kohya" else ("lora_A", "lora_B")
    for name, change in (changes or {}).items():
        kind = "diff_b" if name.endswith(".bias") else "diff"
        stem = spelled(name.removesuffix(".weight").removesuffix(".bias"))
        tensors[f"{stem}.{kind}"] = cast_weight(f"{stem}.{kind}", change, dtype, path)
    for layer, value in factors.items():
        stem = spelled(layer)
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
    """The Lora, in float32, of a file under any of LORA_NAMES, or PEFT's, for a network's own layers and tensors.

    ``keys``: the KeyMap of the network. A pair without an alpha has its rank; an alpha may spell its layer otherwise
    than the pair. What is for text encoders is left out, with a warning. Raises RMDError, naming the file ``source``,
    for a tensor of another kind or another network.
    """
    known, pairs, alphas, changes = _spellings(keys), {}, {}, {}
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TEXT_ENCODERS)}
    if len(own) < len(tensors):
        log.warning("warning: %s: %d tensors of text encoders are left out", source, len(tensors) - len(own))
    for name, tensor in own.items():
        match = _PAIR.fullmatch(name)
        if (change := _CHANGE.fullmatch(name)) is not None:
            changes |= _change(*change.groups(), tensor.float(), keys, source)
        elif match is not None:
            pairs.setdefault(match[1], {})["up" if match[2] is None else "down"] = tensor.float()
        elif name.endswith(".alpha") and tensor.numel() == 1:
            stem = name.removesuffix(".alpha")
            layers = _layers_of(stem, known)
            alphas[stem if layers is None or layers in alphas else layers] = stem, float(tensor)
        else:
            raise RMDError(f"{source}: {name[:80]!r} is not part of a LoRA pair; give a plain LoRA")
    found = {}
    for stem, pair in pairs.items():
        layers = _layers_of(stem, known)
        if layers is None or len(pair) < 2:
            what = "is half of a LoRA pair" if layers else "names no layer of this network"
            raise RMDError(f"{source}: {stem[:80]!r} {what}; give a LoRA of this base, for its diffusion network only")
        down, ups = pair["down"], pair["up"]
        if min(down.ndim, ups.ndim) < 2 or not 0 < len(down) == ups.shape[1]:
            sizes = " and ".join(str(tuple(part.shape)) for part in (down, ups))
            raise RMDError(
                f"{source}: {stem[:80]!r} has a pair of sizes {sizes}, which make no LoRA; copy the file again"
            )
        _, alpha = alphas.pop(layers, (stem, float(len(down))))
        for layer, up in zip(layers, ups.chunk(len(layers))):
            if len(layers) == 1:
                found[layer] = Factors(down, up, alpha)
            elif up.any():
                found[layer] = _own_columns(down, up, alpha)
    if alphas:
        stem, _ = next(iter(alphas.values()))
        raise RMDError(f"{source}: {stem[:80]!r} has an alpha, but no LoRA pair of its own; give a LoRA of this base")
    if not found and not changes:
        raise RMDError(f"{source}: there is no LoRA in this file; give a LoRA")
    return Lora(found, changes)


def is_lora(names):
    """Whether a file with these tensors changes a network, and is not one."""
    return any(_PAIR.fullmatch(name) or _CHANGE.fullmatch(name) for name in names)


def _change(stem, kind, tensor, keys, source):
    """``{tensor of the network: change}`` of one tensor that is changed in full."""
    written = {name.replace(".", "_"): name for names in keys.sources.values() for name in names}
    written |= {native.replace(".", "_"): native for native in keys.sources}
    ends = {"diff": ("_weight", ""), "diff_b": ("_bias",), "diff_m": ("_modulation",)}[kind]
    for prefix in ("", *_PREFIXES):
        bare = stem.removeprefix(prefix).replace(".", "_")
        found = next((written[bare + end] for end in ends if bare + end in written), None)
        if found is not None:
            return keys.to_diffusers({found: tensor}) if found in keys.sources else {found: tensor}
    raise RMDError(f"{source}: {stem[:80]!r} names no layer of this network; give a LoRA of this base")


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
def merge_lora(network, lora, source):
    """Add a Lora to the weights of a network, in place; returns the network.

    Raises RMDError, naming the file ``source``, for a LoRA of other sizes.
    """
    check_lora(network, lora, source)
    state = network.state_dict()
    for name, change in lora.changes.items():
        state[name].copy_(state[name].float() + change.to(state[name].device))
    for layer, value in lora.factors.items():
        weight = state[f"{layer}.weight"]
        delta = value.up.flatten(1) @ value.down.flatten(1) * (value.alpha / len(value.down))
        weight.copy_(weight.float() + delta.reshape(weight.shape).to(weight.device))
    return network


def check_lora(network, lora, source):
    """Raise RMDError, naming the file ``source``, for a Lora of another network or of other sizes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    sizes = {f"{n}.weight": (len(f.up), f.down[0].numel()) for n, f in lora.factors.items()}
    flat = {name: (shape[0], math.prod(shape[1:])) for name, shape in shapes.items() if name in sizes}
    sizes |= {name: tuple(change.shape) for name, change in lora.changes.items()}
    wrong = next((name for name, size in sizes.items() if flat.get(name, shapes.get(name)) != size), None)
    if wrong is not None:
        raise RMDError(
            f"{source} changes '{wrong}' of size {sizes[wrong]}, but here it is {shapes.get(wrong, 'missing')}; "
            "give the base that it was trained on"
        )

"""LoRA files as ComfyUI's LoRA loader reads them."""

from dataclasses import dataclass

import torch

from rmd_core.header import save_safetensors

from .tensor_files import cast_weight

PREFIX = "diffusion_model."


@dataclass(frozen=True)
class Factors:
    """A LoRA of one layer: its weight moves by ``alpha / rank * up @ down``; ``down`` is (rank, ...)."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float


def native_factors(factors, stacks, network):
    """``{layer: Factors}`` of a network as ``{native layer: Factors}``.

    ``stacks``: for each native layer the layers of the network that are stacked in it, from its first row; a layer
    among them without an adapter stays as it is.
    """
    native = {}
    for name, layers in stacks.items():
        if len(layers) == 1:
            native[name] = factors[layers[0]]
        else:
            rows = [network.get_submodule(layer).out_features for layer in layers]
            native[name] = _stacked([factors.get(layer) for layer in layers], rows)
    return native


def _stacked(parts, rows):
    """Several layers over the same inputs as one: all ``down`` below each other, each ``up`` in a block of its own."""
    there = [part for part in parts if part is not None]
    down = torch.cat([part.down for part in there])
    up, top, left = down.new_zeros(sum(rows), len(down)), 0, 0
    for part, height in zip(parts, rows):
        if part is not None:
            width = part.up.shape[1]
            up[top : top + height, left : left + width] = part.up
            left += width
        top += height
    # The rank grows, so alpha / rank falls; up makes up for it, and every layer keeps the one alpha of the recipe.
    return Factors(down, up * len(there), there[0].alpha)


def save_lora(path, factors, *, dtype, metadata):
    """Write ``{native layer: Factors}`` with ``.lora_A.weight``, ``.lora_B.weight`` and ``.alpha`` for each.

    The alpha, always written and in float32, makes strength 1.0 the strength of training. Raises RMDError when the file
    cannot be written, or when a weight is not finite, in training or in ``dtype``.
    """
    tensors = {}
    for layer, value in factors.items():
        for name, tensor in ((f"{layer}.lora_A.weight", value.down), (f"{layer}.lora_B.weight", value.up)):
            tensors[PREFIX + name] = cast_weight(name, tensor, dtype, path)
        tensors[f"{PREFIX}{layer}.alpha"] = torch.tensor(value.alpha, dtype=torch.float32)
    save_safetensors(path, tensors, metadata)

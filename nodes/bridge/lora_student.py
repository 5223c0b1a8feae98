"""A LoRA student on a MODEL: applied whole, with the scale it was trained with, or refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from math import prod
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import torch

from ...rmd_core.errors import RMDError
from ...rmd_core.recipe import Recipe
from .readable_files import readable
from .student_checks import Findings

DOWN = re.compile(
    r"^(.+?)(\.lora_down\.weight|\.lora_A\.weight|\.lora_A\.default\.weight|\.lora_A|_lora\.down\.weight"
    r"|\.lora\.down\.weight|\.lora_linear_layer\.down\.weight)$"
)
"""The names that the first matrix of a pair goes by, after the name of what it changes."""

HALF_PRECISION = 1e-2
"""Relative difference that storing an alpha in half precision can make, and more."""


def apply_lora(model: Any, path: str, recipe: Recipe, *, strength: float, student: str) -> tuple[Any, Findings]:
    """A clone of a MODEL with a LoRA student on it; the MODEL itself stays as it is.

    Raises RMDError for a file that cannot be read, and when no tensor of it has a place in the model, some have none,
    or a shape does not fit.
    """
    with readable(student):
        held = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
        weights = _with_alpha(held, recipe, student)
        patches = comfy.lora.load_lora(weights, comfy.lora.model_lora_keys_unet(model.model, {}))
    _check_places(held, patches, recipe, student)
    unseen = _check_shapes(model, patches, recipe, student)
    patched, _ = comfy.sd.load_lora_for_models(model, None, weights, strength, 0.0)
    checked = f"all {len(held)} tensors of the LoRA have a place in the model and change {len(patches)} weights"
    return patched, Findings((checked,), unseen)


def _with_alpha(held: Mapping[str, torch.Tensor], recipe: Recipe, student: str) -> dict[str, torch.Tensor]:
    """The tensors of a file, and the recipe's alpha for every pair that has none: ComfyUI would take the rank."""
    alpha = recipe.adapter_alpha
    other = {float(value) for name, value in held.items() if name.endswith(".alpha")}
    other = sorted(value for value in other if not math.isclose(value, alpha, rel_tol=HALF_PRECISION))
    if other:
        raise RMDError(
            f"{student} holds the alphas {', '.join(f'{value:g}' for value in other)}, "
            f"but its recipe says {alpha:g}; use the file as the training wrote it"
        )
    return {f"{match[1]}.alpha": torch.tensor(alpha) for name in held if (match := DOWN.match(name))} | dict(held)


def _check_places(held: Mapping[str, torch.Tensor], patches: dict[Any, Any], recipe: Recipe, student: str) -> None:
    used = set().union(*(getattr(patch, "loaded_keys", ()) for patch in patches.values()))
    homeless = sorted(name for name in held if name not in used)
    base = f"it is for {recipe.base_model} ({recipe.architecture})"
    if not used:
        raise RMDError(
            f"{student}: none of its {len(held)} tensors belongs to a LoRA pair with a place in this model, "
            f"first {min(held, default='')!r:.90}; {base}"
        )
    if homeless:
        raise RMDError(
            f"{student}: {len(homeless)} of its {len(held)} tensors have no place in this model, "
            f"first {homeless[0]!r:.90}; {base}"
        )


def _check_shapes(model: Any, patches: dict[Any, Any], recipe: Recipe, student: str) -> tuple[str, ...]:
    """Raise for a pair that does not fit its weight; returns a sentence on patches of other kinds than pairs."""
    other = set()
    for target, patch in patches.items():
        key = target if isinstance(target, str) else target[0]
        if not isinstance(target, str) or getattr(patch, "name", None) != "lora" or patch.weights[3] is not None:
            other.add(key)
            continue
        up, down = patch.weights[:2]
        have = _shape(model, key)
        if (up.shape[0], prod(down.shape[1:])) != (have[0], prod(have[1:])) or prod(up.shape[1:]) != down.shape[0]:
            raise RMDError(
                f"{student}: {key} is {have[0]}x{prod(have[1:])} in this model, but the LoRA changes one of "
                f"{up.shape[0]}x{prod(down.shape[1:])} by matrices of rank {prod(up.shape[1:])} and {down.shape[0]}; "
                f"it is for {recipe.base_model}"
            )
    return (f"the shapes of {len(other)} patches that are no plain LoRA pairs",) if other else ()


def _shape(model: Any, key: str) -> tuple[int, ...]:
    """The shape of a weight as the network uses it: packed formats store another one."""
    weight = comfy.utils.get_attr(model.model, key)
    return tuple(getattr(weight, "tensor_shape", weight.shape))

"""Base models that students come from: the families ComfyUI knows, and the sizes by which one is told from another.
Files that ComfyUI's own loaders read: what they cannot read is told in one line.
Does a student fit a model: what its recipe says against what ComfyUI loaded, before anything is sampled.
A full student as ComfyUI loads it, and whether the file held the whole network.
A LoRA student on a MODEL: applied whole, with the scale it was trained with, or refused."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import torch
from safetensors import SafetensorError

from ...rmd_core.errors import RMDError, one_line
from ...rmd_core.files import read_header, read_metadata
from ...rmd_core.recipe import RECIPE_KEY, Recipe
from ...rmd_core.schedule import VPCurve
from .model import ModelView, class_names


@dataclass(frozen=True)
class Family:
    """A ModelSpec architecture (its beginning) and ComfyUI's class of the same models."""

    title: str
    architectures: tuple[str, ...]
    network: str


@dataclass(frozen=True)
class Structure:
    """What tells models of one family apart; `variant` is what width and depth leave open, and may be empty."""

    network: str
    width: int
    depth: int
    variant: str = ""

    def __str__(self) -> str:
        tail = f", {self.variant}" if self.variant else ""
        return f"{self.network} of width {self.width}, depth {self.depth}{tail}"


@dataclass(frozen=True)
class Base:
    """A published base: its structure, and the words of which one set, all together, is in its file's or id's name."""

    title: str
    structure: Structure
    words: tuple[tuple[str, ...], ...]


FAMILIES = (
    Family("Wan2.1", ("wan2.1", "wan-2.1"), "WAN21"),
    Family("Stable Diffusion XL", ("stable-diffusion-xl",), "SDXL"),
    Family("Stable Diffusion 3", ("stable-diffusion-v3", "stable-diffusion-3"), "SD3"),
    Family("PixArt", ("pixart",), "PixArt"),
    Family("Flux", ("flux-1", "flux.1"), "Flux"),
)

_SD3 = ("stablediffusion3", "sd3")
_SD35 = ("stablediffusion35", "sd35")

# The more specific of two bases whose words could both match stands first.
BASES = (
    Base("the demo's rmd_tiny_wan_teacher", Structure("WAN21", 128, 8, "16 channels in"), (("rmdtinywanteacher",),)),
    Base("Wan2.2 A14B text-to-video", Structure("WAN21", 5120, 40, "16 channels in"), (("wan22", "t2v"),)),
    Base("Wan2.2 A14B image-to-video", Structure("WAN21", 5120, 40, "36 channels in"), (("wan22", "i2v"),)),
    Base("Wan2.1 14B image-to-video", Structure("WAN21", 5120, 40, "36 channels in"), (("wan21", "i2v"),)),
    Base("Wan2.1 1.3B text-to-video", Structure("WAN21", 1536, 30, "16 channels in"), (("wan21", "t2v", "13b"),)),
    Base("Wan2.1 14B text-to-video", Structure("WAN21", 5120, 40, "16 channels in"), (("wan21", "t2v", "14b"),)),
    Base("SDXL Turbo", Structure("SDXL", 320, 24), (("sdxlturbo",),)),
    Base("SDXL base 1.0", Structure("SDXL", 320, 24), (("sdxlbase",), ("stablediffusionxlbase",))),
    Base(
        "Stable Diffusion 3.5 Large Turbo",
        Structure("SD3", 2432, 38, "query-key norm"),
        tuple((name, "largeturbo") for name in _SD35),
    ),
    Base(
        "Stable Diffusion 3.5 Large", Structure("SD3", 2432, 38, "query-key norm"), tuple((n, "large") for n in _SD35)
    ),
    Base(
        "Stable Diffusion 3.5 Medium",
        Structure("SD3", 1536, 24, "query-key norm, dual attention"),
        tuple((n, "medium") for n in _SD35),
    ),
    Base("Stable Diffusion 3 Medium", Structure("SD3", 1536, 24), tuple((f"{name}medium",) for name in _SD3)),
    Base("PixArt-Sigma XL 1024", Structure("PixArt", 1152, 28, "sigma"), (("pixartsigmaxl21024",),)),
    Base("PixArt-Sigma XL 512", Structure("PixArt", 1152, 28, "sigma"), (("pixartsigmaxl2512",),)),
    Base("PixArt-alpha XL 1024", Structure("PixArt", 1152, 28, "alpha"), (("pixartxl21024",),)),
)


def family_of(architecture: str) -> Family | None:
    """The family of a ModelSpec architecture such as `wan2.1` or `stable-diffusion-xl-v1-base/lora`."""
    name = architecture.lower()
    return next((family for family in FAMILIES if name.startswith(family.architectures)), None)


def known_base(name: str) -> Base | None:
    """The base that a Hugging Face id or a file name means, None for one that is not in the table."""
    plain = plain_name(name)
    return next((base for base in BASES if any(all(word in plain for word in words) for words in base.words)), None)


def bases_of(structure: Structure) -> str:
    """The titles of all bases of one structure, for a message; empty when none is in the table."""
    return " or ".join(base.title for base in BASES if base.structure == structure)


def plain_name(name: str) -> str:
    """A model's name without owner, ending, case and punctuation, so that the ways of writing it compare as equal."""
    last = re.split(r"[/\\]", name.strip())[-1].lower()
    last = re.sub(r"\.(safetensors|sft|gguf)$", "", last)
    return re.sub(r"[^a-z0-9]", "", last.removesuffix("-diffusers"))


def is_a(model: Any, network: str) -> bool:
    """Whether a MODEL is of ComfyUI's model class of that name, or of one derived from it."""
    return network in class_names(model.model)


def structure_of(model: Any) -> Structure | None:
    """The structure of a MODEL as its loader detected it; None for a family without a reader here."""
    config = model.model.model_config.unet_config
    for network, read in _READERS.items():
        if is_a(model, network):
            try:
                return Structure(network, *read(config))
            except (KeyError, TypeError):
                return None
    return None


def _wan(config: dict[str, Any]) -> tuple[int, int, str]:
    return config["dim"], config["num_layers"], f"{config['in_dim']} channels in"


def _sdxl(config: dict[str, Any]) -> tuple[int, int]:
    return config["model_channels"], sum(config["transformer_depth"])


def _sd3(config: dict[str, Any]) -> tuple[int, int, str]:
    marks = [("query-key norm", config.get("qk_norm")), ("dual attention", config.get("x_block_self_attn_layers"))]
    return 64 * config["depth"], config["depth"], ", ".join(name for name, there in marks if there)


def _pixart(config: dict[str, Any]) -> tuple[int, int, str]:
    return config["hidden_size"], config["depth"], config["image_model"].removeprefix("pixart_")


_READERS = {"WAN21": _wan, "SDXL": _sdxl, "SD3": _sd3, "PixArt": _pixart}


@contextmanager
def readable(student: str) -> Iterator[None]:
    """Run a loader of ComfyUI's on the file called `student`.

    Raises RMDError where the safetensors library refuses the file, or ComfyUI misses a tensor in it.
    """
    try:
        yield
    except (KeyError, IndexError) as error:
        raise RMDError(
            f"{student}: ComfyUI misses a tensor in this file ({one_line(error, 200)}); copy it again or export it "
            "again"
        ) from error
    except (SafetensorError, OSError) as error:
        raise RMDError(
            f"{student}: this file cannot be read ({one_line(error, 200)}); copy it again or export it again"
        ) from None


SAME_TABLE = 1e-2
"""Two noise tables are the same when no logSNR differs by more."""


@dataclass(frozen=True)
class Findings:
    """Sentences for the user: what was compared and agrees, and what could not be compared."""

    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(self.checked + other.checked, self.unchecked + other.unchecked)


def check_network(recipe: Recipe, model: Any, student: str) -> Findings:
    """The family, the size and the noise of a MODEL against the recipe of the student file called `student`.

    Raises RMDError, naming both, where they disagree.
    """
    return (
        _check_family(recipe, model, student)
        + _check_structure(recipe, model, student)
        + _check_noise(recipe, model, student)
    )


def check_source(recipe: Recipe, model: Any, student: str) -> Findings:
    """The file that a MODEL was loaded from against the base that a LoRA student names.

    Raises RMDError for a file known to be another base, or itself a student.
    """
    wanted = f"the base {recipe.base_model}"
    source = source_file(model)
    if source is None:
        return Findings(unchecked=(f"whether the model is {wanted}: it does not say which file it came from",))
    if _is_student(source):
        raise RMDError(
            f"{student} is a LoRA for {recipe.base_model}, but the model is {source.name}, itself an RMD student; "
            f"load {recipe.base_model} instead"
        )
    if plain_name(source.name) == plain_name(recipe.base_model):
        return Findings(checked=(f"the model was loaded from {source.name}, the name of the base",))
    ours, theirs = known_base(recipe.base_model), known_base(source.name)
    if theirs is None:
        sentence = f"whether {source.name} is {wanted}: the names differ and nothing else tells them apart"
        return Findings(unchecked=(sentence,))
    if ours is None:
        sentence = f"whether {source.name} ({theirs.title}) is {wanted}: that base is not in RMD's list"
        return Findings(unchecked=(sentence,))
    if ours != theirs:
        raise RMDError(
            f"{student} was distilled from {recipe.base_model} ({ours.title}), but the model was loaded from "
            f"{source.name} ({theirs.title}); load {recipe.base_model} instead"
        )
    return Findings(checked=(f"{source.name} and {recipe.base_model} both name {ours.title}",))


def source_file(model: Any) -> Path | None:
    """The file a MODEL was loaded from, where its loader left a note of it."""
    note = getattr(model, "cached_patcher_init", None)
    if not note or len(note) < 2 or not note[1] or not isinstance(note[1][0], (str, os.PathLike)):
        return None
    return Path(note[1][0])


def _is_student(path: Path) -> bool:
    try:
        return RECIPE_KEY in read_metadata(path)
    except RMDError:  # no safetensors file, so no student either
        return False


def _check_family(recipe: Recipe, model: Any, student: str) -> Findings:
    family, name = family_of(recipe.architecture), type(model.model).__name__
    if family is None:
        return Findings(unchecked=(f"the architecture: {recipe.architecture!r} is not in RMD's list",))
    if not is_a(model, family.network):
        raise RMDError(
            f"{student} was distilled from {recipe.base_model} ({family.title}), but the model is {name}; "
            f"use a {family.title} model"
        )
    return Findings(checked=(f"the architecture, {recipe.architecture} ({name})",))


def _check_structure(recipe: Recipe, model: Any, student: str) -> Findings:
    base, structure = known_base(recipe.base_model), structure_of(model)
    if base is None or structure is None:
        what = f"{recipe.base_model} is not in RMD's list" if base is None else "this kind of model has no reader"
        return Findings(unchecked=(f"the size of the network: {what}",))
    if base.structure != structure:
        titles = bases_of(structure)
        raise RMDError(
            f"{student} was distilled from {recipe.base_model} ({base.structure}), but the model is {structure}"
            f"{titles and f' ({titles})'}; use {recipe.base_model}"
        )
    return Findings(checked=(f"the size of the network, {structure}",))


def _check_noise(recipe: Recipe, model: Any, student: str) -> Findings:
    view = ModelView.of(model)
    if recipe.pixels_per_cell != view.cell_px:
        raise RMDError(
            f"{student} is for latents of {recipe.pixels_per_cell} px a cell, this model's have {view.cell_px}; "
            f"use {recipe.base_model}"
        )
    if recipe.curve.kind != view.curve.kind:
        raise RMDError(
            f"{student} is for {recipe.curve.describe()}, but the model runs on {view.curve.describe()}; "
            f"use {recipe.base_model}"
        )
    if isinstance(recipe.curve, VPCurve) and not _same_table(recipe.curve, view.curve):
        raise RMDError(
            f"{student} was trained on {recipe.curve.describe()}, the model runs on {view.kind.table}; "
            "take out nodes that change the model's noise table, or use its own base"
        )
    prediction = _prediction(model)
    if recipe.prediction != prediction:
        raise RMDError(
            f"{student} predicts {recipe.prediction}, but the model is set to {prediction}; "
            "take out nodes that change the prediction, or use its own base"
        )
    return Findings(checked=(f"the noise, {view.curve.kind}, and the prediction, {prediction}",))


def _same_table(ours: VPCurve, theirs: VPCurve) -> bool:
    return ours.table_size == theirs.table_size and torch.allclose(
        ours.table_logsnr, theirs.table_logsnr, atol=SAME_TABLE, rtol=0.0
    )


def _prediction(model: Any) -> str:
    kinds = class_names(model.get_model_object("model_sampling"))
    if "CONST" in kinds:
        return "flow"
    return "v" if "V_PREDICTION" in kinds else "eps"


WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""The model options of each weight dtype, as ComfyUI's own loader of diffusion models offers them."""

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
PLAIN = {"F64", "F32", "F16", "BF16"}


def load_full(path: str, *, weight_dtype: str, student: str) -> tuple[Any, Findings]:
    """The MODEL in a file of diffusion_models.

    Raises RMDError for an unknown weight_dtype, and for a file that ComfyUI does not recognise or cannot read, or that
    lacks weights of the network it is.
    """
    if weight_dtype not in WEIGHT_DTYPES:
        raise RMDError(f"weight_dtype is {weight_dtype!r:.80}; use one of {', '.join(WEIGHT_DTYPES)}")
    with readable(student):
        try:
            model = comfy.sd.load_diffusion_model(path, model_options=dict(WEIGHT_DTYPES[weight_dtype]))
        except RuntimeError as error:
            if "Could not detect model type" in str(error):
                raise RMDError(
                    f"{student}: ComfyUI recognises no diffusion model in this file; if it is a LoRA, choose LoRA, "
                    "else update ComfyUI"
                ) from None
            if "Error(s) in loading state_dict" in str(error):
                raise RMDError(
                    f"{student}: its tensors do not have the shapes of one network; it is damaged, copy it again or "
                    "export it again"
                ) from error
            raise
    return model, _check_whole(path, model, student)


def _check_whole(path: str, model: Any, student: str) -> Findings:
    """Compare names only: ComfyUI fills a weight that the file lacks with whatever was in memory, and goes on."""
    tensors = read_header(path).tensors
    stored = {_without_prefix(name) for name in tensors}
    network = model.model.diffusion_model
    wanted = {name for name, _ in network.named_parameters()}
    lacking = sorted(wanted - stored)
    if not lacking:
        return Findings(checked=(f"all {len(wanted)} weights of the network are in the file",))
    foreign = stored - network.state_dict().keys()
    packed = {entry.dtype for entry in tensors.values()} - PLAIN
    if packed or _renamed(lacking, foreign) or (foreign and 2 * len(lacking) > len(wanted)):
        return Findings(unchecked=("whether the file holds every weight: its names are not those of the network",))
    raise RMDError(
        f"{student} lacks {len(lacking)} of the {len(wanted)} weights of its network, first {lacking[0]!r}; "
        "it is damaged, copy it again or export it again"
    )


def _renamed(lacking: list[str], foreign: set[str]) -> bool:
    """Whether every weight that is lacking has something of another name in its layer, as packed formats have."""
    layers = {name.rpartition(".")[0] for name in foreign} | {name.rsplit(".", 2)[0] for name in foreign}
    return all(name.rpartition(".")[0] in layers for name in lacking)


def _without_prefix(name: str) -> str:
    return next((name[len(prefix) :] for prefix in PREFIXES if name.startswith(prefix)), name)


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

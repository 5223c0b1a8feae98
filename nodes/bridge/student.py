"""Students in ComfyUI: the base models they come from, whether a student fits a MODEL, and all kinds loaded.

ComfyUI's own loaders do the loading. What they let pass, such as a weight missing in the file, is refused here in one
line; what cannot be compared is said in the report (`StudentChecks`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import torch
from safetensors import SafetensorError

from ...rmd_core.errors import RMDError, one_line, short_repr
from ...rmd_core.experts import expert_of
from ...rmd_core.files import read_header, read_metadata
from ...rmd_core.recipe import RECIPE_KEY, Recipe
from ...rmd_core.schedule import AreaMap, NoMap
from ..profiles import MEGAPIXEL, FewStepProfile
from .model import FAMILIES, FLOW, ModelView, class_names, family_of, same_noise


class Base(NamedTuple):
    """A published base: `structure_of` its MODEL, and words that are all in its file's or id's name."""

    title: str
    structure: str
    names: tuple[str, ...]


_WAN_14B = "WAN21 of width 5120, depth 40, 16 channels in"
_WAN_14B_I2V = "WAN21 of width 5120, depth 40, 36 channels in"
_SDXL = "SDXL of width 320, depth 24"
_SD35_LARGE = "SD3 of width 2432, depth 38, query-key norm"
_ALPHA = "PixArt of width 1152, depth 28, alpha"
_SIGMA = "PixArt of width 1152, depth 28, sigma"

# The more specific of two bases whose words could both match comes first.
BASES = (
    Base("the demo's rmd_tiny_wan_teacher", "WAN21 of width 128, depth 8, 16 channels in", ("rmdtinywanteacher",)),
    Base("Wan2.2 A14B text-to-video", _WAN_14B, ("wan22 t2v",)),
    Base("Wan2.2 A14B image-to-video", _WAN_14B_I2V, ("wan22 i2v",)),
    Base("Wan2.1 14B image-to-video", _WAN_14B_I2V, ("wan21 i2v",)),
    Base("Wan2.1 1.3B text-to-video", "WAN21 of width 1536, depth 30, 16 channels in", ("wan21 t2v 13b",)),
    Base("Wan2.1 14B text-to-video", _WAN_14B, ("wan21 t2v 14b",)),
    Base("SDXL Turbo", _SDXL, ("sdxlturbo",)),
    Base("SDXL base 1.0", _SDXL, ("sdxlbase", "stablediffusionxlbase")),
    Base("Stable Diffusion 3.5 Large Turbo", _SD35_LARGE, ("stablediffusion35 largeturbo", "sd35 largeturbo")),
    Base("Stable Diffusion 3.5 Large", _SD35_LARGE, ("stablediffusion35 large", "sd35 large")),
    Base(
        "Stable Diffusion 3.5 Medium",
        "SD3 of width 1536, depth 24, query-key norm, dual attention",
        ("stablediffusion35 medium", "sd35 medium"),
    ),
    Base("Stable Diffusion 3 Medium", "SD3 of width 1536, depth 24", ("stablediffusion3medium", "sd3medium")),
    Base("PixArt-Sigma XL 1024", _SIGMA, ("pixartsigmaxl21024",)),
    Base("PixArt-Sigma XL 512", _SIGMA, ("pixartsigmaxl2512",)),
    Base("PixArt-alpha XL 1024", _ALPHA, ("pixartxl21024",)),
    Base("FLUX.1 Kontext dev", "Flux of width 3072, depth 19+38, guidance", ("flux1 kontext",)),
    Base("FLUX.1 dev", "Flux of width 3072, depth 19+38, guidance", ("flux1dev",)),
    Base("FLUX.1 schnell", "Flux of width 3072, depth 19+38", ("flux1schnell",)),
)


def known_base(name: str) -> Base | None:
    """The base that a Hugging Face id or a file name means, None for one that is not in the table."""
    plain = plain_name(name)
    for base in BASES:
        if any(all(word in plain for word in words.split()) for words in base.names):
            return base
    return None


def plain_name(name: str) -> str:
    """A model's name without owner, ending, case and punctuation, so that the ways of writing it compare as equal."""
    last = re.split(r"[/\\]", name.strip())[-1].lower()
    last = re.sub(r"\.(safetensors|sft|gguf)$", "", last)
    return re.sub(r"[^a-z0-9]", "", last.removesuffix("-diffusers"))


def structure_of(model: Any) -> str | None:
    """What differs between MODELs of one family, as their loader detected it: class, width, depth and a variant.

    None for other families than those of `BASES`.
    """
    config, variant = model.model.model_config.unet_config, ""
    names = class_names(model.model)
    try:
        if "WAN21" in names:
            network, width, depth = "WAN21", config["dim"], config["num_layers"]
            variant = f"{config['in_dim']} channels in"
        elif "SDXL" in names:
            network, width, depth = "SDXL", config["model_channels"], sum(config["transformer_depth"])
        elif "SD3" in names:
            network, width, depth = "SD3", 64 * config["depth"], config["depth"]
            marks = {"query-key norm": "qk_norm", "dual attention": "x_block_self_attn_layers"}
            variant = ", ".join(title for title, key in marks.items() if config.get(key))
        elif "PixArt" in names:
            network, width, depth = "PixArt", config["hidden_size"], config["depth"]
            variant = config["image_model"].removeprefix("pixart_")
        elif type(model.model).__name__ == "Flux":
            network, width = "Flux", config["hidden_size"]
            depth = f"{config['depth']}+{config['depth_single_blocks']}"
            variant = "guidance" if config["guidance_embed"] else ""
        else:
            return None
    except (KeyError, TypeError):
        return None
    return f"{network} of width {width}, depth {depth}{variant and f', {variant}'}"


DOWN = re.compile(
    r"^(.+?)(\.lora_down\.weight|\.lora_A\.weight|\.lora_A\.default\.weight|\.lora_A|_lora\.down\.weight"
    r"|\.lora\.down\.weight|\.lora_linear_layer\.down\.weight)$"
)
"""Endings of the first matrix of a pair, after the name of the weight that it changes."""

UP = re.compile(r"^(.+?)(\.lora_B\.weight|\.lora_B\.default\.weight)$")
"""The ending of the second matrix of a pair in PEFT's files."""

HALF_PRECISION = 1e-2
"""Relative difference that storing an alpha in half precision can make, and more."""


class StudentChecks:
    """Whether a student fits a MODEL: `student` is the name of its file in messages, `recipe` what the file says.

    `checked` and `unchecked` are sentences for the user: what was compared and agrees, and what could not be compared.
    Every method raises RMDError, naming the student, where the two disagree.
    """

    def __init__(self, recipe: Recipe, student: str) -> None:
        self.recipe, self.student = recipe, student
        self.checked: list[str] = []
        self.unchecked: list[str] = []

    def network(self, model: Any) -> None:
        """The family, the size and the noise of a MODEL."""
        self._family(model)
        self._structure(model)
        self._noise(model)

    def _family(self, model: Any) -> None:
        recipe, student = self.recipe, self.student
        family, name = family_of(recipe.architecture), type(model.model).__name__
        if family is None:
            self.unchecked.append(f"the architecture: {recipe.architecture!r} is not in RMD's list")
            return
        if family.network not in class_names(model.model):
            raise RMDError(
                f"{student} was distilled from {recipe.base_model} ({family.title}), but the model is {name}; "
                f"use a {family.title} model"
            )
        self.checked.append(f"the architecture, {recipe.architecture} ({name})")

    def _structure(self, model: Any) -> None:
        recipe, student = self.recipe, self.student
        base, structure = known_base(recipe.base_model), structure_of(model)
        if base is None or structure is None:
            why = f"{recipe.base_model} is not in RMD's list" if base is None else "this kind of model has no reader"
            self.unchecked.append(f"the size of the network: {why}")
            return
        if base.structure != structure:
            titles = " or ".join(other.title for other in BASES if other.structure == structure)
            raise RMDError(
                f"{student} was distilled from {recipe.base_model} ({base.structure}), but the model is {structure}"
                f"{titles and f' ({titles})'}; use {recipe.base_model}"
            )
        self.checked.append(f"the size of the network, {structure}")

    def _noise(self, model: Any) -> None:
        recipe, student = self.recipe, self.student
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
        if not same_noise(recipe.curve, view.curve):
            raise RMDError(
                f"{student} was trained on {recipe.curve.describe()}, the model runs on {view.kind.table}; "
                "take out nodes that change the model's noise table, or use its own base"
            )
        kinds = class_names(model.get_model_object("model_sampling"))
        prediction = "flow" if "CONST" in kinds else "v" if "V_PREDICTION" in kinds else "eps"
        if recipe.prediction != prediction:
            raise RMDError(
                f"{student} predicts {recipe.prediction}, but the model is set to {prediction}; "
                "take out nodes that change the prediction, or use its own base"
            )
        self.checked.append(f"the noise, {view.curve.kind}, and the prediction, {prediction}")

    def source(self, model: Any) -> None:
        """The file that a MODEL was loaded from, which must not be known as another base than the recipe's."""
        recipe, student = self.recipe, self.student
        source = _source_file(model)
        if source is None:
            self.unchecked.append(
                f"whether the model is the base {recipe.base_model}: it does not say which file it came from"
            )
            return
        if _is_student(source):
            raise RMDError(
                f"{student} is a LoRA for {recipe.base_model}, but the model is {source.name}, itself an RMD student; "
                f"load {recipe.base_model} instead"
            )
        if recipe.expert is not None and expert_of(source.name) not in (None, recipe.expert):
            raise RMDError(
                f"{student} is for the {recipe.expert}-noise model, but the model was loaded from {source.name}; "
                f"load {recipe.base_model} of {recipe.expert} noise"
            )
        if plain_name(source.name) == plain_name(recipe.base_model):
            self.checked.append(f"the model was loaded from {source.name}, the name of the base")
            return
        ours, theirs = known_base(recipe.base_model), known_base(source.name)
        if theirs is None:
            self.unchecked.append(
                f"whether {source.name} is the base {recipe.base_model}: the names differ and nothing else tells them "
                "apart"
            )
        elif ours is None:
            self.unchecked.append(
                f"whether {source.name} ({theirs.title}) is the base {recipe.base_model}: that base is not in RMD's "
                "list"
            )
        elif ours != theirs:
            raise RMDError(
                f"{student} was distilled from {recipe.base_model} ({ours.title}), but the model was loaded from "
                f"{source.name} ({theirs.title}); load {recipe.base_model} instead"
            )
        else:
            self.checked.append(f"{source.name} and {recipe.base_model} both name {ours.title}")

    def whole(self, model: Any, path: str) -> None:
        """Every weight of a full student by name: ComfyUI leaves a missing one uninitialised."""
        tensors = read_header(path).tensors
        stored = {re.sub(r"^(model\.)?diffusion_model\.", "", name) for name in tensors}
        network = model.model.diffusion_model
        weights = {name for name, _ in network.named_parameters()}
        missing = sorted(weights - stored)
        if not missing:
            self.checked.append(f"all {len(weights)} weights of the network are in the file")
            return
        # A packed format has other names in the layer of each of its weights.
        foreign = stored - network.state_dict().keys()
        layers = {name.rpartition(".")[0] for name in foreign} | {name.rsplit(".", 2)[0] for name in foreign}
        renamed = all(name.rpartition(".")[0] in layers for name in missing)
        packed = {entry.dtype for entry in tensors.values()} - {"F64", "F32", "F16", "BF16"}
        if packed or renamed or (foreign and 2 * len(missing) > len(weights)):
            self.unchecked.append("whether the file holds every weight: its names are not those of the network")
            return
        raise RMDError(
            f"{self.student} is missing {len(missing)} of the {len(weights)} weights of its network, first "
            f"{missing[0]!r}; it is damaged, copy it again or export it again"
        )

    def with_alpha(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a LoRA, and the recipe's alpha for every pair that has none: ComfyUI would take the rank.

        So it does for a LoRA that was published without a recipe.
        """
        alpha = self.recipe.adapter_alpha
        if alpha is None:
            return dict(tensors)
        stored = {float(value) for name, value in tensors.items() if name.endswith(".alpha")}
        other = sorted(value for value in stored if not math.isclose(value, alpha, rel_tol=HALF_PRECISION))
        if other:
            raise RMDError(
                f"{self.student} holds the alphas {', '.join(f'{value:g}' for value in other)}, "
                f"but its recipe says {alpha:g}; use the file as the training wrote it"
            )
        alphas = {f"{match[1]}.alpha": torch.tensor(alpha) for name in tensors if (match := DOWN.match(name))}
        return alphas | dict(tensors)

    def shapes(self, model: Any, patches: dict[Any, Any]) -> None:
        """Every pair of a LoRA against its weight; patches of other kinds than pairs are not checked."""
        other = set()
        for target, patch in patches.items():
            key, *part = (target,) if isinstance(target, str) else target
            if getattr(patch, "name", None) != "lora" or patch.weights[3] is not None:
                other.add(key)
                continue
            up, down = patch.weights[:2]
            weight = comfy.utils.get_attr(model.model, key)
            shape = list(getattr(weight, "tensor_shape", weight.shape))  # packed formats store another one
            if part and part[0] is not None:  # (axis, start, length) of a projection in a stacked weight
                axis, _, shape[axis] = part[0]
            fits = (up.shape[0], prod(down.shape[1:])) == (shape[0], prod(shape[1:]))
            if not fits or prod(up.shape[1:]) != down.shape[0]:
                raise RMDError(
                    f"{self.student}: {key} is {shape[0]}x{prod(shape[1:])} in this model, but the LoRA is for one of "
                    f"{up.shape[0]}x{prod(down.shape[1:])}, with matrices of rank {prod(up.shape[1:])} and "
                    f"{down.shape[0]}; it is for {self.recipe.base_model}"
                )
        if other:
            self.unchecked.append(f"the shapes of {len(other)} patches that are not plain LoRA pairs")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A block that reads the file, with RMDError where ComfyUI or the safetensors library cannot use it."""
        student = self.student
        try:
            yield
        except (KeyError, IndexError) as error:
            raise RMDError(
                f"{student}: ComfyUI does not find a tensor in this file ({one_line(error, 200)}); copy it again or "
                "export it again"
            ) from error
        except (SafetensorError, OSError) as error:
            raise RMDError(
                f"{student}: this file cannot be read ({one_line(error, 200)}); copy it again or export it again"
            ) from None
        except RuntimeError as error:
            if "Could not detect model type" in str(error):
                raise RMDError(
                    f"{student}: ComfyUI recognises no diffusion model in this file; if it is a LoRA, choose LoRA, "
                    "else update ComfyUI"
                ) from None
            if "Error(s) in loading state_dict" in str(error):
                raise RMDError(
                    f"{student}: its tensors do not have the shapes of one network; the file is damaged, copy it again "
                    "or export it again"
                ) from error
            raise


def _source_file(model: Any) -> Path | None:
    """The file a MODEL was loaded from, where its loader recorded it."""
    note = getattr(model, "cached_patcher_init", None)
    if not note or len(note) < 2 or not note[1] or not isinstance(note[1][0], (str, os.PathLike)):
        return None
    return Path(note[1][0])


def _is_student(path: Path) -> bool:
    try:
        return RECIPE_KEY in read_metadata(path)
    except RMDError:  # no safetensors file, so no student either
        return False


WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""The model options of each weight dtype, as ComfyUI's own loader of diffusion models offers them."""


def load_full(path: str, checks: StudentChecks, *, weight_dtype: str) -> Any:
    """The MODEL in a file of diffusion_models.

    Raises RMDError for an unknown weight_dtype, for a file that ComfyUI does not recognise or cannot read, or one
    without all weights of the network it is, and as `StudentChecks.network` does.
    """
    if weight_dtype not in WEIGHT_DTYPES:
        raise RMDError(f"weight_dtype is {short_repr(weight_dtype)}; use one of {', '.join(WEIGHT_DTYPES)}")
    with checks.reading():
        model = comfy.sd.load_diffusion_model(path, model_options=dict(WEIGHT_DTYPES[weight_dtype]))
    checks.network(model)
    checks.whole(model, path)
    return model


PEFT = "base_model.model."
"""What PEFT puts before a module's name when it saves an adapter."""


def core_names(tensors: Mapping[str, torch.Tensor], known: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA by names that ComfyUI knows: those of PEFT renamed, all others as they are.

    known are ComfyUI's names of the modules of a MODEL. It has `base_model.model.X` for SD3 alone, and the same module
    of others as `transformer.X` (Flux), `lora_unet_X` with underscores (SDXL) or `diffusion_model.X`.
    """
    renamed = {}
    for name, tensor in tensors.items():
        match = DOWN.match(name) or UP.match(name)
        if match and match[1].startswith(PEFT) and match[1] not in known:
            module = match[1].removeprefix(PEFT)
            others = (f"transformer.{module}", f"lora_unet_{module.replace('.', '_')}", f"diffusion_model.{module}")
            name = next((other for other in others if other in known), match[1]) + match[2]
        renamed[name] = tensor
    return renamed


def profile_recipe(profile: FewStepProfile, view: ModelView) -> Recipe:
    """The recipe of a student that was published without one, for a MODEL of its family.

    profile is one with sizes, which are taken for those of a result of 1024 x 1024 px. RMDError for another family.
    """
    architecture = next((family.architectures[0] for family in FAMILIES if family.network == profile.family), "")
    if not architecture or profile.family != view.kind.family:
        raise RMDError(f"the profile {profile.title!r} is for {profile.family}, the model is {view.kind}; use its base")
    side = MEGAPIXEL // view.cell_px
    return Recipe(
        base_model=str(profile.base),
        architecture=architecture,
        prediction="flow" if profile.noise == FLOW else "eps",
        curve=profile.curve,
        split=profile.split,
        thresholds=None,
        sigmas=profile.sigmas,
        ratios=tuple((size, size) for size in profile.sizes),
        final_hw=(side, side),
        multiple=view.multiple,
        pixels_per_cell=view.cell_px,
        mapping=NoMap() if profile.mapping == "none" else AreaMap(),
        upsampler=profile.boundary.upsampler,
        switch_noise=profile.boundary.switch_noise,
        eta=profile.eta,
        eta_switch=profile.boundary.eta_switch,
        size_conditioning=profile.size_conditioning or "none",
        prompt_encoder="the base's own",
        cfg=profile.cfg,
        adapter_alpha=None,
        training_step=0,
        config_digest="",
    )


def apply_lora(model: Any, path: str, checks: StudentChecks, *, strength: float) -> Any:
    """A clone of a MODEL with a LoRA student on it; the MODEL itself stays as it is.

    Raises RMDError as `StudentChecks.network` and `.source` do, for a file that cannot be read, and when no tensor of
    it has a place in the model, some have none, or a shape does not fit.
    """
    recipe, student = checks.recipe, checks.student
    checks.network(model)
    checks.source(model)
    with checks.reading():
        known = comfy.lora.model_lora_keys_unet(model.model, {})
        tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
        tensors = core_names(tensors, known)
        patches = comfy.lora.load_lora(checks.with_alpha(tensors), known)
    used = set().union(*(getattr(patch, "loaded_keys", ()) for patch in patches.values()))
    unused = sorted(name for name in tensors if name not in used)
    base = f"it is for {recipe.base_model} ({recipe.architecture})"
    if not used:
        raise RMDError(
            f"{student}: none of its {len(tensors)} tensors belongs to a LoRA pair that fits this model, "
            f"first {min(tensors, default='')!r:.90}; {base}"
        )
    if unused:
        raise RMDError(
            f"{student}: {len(unused)} of its {len(tensors)} tensors match nothing in this model, "
            f"first {unused[0]!r:.90}; {base}"
        )
    checks.checked.append(f"all {len(tensors)} tensors of the LoRA match the model and change {len(patches)} weights")
    checks.shapes(model, patches)
    patched = model.clone()
    patched.add_patches(patches, strength)
    return patched

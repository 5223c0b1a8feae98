"""Types of the recipe's fields: one reader per field, from JSON values to Python and back.
The recipe: everything needed to sample a student again, carried in the header of its safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from .boundary import Boundary, check_eta
from .errors import RMDError
from .files import read_metadata
from .plan import StagePlan, plan_from_split, stage_sizes
from .schedule import NoiseCurve, ResolutionMap, curve_from_dict, map_from_dict

R = TypeVar("R")

SIZE_CONDITIONINGS = ("none", "stage", "final")

MAX_TABLE = 100_000
"""No noise table is longer; a damaged number must not fill the memory."""

MAX_STEPS = 1_000
MAX_CELLS = 100_000


def to_values(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe as JSON values, in their order; JSON itself turns tuples into lists."""
    values = {}
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        values[field.name] = value.as_dict() if field.name in ("curve", "mapping") else value
    return values


def from_values(kind: type[R], values: dict[str, Any]) -> R:
    """Build a recipe from JSON values; RMDError names a field that is missing, unknown or of a wrong type."""
    missing = [name for name in READERS if name not in values]
    if missing:
        raise RMDError(f"the recipe lacks the field {', '.join(missing)}; save the student again")
    unknown = [name for name in values if name not in READERS]
    if unknown:
        raise RMDError(f"the recipe has the unknown field {', '.join(unknown)[:80]!r}; remove it")
    arguments = {}
    for name, read in READERS.items():
        try:
            arguments[name] = read(values[name])
        except RMDError as error:
            raise RMDError(f"the recipe's field {name}: {error}") from None
        except (ValueError, TypeError, KeyError, OverflowError, RuntimeError):
            raise RMDError(f"the recipe's field {name} has the wrong type or value, {_shown(values[name])}") from None
    return kind(**arguments)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _natural(limit: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            raise TypeError
        return value

    return read


def _optional(read: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value is None else read(value)


def _several(read: Callable[[object], Any], length: int | None = None) -> Callable[[object], tuple]:
    def read_all(value: object) -> tuple:
        if not isinstance(value, list) or len(value) > MAX_STEPS or (length is not None and len(value) != length):
            raise TypeError
        return tuple(read(item) for item in value)

    return read_all


def _curve(value: object) -> NoiseCurve:
    if not isinstance(value, dict):
        raise TypeError
    values = dict(value)
    if "size" in values:
        _natural(MAX_TABLE)(values["size"])
    for name in ("shift", "start", "end"):
        if name in values:
            _number(values[name])
    if "betas" in values and (not isinstance(values["betas"], list) or len(values["betas"]) > MAX_TABLE):
        raise TypeError
    for beta in values.get("betas", ()):
        _number(beta)
    return curve_from_dict(values)


def _mapping(value: object) -> ResolutionMap:
    if not isinstance(value, dict):
        raise TypeError
    for name, part in value.items():
        if name != "kind":
            _number(part)
    return map_from_dict(value)


READERS: dict[str, Callable[[object], Any]] = {
    "base_model": _text,
    "architecture": _text,
    "prediction": _text,
    "curve": _curve,
    "split": _several(_natural(MAX_STEPS)),
    "thresholds": _optional(_several(_number)),
    "sigmas": _several(_number),
    "ratios": _several(_several(_number, 2)),
    "final_hw": _several(_natural(MAX_CELLS), 2),
    "multiple": _natural(MAX_CELLS),
    "pixels_per_cell": _natural(MAX_CELLS),
    "mapping": _mapping,
    "upsampler": _text,
    "switch_noise": _text,
    "eta": _number,
    "eta_switch": _number,
    "size_conditioning": _text,
    "prompt_encoder": _text,
    "cfg": _number,
    "adapter_alpha": _optional(_number),
    "training_step": _natural(2**53),
    "config_digest": _text,
}


RECIPE_KEY = "rmd.recipe"
RECIPE_VERSION = 1

MAX_RATIO = 64.0

PREDICTION_NAMES = {"eps": "epsilon", "v": "v", "flow": "flow"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student samples. Sizes are latent cells (height, width); levels are sigma in [0, 1] before the mapping.

    base_model names the weights it was distilled from, architecture the ModelSpec family, for instance `wan2.1`.
    split is the number of steps at each size (0 where none runs) and sigmas the base level of every step; thresholds
    are the logSNR thresholds they came from, None if the split was given outright. final_hw is the size of the result
    in training, and ratios the (height, width) of each size over it, (1, 1) at the last that runs; multiple is the
    patch size in cells and pixels_per_cell the autoencoder's factor. eta mixes noise inside a stage, eta_switch at a
    switch.
    size_conditioning tells the network the size of the `stage`, the `final` size, or `none`. cfg is the guidance to
    sample with (1.0 without); adapter_alpha is the LoRA alpha, None for a full model; config_digest identifies the
    resolved training configuration.

    Raises RMDError for values that make no plan. `Recipe.from_plan` fills the plan's part.
    Source: docs/method.md, the recipe.
    """

    base_model: str
    architecture: str
    prediction: str
    curve: NoiseCurve
    split: tuple[int, ...]
    thresholds: tuple[float, ...] | None
    sigmas: tuple[float, ...]
    ratios: tuple[tuple[float, float], ...]
    final_hw: tuple[int, int]
    multiple: int
    pixels_per_cell: int
    mapping: ResolutionMap
    upsampler: str
    switch_noise: str
    eta: float
    eta_switch: float
    size_conditioning: str
    prompt_encoder: str
    cfg: float
    adapter_alpha: float | None
    training_step: int
    config_digest: str

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTION_NAMES:
            raise RMDError(
                f"the recipe's prediction is {self.prediction!r:.80}; use one of {', '.join(PREDICTION_NAMES)}"
            )
        if self.size_conditioning not in SIZE_CONDITIONINGS:
            raise RMDError(
                f"the recipe's size_conditioning is {self.size_conditioning!r:.80}; "
                f"use one of {', '.join(SIZE_CONDITIONINGS)}"
            )
        if not any(self.split) or len(self.split) != len(self.ratios) or sum(self.split) != len(self.sigmas):
            raise RMDError(
                f"the recipe has the split {'+'.join(map(str, self.split))}, {len(self.ratios)} sizes and "
                f"{len(self.sigmas)} levels; they must agree"
            )
        last_ratio = [pair for pair, count in zip(self.ratios, self.split) if count][-1]
        sides = [side for pair in self.ratios for side in pair]
        if last_ratio != (1.0, 1.0) or not all(0.0 < side <= MAX_RATIO for side in sides):
            raise RMDError("the recipe's size ratios must be above 0, and (1, 1) at the last that runs")
        if min(*self.final_hw, self.multiple, self.pixels_per_cell) < 1:
            raise RMDError("the recipe's final_hw, multiple and pixels_per_cell must be at least 1")
        if self.cfg < 0.0 or (self.adapter_alpha is not None and self.adapter_alpha <= 0.0):
            raise RMDError(
                f"the recipe's cfg is {self.cfg:g} and its adapter_alpha {self.adapter_alpha}; "
                "cfg is at least 0, adapter_alpha above 0 or absent"
            )
        check_eta(self.eta, "the recipe's eta")
        self.boundary()
        self.plan()

    @classmethod
    def from_plan(
        cls,
        plan: StagePlan,
        *,
        boundary: Boundary,
        eta: float,
        base_model: str,
        architecture: str,
        prediction: str,
        thresholds: tuple[float, ...] | None = None,
        multiple: int,
        pixels_per_cell: int,
        size_conditioning: str = "none",
        prompt_encoder: str,
        cfg: float = 1.0,
        adapter_alpha: float | None = None,
        training_step: int,
        config_digest: str,
    ) -> Recipe:
        """The recipe of a student trained on a plan, with the eta and boundary it is to be sampled with."""
        height, width = plan.final_hw
        return cls(
            base_model=base_model,
            architecture=architecture,
            prediction=prediction,
            curve=plan.curve,
            split=plan.steps_asked,
            thresholds=None if thresholds is None else tuple(float(value) for value in thresholds),
            sigmas=plan.base_sigmas,
            ratios=tuple((stage_height / height, stage_width / width) for stage_height, stage_width in plan.sizes),
            final_hw=(height, width),
            multiple=multiple,
            pixels_per_cell=pixels_per_cell,
            mapping=plan.mapping,
            upsampler=boundary.upsampler,
            switch_noise=boundary.switch_noise,
            eta=check_eta(eta),
            eta_switch=boundary.eta_switch,
            size_conditioning=size_conditioning,
            prompt_encoder=prompt_encoder,
            cfg=float(cfg),
            adapter_alpha=None if adapter_alpha is None else float(adapter_alpha),
            training_step=training_step,
            config_digest=config_digest,
        )

    def plan(self, final_hw: tuple[int, int] | None = None) -> StagePlan:
        """The stage plan at a final size in latent cells: the trained one by default, else the same ratios and levels.

        Raises RMDError for levels and sizes that make no plan.
        """
        return plan_from_split(
            self.curve, self.split, sizes=self.stage_sizes(final_hw), mapping=self.mapping, steps=self.sigmas
        )

    def stage_sizes(self, final_hw: tuple[int, int] | None = None) -> tuple[tuple[int, int], ...]:
        """Latent height and width at each place of the split, for a final size (the trained one by default).

        At the trained size they are the trained ones; at another, those of `plan.stage_sizes` with the recipe's ratios
        and `multiple`.
        """
        if final_hw is None or tuple(final_hw) == self.final_hw:
            return stage_sizes(self.final_hw, self.ratios)
        return stage_sizes(final_hw, self.ratios, multiple=self.multiple)

    def boundary(self) -> Boundary:
        """The rule at a change of size."""
        return Boundary(self.upsampler, self.switch_noise, self.eta_switch)

    def to_json(self) -> str:
        """The recipe as one JSON object with its version; equal recipes give equal text."""
        return json.dumps({"version": RECIPE_VERSION, **to_values(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what `to_json` wrote.

        Raises RMDError that says which for text that is not JSON, an unknown version, a missing or unknown field, a
        field of the wrong type, or values that make no plan.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError, TypeError):
            raise RMDError("the recipe is damaged: it is not JSON; save the student again") from None
        if not isinstance(values, dict):
            raise RMDError("the recipe is damaged: it is not a JSON object; save the student again")
        if "version" not in values:
            raise RMDError("the recipe lacks the field version; save the student again")
        version = values.pop("version")
        if type(version) is not int or version != RECIPE_VERSION:
            raise RMDError(
                f"the recipe has version {version!r:.40}, this code reads version {RECIPE_VERSION}; update ComfyUI-RMD"
            )
        return from_values(cls, values)


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in the header of a student's safetensors file; no tensor is loaded.

    Raises RMDError, naming the file, when it cannot be read, carries no recipe, or carries a damaged one.
    """
    metadata = read_metadata(path)
    if RECIPE_KEY not in metadata:
        raise RMDError(
            f"{path}: no RMD recipe in this file; it is no RMD student, or a tool dropped its metadata: "
            "use the original file, or set the plan by hand"
        )
    try:
        return Recipe.from_json(metadata[RECIPE_KEY])
    except RMDError as error:
        raise RMDError(f"{path}: {error}") from None


def write_metadata(recipe: Recipe, *, title: str) -> dict[str, str]:
    """The metadata of a student's file: the recipe, and the ModelSpec fields that other tools show.

    Equal recipes give equal metadata, so there is no date. Source: Stability-AI/ModelSpec 1.0.1.
    """
    height, width = (side * recipe.pixels_per_cell for side in recipe.final_hw)
    adapter = recipe.adapter_alpha is not None
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": recipe.architecture + ("/lora" if adapter else ""),
        "implementation": "https://github.com/comfyanonymous/ComfyUI",
        "title": title,
        "resolution": f"{width}x{height}",
        "prediction_type": PREDICTION_NAMES[recipe.prediction],
        "usage_hint": _usage_hint(recipe),
    }
    return {RECIPE_KEY: recipe.to_json(), **{f"modelspec.{key}": value for key, value in spec.items()}}


def _usage_hint(recipe: Recipe) -> str:
    sizes = " to ".join(
        f"{width * recipe.pixels_per_cell}x{height * recipe.pixels_per_cell}"
        for (height, width), count in zip(recipe.stage_sizes(), recipe.split)
        if count
    )
    return (
        f"RMD student of {recipe.base_model}: {'+'.join(map(str, recipe.split))} steps at {sizes} px, "
        f"CFG {recipe.cfg:g}; the RMD nodes read everything else from this file."
    )

"""The recipe: everything needed to sample a student again, carried in the header of its safetensors file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .boundary import Boundary, check_eta
from .errors import RMDError, short_repr
from .experts import EXPERTS
from .files import read_metadata
from .noising import PREDICTIONS
from .plan import StagePlan, plan_from_split, split_text, stage_sizes
from .schedule import NoiseCurve, ResolutionMap, curve_from_dict, map_from_dict

RECIPE_KEY = "rmd.recipe"
RECIPE_VERSION = 1

SIZE_CONDITIONINGS = ("none", "stage", "final")

MAX_STEPS = 1_000
MAX_CELLS = 100_000
MAX_RATIO = 64.0
MAX_LIST = 100_000
"""No list and no noise table is longer; a damaged number must not fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student samples. Sizes are latent cells (height, width); levels are sigma in [0, 1] before the mapping.

    base_model names the weights it was distilled from, architecture the ModelSpec family, for instance `wan2.1`.
    split is the number of steps at each size (0 where none runs) and sigmas the base level of every step; thresholds
    are the logSNR thresholds they came from, None if the split was given outright. final_hw is the size of the result
    in training, and ratios the (height, width) of each size over it, (1, 1) at the last that runs; multiple is the
    patch size in cells and pixels_per_cell the autoencoder's factor. upsampler is one of `UPSAMPLERS` or the
    `learned_name` of a network. eta mixes noise inside a stage, eta_switch at a switch.
    size_conditioning gives the network the size of the `stage`, the `final` size, or `none`. cfg is the guidance to
    sample with (1.0 without); adapter_alpha is the LoRA alpha, None for a full model; config_digest identifies the
    resolved training configuration. Of a student of two networks each file has the same recipe but for expert, `high`
    or `low`, its side of the level expert_sigma (`experts.is_low`); both are None for a student of one network.

    Raises RMDError for values that make no plan. `Recipe.from_plan` fills the plan's part.
    Source: docs/method/method.md, the recipe.
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
    expert: str | None = None  # from here on left out of a file where there is none
    expert_sigma: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("prediction", PREDICTIONS), ("size_conditioning", SIZE_CONDITIONINGS)):
            if getattr(self, name) not in allowed:
                raise RMDError(f"the recipe's {name} is {getattr(self, name)!r:.80}; use one of {', '.join(allowed)}")
        if not any(self.split) or len(self.split) != len(self.ratios) or sum(self.split) != len(self.sigmas):
            raise RMDError(
                f"the recipe has the split {split_text(self.split)[:80]}, {len(self.ratios)} sizes and "
                f"{len(self.sigmas)} levels; they must agree"
            )
        if max(len(self.split), len(self.sigmas)) > MAX_STEPS:
            raise RMDError(
                f"the recipe has {len(self.sigmas)} steps at {len(self.split)} sizes; use at most {MAX_STEPS}"
            )
        last_ratio = [pair for pair, count in zip(self.ratios, self.split) if count][-1]
        sides = [side for pair in self.ratios for side in pair]
        if last_ratio != (1.0, 1.0) or not all(0.0 < side <= MAX_RATIO for side in sides):
            raise RMDError("the recipe's size ratios must be above 0, and (1, 1) for the last stage with a step")
        if not all(1 <= cells <= MAX_CELLS for cells in (*self.final_hw, self.multiple, self.pixels_per_cell)):
            raise RMDError(f"the recipe's final_hw, multiple and pixels_per_cell must be from 1 to {MAX_CELLS}")
        if self.cfg < 0.0 or (self.adapter_alpha is not None and self.adapter_alpha <= 0.0):
            raise RMDError(
                f"the recipe's cfg is {self.cfg:g} and its adapter_alpha {self.adapter_alpha}; "
                "cfg must be at least 0, adapter_alpha above 0 or absent"
            )
        check_eta(self.eta, "the recipe's eta")
        if (self.expert, self.expert_sigma) != (None, None):
            if self.expert not in EXPERTS or not 0.0 < (self.expert_sigma or 0.0) < 1.0:
                raise RMDError(
                    f"the recipe's expert is {self.expert!r:.80} and its expert_sigma {self.expert_sigma}; use "
                    f"{' or '.join(EXPERTS)} with a sigma between 0 and 1, or leave both out"
                )
        self.boundary()
        self.plan()

    @classmethod
    def from_plan(
        cls,
        plan: StagePlan,
        *,
        boundary: Boundary,
        eta: float,
        thresholds: tuple[float, ...] | None = None,
        size_conditioning: str = "none",
        cfg: float = 1.0,
        adapter_alpha: float | None = None,
        **others: Any,
    ) -> Recipe:
        """The recipe of a student trained on a plan, with the eta and boundary for sampling.

        `others` are the fields that have no default here.
        """
        height, width = plan.final_hw
        return cls(
            curve=plan.curve,
            split=plan.steps_asked,
            thresholds=None if thresholds is None else tuple(float(value) for value in thresholds),
            sigmas=plan.base_sigmas,
            ratios=tuple((stage_height / height, stage_width / width) for stage_height, stage_width in plan.sizes),
            final_hw=(height, width),
            mapping=plan.mapping,
            upsampler=boundary.upsampler,
            switch_noise=boundary.switch_noise,
            eta=check_eta(eta),
            eta_switch=boundary.eta_switch,
            size_conditioning=size_conditioning,
            cfg=float(cfg),
            adapter_alpha=None if adapter_alpha is None else float(adapter_alpha),
            **others,
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
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {name: value for name, value in values.items() if value is not None or name not in _LATER}
        values |= {"curve": self.curve.as_dict(), "mapping": self.mapping.as_dict()}
        return json.dumps({"version": RECIPE_VERSION, **values}, allow_nan=False)

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
        types = get_type_hints(cls)
        values = dict.fromkeys(_LATER) | values
        missing = [name for name in ("version", *types) if name not in values]
        if "version" not in missing:
            version = values.pop("version")
            if type(version) is not int or version != RECIPE_VERSION:
                raise RMDError(
                    f"the recipe has version {version!r:.40}, this code reads version {RECIPE_VERSION}; "
                    "update ComfyUI-RMD"
                )
        if missing:
            raise RMDError(f"the recipe is missing the field {', '.join(missing)}; save the student again")
        unknown = [name for name in values if name not in types]
        if unknown:
            names = ", ".join(unknown)[:80]
            raise RMDError(f"the recipe has the unknown field {names!r}; remove it, or update ComfyUI-RMD")
        return cls(**{name: _field(name, values[name], kind) for name, kind in types.items()})


_LATER = tuple(field.name for field in fields(Recipe) if field.default is None)
"""The fields that older files have not."""


def _field(name: str, value: Any, kind: Any) -> Any:
    try:
        return _typed(value, kind)
    except RMDError as error:
        raise RMDError(f"the recipe's field {name}: {error}") from None
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError):
        raise RMDError(f"the recipe's field {name} has the wrong type or value, {short_repr(value, 60)}") from None


def _typed(value: Any, kind: Any) -> Any:
    """A JSON value as a field's type: finite floats, ints from 0, lists as tuples. Raises TypeError for any other."""
    if kind is NoiseCurve:
        return curve_from_dict(_named_values(value))
    if kind is ResolutionMap:
        return map_from_dict(_named_values(value))
    if get_origin(kind) is UnionType:  # X | None
        return None if value is None else _typed(value, get_args(kind)[0])
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list) or len(value) > MAX_LIST:
            raise TypeError
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise TypeError
        return tuple(_typed(part, kind) for part, kind in zip(value, kinds))
    if kind is float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise TypeError
        return float(value)
    if type(value) is not kind or (kind is int and not 0 <= value <= 2**53):
        raise TypeError
    return value


def _named_values(value: Any) -> dict[str, Any]:
    """The values of a curve or a map, each of its type. Raises TypeError for any other."""
    if not isinstance(value, dict) or value.get("size", 0) > MAX_LIST:
        raise TypeError
    types = {"kind": str, "schedule": str, "size": int, "betas": tuple[float, ...]}
    return {name: _typed(part, types.get(name, float)) for name, part in value.items()}


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in the header of a student's safetensors file; no tensor is loaded.

    Raises RMDError, naming the file, when it cannot be read, carries no recipe, or carries a damaged one.
    """
    metadata = read_metadata(path)
    if RECIPE_KEY not in metadata:
        raise RMDError(
            f"{path}: no RMD recipe in this file; it is not an RMD student, or a tool dropped its metadata: "
            "use the original file, or set the plan by hand"
        )
    try:
        return Recipe.from_json(metadata[RECIPE_KEY])
    except RMDError as error:
        raise RMDError(f"{path}: {error}") from None


def student_metadata(recipe: Recipe, *, title: str) -> dict[str, str]:
    """The metadata of a student's file: the recipe, and the ModelSpec fields that other tools show.

    Equal recipes give equal metadata, so there is no date. Source: Stability-AI/ModelSpec 1.0.1.
    """
    px = recipe.pixels_per_cell
    sizes = [f"{w * px}x{h * px}" for (h, w), count in zip(recipe.stage_sizes(), recipe.split) if count]
    adapter = recipe.adapter_alpha is not None
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": recipe.architecture + ("/lora" if adapter else ""),
        "implementation": "https://github.com/comfyanonymous/ComfyUI",
        "title": title,
        "resolution": sizes[-1],
        "prediction_type": "epsilon" if recipe.prediction == "eps" else recipe.prediction,
        "usage_hint": (
            f"RMD student of {recipe.base_model}: {split_text(recipe.split)} steps at {' to '.join(sizes)} px, "
            f"CFG {recipe.cfg:g}; the RMD nodes read everything else from this file."
        ),
    }
    return {RECIPE_KEY: recipe.to_json(), **{f"modelspec.{key}": value for key, value in spec.items()}}

"""The plan of a cascade on one model: `sampling_plan` makes it from the widgets of RMD Schedule.

In this order: what an RMD_PLAN wire carries, a plan from each source (a student's recipe, thresholds, a split, the
sigmas of a scheduler, a profile), the last steps of a plan, sizes in pixels, and what the single widgets mean.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...rmd_core.boundary import Boundary
from ...rmd_core.errors import RMDError, short_repr
from ...rmd_core.plan import (
    Stage,
    StagePlan,
    Step,
    plan_from_split,
    plan_from_thresholds,
    plan_tail,
    split_counts,
    stage_sizes,
)
from ...rmd_core.presets import MethodPreset, preset
from ...rmd_core.recipe import Recipe
from ...rmd_core.schedule import AreaMap, FlowCurve, NoiseCurve, NoMap, ResolutionMap, ShiftPairMap, Size
from ..profiles import NOT_DISTILLED, FewStepProfile, load_profiles
from .model import ModelKind, ModelView, family_of, same_noise

logger = logging.getLogger(__name__)

LAST_STEP = 1e-4
"""The share of its last level by which a stage that RMD Stage Upscale follows stops lower."""


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """A stage plan with everything else that a sampler needs; nothing in it is bound to one loaded model.

    eta is the share of predicted noise inside a stage, cfg the guidance to sample with, size_conditioning what SDXL is
    given as the size (`stage`, `final`, or `none` to leave the prompt as it is), cell_px the pixels of one latent
    cell. origin says in a few words where the plan comes from, shift_of whose its flow shift is, thresholds are the
    logSNR thresholds that it was made with (empty for a split), student says that weights were trained on the plan,
    for_final that its levels were given as the final size names them, notes are sentences for the user.
    """

    stage_plan: StagePlan
    kind: ModelKind
    boundary: Boundary
    eta: float
    cfg: float
    size_conditioning: str
    cell_px: int
    origin: str
    shift_of: str = ""
    thresholds: tuple[float, ...] = ()
    student: bool = False
    for_final: bool = False
    notes: tuple[str, ...] = ()

    @property
    def final_px(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""
        height, width = self.stage_plan.final_hw
        return height * self.cell_px, width * self.cell_px

    def given_sigma(self, step: Step) -> float:
        """ComfyUI's sigma of a step's level as it was given, at the first size or `for_final`: before any mapping."""
        base, plan = step.base_sigma, self.stage_plan
        return plan.curve.comfy_sigma(plan.at_final_size(base) if self.for_final else base)

    def sigmas(self, stage: Stage) -> tuple[float, ...]:
        """ComfyUI's sigmas of a stage's steps, then 0.0: the stage runs to its clean estimate."""
        return (*self._levels(stage), 0.0)

    def open_sigmas(self, stage: Stage) -> tuple[float, ...]:
        """The same, but a stage before the last stops just below its last level.

        Over so short a step every sampler keeps the state that its last network call was given, so that the predicted
        noise can be found again in what it puts out.
        """
        if stage.end_base_sigma == 0.0:
            return self.sigmas(stage)
        levels = self._levels(stage)
        return (*levels, levels[-1] * (1.0 - LAST_STEP))

    def _levels(self, stage: Stage) -> list[float]:
        return [self.stage_plan.curve.comfy_sigma(sigma) for sigma in stage.sigmas]


PURE_NOISE = 1e-5
"""A stage that starts within this share of sigma_max is scaled by ComfyUI as pure noise."""


def check_levels(plan: SamplingPlan, stage: Stage, sigma_max: float) -> None:
    """Raise RMDError for a first level beyond the model's noise, or a later stage that starts at pure noise.

    ComfyUI scales a start at its sigma_max as pure noise, so a stage with an image must start below it.
    """
    first = plan.sigmas(stage)[0]
    if first > sigma_max * (1.0 + PURE_NOISE):
        raise RMDError(
            f"stage {stage.index + 1} starts at sigma {first:.6g}, above this model's sigma_max {sigma_max:.6g}; "
            "use levels of this model"
        )
    if stage.index and first >= sigma_max * (1.0 - PURE_NOISE):
        raise RMDError(
            f"stage {stage.index + 1} would start at sigma {first:.6g}, which ComfyUI treats as pure noise "
            f"(sigma_max {sigma_max:.6g}); run one more step before the change of size, or use a smaller size ratio"
        )


# The choices of `source` in RMD Schedule
STEPS = "steps per size"
RECIPE = "student recipe"
THRESHOLDS = "thresholds"
SPLIT = "split"
SIGMAS = "scheduler sigmas"
PROFILE = "few-step profile"

# The choices of `mapping`
AUTO = "auto"
AREA = "area"
NATIVE_SHIFTS = "native shifts 3 to 5"
NONE = "none"
MAPPINGS = (AUTO, AREA, NATIVE_SHIFTS, NONE)


def sampling_plan(view: ModelView, final_hw: Size, source: Mapping[str, Any]) -> SamplingPlan:
    """The plan of one choice of the node: `source["source"]` names it, the other entries are its widgets.

    final_hw is the latent size of the result. Raises RMDError for values that make no plan on this model.
    """
    widgets = {name: value for name, value in source.items() if name != "source"}
    make = {
        STEPS: _steps_plan,
        THRESHOLDS: _threshold_plan,
        SPLIT: _split_plan,
        SIGMAS: _sigmas_plan,
        RECIPE: _recipe_plan,
        PROFILE: _profile_plan,
    }
    plan = make[source["source"]](view, final_hw, **widgets)
    for stage in plan.stage_plan.stages:
        view.check_size(stage.size)
    if plan.stage_plan.final_hw != final_hw:
        raise RMDError(
            f"no step runs at the final size {pixels(view.cell_px, final_hw)} px (split {plan.stage_plan.split}); "
            "end the split with a number above 0, lower the last threshold, or use more steps"
        )
    for stage in plan.stage_plan.stages:
        check_levels(plan, stage, view.curve.comfy_sigma(view.curve.sigma_max))
    wasted = _wasted_steps(plan)
    for note in wasted:
        logger.warning("%s", note)
    return replace(plan, notes=(*plan.notes, *wasted))


LITTLE_SURVIVES = 0.05
"""The share of the smaller image, by amplitude, below which a switch keeps almost nothing of it."""


def surviving(plan: SamplingPlan, stage: Stage) -> float:
    """The image's share, by amplitude, in the noisy state that a stage starts from: alpha / (alpha + sigma).

    For a flow that is 1 - sigma.
    """
    signal_to_noise = math.exp(0.5 * plan.stage_plan.curve.logsnr(stage.sigmas[0]))
    return signal_to_noise / (1.0 + signal_to_noise)


def _wasted_steps(plan: SamplingPlan) -> list[str]:
    """A sentence for each change of size that happens so early that the steps before it do little."""
    notes = []
    for before, stage in zip(plan.stage_plan.stages, plan.stage_plan.stages[1:]):
        left = surviving(plan, stage)
        if left < LITTLE_SURVIVES and before.size != stage.size:
            notes.append(
                f"the change to {pixels(plan.cell_px, stage.size)} px keeps {left:.1%} of the image so far, so the "
                "smaller steps do little: give the smaller size more steps, or lower the shift"
            )
    return notes


def _recipe_plan(view: ModelView, final_hw: Size, *, recipe: Recipe) -> SamplingPlan:
    """The plan a student was trained on, at any final size; RMDError if it was trained on another model type."""
    trained_for = family_of(recipe.architecture)
    fits = same_noise(recipe.curve, view.curve) and (trained_for is None or trained_for.network == view.kind.family)
    if not fits or recipe.pixels_per_cell != view.cell_px:
        raise RMDError(
            f"this recipe was made for another model type: {recipe.architecture} ({recipe.curve.describe()}, "
            f"{recipe.pixels_per_cell} px a cell), the model is {view.kind} with {view.cell_px} px a cell; "
            "connect the student's own model"
        )
    notes = _shift_notes(view, recipe.curve, "the recipe's")
    if recipe.expert_sigma is not None:
        notes += (f"two models: the second takes over below second_model_sigma {recipe.expert_sigma:g}",)
    updates = recipe.training_step
    if final_hw != recipe.final_hw:
        trained, now = (pixels(view.cell_px, size) for size in (recipe.final_hw, final_hw))
        notes += (f"the student was trained for {trained} px; at {now} px its size ratios and levels are kept",)
    return SamplingPlan(
        stage_plan=recipe.plan(final_hw),
        kind=view.kind,
        boundary=recipe.boundary(),
        eta=recipe.eta,
        cfg=recipe.cfg,
        size_conditioning=recipe.size_conditioning,
        cell_px=view.cell_px,
        origin=f"recipe of a student of {recipe.base_model}{f', {updates} updates' if updates else ''}",
        shift_of="the recipe's, for the first size",
        thresholds=recipe.thresholds or (),
        student=True,
        notes=notes,
    )


def _steps_plan(view: ModelView, final_hw: Size, *, split: str, scale: float) -> SamplingPlan:
    """A plan with a given number of steps at each size, all else by default; scale is the first size over the final.

    Sizes between grow by one factor. A split of one number runs at the final size alone.
    """
    last = len(split_counts(split)) - 1
    factors = ",".join(f"{scale ** ((last - place) / last):.6g}" for place in range(last))
    default = {"sigmas": "", "mapping": AUTO, "base_shift": 0.0, "method": "default"}
    return _split_plan(view, final_hw, split=split, earlier_sizes=factors, **default)


def _threshold_plan(
    view: ModelView,
    final_hw: Size,
    *,
    steps: int,
    thresholds: str,
    earlier_sizes: str,
    mapping: str,
    base_shift: float,
    method: str,
) -> SamplingPlan:
    """A plan on the curve's own grid that changes size where the logSNR passes a threshold.

    thresholds is a comma list, one entry for each size of `earlier_sizes`; the others are as in `_split_plan`.
    """
    levels, sizes = numbers(thresholds, "thresholds"), stage_cells(view, final_hw, earlier_sizes)
    rules = preset(method)
    made_map = chosen_map(mapping, rules, view, sizes)
    curve, whose, notes = base_curve(view, base_shift, ratio=made_map.ratio(sizes[0], sizes[-1], sizes[-1]))
    stage_plan = plan_from_thresholds(curve, steps, thresholds=levels, sizes=sizes, mapping=made_map)
    origin = f"{steps} steps, thresholds {', '.join(f'{level:g}' for level in levels) or 'none'}, method {method}"
    return _by_method(view, rules, stage_plan, origin=origin, shift_of=whose, thresholds=levels, notes=notes)


def _split_plan(
    view: ModelView,
    final_hw: Size,
    *,
    split: str,
    sigmas: str,
    earlier_sizes: str,
    mapping: str,
    base_shift: float,
    method: str,
) -> SamplingPlan:
    """A plan with a given number of steps at each size (see `stage_cells`).

    sigmas is a comma list of ComfyUI's sigmas, one a step, as the first size names them (unlike in `_sigmas_plan`);
    empty means the curve's own grid, and a closing 0 is allowed. mapping is one of `MAPPINGS`, base_shift a flow shift
    or 0 for RMD's, method the name of a preset.
    """
    counts, sizes = split_counts(split), stage_cells(view, final_hw, earlier_sizes)
    rules = preset(method)
    made_map = chosen_map(mapping, rules, view, sizes)
    curve, whose, notes = base_curve(view, base_shift, ratio=made_map.ratio(sizes[0], sizes[-1], sizes[-1]))
    grid = given_levels(curve, sigmas, sum(counts)) if sigmas.strip() else None
    stage_plan = plan_from_split(curve, counts, sizes=sizes, mapping=made_map, steps=grid)
    origin = f"split {stage_plan.split}, {'own sigmas' if grid else 'the grid of the curve'}, method {method}"
    return _by_method(view, rules, stage_plan, origin=origin, shift_of=whose, notes=notes)


def _sigmas_plan(
    view: ModelView,
    final_hw: Size,
    *,
    scheduler_sigmas: torch.Tensor,
    split: str,
    thresholds: str,
    earlier_sizes: str,
    mapping: str,
) -> SamplingPlan:
    """A plan of the levels that a scheduler made for the final size, whose steps keep them exactly.

    Steps at earlier sizes get lower levels, which map to those of the final size. Pure noise stays pure noise.
    split "auto" gives each size the same number of steps, the last ones more where that leaves a rest; thresholds then
    take its place, unless they are empty. The others are as in `_split_plan`.
    Source: docs/method/method.md, whose shift it is.
    """
    sizes, rules = stage_cells(view, final_hw, earlier_sizes), preset("default")
    made_map = chosen_map(mapping, rules, view, sizes)
    ratio = made_map.ratio(sizes[0], sizes[-1], sizes[-1])
    curve = view.curve.at_ratio(1.0 / ratio)
    base, notes = scheduler_levels(curve, scheduler_sigmas, ratio)
    auto, levels = split.strip().lower() == "auto", numbers(thresholds, "thresholds")
    same: dict[str, Any] = {"sizes": sizes, "mapping": made_map, "steps": base, "on_table": False}
    if levels and not auto:
        raise RMDError(
            f"split is {short_repr(split)} and thresholds {short_repr(thresholds)}; set split to auto, or "
            "leave thresholds empty"
        )
    if levels:
        stage_plan = plan_from_thresholds(curve, thresholds=levels, **same)
    else:
        count, places = len(base), len(sizes)
        shares = tuple((count + place) // places for place in range(places))
        stage_plan = plan_from_split(curve, shares if auto else split_counts(split), **same)
    origin = f"{len(base)} sigmas of a scheduler for the final size, split {stage_plan.split}"
    whose = "not used: the levels are the scheduler's" if isinstance(curve, FlowCurve) else ""
    others = {"origin": origin, "shift_of": whose, "thresholds": levels, "notes": notes}
    return _by_method(view, rules, stage_plan, for_final=True, **others)


def _by_method(view: ModelView, rules: MethodPreset, stage_plan: StagePlan, **others: Any) -> SamplingPlan:
    return SamplingPlan(
        stage_plan=stage_plan,
        kind=view.kind,
        boundary=Boundary(rules.upsampler, rules.switch_noise, rules.eta),
        eta=rules.eta,
        cfg=1.0,
        size_conditioning=_default_size_conditioning(view),
        cell_px=view.cell_px,
        **others,
    )


def _profile_plan(view: ModelView, final_hw: Size, *, profile: str, split: str, earlier_sizes: str) -> SamplingPlan:
    """A plan of a profile's own levels: at the sizes it was distilled for, else over those of `earlier_sizes`.

    profile is a title of `load_profiles`. split "auto" is the profile's own, with its own sizes where it has any and
    all steps at one size where there is none. Raises RMDError for a profile of another family and for a split into
    other steps.
    """
    fitting = {
        title: one
        for title, one in load_profiles().items()
        if one.family == view.kind.family and same_noise(one.curve, view.curve)
    }
    if profile not in fitting:
        listed = "; ".join(fitting) or "none so far, so choose thresholds or a split"
        raise RMDError(f"the profile {profile!r} is not for this model, {view.kind}; those that fit it: {listed}")
    height, width = (cells * view.cell_px for cells in final_hw)
    chosen, auto = fitting[profile].at(height, width), split.strip().lower() == "auto"
    if chosen.sizes and auto:
        sizes, counts = stage_sizes(final_hw, chosen.sizes, multiple=view.multiple), chosen.split
    else:
        sizes = stage_cells(view, final_hw, earlier_sizes)
        counts = chosen.split_over(len(sizes)) if auto else split_counts(split)
    mapping = NoMap() if chosen.mapping == "none" else AreaMap()
    return SamplingPlan(
        stage_plan=plan_from_split(chosen.curve, counts, sizes=sizes, mapping=mapping, steps=chosen.sigmas),
        kind=view.kind,
        boundary=chosen.boundary,
        eta=chosen.eta,
        cfg=chosen.cfg,
        size_conditioning=chosen.size_conditioning or _default_size_conditioning(view),
        cell_px=view.cell_px,
        origin=f"profile {chosen.title}, {_distilled_for(chosen, own_sizes=auto)}",
        shift_of="the profile's",
        student=bool(chosen.sizes),
        notes=(*_shift_notes(view, chosen.curve, "the profile's"), *_profile_notes(chosen), *chosen.notes),
    )


def _distilled_for(profile: FewStepProfile, *, own_sizes: bool) -> str:
    if not profile.sizes:
        return NOT_DISTILLED
    return "distilled for these sizes" if own_sizes else "distilled for other sizes; split auto gives them"


def _profile_notes(profile: FewStepProfile) -> list[str]:
    """What a profile's own fields say to the user: its files, its sizes and its second model."""
    strength = f" at strength {profile.lora_strength:g}" if profile.lora_strength is not None else ""
    notes = [f"made for {' or '.join(profile.files)} in models/{profile.folder}{strength}"]
    if profile.base:
        notes.append(f"the LoRA goes on {profile.base}")
    if profile.sizes:
        notes.append("with split auto the sizes are the profile's own, and earlier_sizes is not used")
    if profile.second_model_sigma is not None:
        notes.append(f"two models: the second takes over below second_model_sigma {profile.second_model_sigma:g}")
    return notes


def _default_size_conditioning(view: ModelView) -> str:
    """The size SDXL is given without a recipe: each stage's own, as CLIPTextEncode does; other models have none."""
    return "stage" if view.kind.family == "SDXL" else "none"


def last_steps(plan: SamplingPlan, denoise: float) -> SamplingPlan:
    """The last `round(denoise * steps)` steps of a plan, at least one; denoise is in (0, 1]."""
    steps = plan.stage_plan.steps
    left = max(1, math.floor(denoise * len(steps) + 0.5))
    if left == len(steps) and denoise == 1.0:
        return plan
    if left == len(steps):
        most = (len(steps) - 0.5) / len(steps)
        note = f"denoise {denoise:g} keeps all {left} steps; only below {most:.3g} does a step fall away"
        return replace(plan, notes=(*plan.notes, note))
    first = steps[-left]
    sigma = plan.stage_plan.curve.comfy_sigma(first.sigma)
    note = (
        f"denoise {denoise:g}: the last {left} of {len(steps)} steps run, from sigma {sigma:.4g} at "
        f"{pixels(plan.cell_px, first.size)} px; they start from the latent's image"
    )
    return replace(plan, stage_plan=plan_tail(plan.stage_plan, left), notes=(*plan.notes, note))


def final_cells(view: ModelView, *, width: int, height: int) -> Size:
    """Latent (height, width) of a size in pixels; RMDError, naming the nearest one, unless whole cells fill it."""
    px = view.cell_px
    if min(width, height) < 1 or width % px or height % px:
        near = "x".join(str(px * max(1, math.floor(side / px + 0.5))) for side in (width, height))
        raise RMDError(
            f"a size of {width}x{height} px is not made of whole latent cells; "
            f"sides are multiples of {px} px here: use {near}"
        )
    return height // px, width // px


def stage_cells(view: ModelView, final_hw: Size, earlier: str) -> tuple[Size, ...]:
    """Latent sizes of all stages: those in `earlier`, then `final_hw`.

    earlier is a comma list, one entry for each stage before the last: a factor in (0, 1] of the final sides, rounded to
    the model's patches, or width x height in pixels, such as "0.5" or "832x480". Raises RMDError for anything else, for
    pixels that are not whole cells, and for sizes that shrink.
    """
    entries = [entry.strip() for entry in re.split("[,;]", earlier) if entry.strip()]
    sizes = (*(_stage_size(view, final_hw, entry) for entry in entries), final_hw)
    for before, after in zip(sizes, sizes[1:]):
        if after[0] < before[0] or after[1] < before[1]:
            raise RMDError(
                f"the size shrinks from {pixels(view.cell_px, before)} to {pixels(view.cell_px, after)} px; "
                "in earlier_sizes give sizes that grow towards the final one"
            )
    return sizes


def pixels(cell_px: int, size_hw: Size) -> str:
    """A latent size as `width x height` in pixels, without spaces."""
    return f"{size_hw[1] * cell_px}x{size_hw[0] * cell_px}"


def _stage_size(view: ModelView, final_hw: Size, entry: str) -> Size:
    if both := re.fullmatch(r"([0-9]{1,9})\s*[xX*]\s*([0-9]{1,9})", entry):
        return final_cells(view, width=int(both[1]), height=int(both[2]))
    try:
        factor = float(entry)
    except ValueError:
        factor = math.nan
    if not 0.0 < factor <= 1.0:
        raise RMDError(
            f"{short_repr(entry)} in earlier_sizes is not a size; for each stage before the last give a factor above 0 "
            "and at most 1, such as 0.5, or width x height in pixels, such as 832x480"
        )
    return stage_sizes(final_hw, (factor, 1.0), multiple=view.multiple)[0]


def numbers(text: str, name: str, *, example: str = "-5, -2.5") -> tuple[float, ...]:
    """The numbers of a list with commas or blanks between them; RMDError, naming the widget, for anything else."""
    try:
        values = tuple(float(part) for part in re.split(r"[\s,;]+", text.strip()) if part)
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(value) for value in values):
        raise RMDError(f"{name} is {short_repr(text)}; use numbers with commas between them, such as {example}")
    return values


def given_levels(curve: NoiseCurve, sigmas: str, steps: int) -> tuple[float, ...]:
    """The levels of a list of ComfyUI sigmas, one for each step; a closing 0 is left out.

    Raises RMDError unless they fall strictly from at most the model's largest sigma and are as many as the steps.
    """
    values = numbers(sigmas, "sigmas", example="1.0, 0.75")
    if len(values) == steps + 1 and values[-1] == 0.0:
        values = values[:-1]
    most = curve.comfy_sigma(curve.sigma_max)
    falling = all(before > after for before, after in zip(values, values[1:]))
    if len(values) != steps or not falling or not all(value > 0.0 for value in values):
        raise RMDError(
            f"sigmas is {short_repr(sigmas)} for {steps} steps; give {steps} numbers above 0 that fall, "
            "in ComfyUI's units, or leave it empty for the curve's own grid"
        )
    if values[0] > most * (1.0 + 1e-4):
        raise RMDError(
            f"the first sigma is {values[0]:g}, above this model's largest, {most:.6g}; start at {most:.6g} or below"
        )
    return tuple(min(curve.from_comfy_sigma(value), curve.sigma_max) for value in values)


def scheduler_levels(
    curve: NoiseCurve, sigmas: torch.Tensor, ratio: float
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The levels of a SIGMAS as the first size names them, given those of the final size, and notes on them.

    sigmas `(K,)` or, with a closing 0, `(K + 1,)` are ComfyUI's; ratio is r between first and final size. Pure noise is
    pure noise at both. Raises RMDError unless they are finite, above 0, falling and within the model's noise.
    """
    values = sigmas.tolist() if sigmas.dim() == 1 else []
    if values and values[-1] == 0.0:
        values = values[:-1]
    most = curve.comfy_sigma(curve.sigma_max)
    listed = short_repr(", ".join(f"{value:.6g}" for value in values))
    if not values:
        raise RMDError("the SIGMAS have no level above 0, so no step can run; set at least 1 step in the scheduler")
    falling = all(before > after for before, after in zip(values, values[1:]))
    if not falling or not math.isfinite(sum(values)) or values[-1] <= 0.0:
        raise RMDError(f"the sigmas are {listed}; connect finite sigmas that fall; only the last may be 0")
    if values[0] > most * (1.0 + 1e-4):
        raise RMDError(
            f"the first sigma is {values[0]:g}, above this model's largest, {most:.6g}; "
            "connect the same model to the scheduler, or use levels of this model"
        )
    first, *rest = (curve.from_comfy_sigma(value) for value in values)
    own = [curve.with_ratio(level, 1.0 / ratio) for level in (first, *rest)]
    if values[0] >= most * (1.0 - PURE_NOISE):  # a few digits off, as schedulers compute in float32
        close = curve.is_pure_noise(first) and first <= curve.sigma_max + 1e-9
        return (first if close else curve.sigma_max, *own[1:]), ()
    return tuple(own), (
        f"the sigmas start at {values[0]:.4g}, below pure noise ({most:.4g}); the latent is the image they start from",
    )


def base_curve(view: ModelView, base_shift: float, *, ratio: float) -> tuple[NoiseCurve, str, tuple[str, ...]]:
    """The curve of the first size, whose its shift is, and notes on it; ratio is r between first and final size.

    base_shift is the flow shift of the first size, or 0. Then a shift that a node gave the model comes first, then
    RMD's for the family, then that of the model's loader. A model's own shift is for its full resolution, so the
    first size gets it divided by r. Raises RMDError for a shift on a model that has none.
    Source: docs/method/method.md, whose shift it is.
    """
    if not isinstance(view.curve, FlowCurve):
        if base_shift:
            raise RMDError(f"base_shift is {base_shift:g}, but {view.kind} has no flow shift; set base_shift to 0")
        return view.curve, "", ()
    if not base_shift and (view.patched or view.rmd_shift is None):
        whose = "set by a node before" if view.patched else "the model's own"
        return view.curve.at_ratio(1.0 / ratio), f"{whose}, for the final size", ()
    curve = replace(view.curve, shift=base_shift or view.rmd_shift)
    whose = "base_shift of the node" if base_shift else f"RMD's for {view.kind.family}"
    return curve, f"{whose}, for the first size", _shift_notes(view, curve, whose)


def _shift_notes(view: ModelView, curve: NoiseCurve, whose: str) -> tuple[str, ...]:
    """One sentence with both shifts where a plan's flow shift is not the one that the model was loaded with."""
    if not isinstance(curve, FlowCurve) or abs(curve.shift - view.curve.shift) < 1e-6 * curve.shift:
        return ()
    return (
        f"base shift {curve.shift:.4g} ({whose}), the loader's is {view.curve.shift:.4g}; "
        "RMD sets its own sigmas, so the loader's is not used",
    )


WAN_480P = 832 * 480
WAN_720P = 1280 * 720
"""Areas in pixels at which Wan's own shifts are 3 and 5; a size counts as one of them within a tenth."""


def chosen_map(name: str, rules: MethodPreset, view: ModelView, sizes: Sequence[Size]) -> ResolutionMap:
    """The mapping of a choice in `MAPPINGS`; `auto` follows the method, and for Wan from 480p to 720p the shifts.

    Raises RMDError for another name, and for shifts on a model that has none.
    """
    if name not in MAPPINGS:
        raise RMDError(f"the mapping {short_repr(name)} is unknown; use one of {', '.join(MAPPINGS)}")
    if name == NONE or (name == AUTO and rules.mapping == "none"):
        return NoMap()
    if name == AREA:
        return AreaMap()
    if name == NATIVE_SHIFTS and not isinstance(view.curve, FlowCurve):
        raise RMDError(f"the mapping {name!r} needs a flow model with a shift, this is {view.kind}; use area or auto")
    areas = (height * width * view.cell_px**2 for height, width in (sizes[0], sizes[-1]))
    wan = view.kind.family == "WAN21" and all(
        abs(area / native - 1.0) <= 0.1 for area, native in zip(areas, (WAN_480P, WAN_720P))
    )
    return ShiftPairMap(3.0, 5.0) if wan or name == NATIVE_SHIFTS else AreaMap()

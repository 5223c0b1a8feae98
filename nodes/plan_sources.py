"""Where a plan comes from: a student's recipe, thresholds, an explicit split, or a profile of a few-step model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..rmd_core.boundary import Boundary
from ..rmd_core.errors import RMDError
from ..rmd_core.few_step import NOT_DISTILLED, FewStepProfile
from ..rmd_core.plan import StagePlan, plan_from_split, plan_from_thresholds
from ..rmd_core.plan_tail import plan_tail
from ..rmd_core.presets import MethodPreset, preset
from ..rmd_core.profiles import PROFILES
from ..rmd_core.recipe import Recipe
from .bridge.bases import family_of
from .bridge.checks import check_levels
from .bridge.model_view import ModelView
from .bridge.sampling_plan import SamplingPlan
from .plan_widgets import base_curve, chosen_map, given_levels, numbers, same_noise, shift_notes, step_counts
from .stage_pixels import Size, pixels, stage_cells

SOURCES = RECIPE, THRESHOLDS, SPLIT, PROFILE = "student recipe", "thresholds", "split", "few-step profile"


def sampling_plan(view: ModelView, final_hw: Size, source: Mapping[str, Any]) -> SamplingPlan:
    """The plan of one choice of the node: `source["source"]` names it, the other entries are its widgets.

    final_hw is the latent size of the result. Raises RMDError for values that make no plan on this model.
    """
    values = dict(source)
    build = {RECIPE: recipe_plan, THRESHOLDS: threshold_plan, SPLIT: split_plan, PROFILE: profile_plan}
    name = values.pop("source")
    if name not in build:
        raise RMDError(f"the plan source {name!r} is unknown; use {', '.join(build)}")
    return build[name](view, final_hw, **values)


def asked_thresholds(source: Mapping[str, Any]) -> tuple[float, ...]:
    """The logSNR thresholds of a choice, for showing; empty where a split was given outright."""
    if source["source"] == RECIPE:
        return source["recipe"].thresholds or ()
    return numbers(source["thresholds"], "thresholds") if source["source"] == THRESHOLDS else ()


def recipe_plan(view: ModelView, final_hw: Size, *, recipe: Recipe) -> SamplingPlan:
    """The plan a student was trained on, at any final size; RMDError if it was trained on another model type."""
    trained_for = family_of(recipe.architecture)
    fits = same_noise(recipe.curve, view.curve) and (trained_for is None or trained_for.network == view.kind.family)
    if not fits or recipe.pixels_per_cell != view.cell_px:
        raise RMDError(
            f"this recipe was made for another model type: {recipe.architecture} ({recipe.curve.describe()}, "
            f"{recipe.pixels_per_cell} px a cell), the model is {view.kind} with {view.cell_px} px a cell; "
            "connect the student's own model"
        )
    notes = shift_notes(view, recipe.curve, "the recipe's")
    if final_hw != recipe.final_hw:
        trained, now = (pixels(view.cell_px, size) for size in (recipe.final_hw, final_hw))
        notes += (f"the student was trained for {trained} px; at {now} px its size ratios and levels are kept",)
    return _checked(
        view,
        final_hw,
        recipe.plan(final_hw),
        boundary=recipe.boundary(),
        eta=recipe.eta,
        cfg=recipe.cfg,
        size_conditioning=recipe.size_conditioning,
        origin=f"recipe of a student of {recipe.base_model}, {recipe.training_step} updates",
        notes=notes,
    )


def threshold_plan(
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
    """A plan whose steps change size where the logSNR of the curve's own grid passes a threshold.

    thresholds is a comma list, one entry for each size of `earlier_sizes` (see `stage_cells`); mapping is one of
    `MAPPINGS`, base_shift a flow shift or 0 for RMD's, method the name of a preset. Raises RMDError.
    """
    levels, sizes = numbers(thresholds, "thresholds"), stage_cells(view, final_hw, earlier_sizes)
    if len(levels) != len(sizes) - 1:
        raise RMDError(
            f"thresholds has {len(levels)} entries, earlier_sizes {len(sizes) - 1}; give as many of each, "
            "one less than there are stages"
        )
    curve, notes = base_curve(view, base_shift)
    rules = preset(method)
    stages = plan_from_thresholds(
        curve, steps, thresholds=levels, sizes=sizes, mapping=chosen_map(mapping, rules, view, sizes)
    )
    listed = ", ".join(f"{level:g}" for level in levels) or "none"
    return _by_method(view, final_hw, stages, rules, f"{steps} steps, thresholds {listed}, method {method}", notes)


def split_plan(
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
    """A plan with a given number of steps for each size, such as "2+2".

    sigmas is a comma list of ComfyUI's sigmas, one a step, as the first size names them; empty means the curve's own
    grid, and a closing 0 is allowed. The rest as in `threshold_plan`. Raises RMDError.
    """
    counts, sizes = step_counts(split), stage_cells(view, final_hw, earlier_sizes)
    _check_split(counts, sizes)
    curve, notes = base_curve(view, base_shift)
    rules = preset(method)
    levels = given_levels(curve, sigmas, sum(counts)) if sigmas.strip() else None
    stages = plan_from_split(curve, counts, sizes=sizes, mapping=chosen_map(mapping, rules, view, sizes), steps=levels)
    origin = f"split {stages.split}, {'own sigmas' if levels else 'the grid of the curve'}, method {method}"
    return _by_method(view, final_hw, stages, rules, origin, notes)


def profile_plan(view: ModelView, final_hw: Size, *, profile: str, split: str, earlier_sizes: str) -> SamplingPlan:
    """A plan of a profile's own levels over two sizes or more; the model was not distilled for the cascade.

    profile is a title of `profile_titles`; split "auto" is the profile's own, or all steps at one size where
    `earlier_sizes` is empty. Raises RMDError for a profile of another family.
    """
    chosen = _profile(view, profile)
    sizes = stage_cells(view, final_hw, earlier_sizes)
    counts = chosen.split_over(len(sizes)) if split.strip().lower() == "auto" else step_counts(split)
    _check_split(counts, sizes)
    strength = f" at strength {chosen.lora_strength:g}" if chosen.lora_strength is not None else ""
    files = f"made for {' or '.join(chosen.files)} in models/{chosen.folder}{strength}"
    return _checked(
        view,
        final_hw,
        chosen.plan(sizes, counts),
        boundary=chosen.boundary,
        eta=chosen.eta,
        cfg=chosen.cfg,
        size_conditioning=told_size(view),
        origin=f"profile {chosen.title}, {NOT_DISTILLED}",
        notes=(*shift_notes(view, chosen.curve, "the profile's"), files, *chosen.notes),
    )


def profile_titles() -> list[str]:
    """The titles of all profiles, as the drop-down lists them."""
    return [profile.title for profile in PROFILES.values()]


def told_size(view: ModelView) -> str:
    """What SDXL is told without a recipe: each stage's own size, as CLIPTextEncode does; others are told nothing."""
    return "stage" if view.kind.family == "SDXL" else "none"


def kept_tail(plan: SamplingPlan, denoise: float) -> SamplingPlan:
    """The last `round(denoise * steps)` steps of a plan, at least one; RMDError for a denoise outside (0, 1]."""
    if not 0.0 < denoise <= 1.0:
        raise RMDError(f"denoise is {denoise!r}; use a number above 0, up to 1, which runs the whole plan")
    steps = plan.stages.steps
    kept = max(1, math.floor(denoise * len(steps) + 0.5))
    if kept == len(steps) and denoise == 1.0:
        return plan
    if kept == len(steps):
        most = (len(steps) - 0.5) / len(steps)
        note = f"denoise {denoise:g} keeps all {kept} steps; only below {most:.3g} does a step fall away"
        return replace(plan, notes=(*plan.notes, note))
    first = steps[-kept]
    sigma = plan.stages.curve.comfy_sigma(first.sigma)
    note = (
        f"denoise {denoise:g}: the last {kept} of {len(steps)} steps run, from sigma {sigma:.4g} at "
        f"{pixels(plan.cell_px, first.size)} px; the latent is the picture they start from"
    )
    return replace(plan, stages=plan_tail(plan.stages, kept), notes=(*plan.notes, note))


def _by_method(
    view: ModelView, final_hw: Size, stages: StagePlan, rules: MethodPreset, origin: str, notes: tuple[str, ...]
) -> SamplingPlan:
    return _checked(
        view,
        final_hw,
        stages,
        boundary=Boundary(rules.upsampler, rules.switch_noise, rules.eta),
        eta=rules.eta,
        cfg=1.0,
        size_conditioning=told_size(view),
        origin=origin,
        notes=notes,
    )


def _checked(view: ModelView, final_hw: Size, stages: StagePlan, **rules: Any) -> SamplingPlan:
    view.check_sizes([stage.size for stage in stages.stages])
    if stages.final_hw != final_hw:
        raise RMDError(
            f"no step runs at the final size {pixels(view.cell_px, final_hw)} px (split {stages.split}); "
            "lower the last threshold, use more steps, or give the last stage a step"
        )
    plan = SamplingPlan(stages=stages, kind=view.kind, cell_px=view.cell_px, **rules)
    for stage in stages.stages:
        check_levels(plan, stage, view.curve.comfy_sigma(view.curve.sigma_max))
    return plan


def _profile(view: ModelView, title: str) -> FewStepProfile:
    fitting = [profile for profile in PROFILES.values() if profile.family == view.kind.family]
    fitting = [profile for profile in fitting if same_noise(profile.curve, view.curve)]
    for profile in fitting:
        if profile.title == title:
            return profile
    listed = "; ".join(profile.title for profile in fitting) or "none so far, so choose thresholds or a split"
    raise RMDError(f"the profile {title!r} is not for this model, {view.kind}; those that fit it: {listed}")


def _check_split(counts: tuple[int, ...], sizes: tuple[Size, ...]) -> None:
    if len(counts) != len(sizes):
        raise RMDError(
            f"the split {'+'.join(map(str, counts))} needs {len(counts) - 1} earlier_sizes, {len(sizes) - 1} came; "
            "give every size but the last there, or change the split"
        )

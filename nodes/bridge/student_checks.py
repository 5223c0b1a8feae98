"""Does a student fit a model: what its recipe says against what ComfyUI loaded, before anything is sampled."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...rmd_core.errors import RMDError
from ...rmd_core.header import read_metadata
from ...rmd_core.logsnr import VPCurve
from ...rmd_core.recipe import RECIPE_KEY, Recipe
from .bases import bases_of, family_of, is_a, known_base, plain_name, structure_of
from .class_names import class_names
from .model_view import ModelView

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

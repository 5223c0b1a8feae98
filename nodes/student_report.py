"""What RMD Load Student tells about a student, as a block of text."""

from __future__ import annotations

from collections.abc import Iterable

from ..rmd_core.recipe import Recipe
from .bridge.student_checks import Findings

TOLD = {
    "none": "nothing",
    "stage": "the size of the stage",
    "final": "the size of the result",
}


def student_report(recipe: Recipe, findings: Findings, *, file: str, applied: str) -> str:
    """The recipe line by line, then what was checked and what could not be; `applied` says how it was loaded."""
    lines = [
        f"student: {file} ({applied})",
        f"base: {recipe.base_model} ({recipe.architecture}, predicts {recipe.prediction})",
        f"steps: {_stages(recipe)}",
        f"sigmas: {', '.join(f'{sigma:.6g}' for sigma in recipe.sigmas)} (as the first size names them)",
        f"noise: {recipe.curve.describe()}",
        f"mapping: {recipe.mapping.describe()}",
        f"inside a stage: eta {recipe.eta:g}",
        f"at a change of size: {recipe.upsampler}, {recipe.switch_noise} noise, eta {recipe.eta_switch:g}",
        f"CFG: {recipe.cfg:g}",
        f"prompt encoder: {recipe.prompt_encoder}",
        f"told about the size: {TOLD[recipe.size_conditioning]}",
        f"trained: {recipe.training_step} updates, configuration {recipe.config_digest[:12]}",
    ]
    if recipe.thresholds is not None:
        levels = ", ".join(f"{value:g}" for value in recipe.thresholds) or "none"
        lines.insert(4, f"thresholds: {levels} (logSNR)")
    return "\n".join([*lines, *_listed("checked", findings.checked), *_listed("NOT checked", findings.unchecked)])


def _stages(recipe: Recipe) -> str:
    sides = ((width, height) for height, width in recipe.stage_sizes())
    sizes = [f"{width * recipe.pixels_per_cell}x{height * recipe.pixels_per_cell}" for width, height in sides]
    used = [size for size, count in zip(sizes, recipe.split) if count]
    return f"{'+'.join(map(str, recipe.split))} at {' to '.join(used)} px (width x height in training)"


def _listed(title: str, sentences: Iterable[str]) -> list[str]:
    return [f"{title}: {sentence}" for sentence in sentences]

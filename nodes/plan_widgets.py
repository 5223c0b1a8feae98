"""What the widgets of a plan source mean on one model: lists of numbers, levels, the base curve and the mapping."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch

from ..rmd_core.errors import RMDError
from ..rmd_core.logsnr import FlowCurve, NoiseCurve, VPCurve
from ..rmd_core.mapping import AreaMap, NoMap, ResolutionMap, ShiftPairMap
from ..rmd_core.presets import MethodPreset
from .bridge.model_view import ModelView
from .stage_pixels import Size

AUTO, AREA, NATIVE_SHIFTS, NONE = "auto", "area", "native shifts 3 to 5", "none"
MAPPINGS = (AUTO, AREA, NATIVE_SHIFTS, NONE)

MOST_DIGITS = 9
"""Of a whole number in a text: nothing that a plan counts needs more."""

WAN_480P, WAN_720P = 832 * 480, 1280 * 720
"""Areas in pixels at which Wan's own shifts are 3 and 5; a size counts as one of them within a tenth."""


def numbers(text: str, name: str, *, example: str = "-5, -2.5") -> tuple[float, ...]:
    """The numbers of a list with commas or blanks between them; RMDError, naming the widget, for anything else."""
    try:
        values = tuple(float(part) for part in re.split(r"[\s,;]+", text.strip()) if part)
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(value) for value in values):
        raise RMDError(f"{name} is {text!r:.80}; use numbers with commas between them, such as {example}")
    return values


def step_counts(split: str) -> tuple[int, ...]:
    """Steps for each stage of a split such as "2+2"; RMDError for text that is none."""
    parts = [part.strip() for part in split.split("+")]
    numeric = all(part.isdecimal() and part.isascii() and len(part) <= MOST_DIGITS for part in parts)
    if not numeric or not any(int(part) for part in parts):
        raise RMDError(
            f"the split {split!r:.80} is no plan; give steps for each stage with + between them, such as 2+2"
        )
    return tuple(int(part) for part in parts)


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
            f"sigmas is {sigmas!r:.80} for {steps} steps; give {steps} numbers above 0 that fall, "
            "as ComfyUI names them, or leave it empty for the curve's own grid"
        )
    if values[0] > most * (1.0 + 1e-4):
        raise RMDError(
            f"the first sigma is {values[0]:g}, above this model's largest, {most:.6g}; start at {most:.6g} or below"
        )
    return tuple(min(curve.from_comfy_sigma(value), curve.sigma_max) for value in values)


def base_curve(view: ModelView, base_shift: float) -> tuple[NoiseCurve, tuple[str, ...]]:
    """The curve of the first size, and what to tell about its shift.

    base_shift is a flow shift, or 0 for RMD's for the model type, or the model's own where RMD knows none. Raises
    RMDError for a shift on a model that has none.
    """
    if not 0.0 <= base_shift < float("inf"):
        raise RMDError(f"base_shift is {base_shift!r}; use a positive flow shift, or 0 for auto")
    if not isinstance(view.curve, FlowCurve):
        if base_shift:
            raise RMDError(
                f"base_shift is {base_shift:g}, but {view.kind} is no flow model and has no shift; set base_shift to 0"
            )
        return view.curve, ()
    if base_shift:
        curve, whose = FlowCurve(base_shift), "set on the node"
    elif view.rmd_shift is not None:
        curve, whose = FlowCurve(view.rmd_shift), "RMD"
    else:
        note = f"base shift {view.curve.shift:.4g} is the model's own: RMD knows none for {view.kind.family}"
        return view.curve, (note,)
    return curve, shift_notes(view, curve, whose)


def shift_notes(view: ModelView, curve: NoiseCurve, whose: str) -> tuple[str, ...]:
    """One sentence with both shifts where a plan's flow shift is not the one that the model was loaded with."""
    if not isinstance(curve, FlowCurve) or abs(curve.shift - view.curve.shift) < 1e-6 * curve.shift:
        return ()
    return (
        f"base shift {curve.shift:.4g} ({whose}), the loader's is {view.curve.shift:.4g}; "
        "RMD sets its own sigmas, so the loader's is not used",
    )


def chosen_map(name: str, rules: MethodPreset, view: ModelView, sizes: Sequence[Size]) -> ResolutionMap:
    """The mapping of a choice in `MAPPINGS`; `auto` follows the method, and for Wan from 480p to 720p the shifts.

    Raises RMDError for another name, and for shifts on a model that has none.
    """
    if name not in MAPPINGS:
        raise RMDError(f"the mapping {name!r:.80} is unknown; use one of {', '.join(MAPPINGS)}")
    if name == NONE or (name == AUTO and rules.mapping == "none"):
        return NoMap()
    if name == AREA:
        return AreaMap()
    if name == NATIVE_SHIFTS and not isinstance(view.curve, FlowCurve):
        raise RMDError(f"the mapping {name!r} needs a flow model, this is {view.kind}; use area or auto")
    native = name == NATIVE_SHIFTS or _is_wan_480p_to_720p(view, sizes)
    return ShiftPairMap(3.0, 5.0) if native else AreaMap()


def same_noise(curve: NoiseCurve, other: NoiseCurve) -> bool:
    """Whether two curves are of one kind and, for VP models, of one table (flow shifts may differ)."""
    if isinstance(curve, VPCurve) and isinstance(other, VPCurve):
        mine, theirs = curve.table_logsnr, other.table_logsnr
        return len(mine) == len(theirs) and torch.allclose(mine, theirs, atol=1e-3, rtol=0.0)
    return curve.kind == other.kind


def _is_wan_480p_to_720p(view: ModelView, sizes: Sequence[Size]) -> bool:
    first, last = (height * width * view.cell_px**2 for height, width in (sizes[0], sizes[-1]))
    near = abs(first / WAN_480P - 1.0) <= 0.1 and abs(last / WAN_720P - 1.0) <= 0.1
    return view.kind.family == "WAN21" and near

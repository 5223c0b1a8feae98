"""Types of the recipe's fields: one reader per field, from JSON values to Python and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import RMDError
from .logsnr import NoiseCurve, curve_from_dict
from .mapping import ResolutionMap, map_from_dict

if TYPE_CHECKING:
    from .recipe import Recipe

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

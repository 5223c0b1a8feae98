"""Few-step models that people already own, as data: the YAML files in this folder, and files of the user's own.

docs/use/profiles.md says what each key of an entry means. Nothing here is bound to one loaded model.
"""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from ...rmd_core.boundary import SWITCH_NOISES, UPSAMPLERS, Boundary
from ...rmd_core.errors import RMDError, one_line
from ...rmd_core.plan import split_text
from ...rmd_core.recipe import SIZE_CONDITIONINGS
from ...rmd_core.schedule import FlowCurve, NoiseCurve
from ..bridge.model import FLOW, LINEAR, SCALED_LINEAR, vp_tables

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent
MODEL_FOLDERS = ("checkpoints", "diffusion_models", "loras")

NOT_DISTILLED = "not distilled for the cascade"
"""The note for a profile without its own sizes: its model never saw a change of size in training."""

MEGAPIXEL = 1024
"""Side in pixels at which the levels of a rule are listed."""


@dataclass(frozen=True, kw_only=True)
class FewStepProfile:
    """The levels, guidance and noise rules of a published few-step model, with where they were found.

    family is ComfyUI's class name of the model; folder the one under `models` where `files` go, each file a choice that
    samples alike. lora_strength is None for a whole model; base is the Hugging Face id of the model a LoRA goes on,
    None where it does not matter. Levels are `timesteps` or `comfy_sigmas`, the other one is empty; where they follow
    from the size, `levels` names the rule and `at` gives those of a size. split is their division over sizes, mapping
    "area" or "none": how levels move with the size. sizes are those a student was distilled for, over the final one
    and smallest first, empty for a model of one size. eta is the share of predicted noise inside a stage, boundary the
    rule at a change of size, cfg the guidance (1 is without), size_conditioning the size SDXL receives, None
    for the model's own. From second_model_sigma down another model takes over, None without one.
    sources are "URL - what it says".
    Source: docs/use/profiles.md.
    """

    key: str
    title: str
    family: str
    folder: str
    files: tuple[str, ...]
    lora_strength: float | None
    base: str | None
    noise: str
    shift: float | None
    timesteps: tuple[float, ...]
    comfy_sigmas: tuple[float, ...]
    levels: str | None
    split: tuple[int, ...]
    sizes: tuple[float, ...]
    mapping: str
    eta: float
    boundary: Boundary
    cfg: float
    size_conditioning: str | None
    second_model_sigma: float | None
    sources: tuple[str, ...]
    notes: tuple[str, ...]

    @cached_property
    def curve(self) -> NoiseCurve:
        """The noise that the levels are on."""
        return FlowCurve(self.shift) if self.noise == FLOW else vp_tables()[self.noise]

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """The levels as rmd_core names them, noisiest first."""
        if self.timesteps:
            return tuple(map(self.curve.sigma_from_timestep, self.timesteps))
        return tuple(self.curve.from_comfy_sigma(sigma) for sigma in self.comfy_sigmas)

    def at(self, height: int, width: int) -> FewStepProfile:
        """The profile for a result of a size in pixels: itself, unless its levels follow from the size."""
        if self.levels is None:
            return self
        steps = sum(self.split)
        curve = FlowCurve(LEVEL_RULES[self.levels](height, width, steps))
        return replace(self, shift=curve.shift, comfy_sigmas=tuple(map(curve.comfy_sigma, curve.grid(steps))))

    def split_over(self, stages: int) -> tuple[int, ...]:
        """The profile's own split over a number of sizes: the last keeps its steps, the earlier ones share the rest.

        Where the rest cannot be shared evenly, the smaller sizes take more. Raises RMDError for no size, or for more
        than there are steps.
        """
        before, early = stages - 1, sum(self.split[:-1])
        if not 0 <= before <= early:
            raise RMDError(
                f"{self.title} cannot share its steps {split_text(self.split)} over {stages} sizes; "
                f"use 1 to {early + 1} sizes, or give a split of its {sum(self.split)} steps"
            )
        if before == 0:
            return (sum(self.split),)
        each, more = divmod(early, before)
        return (*(each + 1 if place < more else each for place in range(before)), self.split[-1])


def flux2_shift(height: int, width: int, steps: int) -> float:
    """FLUX.2's flow shift for a size in pixels and a number of steps.

    Source: black-forest-labs/flux2, src/flux2/sampling.py, compute_empirical_mu; ComfyUI's Flux2Scheduler.
    """
    tokens = round(height * width / 16**2)
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return math.exp(many)
    few = 8.73809524e-05 * tokens + 1.89833333
    slope = (many - few) / 190.0
    return math.exp(slope * steps + many - 200.0 * slope)


LEVEL_RULES: dict[str, Callable[[int, int, int], float]] = {"flux2": flux2_shift}
"""Rules by which levels follow from the size: the flow shift for height and width in pixels and the steps."""


def load_profiles(own: Path | None = None) -> Mapping[str, FewStepProfile]:
    """Every profile by its title: those of RMD, then those of the files in `own` (ComfyUI's user/rmd_profiles).

    A file that cannot be used is left out with one line of warning. Files are read again when they change.
    """
    return _load(profile_stamps(own))


Stamps = tuple[tuple[Path, int, int], ...]


def profile_stamps(own: Path | None = None) -> Stamps:
    """(path, time of change, bytes) of every file that `load_profiles` reads, in its order."""
    if own is None:
        import folder_paths  # not at the top: the page of profiles is made without a ComfyUI

        own = Path(folder_paths.get_user_directory(), "rmd_profiles")
    stamps = []
    for path in (*sorted(SHIPPED.glob("*.yaml")), *sorted(own.glob("*.yaml")), *sorted(own.glob("*.yml"))):
        try:
            stamps.append((path, path.stat().st_mtime_ns, path.stat().st_size))
        except OSError:
            stamps.append((path, 0, 0))
    return tuple(stamps)


@lru_cache(maxsize=1)
def _load(stamps: Stamps) -> Mapping[str, FewStepProfile]:
    found: dict[str, FewStepProfile] = {}
    for path, *_ in stamps:
        try:
            entries = read_profiles(path)
            taken = {name for known in found.values() for name in (known.key, known.title)}
            for one in entries:
                if {one.key, one.title} & taken:
                    raise RMDError(f"{path}: the key {one.key!r} or its title is already used; choose another")
                taken |= {one.key, one.title}
        except RMDError as error:
            logger.warning("%s; this file of profiles is left out", error)
        else:
            found |= {one.title: one for one in entries}
    return found


def read_profiles(path: Path) -> list[FewStepProfile]:
    """The profiles of one YAML file, in its order; RMDError that names the file where one is not valid."""
    try:
        # libyaml's safe loader takes a tenth of the time of the other one; a PyYAML may come without it.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        entries = yaml.load(path.read_text(encoding="utf-8"), loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RMDError(f"{path}: this is not a YAML file ({one_line(error, 200)}); correct or remove it") from None
    if not isinstance(entries, list) or not entries:
        raise RMDError(f"{path}: the file holds {_shown(entries)}; use a list of profiles, each starting with '- key:'")
    return [_profile(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]


def _profile(entry: Any, place: str) -> FewStepProfile:
    if not isinstance(entry, dict):
        raise RMDError(f"{place} is {_shown(entry)}; use keys with values, such as title: My model, 4 steps (LoRA)")
    if unknown := [name for name in entry if name not in _KEYS]:
        raise RMDError(f"{place}: the key {_shown(unknown[0])} is unknown; use {', '.join(_KEYS)}")
    is_lora, is_flow = entry.get("folder") == "loras", entry.get("noise") == FLOW and "levels" not in entry
    for name, (allowed, fits) in _KEYS.items():
        unused = (name == "lora_strength" and not is_lora) or (name == "shift" and not is_flow)
        if name not in entry:
            if not unused and name not in _OPTIONAL:
                raise RMDError(f"{place}: {name} is missing; give {allowed}")
        elif unused:
            raise RMDError(f"{place}: {name} is {_shown(entry[name])}; leave it out: it is {allowed}")
        elif not fits(entry[name]):
            raise RMDError(f"{place}: {name} is {_shown(entry[name])}; use {allowed}")
    levels = [name for name in ("timesteps", "sigmas", "levels") if name in entry]
    if len(levels) != 1:
        raise RMDError(f"{place}: it has {' and '.join(levels) or 'no levels'}; give either timesteps or sigmas")
    if levels == ["levels"] and entry["noise"] != FLOW:
        raise RMDError(f"{place}: levels is {entry['levels']}, a rule for noise: {FLOW}; give timesteps or sigmas")
    split = tuple(int(part) for part in entry["split"].split("+"))
    if levels != ["levels"] and sum(split) != len(entry[levels[0]]):
        raise RMDError(f"{place}: split is {entry['split']} for {len(entry[levels[0]])} levels; give one step each")
    sizes = tuple(map(float, entry.get("sizes", ())))
    if len(split) != (len(sizes) or 2):
        raise RMDError(f"{place}: split is {entry['split']} for {len(sizes) or 2} sizes; give steps for each of them")
    if sizes and is_lora and "base" not in entry:
        raise RMDError(f"{place}: base is missing; give {_KEYS['base'][0]}, because a student only fits its own base")
    return FewStepProfile(
        key=entry["key"],
        title=entry["title"],
        family=entry["family"],
        folder=entry["folder"],
        files=tuple(entry["files"]),
        lora_strength=float(entry["lora_strength"]) if is_lora else None,
        base=entry.get("base"),
        noise=entry["noise"],
        shift=float(entry["shift"]) if is_flow else None,
        timesteps=tuple(map(float, entry.get("timesteps", ()))),
        comfy_sigmas=tuple(map(float, entry.get("sigmas", ()))),
        levels=entry.get("levels"),
        split=split,
        sizes=sizes,
        mapping=entry.get("mapping", "area"),
        eta=float(entry["eta"]),
        boundary=Boundary(entry["upsampler"], entry["switch_noise"], float(entry["eta_switch"])),
        cfg=float(entry["cfg"]),
        size_conditioning=entry.get("size_conditioning"),
        second_model_sigma=float(entry["second_model_sigma"]) if "second_model_sigma" in entry else None,
        sources=tuple(entry.get("sources", ())),
        notes=tuple(entry.get("notes", ())),
    ).at(MEGAPIXEL, MEGAPIXEL)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def _shown(value: Any) -> str:
    """A value in a message, cut short: YAML's aliases can make one that is endless when written out."""
    return one_line(_SHORT.repr(value), 120)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high


def _falling(low: float, high: float) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        numbers = isinstance(value, list) and len(value) >= 2 and all(map(_number(low, high), value))
        return numbers and all(before > after for before, after in zip(value, value[1:]))

    return fits


def _one_of(names: Iterable[str]) -> tuple[str, Callable[[Any], bool]]:
    names = tuple(names)
    return f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names


def _is_split(value: Any) -> bool:
    parts = value.split("+") if isinstance(value, str) else ()
    return len(parts) >= 2 and all(part.isascii() and part.isdecimal() and 0 < int(part) < 1000 for part in parts)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and _falling(1e-3, 1.0)(value[::-1]) and value[-1] == 1


_SHARE = ("a number from 0 to 1", _number(0.0, 1.0))
_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "key": ("a short name without blanks", lambda value: _is_text(value) and not any(map(str.isspace, value))),
    "title": ("one line of text", _is_text),
    "family": ("ComfyUI's class of the model, such as SDXL, SD3, WAN21 or Flux", _is_text),
    "folder": _one_of(MODEL_FOLDERS),
    "files": ("a list of file names", lambda value: _are_texts(value) and bool(value)),
    "lora_strength": ("a number, for a LoRA alone", _number(-10.0, 10.0)),
    "base": ("the Hugging Face id of the model that a LoRA goes on", _is_text),
    "noise": _one_of((FLOW, SCALED_LINEAR, LINEAR)),
    "shift": ("a number above 0, for flow with levels of its own alone", _number(1e-3, 1e3)),
    "timesteps": ("a list of two falling numbers or more, from 0 to 1000", _falling(0.0, 1000.0)),
    "sigmas": ("a list of two falling numbers or more, above 0, as ComfyUI names them", _falling(1e-9, 1e4)),
    "levels": _one_of(LEVEL_RULES),
    "split": ("the steps at two sizes, such as 2+2, or at each of sizes", _is_split),
    "sizes": ("a list of rising shares of the final sides that ends in 1", _are_sizes),
    "mapping": _one_of(("area", "none")),
    "cfg": ("a number from 0 to 100", _number(0.0, 100.0)),
    "eta": _SHARE,
    "upsampler": _one_of(UPSAMPLERS),
    "switch_noise": _one_of(SWITCH_NOISES),
    "eta_switch": _SHARE,
    "size_conditioning": _one_of(SIZE_CONDITIONINGS),
    "second_model_sigma": ("a number above 0 and below 1", _number(1e-3, 0.999)),
    "sources": ("a list of texts", _are_texts),
    "notes": ("a list of texts", _are_texts),
}
"""Every key of an entry: what it takes in words, and the check of it."""

_OPTIONAL = {
    "base",
    "timesteps",
    "sigmas",
    "levels",
    "sizes",
    "mapping",
    "size_conditioning",
    "second_model_sigma",
    "sources",
    "notes",
}

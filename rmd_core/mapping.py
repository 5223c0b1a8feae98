"""Resolution mapping: the same coarse information at a larger size needs a noisier level, by 2 ln r of logSNR."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from .errors import RMDError

Size = tuple[int, int]


@dataclass(frozen=True)
class ResolutionMap(ABC):
    """The rule that gives the ratio r of two sizes. Source: docs/method.md, the resolution mapping."""

    kind: ClassVar[str]

    @abstractmethod
    def ratio(self, low_hw: Size, high_hw: Size, final_hw: Size) -> float:
        """r >= 1 between the plan's first size `low_hw` and a stage's `high_hw`, in a plan that ends at `final_hw`."""

    @abstractmethod
    def describe(self) -> str:
        """The map in a few words."""

    def as_dict(self) -> dict[str, Any]:
        """The map as JSON values, read back by `map_from_dict`."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class AreaMap(ResolutionMap):
    """r is the square root of the ratio of areas."""

    kind: ClassVar[str] = "area"

    def ratio(self, low_hw: Size, high_hw: Size, final_hw: Size) -> float:
        return math.sqrt((high_hw[0] * high_hw[1]) / (low_hw[0] * low_hw[1]))

    def describe(self) -> str:
        return "area"


@dataclass(frozen=True)
class FixedRatioMap(ResolutionMap):
    """r given outright between the first and the final size; stages between share it out by the log of their area.

    `total` must be a finite number >= 1, else RMDError.
    """

    total: float
    kind: ClassVar[str] = "ratio"

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", _at_least_one(self.total, "the mapping's ratio"))

    def ratio(self, low_hw: Size, high_hw: Size, final_hw: Size) -> float:
        return self.total ** _log_area_share(low_hw, high_hw, final_hw)

    def describe(self) -> str:
        return f"fixed ratio {self.total:g}"


@dataclass(frozen=True)
class ShiftPairMap(ResolutionMap):
    """r = high / low from the native flow shifts of the first and the final size, such as Wan's 3 and 5.

    Stages between share it out by the log of their area. Raises RMDError unless 0 < low <= high.
    """

    low: float
    high: float
    kind: ClassVar[str] = "shift"

    def __post_init__(self) -> None:
        try:
            low, high = float(self.low), float(self.high)
        except (TypeError, ValueError):
            low = high = math.nan
        if not (0.0 < low <= high < math.inf):
            raise RMDError(f"the mapping's shifts are {self.low!r} and {self.high!r}; use two numbers, 0 < low <= high")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def ratio(self, low_hw: Size, high_hw: Size, final_hw: Size) -> float:
        return (self.high / self.low) ** _log_area_share(low_hw, high_hw, final_hw)

    def describe(self) -> str:
        return f"native shifts {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class NoMap(ResolutionMap):
    """Every size keeps the level of the first, as the authors' released recipes do."""

    kind: ClassVar[str] = "none"

    def ratio(self, low_hw: Size, high_hw: Size, final_hw: Size) -> float:
        return 1.0

    def describe(self) -> str:
        return "none, every size keeps the levels of the first"


_MAPS = {kind.kind: kind for kind in (AreaMap, FixedRatioMap, ShiftPairMap, NoMap)}


def map_from_dict(values: dict[str, Any]) -> ResolutionMap:
    """The map that `as_dict` wrote; raises RMDError for an unknown kind or a wrong set of keys."""
    values = dict(values)
    kind = values.pop("kind", None)
    if kind not in _MAPS:
        raise RMDError(f"resolution mapping {kind!r:.80} is unknown; use one of {', '.join(_MAPS)}")
    wanted = {field.name for field in fields(_MAPS[kind])}
    if set(values) != wanted:
        raise RMDError(
            f"resolution mapping {kind!r} came with {', '.join(sorted(values)) or 'no values'}; "
            f"it takes {', '.join(sorted(wanted)) or 'no values'}"
        )
    return _MAPS[kind](**values)


def _log_area_share(low_hw: Size, high_hw: Size, final_hw: Size) -> float:
    low, high, final = (math.log(height * width) for height, width in (low_hw, high_hw, final_hw))
    return (high - low) / (final - low) if final > low else 0.0


def _at_least_one(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 1.0 <= number < math.inf:
        raise RMDError(f"{name} is {value!r}; use a number of at least 1")
    return number

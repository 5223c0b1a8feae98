"""Noise levels: what sigma, logSNR and timestep mean to a model family, and how levels map between resolutions.

A level is named by sigma in [0, 1]: `x = alpha x0 + sigma eps` with alpha = 1 - sigma (flow) or sqrt(1 - sigma^2) (VP).
logSNR is `ln(alpha^2 / sigma^2)`, the natural logarithm; pure noise of a flow has sigma 1 and logSNR -inf. The same
coarse information at a resolution r times as large needs a level lower by 2 ln r in logSNR, which is r times the
sigma / alpha. The formulas below say so without the logarithm: pure noise maps to itself, and no digit is lost.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch

from .errors import RMDError

Level = TypeVar("Level", float, torch.Tensor)
"""A level, or a timestep or table index in place of one: a float, or a tensor, of which the result is float64."""

NAMED_SCHEDULES = ("scaled_linear", "linear")


class NoiseCurve(ABC):
    """What a model family means by a noise level. Source: docs/method/method.md, noise levels."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def table_size(self) -> int:
        """Number of entries of the model's table; index 0 is the cleanest."""

    @abstractmethod
    def table_sigma(self, index: Level) -> Level:
        """The level of a table index in [0, table_size - 1], fractional ones too."""

    @abstractmethod
    def table_index(self, sigma: Level) -> Level:
        """The fractional table index of a level, the inverse of `table_sigma`."""

    @abstractmethod
    def alpha(self, sigma: Level) -> Level:
        """The factor of x0 at a level."""

    @abstractmethod
    def logsnr(self, sigma: Level) -> Level:
        """`ln(alpha^2 / sigma^2)` of a level."""

    @abstractmethod
    def with_ratio(self, sigma: Level, ratio: float) -> Level:
        """The level at a larger resolution that shows what `sigma` shows at the smaller: logSNR lower by 2 ln(ratio).

        1 / ratio maps back. For a VP curve it may lie beyond the table.
        Source: docs/method/method.md, the resolution mapping.
        """

    @abstractmethod
    def at_ratio(self, ratio: float) -> NoiseCurve:
        """The curve of a size whose levels are mapped by `ratio`: the shift times ratio (flow), the same table (VP)."""

    @abstractmethod
    def snapped(self, sigma: float, *, last_index: int) -> float:
        """The nearest level that the model knows: a table entry up to last_index (VP), the level itself (flow)."""

    @abstractmethod
    def comfy_sigma(self, sigma: Level) -> Level:
        """ComfyUI's name of a level: sigma / alpha (VP, log flow), sigma itself (flow)."""

    @abstractmethod
    def from_comfy_sigma(self, comfy_sigma: Level) -> Level:
        """The level of a ComfyUI sigma, the inverse of `comfy_sigma`."""

    @abstractmethod
    def describe(self) -> str:
        """The curve in a few words."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """The curve as JSON values, read back by `curve_from_dict`."""

    def timestep(self, sigma: Level) -> Level:
        """The network's timestep at a level: the fractional table index (VP), 1000 sigma (flow)."""
        return self.table_index(sigma)

    def sigma_from_timestep(self, timestep: Level) -> Level:
        """The level of a network timestep, the inverse of `timestep`."""
        return self.table_sigma(timestep)

    @cached_property
    def sigma_max(self) -> float:
        """The noisiest level of the model's table."""
        return self.table_sigma(self.table_size - 1.0)

    def is_pure_noise(self, sigma: float) -> bool:
        """Whether a level is the noisiest of the table, or noisier."""
        return self.logsnr(sigma) <= self.logsnr(self.sigma_max) + 1e-6

    def grid(self, steps: int) -> tuple[float, ...]:
        """The levels of K steps, table indices `floor(N k / K) - 1` for k = K..1 with N = table_size.

        Sampler and trainer both use this grid. Raises RMDError unless 1 <= steps <= table_size.
        Source: docs/method/method.md, the step grid.
        """
        size = self.table_size
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= size:
            raise RMDError(f"{steps!r} steps cannot be placed on a table of {size}; use 1 to {size}")
        return tuple(self.table_sigma(float(size * k // steps - 1)) for k in range(steps, 0, -1))


class _Flow(NoiseCurve):
    """What rectified flows share, whatever their table: `x = (1 - sigma) x0 + sigma eps`, timestep 1000 sigma."""

    @property
    def table_size(self) -> int:
        return 1000

    def timestep(self, sigma: Level) -> Level:
        return 1000.0 * _float64(sigma)

    def sigma_from_timestep(self, timestep: Level) -> Level:
        return _float64(timestep) / 1000.0

    def alpha(self, sigma: Level) -> Level:
        return 1.0 - _float64(sigma)

    def with_ratio(self, sigma: Level, ratio: float) -> Level:
        return _shifted(_float64(sigma), ratio)


def _shifted(u: Level, shift: float) -> Level:
    return shift * u / (1.0 - u + shift * u)


@dataclass(frozen=True)
class FlowCurve(_Flow):
    """Rectified flow with shift s: `sigma = s u / (1 + (s - 1) u)`, table entry i at u = (i + 1) / 1000.

    A shift is a constant offset of -2 ln(s) in logSNR. noise_scale c is that of a model whose states are
    `alpha x0 + c sigma eps`, 1 for almost all; it offsets the logSNR by -2 ln(c) and no level. Raises RMDError unless
    both are positive and finite.
    """

    shift: float = 3.0
    noise_scale: float = 1.0
    kind: ClassVar[str] = "flow"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", _number(self.shift, "the flow shift"))
        object.__setattr__(self, "noise_scale", _number(self.noise_scale, "the flow's noise scale"))

    def table_sigma(self, index: Level) -> Level:
        return _shifted((_float64(index) + 1.0) / 1000.0, self.shift)

    def table_index(self, sigma: Level) -> Level:
        return 1000.0 * _shifted(_float64(sigma), 1.0 / self.shift) - 1.0

    def logsnr(self, sigma: Level) -> Level:
        offset = 2.0 * math.log(self.noise_scale)
        return _by_torch(lambda s: 2.0 * (torch.log1p(-s) - torch.log(s)) - offset, sigma)

    def at_ratio(self, ratio: float) -> FlowCurve:
        return FlowCurve(self.shift * ratio, self.noise_scale)

    def snapped(self, sigma: float, *, last_index: int) -> float:
        return sigma

    def comfy_sigma(self, sigma: Level) -> Level:
        return _float64(sigma)

    def from_comfy_sigma(self, comfy_sigma: Level) -> Level:
        return _float64(comfy_sigma)

    def describe(self) -> str:
        scale = "" if self.noise_scale == 1.0 else f", noise scale {self.noise_scale:g}"
        return f"flow, shift {self.shift:g}{scale}"

    def as_dict(self) -> dict[str, Any]:
        scale = {} if self.noise_scale == 1.0 else {"noise_scale": self.noise_scale}
        return {"kind": self.kind, "shift": self.shift, **scale}


@dataclass(frozen=True)
class LogFlowCurve(_Flow):
    """Rectified flow over a table even in log k with k = sigma / alpha, so a level is `sigma = k / (1 + k)`.

    Table entry i of 1000 has k between `least` and `most`; the first size has that table, as with a VP curve. Raises
    RMDError unless 0 < least < most. Source: Cosmos-Predict2 in ComfyUI (COSMOS_RFLOW), with k from 0.002 to 80.
    """

    least: float = 0.002
    most: float = 80.0
    kind: ClassVar[str] = "log flow"

    def __post_init__(self) -> None:
        object.__setattr__(self, "least", _number(self.least, "the least sigma / alpha"))
        object.__setattr__(self, "most", _number(self.most, "the largest sigma / alpha"))
        if self.least >= self.most:
            raise RMDError(f"sigma / alpha goes from {self.least:g} to {self.most:g}; give a range that rises")

    def table_sigma(self, index: Level) -> Level:
        return _by_torch(self._table_sigma, index)

    def table_index(self, sigma: Level) -> Level:
        span, least = math.log(self.most / self.least), math.log(self.least)
        return _by_torch(lambda s: (torch.logit(s) - least) * 999.0 / span, sigma)

    def _table_sigma(self, index: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(math.log(self.least) + index * (math.log(self.most / self.least) / 999.0))

    def logsnr(self, sigma: Level) -> Level:
        return _by_torch(lambda s: 2.0 * (torch.log1p(-s) - torch.log(s)), sigma)

    def at_ratio(self, ratio: float) -> LogFlowCurve:
        return self

    def snapped(self, sigma: float, *, last_index: int) -> float:
        return min(sigma, self.table_sigma(float(last_index)))

    def comfy_sigma(self, sigma: Level) -> Level:
        return _float64(sigma) / (1.0 - _float64(sigma))

    def from_comfy_sigma(self, comfy_sigma: Level) -> Level:
        return _float64(comfy_sigma) / (1.0 + _float64(comfy_sigma))

    def describe(self) -> str:
        return f"flow, sigma / alpha {self.least:g} to {self.most:g}"

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "least": self.least, "most": self.most}


@dataclass(frozen=True)
class VPCurve(NoiseCurve):
    """Variance-preserving diffusion over a table of betas; between entries logSNR is linear, as in ComfyUI.

    betas are T >= 2 values in (0, 1), cleanest first. Timesteps and levels beyond the table get its ends.
    `schedule` only remembers how the table was made. Raises RMDError for any other betas.
    """

    betas: tuple[float, ...]
    schedule: tuple[str, float, float] | None = field(default=None, compare=False, repr=False)
    kind: ClassVar[str] = "vp"

    def __post_init__(self) -> None:
        try:
            betas = tuple(float(beta) for beta in self.betas)
        except (TypeError, ValueError):
            betas = ()
        if len(betas) < 2 or not all(0.0 < beta < 1.0 for beta in betas):
            raise RMDError("a variance-preserving curve needs two or more betas, each between 0 and 1 exclusive")
        object.__setattr__(self, "betas", betas)

    @classmethod
    def scaled_linear(cls, start: float, end: float, size: int = 1000) -> VPCurve:
        """Betas linear in their square root, as in SDXL (0.00085, 0.012)."""
        roots = torch.linspace(math.sqrt(start), math.sqrt(end), size, dtype=torch.float64)
        return cls(tuple((roots**2).tolist()), ("scaled_linear", float(start), float(end)))

    @classmethod
    def linear(cls, start: float, end: float, size: int = 1000) -> VPCurve:
        """Betas linear, as in PixArt (1e-4, 0.02)."""
        betas = torch.linspace(start, end, size, dtype=torch.float64)
        return cls(tuple(betas.tolist()), ("linear", float(start), float(end)))

    @cached_property
    def table_logsnr(self) -> torch.Tensor:
        """logSNR of every table entry, `(T,)` float64, strictly decreasing."""
        log_alpha_bar = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)).cumsum(0)
        return log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))

    @property
    def table_size(self) -> int:
        return len(self.betas)

    def table_sigma(self, index: Level) -> Level:
        return _by_torch(lambda i: torch.sqrt(torch.sigmoid(-self._table_logsnr_at(i))), index)

    def table_index(self, sigma: Level) -> Level:
        return _by_torch(self._table_index, sigma)

    def _table_logsnr_at(self, index: torch.Tensor) -> torch.Tensor:
        table = self.table_logsnr.to(index.device)
        index = index.clamp(0.0, len(table) - 1.0)
        below = index.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[below], table[below + 1], index - below)

    def _table_index(self, sigma: torch.Tensor) -> torch.Tensor:
        table = self.table_logsnr.to(sigma.device)
        logsnr = self.logsnr(sigma).clamp(table[-1], table[0])
        above = torch.searchsorted(-table, -logsnr.contiguous()).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return above - 1 + (logsnr - low) / (high - low)

    def alpha(self, sigma: Level) -> Level:
        return _by_torch(_vp_alpha, sigma)

    def logsnr(self, sigma: Level) -> Level:
        return _by_torch(lambda s: torch.log1p(-s) + torch.log1p(s) - 2.0 * torch.log(s), sigma)

    def with_ratio(self, sigma: Level, ratio: float) -> Level:
        return _by_torch(lambda s: ratio * s / torch.hypot(_vp_alpha(s), ratio * s), sigma)

    def at_ratio(self, ratio: float) -> VPCurve:
        return self

    def snapped(self, sigma: float, *, last_index: int) -> float:
        nearest = math.floor(self.table_index(sigma) + 0.5)
        return self.table_sigma(float(min(nearest, last_index)))

    def comfy_sigma(self, sigma: Level) -> Level:
        return _by_torch(lambda s: s / _vp_alpha(s), sigma)

    def from_comfy_sigma(self, comfy_sigma: Level) -> Level:
        return _by_torch(lambda s: s / torch.hypot(torch.ones_like(s), s), comfy_sigma)

    def describe(self) -> str:
        made = "own betas" if self.schedule is None else "{} betas {:g} to {:g}".format(*self.schedule)
        return f"variance preserving, {made}, {self.table_size} timesteps"

    def as_dict(self) -> dict[str, Any]:
        if self.schedule is None:
            return {"kind": self.kind, "betas": list(self.betas)}
        name, start, end = self.schedule
        return {"kind": self.kind, "schedule": name, "start": start, "end": end, "size": self.table_size}


def _vp_alpha(sigma: torch.Tensor) -> torch.Tensor:
    return torch.sqrt((1.0 - sigma) * (1.0 + sigma))


def _float64(level: Level) -> Level:
    return level.to(torch.float64) if isinstance(level, torch.Tensor) else float(level)


def _by_torch(formula: Callable[[torch.Tensor], torch.Tensor], level: Level) -> Level:
    """A formula for tensors, given a float as well: PyTorch's and Python's logarithms may differ in the last bit."""
    if isinstance(level, torch.Tensor):
        return formula(_float64(level))
    return formula(torch.tensor(float(level), dtype=torch.float64)).item()


def curve_from_dict(values: dict[str, Any]) -> NoiseCurve:
    """The curve that `as_dict` wrote; raises RMDError for an unknown kind or schedule, or a wrong set of keys."""
    values = dict(values)
    kind, keys = values.pop("kind", None), set(values)
    if kind == FlowCurve.kind and keys in ({"shift"}, {"shift", "noise_scale"}):
        return FlowCurve(**values)
    if kind == LogFlowCurve.kind and keys == {"least", "most"}:
        return LogFlowCurve(**values)
    if kind == VPCurve.kind and keys == {"betas"}:
        return VPCurve(values["betas"])
    if kind == VPCurve.kind and keys == {"schedule", "start", "end", "size"}:
        if values["schedule"] not in NAMED_SCHEDULES:
            raise RMDError(f"beta schedule {values['schedule']!r} is unknown; use one of {', '.join(NAMED_SCHEDULES)}")
        start, end, size = (_number(values[key], f"the beta schedule's {key}") for key in ("start", "end", "size"))
        return getattr(VPCurve, values["schedule"])(start, end, int(size))
    raise RMDError(
        f"noise curve of kind {kind!r} with {', '.join(sorted(keys)) or 'no values'} is unknown; "
        "use flow with shift, log flow with least and most, or vp with betas or with schedule, start, end and size"
    )


def _number(value: Any, name: str, *, at_least_one: bool = False) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (1.0 if at_least_one else math.ulp(0.0)) <= number < math.inf:
        raise RMDError(f"{name} is {value!r}; use a {'number of at least 1' if at_least_one else 'positive number'}")
    return number


Size = tuple[int, int]
"""Latent (height, width)."""


@dataclass(frozen=True)
class ResolutionMap(ABC):
    """The rule that gives the ratio r of two sizes. Source: docs/method/method.md, the resolution mapping."""

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
        return math.sqrt(math.prod(high_hw) / math.prod(low_hw))

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
        object.__setattr__(self, "total", _number(self.total, "the mapping's ratio", at_least_one=True))

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


def _log_area_share(low_hw: Size, high_hw: Size, final_hw: Size) -> float:
    low, high, final = (math.log(math.prod(size)) for size in (low_hw, high_hw, final_hw))
    return (high - low) / (final - low) if final > low else 0.0


_MAPS = {kind.kind: kind for kind in (AreaMap, FixedRatioMap, ShiftPairMap, NoMap)}


def map_from_dict(values: dict[str, Any]) -> ResolutionMap:
    """The map that `as_dict` wrote; raises RMDError for an unknown kind or a wrong set of keys."""
    values = dict(values)
    kind = values.pop("kind", None)
    if kind not in _MAPS:
        raise RMDError(f"resolution mapping {kind!r:.80} is unknown; use one of {', '.join(_MAPS)}")
    names = {field.name for field in fields(_MAPS[kind])}
    if set(values) != names:
        raise RMDError(
            f"resolution mapping {kind!r} has {', '.join(sorted(values)) or 'no values'}; "
            f"it takes {', '.join(sorted(names)) or 'no values'}"
        )
    return _MAPS[kind](**values)

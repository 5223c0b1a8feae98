"""Stage plans: which step runs at which size and at which noise level, frozen before anything runs.

`plan_from_split` and `plan_from_thresholds` make a StagePlan, `plan_tail` one of its last steps alone, `stage_sizes`
the sizes that a plan is made for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from .errors import RMDError, short_repr
from .schedule import NoiseCurve, ResolutionMap, Size

BaseGrid = int | Sequence[float]
"""How the steps of a plan are given: their number (the curve's own grid), or their levels, noisiest first."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One network call.

    `index` counts over the plan, `index_in_stage` within the stage. sigma, timestep and logsnr are what the call runs
    at; base_sigma is the same level as the first size would name it. next_sigma is the level of the state after the
    call, as named at the size of the next call, and 0.0 after the last one. height and width are latent cells.
    """

    index: int
    stage: int
    index_in_stage: int
    height: int
    width: int
    sigma: float
    timestep: float
    logsnr: float
    base_sigma: float
    next_sigma: float

    @property
    def size(self) -> Size:
        """Latent (height, width)."""
        return self.height, self.width


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The steps of one size: their levels as this size names them, and as the first size does (`base_sigmas`).

    ratio is the r by which the levels were mapped. end_base_sigma is the base level at which the next stage starts, 0.0
    after the last. height and width are latent cells.
    """

    index: int
    height: int
    width: int
    ratio: float
    sigmas: tuple[float, ...]
    base_sigmas: tuple[float, ...]
    end_base_sigma: float

    @property
    def size(self) -> Size:
        """Latent (height, width)."""
        return self.height, self.width


@dataclass(frozen=True)
class PlanNote:
    """What a user should know about a size of a plan; `words` is a sentence with a place for {size}."""

    size: Size
    words: str

    def text(self, name_size: Callable[[Size], str] = lambda size: f"{size[0]} x {size[1]}") -> str:
        """The note as a sentence, with the size in latent cells unless `name_size` words it otherwise."""
        return self.words.format(size=name_size(self.size))


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The stages that run, in order, and what was asked for: `sizes` and `steps_asked` name empty stages too.

    Make one with `plan_from_split` or `plan_from_thresholds`. `notes` are what a user should know, such as a level
    that was moved to a table entry; on_table says whether levels are moved at all.
    Source: docs/method/method.md, stages.
    """

    curve: NoiseCurve
    mapping: ResolutionMap
    stages: tuple[Stage, ...]
    sizes: tuple[Size, ...]
    steps_asked: tuple[int, ...]
    notes: tuple[PlanNote, ...]
    on_table: bool = True

    @property
    def split(self) -> str:
        """Steps per size as asked, such as "2+2"; a size without a step is a 0."""
        return split_text(self.steps_asked)

    @property
    def calls_per_stage(self) -> tuple[int, ...]:
        """Network calls of each stage that runs."""
        return tuple(len(stage.sigmas) for stage in self.stages)

    @property
    def base_sigmas(self) -> tuple[float, ...]:
        """The base grid: every step's level as the first size names it."""
        return tuple(sigma for stage in self.stages for sigma in stage.base_sigmas)

    @property
    def final_hw(self) -> Size:
        """Latent height and width of the result: the size of the last stage that runs."""
        return self.stages[-1].size

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every step in order."""
        following = [*(sigma for stage in self.stages for sigma in stage.sigmas), 0.0][1:]
        steps: list[Step] = []
        for stage in self.stages:
            for place, (sigma, base) in enumerate(zip(stage.sigmas, stage.base_sigmas)):
                step = Step(
                    index=len(steps),
                    stage=stage.index,
                    index_in_stage=place,
                    height=stage.height,
                    width=stage.width,
                    sigma=sigma,
                    timestep=_tidy(self.curve.timestep(sigma)),
                    logsnr=self.curve.logsnr(sigma),
                    base_sigma=base,
                    next_sigma=following[len(steps)],
                )
                steps.append(step)
        return tuple(steps)

    def at_final_size(self, base_sigma: float) -> float:
        """The level at the final size of a level of the base grid's scale.

        A level of the last stage's own steps is the one it has there; any other is mapped continuously, up to the
        noisiest level of the curve.
        """
        last = self.stages[-1]
        if base_sigma in last.base_sigmas:
            return last.sigmas[last.base_sigmas.index(base_sigma)]
        return min(self.curve.with_ratio(base_sigma, last.ratio), self.curve.sigma_max)

    def step_costs(self, relative_cost: Callable[[int, int], float]) -> tuple[float, ...]:
        """Cost of each step in calls at the final size, given the cost of a call at (height, width) in any unit."""
        full = relative_cost(*self.final_hw)
        return tuple(relative_cost(*step.size) / full for step in self.steps)

    def table(self) -> str:
        """A plain text table: stage, size, sigma, timestep and logSNR of every step."""
        lines = ["step  stage  size (h x w)     sigma  timestep   logSNR"]
        for step in self.steps:
            size = f"{step.height} x {step.width}"
            lines.append(
                f"{step.index + 1:4d}  {step.stage + 1:5d}  {size:>12}  "
                f"{step.sigma:8.5f}  {step.timestep:8.2f}  {step.logsnr:7.3f}"
            )
        return "\n".join(lines)


def plan_from_split(
    curve: NoiseCurve,
    split: str | Sequence[int],
    *,
    sizes: Sequence[Size],
    mapping: ResolutionMap,
    steps: BaseGrid | None = None,
    on_table: bool = True,
) -> StagePlan:
    """A plan with a given number of steps per size, such as "2+2", (3, 3) or "1+1+2".

    sizes are latent (height, width), smallest first, one per number. steps is the base grid, the curve's own unless
    levels are given; it names levels as the FIRST size does, and a stage's levels are mapped by r between the first
    size and its own. A size with 0 steps is left out of the stages but keeps its meaning: with "0+4" the levels are
    still mapped from the first size (a threshold that slides over the first step then changes that step alone), and
    with "4+0" the result has the smaller size.

    A VP plan moves each level to the nearest table entry, levels after the first step to the last entry but one at
    most, because ComfyUI takes the last entry for pure noise. Not so without on_table: then levels stay where they are,
    within the curve. Raises RMDError for a split that does not fit, sizes that shrink, a grid that is not strictly
    decreasing within the curve, or two levels of a stage on one table entry.
    """
    counts = split_counts(split)
    sizes = _sizes(sizes)
    text, total = split_text(counts), sum(counts)
    if len(counts) != len(sizes):
        raise RMDError(
            f"the split {text} has {len(counts)} parts for {len(sizes)} sizes; give one for each of earlier_sizes, "
            "and one for the final size"
        )
    base = _base_grid(curve, total if steps is None else steps)
    if len(base) != total:
        raise RMDError(f"the split {text} has {total} steps but there are {len(base)} levels; give as many of each")
    return _build(curve, counts, base, sizes, mapping, on_table=on_table)


def plan_from_thresholds(
    curve: NoiseCurve,
    steps: BaseGrid,
    *,
    thresholds: Sequence[float],
    sizes: Sequence[Size],
    mapping: ResolutionMap,
    on_table: bool = True,
) -> StagePlan:
    """A plan where each step runs at the lowest size whose threshold its base logSNR is still below.

    thresholds are logSNRs, rising, one fewer than sizes; all else and errors as in `plan_from_split`.
    A size may get no steps.
    """
    thresholds = tuple(float(threshold) for threshold in thresholds)
    sizes = _sizes(sizes)
    if len(thresholds) != len(sizes) - 1:
        raise RMDError(
            f"thresholds has {len(thresholds)} entries for {len(sizes)} sizes; give one fewer, one for each of "
            "earlier_sizes"
        )
    if any(math.isnan(threshold) for threshold in thresholds) or not _rising(thresholds):
        raise RMDError(f"the thresholds {_listed(thresholds)} do not rise; give rising logSNRs, such as -5, -2.5")
    base = _base_grid(curve, steps)
    counts = [0] * len(sizes)
    for sigma in base:
        counts[sum(curve.logsnr(sigma) >= threshold for threshold in thresholds)] += 1
    return _build(curve, tuple(counts), base, sizes, mapping, on_table=on_table)


def plan_tail(plan: StagePlan, steps: int) -> StagePlan:
    """The plan of the last `steps` steps alone, at the same sizes and levels; the plan itself if that is all of them.

    A size that loses its steps keeps its place with a 0 ("0+2"), so that levels stay mapped from the plan's first size.
    Raises RMDError unless steps is from 1 to the number of steps of the plan.
    """
    total = len(plan.base_sigmas)
    if not 1 <= steps <= total:
        raise RMDError(f"cannot keep the last {steps} of {total} steps; keep 1 to {total}")
    if steps == total:
        return plan
    dropped = left = total - steps
    counts = []
    for count in plan.steps_asked:
        removed = min(count, left)
        left -= removed
        counts.append(count - removed)
    base, on_table = plan.base_sigmas[dropped:], plan.on_table
    return _build(plan.curve, tuple(counts), base, plan.sizes, plan.mapping, on_table=on_table, dropped=dropped)


def split_text(counts: Sequence[int]) -> str:
    """Steps per size as text, such as "2+2"."""
    return "+".join(map(str, counts))


def split_counts(split: str | Sequence[int]) -> tuple[int, ...]:
    """Steps per size of a split such as "2+2" or (2, 2); raises RMDError for one that is no plan."""
    try:
        parts = split.split("+") if isinstance(split, str) else list(split)
        counts = tuple(int(part) for part in parts)
        whole = all(isinstance(part, str) or part == count for part, count in zip(parts, counts))
    except (TypeError, ValueError):
        counts, whole = (), False
    if not whole or not counts or min(counts) < 0 or sum(counts) == 0:
        raise RMDError(
            f"the split {short_repr(split)} is not valid; give steps per stage such as 2+2, at least one step in all"
        )
    return counts


def _base_grid(curve: NoiseCurve, steps: BaseGrid) -> tuple[float, ...]:
    """The base grid for a number of steps or for given levels; raises RMDError for a grid no plan can use."""
    if isinstance(steps, int):
        return curve.grid(steps)
    base = tuple(float(sigma) for sigma in steps)
    within = all(0.0 < sigma <= curve.sigma_max + 1e-9 for sigma in base)
    if not base or not within or not _rising(base[::-1]):
        raise RMDError(
            f"the levels {_listed(base)} are not valid; give sigmas that fall strictly, above 0 and "
            f"up to {curve.sigma_max:.6g}"
        )
    return base


def stage_sizes(
    final_hw: Size, ratios: Sequence[float | tuple[float, float]], *, multiple: int = 1
) -> tuple[Size, ...]:
    """Latent sizes of the stages: each ratio times the final size per axis, rounded to `multiple` cells, halves up.

    A ratio is one number for both axes or a (height, width) pair. Ratio 1 gives the final size as it is; smaller ones
    give at least one multiple and at most the final size, larger ones (sizes at which no step runs) at least the final
    size. Raises RMDError unless the ratios are above 0, never fall, and one of them is 1 on both axes.
    """
    final = _sizes([final_hw])[0]
    pairs = _ratio_pairs(ratios)
    if multiple < 1:
        raise RMDError(f"sizes cannot be rounded to multiples of {multiple!r}; use the patch size, at least 1")

    def rounded(length: int, ratio: float) -> int:
        if ratio == 1.0:
            return length
        cells = multiple * max(1, math.floor(length * ratio / multiple + 0.5))
        return min(length, cells) if ratio < 1.0 else max(length, cells)

    return tuple((rounded(final[0], height), rounded(final[1], width)) for height, width in pairs)


def _ratio_pairs(ratios: Sequence[float | tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    try:
        pairs = [ratio if isinstance(ratio, Sequence) else (ratio, ratio) for ratio in ratios]
        checked = tuple((float(height), float(width)) for height, width in pairs)
    except (TypeError, ValueError):
        checked = ()
    grow = all(low <= high for before, after in zip(checked, checked[1:]) for low, high in zip(before, after))
    if not grow or (1.0, 1.0) not in checked or not all(0.0 < side < math.inf for pair in checked for side in pair):
        raise RMDError(
            f"the size ratios {ratios!r} are not valid; give ratios above 0 that never fall and include 1, "
            "such as 0.5, 1"
        )
    return checked


def _build(
    curve: NoiseCurve,
    counts: tuple[int, ...],
    base: tuple[float, ...],
    sizes: tuple[Size, ...],
    mapping: ResolutionMap,
    *,
    on_table: bool,
    dropped: int = 0,
) -> StagePlan:
    """The plan of a base grid, from which the first `dropped` steps of a longer plan were taken away."""
    stages: list[Stage] = []
    notes: list[PlanNote] = []
    start = 0
    for count, size in zip(counts, sizes):
        if count == 0:
            notes.append(PlanNote(size, "no step runs at {size}"))
            continue
        own, rest = base[start : start + count], base[start + count :]
        ratio = mapping.ratio(sizes[0], size, sizes[-1])
        if on_table:
            sigmas = _mapped(curve, own, ratio, first_step=start, dropped=dropped, notes=notes, size=size)
        else:
            sigmas = tuple(min(curve.with_ratio(sigma, ratio), max(sigma, curve.sigma_max)) for sigma in own)
        stage = Stage(
            index=len(stages),
            height=size[0],
            width=size[1],
            ratio=ratio,
            sigmas=sigmas,
            base_sigmas=own,
            end_base_sigma=rest[0] if rest else 0.0,
        )
        stages.append(stage)
        start += count
    return StagePlan(
        curve=curve,
        mapping=mapping,
        stages=tuple(stages),
        sizes=sizes,
        steps_asked=counts,
        notes=tuple(notes),
        on_table=on_table,
    )


def _mapped(
    curve: NoiseCurve,
    base: tuple[float, ...],
    ratio: float,
    *,
    first_step: int,
    dropped: int,
    notes: list[PlanNote],
    size: Size,
) -> tuple[float, ...]:
    """The levels of a stage's steps at its size; a note says where a level moved to an entry of the table."""
    sigmas: list[float] = []
    for index, sigma in enumerate(base, start=first_step):
        exact = curve.with_ratio(sigma, ratio)
        # Only the plan's very first call may use the last table entry: ComfyUI takes it for pure noise.
        moved = curve.snapped(exact, last_index=curve.table_size - (2 if index + dropped else 1))
        timestep, exact_timestep = _tidy(curve.timestep(moved)), curve.timestep(exact)
        beyond = curve.logsnr(exact) < curve.logsnr(curve.sigma_max) - 1e-9
        if beyond or abs(exact_timestep - timestep) > 1e-6:
            place = "beyond the model's table" if beyond else f"timestep {exact_timestep:.1f}"
            words = f"step {index + 1} at {{size}}: the exact level is {place}; timestep {timestep:.0f} is used"
            notes.append(PlanNote(size, words))
        if sigmas and moved >= sigmas[-1]:
            raise RMDError(
                f"two steps at {size[0]} x {size[1]} fall on timestep {timestep:.0f}; "
                "use fewer steps, a smaller ratio between the sizes, or a later switch"
            )
        sigmas.append(moved)
    return tuple(sigmas)


def _sizes(sizes: Sequence[Size]) -> tuple[Size, ...]:
    try:
        checked = tuple((int(height), int(width)) for height, width in sizes)
        whole = checked == tuple((height, width) for height, width in sizes)
    except (TypeError, ValueError):
        checked, whole = (), False
    if not whole or not checked or min(min(size) for size in checked) < 1:
        raise RMDError(f"the sizes {sizes!r} are not latent sizes; give (height, width) in whole cells for each stage")
    for before, after in zip(checked, checked[1:]):
        if after[0] < before[0] or after[1] < before[1]:
            raise RMDError(
                f"the size shrinks from {before[0]} x {before[1]} to {after[0]} x {after[1]}; give sizes that grow"
            )
    return checked


def _rising(values: Sequence[float]) -> bool:
    return all(before < after for before, after in zip(values, values[1:]))


def _tidy(timestep: float) -> float:
    """A timestep within rounding of a whole number, as that number."""
    return float(round(timestep)) if abs(timestep - round(timestep)) < 1e-8 else timestep


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "(none)"

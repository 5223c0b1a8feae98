"""Where the losses look: the noise levels sampled for each step, and the choice of stage and steps for a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .errors import RMDError
from .plan import StagePlan, Step
from .schedule import NoiseCurve

TOP_INDEX = 980
"""Upper end, exclusive, of the sampled table indices: noisier states show the teacher next to nothing."""
LAST_STAGE_REDUCTION = 0.15
"""By how much the offset factor is smaller in the last stage, which has to learn the details."""


@dataclass(frozen=True)
class Interval:
    """The levels sampled for one step: table indices lower..upper (closed) at the final size, all noisier than s_sigma.

    s_sigma is the level, at the final size, to which the estimate is noised first: that of the state after the step,
    0.0 after the last one.
    """

    lower: int
    upper: int
    s_sigma: float


@dataclass(frozen=True)
class TimestepIntervals:
    """The interval of every step of a plan. Source: docs/method/method.md, timestep intervals.

    Indices count on the table of the final size. For a flow that is the curve with its shift multiplied by the final
    stage's ratio, so a step keeps its index; for VP it is the one table, and levels move on it. `notes` are sentences
    for the user about intervals that had to begin below the state after the step.
    """

    plan: StagePlan
    steps: tuple[Interval, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def from_plan(cls, plan: StagePlan, *, offset_factor: float = 0.25, split: bool = True) -> TimestepIntervals:
        """Intervals by the authors' rule, for any number of steps and stages.

        The lower end is t_mid, the first index noisier than the state after the step (on the curve's own grid the
        authors' t_mid, which may be a few indices noisier still), moved up by `int((top - t_mid) * f)` with f the
        offset factor, 0.15 less (at least 0) in the last stage. So it is never less noisy than where the step's stage
        ends. The upper end, top, is 980, exclusive; with `split`, in the last stage, the level of the last step before
        that stage if it is lower.

        A state after the step that is noisier than index top - 2 (many steps, or a VP table that ends before the level
        a large ratio asks for) leaves nothing to sample: s_sigma is then the level of top - 2, t that of top - 1, and
        `notes` says so. Raises RMDError for a factor outside [0, 1).
        """
        if not 0.0 <= offset_factor < 1.0:
            raise RMDError(f"the offset factor is {offset_factor!r}; use a number from 0 to below 1")
        curve, last = _final_curve(plan), plan.stages[-1].index
        before_last = [step.base_sigma for step in plan.steps if step.stage != last]
        levels_after = [*(plan.at_final_size(sigma) for sigma in plan.base_sigmas[1:]), 0.0]
        intervals, notes = [], []
        for step, s_sigma in zip(plan.steps, levels_after):
            top, factor = min(TOP_INDEX, curve.table_size), offset_factor
            if step.stage == last:
                factor = max(0.0, offset_factor - LAST_STAGE_REDUCTION)
                if split and before_last:
                    # At least the two indices that a level and a noisier one need.
                    top = min(top, max(2, _floor(curve.table_index(plan.at_final_size(before_last[-1])))))
            t_mid = 0 if s_sigma == 0.0 else max(_floor(curve.table_index(s_sigma)) + 1, _authors_middle(plan, step))
            lower = min(t_mid + int((top - t_mid) * factor), top - 1)
            limit = curve.table_sigma(float(top - 2))
            if s_sigma > limit + 1e-9:
                notes.append(
                    f"step {step.index + 1} of {plan.split} trains from table index {top - 2} of the final size to "
                    f"{top - 1}, less noisy than the state after it, index {curve.table_index(s_sigma):.1f}"
                )
                s_sigma, lower = limit, top - 1
            intervals.append(Interval(lower, top - 1, s_sigma))
        return cls(plan, tuple(intervals), tuple(notes))

    def sigma_at(self, index_B: torch.Tensor) -> torch.Tensor:
        """The levels of table indices at the final size, float64 of the same shape."""
        return _final_curve(self.plan).table_sigma(index_B)

    def sample(self, step_indices_B: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(t_sigma, s_sigma) of the given steps, each `(B,)` float64 on the CPU, levels of the final size, t > s.

        t is uniform over the table indices of the step's interval.
        """
        chosen = [self.steps[index] for index in step_indices_B.tolist()]
        lower = torch.tensor([interval.lower for interval in chosen], dtype=torch.float64)
        count = torch.tensor([interval.upper - interval.lower + 1 for interval in chosen], dtype=torch.float64)
        uniform = torch.rand(len(chosen), generator=generator, dtype=torch.float64)
        s_sigma = torch.tensor([interval.s_sigma for interval in chosen], dtype=torch.float64)
        return self.sigma_at(lower + torch.floor(uniform * count)), s_sigma


def _authors_middle(plan: StagePlan, step: Step) -> int:
    """The authors' t_mid at the final size, `floor(N k / K) - floor(N / K)`, if the plan is on the curve's own grid.

    It is up to K - 1 above the first index that is noisier than the state after the step. 0 for any other grid.
    """
    steps, size = len(plan.steps), plan.curve.table_size
    if any(abs(ours - own) >= 1e-9 for ours, own in zip(plan.base_sigmas, plan.curve.grid(steps))):
        return 0
    base = plan.curve.table_sigma(float(size * (steps - step.index) // steps - size // steps))
    return math.ceil(_final_curve(plan).table_index(plan.at_final_size(base)) - 1e-6)


def _final_curve(plan: StagePlan) -> NoiseCurve:
    return plan.curve.at_ratio(plan.stages[-1].ratio)


def _floor(index: float) -> int:
    return math.floor(index + 1e-6)


class StageSampler:
    """The random choice of a stage for a micro-batch, and of one of its steps for each sample.

    During the first `warmup_updates` updates every stage but the last is chosen, with equal chances; afterwards every
    stage (with two stages: the authors' coin). A plan of one stage has that one. Nothing but the plan, the update and
    the generator's state decides. Source: docs/method/method.md, training.
    """

    def __init__(self, plan: StagePlan, warmup_updates: int = 0) -> None:
        if warmup_updates < 0:
            raise RMDError(f"{warmup_updates} warm-up updates are impossible; use 0 or more")
        self._calls = plan.calls_per_stage
        self._warmup = warmup_updates

    def sample_stage(self, update: int, generator: torch.Generator) -> int:
        """The stage of a micro-batch; `update` counts finished updates, so the first one is 0."""
        choices = len(self._calls)
        if update < self._warmup:
            choices = max(1, choices - 1)
        return int(torch.randint(choices, (), generator=generator))

    def sample_steps(self, stage: int, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Indices (in the plan) of `batch` steps of a stage, `(B,)` int64, each uniform and independent."""
        return sum(self._calls[:stage]) + torch.randint(self._calls[stage], (batch,), generator=generator)

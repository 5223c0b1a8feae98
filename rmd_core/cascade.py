"""The cascade: one engine that runs a stage plan, whoever runs the single stage.

Sampling: `run_cascade(plan, run_stage, shape=(B, C), noise=SeededNoise(seed), boundary=Boundary(...))`. A stage runner
is any callable `run_stage(job: StageJob) -> StageEnd`; `DenoiserRunner(denoise, eta=...)` is the native one and calls
`denoise(x, step) -> (x0, eps)` once per step, where `step` is the plan's Step (it carries stage, size, sigma and the
timestep for the network).

Training: `trajectory(plan, runner, ...)` yields each step's `(step, x)` before the network is called on it, through
the same functions as `run_cascade`; to stop at a step costs nothing for the steps after it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .boundary import Boundary, check_eta, step_noise
from .errors import RMDError
from .noise import FreshNoise, SeededNoise
from .noising import add_noise, place
from .plan import Stage, StagePlan, Step

Denoise = Callable[[torch.Tensor, Step], tuple[torch.Tensor, torch.Tensor]]
"""denoise(x, step) -> (x0, eps): one network call on the state x of `(B, C, [T,] step.height, step.width)`."""


class StageEnd(NamedTuple):
    """The result of a stage: its last clean estimate, and the noise predicted with it (None if not known)."""

    x0: torch.Tensor
    eps: torch.Tensor | None


class Visit(NamedTuple):
    """One step of a trajectory: the step, and the state `x` its network call receives."""

    step: Step
    x: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """Everything a runner needs for one stage.

    x0 is None in the first stage, else the clean estimate upsampled to the stage's size; `noise` is what to mix it
    with, of the stage's full shape `(B, C, [T,] height, width)`; `fresh(purpose, shape)` gives more of it. The runner
    forms the state (`first_state`).
    """

    plan: StagePlan
    stage: Stage
    x0: torch.Tensor | None
    noise: torch.Tensor
    fresh: FreshNoise

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of this stage, in order."""
        return tuple(step for step in self.plan.steps if step.stage == self.stage.index)


StageRunner = Callable[[StageJob], StageEnd]


@dataclass(frozen=True)
class CascadeResult:
    """The latent `x0` at the final size, and the last clean estimate of every stage."""

    x0: torch.Tensor
    stage_x0: tuple[torch.Tensor, ...]


def run_cascade(
    plan: StagePlan,
    run_stage: StageRunner,
    *,
    shape: tuple[int, ...],
    noise: SeededNoise,
    boundary: Boundary | Sequence[Boundary],
) -> CascadeResult:
    """Run every stage of a plan and return the clean estimate of the last step.

    shape is `(B, C)` or `(B, C, T)`, without height and width. boundary is one rule for every switch, or a
    sequence with one for each, which is read when its switch comes: a stage runner may change what follows it.

    Raises RMDError for a shape or a sequence of another length, or a runner whose result has not the stage's size.
    Source: docs/method/method.md, the sampler.
    """
    end = None
    stage_x0 = []
    rules = [boundary] * (len(plan.stages) - 1) if isinstance(boundary, Boundary) else boundary
    if len(rules) != len(plan.stages) - 1:
        raise RMDError(f"{len(rules)} boundaries were given for {len(plan.stages)} stages; give one fewer than stages")
    for stage in plan.stages:
        job = _stage_job(plan, stage, end, shape, noise, rules[stage.index - 1] if stage.index else None)
        end = _checked(run_stage(job), job)
        stage_x0.append(end.x0)
    return CascadeResult(stage_x0[-1], tuple(stage_x0))


def trajectory(
    plan: StagePlan,
    runner: DenoiserRunner,
    *,
    shape: tuple[int, ...],
    noise: SeededNoise,
    boundary: Boundary,
) -> Iterator[Visit]:
    """Yield the input of every step lazily, before the network is called on it.

    The arguments mean what they do in `run_cascade`, with the native runner itself in place of a stage function; the
    numbers are the same bit for bit. The network is called for a yielded step only when you take the next one. States
    carry no graph.
    """
    end = None
    for stage in plan.stages:
        job = _stage_job(plan, stage, end, shape, noise, boundary)
        end = _checked((yield from runner.visits(job)), job)


class DenoiserRunner:
    """The native stage runner: one denoiser call per step, noise mixed by eta in between, no graph recorded.

    eta in [0, 1] is the share of predicted noise between the steps of a stage. The state lives on `device` in `dtype`;
    noise is made on the CPU in float32 first. Raises RMDError for eta outside [0, 1].
    Source: docs/method/method.md, the sampler.
    """

    def __init__(
        self, denoise: Denoise, *, eta: float, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.denoise = denoise
        self.eta = check_eta(eta)
        self.device = torch.device(device)
        self.dtype = dtype

    def __call__(self, job: StageJob) -> StageEnd:
        """Run a whole stage."""
        visits = self.visits(job)
        while True:
            try:
                next(visits)
            except StopIteration as done:
                return done.value

    def visits(self, job: StageJob) -> Generator[Visit, None, StageEnd]:
        """Yield each step's input before its call; the iterator's return value is the StageEnd."""
        steps = job.steps
        x = self._place(first_state(job))
        for step in steps:
            yield Visit(step, x)
            with torch.no_grad():
                x0, eps = (self._place(part) for part in self.denoise(x, step))
                if step is not steps[-1]:
                    fresh = None
                    if self.eta < 1.0:
                        fresh = job.fresh(f"step-{step.index_in_stage}", tuple(eps.shape))
                    x = self._place(_state_at(job.plan, step.next_sigma, x0, step_noise(eps, self.eta, fresh)))
        return StageEnd(x0, eps)

    def _place(self, x: torch.Tensor) -> torch.Tensor:
        return place(x.detach(), self.device, self.dtype)


def first_state(job: StageJob) -> torch.Tensor:
    """The first state of a stage: `alpha x0 + sigma noise`, and in the first stage as ComfyUI's noise scaling forms it.

    There the state is the noise alone when the stage starts at the curve's noisiest level (also for VP curves, whose
    alpha is not quite 0 there), and sigma times the noise otherwise.
    """
    sigma = job.stage.sigmas[0]
    if job.x0 is not None:
        return _state_at(job.plan, sigma, job.x0, job.noise)
    return job.noise if job.plan.curve.is_pure_noise(sigma) else sigma * job.noise


def _state_at(plan: StagePlan, sigma: float, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return add_noise(x0, noise, alpha=plan.curve.alpha(sigma), sigma=sigma)


def _stage_job(
    plan: StagePlan,
    stage: Stage,
    end: StageEnd | None,
    shape: tuple[int, ...],
    noise: SeededNoise,
    boundary: Boundary | None,
) -> StageJob:
    size, fresh = stage.size, noise.of_stage(stage.index)
    if end is None or boundary is None:
        if len(shape) not in (2, 3):
            raise RMDError(f"the cascade's shape is {tuple(shape)}; give (B, C) or (B, C, T), without height and width")
        x0, start = None, fresh("start", (*shape, *size))
    else:
        x0, start = boundary.switch(end.x0, end.eps, size, fresh)
    return StageJob(plan=plan, stage=stage, x0=x0, noise=start, fresh=fresh)


def _checked(end: StageEnd, job: StageJob) -> StageEnd:
    shape = tuple(job.noise.shape)
    for name, tensor in (("x0", end.x0), ("eps", end.eps)):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise RMDError(
                f"stage {job.stage.index + 1} returned {name} of shape {tuple(tensor.shape)}, not {shape}; "
                "a stage must keep the shape of its noise"
            )
    return end

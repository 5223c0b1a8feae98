"""The optimum of an RMD student in the exact world: one gain a frequency and step, fitted to the losses' own states.

Source: docs/method/method.md, training objective. For each step in turn the divergence KL(student | teacher) of the
states at the levels of its interval is minimised, with a teacher whose scores are exact at the full size. ``Walk``
computes the covariances of ``world.covariance`` from the formulas, so that gradients flow through them. Enlarged
by `nearest`, `bilinear` or `area`, mode k of an axis reaches modes k and 16 - k alone. So every covariance is 64
blocks of 4 x 4.
"""

from functools import cache

import torch
from einops import rearrange

from rmd_core.boundary import upsample
from rmd_core.errors import RMDError
from rmd_core.intervals import TimestepIntervals

from .world import CURVE, FULL, SMALL, bands_of, power_of, to_cells, to_modes, unit_responses

LEVELS = 5  # of each interval, evenly spaced in table indices
ITERATIONS = 80
AXIS = [0, SMALL] + [k for low in range(1, SMALL) for k in (low, FULL - low)]


def to_blocks(modes):
    """Modes `(..., 16, 16)` as `(..., 64, 4)`: the modes that share a mode of the small grid, in its order."""
    return rearrange(modes[..., AXIS, :][..., AXIS], "... (p a) (q b) -> ... (p q) (a b)", a=2, b=2)


@cache
def switch_blocks(boundary):
    """A switch: of the estimate `(64, 4)`, of the predicted noise `(64, 4)`, and fresh noise's covariance `(64, 4, 4)`.

    Raises RMDError for an upsampler that mixes the blocks.
    """
    units = to_cells(torch.eye(SMALL**2, dtype=torch.float64).reshape(-1, 1, SMALL, SMALL))
    size, nothing = (FULL, FULL), torch.zeros(1, 1, SMALL, SMALL, dtype=torch.float64)
    estimate = upsample(units, size, boundary.upsampler)
    predicted = boundary.noise(units, size, lambda purpose, shape: torch.zeros(shape, dtype=torch.float64))
    fresh = unit_responses(lambda noise, n: boundary.noise(nothing.expand(n, -1, -1, -1), size, noise.of_stage(1)))
    estimate, predicted, fresh = (to_blocks(to_modes(x)).squeeze(1) for x in (estimate, predicted, fresh))
    own = torch.arange(SMALL**2)
    if not torch.allclose(estimate.square().sum((1, 2)), estimate[own, own].square().sum(1)):
        raise RMDError(f"{boundary.upsampler} mixes the scales; use nearest, bilinear or area here")
    return estimate[own, own], predicted[own, own], torch.einsum("npa,npb->pab", fresh, fresh)


class Walk:
    """The covariances of a plan of one or two sizes, step by step, for any gains `(h, w)`.

    A state of the small size is a vector `(64,)`, one of the full size `(64, 4, 4)`.
    """

    def __init__(self, plan, boundary, eta):
        self.plan, self.eta = plan, eta
        self.switch = switch_blocks(boundary)
        self.intervals = TimestepIntervals.from_plan(plan)

    def start(self):
        """The covariance of the first state."""
        first = self.plan.steps[0]
        one = torch.ones(SMALL**2, dtype=torch.float64)
        return first.sigma**2 * (one if first.height == SMALL else torch.diag_embed(one[:, None].expand(-1, 4)))

    def after(self, state, step, gain):
        """The covariance of the next step's state, or of the result."""
        last_low = step.height == SMALL and self.plan.steps[step.index + 1].height == FULL
        return (self.enlarged if last_low else self._same_size)(state, step, gain, step.next_sigma)

    def seen_by_losses(self, state, step, gain):
        """The covariance at the full size of a step's estimate, noised to the level that its interval starts from."""
        way = self.enlarged if step.height == SMALL else self._same_size
        return way(state, step, gain, self.intervals.steps[step.index].s_sigma)

    def enlarged(self, state, step, gain, level):
        """The covariance of the state at a level of the full size, through the switch."""
        gain = gain.flatten()[:, None]
        estimate, predicted, fresh = self.switch
        both = CURVE.alpha(level) * gain * estimate + level * noise_gain(step, gain) * predicted
        return state[:, None, None] * both[:, :, None] * both[:, None, :] + level**2 * fresh

    def _same_size(self, state, step, gain, level):
        both = CURVE.alpha(level) * gain + level * self.eta * noise_gain(step, gain)
        fresh = level**2 * (1 - self.eta**2)
        if step.height == SMALL:
            return both.flatten() ** 2 * state + fresh
        both = to_blocks(both)
        return both[:, :, None] * state * both[:, None, :] + fresh * torch.eye(4, dtype=torch.float64)


def noise_gain(step, gain):
    """What multiplies the state in the predicted noise, for the gain of the estimate."""
    return (1 - CURVE.alpha(step.sigma) * gain) / step.sigma


def divergence(cov, walk, step):
    """The mean of KL(student | teacher) at LEVELS levels of a step's interval, in nats a mode."""
    interval, power = walk.intervals.steps[step.index], to_blocks(power_of(FULL, "seen"))
    t = walk.intervals.sigma_at(torch.linspace(interval.lower, interval.upper, LEVELS, dtype=torch.float64))
    t = t[:, None, None]
    scale = CURVE.alpha(t) / CURVE.alpha(interval.s_sigma)
    fresh = (t**2 - (scale * interval.s_sigma) ** 2).expand(-1, *power.shape)
    root = (CURVE.alpha(t) ** 2 * power + t**2).rsqrt()
    noised = scale[..., None] ** 2 * cov + torch.diag_embed(fresh)
    white = root[..., :, None] * noised * root[..., None, :]
    logdet = 2 * torch.linalg.cholesky(white).diagonal(dim1=-2, dim2=-1).log().sum()
    trace = white.diagonal(dim1=-2, dim2=-1).sum()
    return ((trace - logdet) / (LEVELS * FULL**2) - 1) / 2


def minimise(function, start):
    """The tensor that minimises a function, from a start, by L-BFGS."""
    found = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([found], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = function(found)
        value.backward()
        return value

    optimiser.step(closure)
    return found.detach()


def rmd_optimum(plan, boundary, eta, start_at, *, free):
    """(the gains of every step, the mean divergence of start_at's network on the states that these lead to).

    start_at(step) gives the gains `(h, w)` of the network that training starts from. free: any gain at any frequency.
    Otherwise those of the start, times one factor for each of the three bands of the network's own grid.
    """
    walk, gains, starts = Walk(plan, boundary, eta), [], []
    state = walk.start()
    for step in plan.steps:
        start = start_at(step).clamp(min=1e-3)
        spread = torch.eye(start.numel(), dtype=torch.float64) if free else bands_of(step.height)
        spread, ones = spread.reshape(-1, *start.shape), torch.ones(len(spread), dtype=torch.float64)

        def gain_of(factors, start=start, spread=spread):
            return start * torch.tensordot(factors, spread, 1)

        def loss(factors, state=state, step=step, gain_of=gain_of):
            return divergence(walk.seen_by_losses(state, step, gain_of(factors)), walk, step)

        gains.append(gain_of(minimise(loss, ones)))
        starts.append(loss(ones).item())
        state = walk.after(state, step, gains[-1])
    return gains, sum(starts) / len(starts)


def at_steps(gains):
    """gain_at of a list of gains, one for each step."""
    return lambda step: gains[step.index]

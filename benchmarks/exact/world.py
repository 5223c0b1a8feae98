"""A Gaussian field whose scores are known, its networks, and what a cascade makes of it, without sampling.

Cells are 16 x 16 at the full size and 8 x 8 at the small one. The field is diagonal in the cosine basis (DCT-II), which
mirrors it at the edges. A network is one gain a frequency; a cascade of them is linear in its noise. So the real engine
is run once on unit noises, and the covariance of its result follows exactly. Levels are the flow's with shift 3.
"""

import math
from functools import cache, partial

import torch
from torch.nn.functional import one_hot

from rmd_core.boundary import box_average
from rmd_core.cascade import DenoiserRunner, run_cascade
from rmd_core.plan import plan_from_split
from rmd_core.schedule import AreaMap, FixedRatioMap, FlowCurve, NoMap

FULL, SMALL, LENGTH = 16, 8, 2.0
CURVE = FlowCurve(3.0)
MAPS = {"none": NoMap(), "half": FixedRatioMap(math.sqrt(2.0)), "area": AreaMap()}
BANDS = ("low", "mid", "high")


@cache
def cosines(cells):
    """The orthonormal DCT-II, `(cells, cells)` float64: row k is the cosine of k / (2 cells) periods a cell."""
    k, i = torch.arange(cells, dtype=torch.float64)[:, None], torch.arange(cells, dtype=torch.float64)
    rows = torch.cos(math.pi * k * (2 * i + 1) / (2 * cells)) * math.sqrt(2 / cells)
    rows[0] /= math.sqrt(2)
    return rows


def to_modes(x):
    """The cosine coefficients of `(..., H, W)`, of the same shape."""
    return cosines(x.shape[-2]) @ x @ cosines(x.shape[-1]).T


def to_cells(modes):
    """The inverse of ``to_modes``."""
    return cosines(modes.shape[-2]).T @ modes @ cosines(modes.shape[-1])


def shape_of(cells, length):
    """(1 + (2 pi length f)^2)^(-3/2) at the modes of a grid, the spectrum of the covariance exp(-distance / length)."""
    f = torch.arange(cells, dtype=torch.float64) / (2 * cells)
    return (1 + (2 * math.pi * length) ** 2 * (f[:, None] ** 2 + f**2)) ** -1.5


def shrunk(power):
    """The power of every mode of the area-averaged field at the small size, from that at the full size."""
    weight = (cosines(SMALL) @ box_average(FULL, SMALL) @ cosines(FULL).T) ** 2
    return weight @ power @ weight.T


@cache
def power_of(cells, small, length=LENGTH):
    """What a network takes for the power of each mode, `(cells, cells)`; the full size has unit variance a cell.

    small is "seen" (the true power of the small field) or "unseen": the full-size network on the small grid, the same
    function of periods a cell.
    """
    scale = 1 / shape_of(FULL, length).mean()
    if cells == SMALL and small == "seen":
        return shrunk(scale * shape_of(FULL, length))
    return scale * shape_of(cells, length)


def teacher_gain(power, sigma):
    """The gain of the posterior mean, x0 = gain x, which is exact at every level."""
    alpha = CURVE.alpha(sigma)
    return alpha * power / (alpha**2 * power + sigma**2)


def student_gain(power, sigma, after, eta):
    """The gain of the few-step student: from a true state at sigma its step makes a state of the true power at after.

    With eta 0, and at the last step (after 0), it is sqrt(power / (alpha^2 power + sigma^2)): x0 has the true power.
    """
    (a, s), (b, t) = ((CURVE.alpha(level), level) for level in (sigma, after))
    wanted = torch.sqrt((b**2 * power + (t * eta) ** 2) / (a**2 * power + s**2))
    return (wanted - eta * t / s) / (b - eta * t * a / s)


def network(gain_at):
    """The Denoise that multiplies every mode by gain_at(step), `(h, w)`."""

    def denoise(x, step):
        x0 = to_cells(gain_at(step) * to_modes(x))
        return x0, (x - CURVE.alpha(step.sigma) * x0) / step.sigma

    return denoise


def teacher(small, length=LENGTH):
    """gain_at of the teacher; small is "seen" or "unseen", see ``power_of``."""
    return lambda step: teacher_gain(power_of(step.height, small, length), step.sigma)


def student(plan, small, eta, length=LENGTH):
    """gain_at of the few-step student of one size, untouched, on a plan."""
    return lambda step: student_gain(power_of(step.height, small, length), step.sigma, level_after(plan, step), eta)


def level_after(plan, step):
    """The level after a step as its own size names it: a student of one size does not know that another follows."""
    base = (*plan.base_sigmas, 0.0)[step.index + 1]
    return CURVE.with_ratio(base, plan.stages[step.stage].ratio)


def plan_of(split, mapping="none", steps=None):
    """A plan of one or two sizes; "4" is four steps at the full size. mapping is a name of MAPS or a ratio."""
    sizes = [(SMALL, SMALL), (FULL, FULL)][-len(split.split("+")) :]
    rule = MAPS[mapping] if isinstance(mapping, str) else FixedRatioMap(mapping)
    return plan_from_split(CURVE, split, sizes=sizes, mapping=rule, steps=steps)


class UnitNoise:
    """In place of SeededNoise: each number of each tensor is 1 in one row of the batch, and 0 in all others.

    A run with a batch of 1 counts the numbers. `count` is then the batch of the run that matters.
    """

    def __init__(self):
        self.starts, self.count = {}, 0

    def of_stage(self, stage):
        return partial(self.sample, stage)

    def sample(self, stage, purpose, shape):
        size, noise = math.prod(shape[1:]), torch.zeros(shape, dtype=torch.float64)
        if shape[0] == 1:
            self.starts[stage, purpose] = self.count
            self.count += size
        else:
            start = self.starts[stage, purpose]
            noise[start : start + size] = torch.eye(size, dtype=torch.float64).reshape(size, *shape[1:])
        return noise


def unit_responses(run):
    """What run(noise, batch) gives for every unit noise, `(count, ...)`."""
    noise = UnitNoise()
    run(noise, 1)
    return run(noise, noise.count)


def covariance(plan, gain_at, boundary, eta):
    """The covariance of a cascade's result in modes, `(256, 256)`, exact, from the real engine."""
    runner = DenoiserRunner(network(gain_at), eta=eta, dtype=torch.float64)

    def run(noise, batch):
        return run_cascade(plan, runner, shape=(batch, 1), noise=noise, boundary=boundary).x0

    rows = to_modes(unit_responses(run)).flatten(1)
    return rows.T @ rows


def bands_of(cells):
    """Three masks `(3, cells^2)` float64 of modes by the larger of their two indices, cut at 1/4 and 1/2 of the cells.

    At the full size the small grid shows `low` well, `mid` as its finest half, and `high` not at all.
    """
    k = torch.arange(cells)
    part = (torch.maximum(k[:, None], k).flatten() * 4 // cells).clamp(max=2)
    return one_hot(part, 3).T.double()


def wasserstein(cov, power):
    """Squared W2 between N(0, cov) and N(0, diag(power)); differentiable in cov."""
    root = power.sqrt()
    cross = torch.linalg.eigvalsh(root[:, None] * cov * root).clamp(min=1e-30).sqrt().sum()
    return (cov.trace() + power.sum() - 2 * cross).clamp(min=0.0)


def score(cov, length=LENGTH):
    """Squared W2 to the true field in percent of its power, in each band and in all, and the power of each band."""
    power = power_of(FULL, "seen", length).flatten()
    found = {"total": 100 * (wasserstein(cov, power) / power.sum()).item()}
    for band, mask in zip(BANDS, bands_of(FULL).bool()):
        own, part = power[mask], cov[mask][:, mask]
        found[band] = 100 * (wasserstein(part, own) / own.sum()).item()
        found[f"power {band}"] = (part.trace() / own.sum()).item()
    return found

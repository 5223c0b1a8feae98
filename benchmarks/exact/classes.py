"""Four classes of images, one object each with its own texture, as a mixture of Gaussians whose score is exact.

Here a network is not linear: it decides which class a state shows. So results are sampled by the real engine, with 20
seeds. A network that has not seen the small size expects there the middle 8 x 8 cells of a full-size image: its object
is twice as large and cropped.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch

from rmd_core.boundary import box_average
from rmd_core.cascade import DenoiserRunner, run_cascade
from rmd_core.noise import SeededNoise

from .world import (
    BANDS,
    CURVE,
    FULL,
    SMALL,
    bands_of,
    level_after,
    shape_of,
    shrunk,
    student_gain,
    teacher_gain,
    to_cells,
    to_modes,
)

LENGTHS = {"disc": 2.0, "ring": 1.0, "cross": 4.0, "stripes": 1.0}  # correlation lengths of the textures
OBJECT, TEXTURE = 0.7, 0.3  # power a cell
SEEDS, IMAGES, TRUE_IMAGES = 20, 200, 10_000


@dataclass(frozen=True)
class Classes:
    """Means `(4, h, w)` and powers `(4, h, w)` of the classes, both in modes."""

    means: torch.Tensor
    powers: torch.Tensor

    def sample(self, count, seed):
        """Modes `(count, h, w)` of true images, every class equally often on average."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(self.means), (count,), generator=generator)
        noise = torch.randn(count, *self.means.shape[1:], generator=generator, dtype=torch.float64)
        return self.means[chosen] + self.powers[chosen].sqrt() * noise


@cache
def classes(cells, small):
    """The Classes at a size as a network sees them; small as in ``world.power_of``."""
    y, x = torch.meshgrid(*[torch.arange(FULL, dtype=torch.float64) - (FULL - 1) / 2] * 2, indexing="ij")
    r = torch.hypot(x, y)
    objects = [r < 5, (r > 3.5) & (r < 6.5), torch.minimum(x.abs(), y.abs()) < 1.6, (y + FULL // 2) // 3 % 2 == 0]
    objects = torch.stack([each.double() for each in objects])
    objects = objects - objects.mean((1, 2), keepdim=True)
    objects = objects * (OBJECT / objects.square().mean((1, 2), keepdim=True)).sqrt()
    scales = [TEXTURE / shape_of(FULL, length).mean() for length in LENGTHS.values()]
    if cells == FULL or small == "seen":
        powers = [scale * shape_of(FULL, length) for scale, length in zip(scales, LENGTHS.values())]
        if cells == SMALL:
            average = box_average(FULL, SMALL)
            objects, powers = average @ objects @ average.T, map(shrunk, powers)
    else:
        edge = (FULL - cells) // 2
        objects = objects[:, edge : edge + cells, edge : edge + cells]
        powers = [scale * shape_of(cells, length) for scale, length in zip(scales, LENGTHS.values())]
    return Classes(to_modes(objects), torch.stack(list(powers)))


def network(small, gain_at):
    """The Denoise of the mixture: classes by their posterior, and in each the gain of gain_at(powers, step)."""

    def denoise(x, step):
        known, alpha = classes(step.height, small), CURVE.alpha(step.sigma)
        apart = to_modes(x) - alpha * known.means  # (n, 4, h, w)
        total = alpha**2 * known.powers + step.sigma**2
        likelihood = -0.5 * (apart**2 / total + total.log()).sum((2, 3))
        estimates = known.means + gain_at(known.powers, step) * apart
        x0 = to_cells(torch.einsum("nc,nchw->nhw", likelihood.softmax(1), estimates)).unsqueeze(1)
        return x0, (x - alpha * x0) / step.sigma

    return denoise


def teacher(small):
    """The exact score of the mixture."""
    return network(small, lambda powers, step: teacher_gain(powers, step.sigma))


def student(plan, small, eta):
    """The few-step student of one size, as in ``world.student`` for each class."""
    return network(small, lambda powers, step: student_gain(powers, step.sigma, level_after(plan, step), eta))


def sampled(plan, denoise, boundary, eta, seed):
    """Modes `(IMAGES, 16, 16)` of a cascade's results."""
    runner = DenoiserRunner(denoise, eta=eta, dtype=torch.float64)
    made = run_cascade(plan, runner, shape=(IMAGES, 1), noise=SeededNoise(seed), boundary=boundary)
    return to_modes(made.x0).squeeze(1)


def distances(modes):
    """The squared Mahalanobis distance to the nearest class over the modes below 8, a mode, `(n,)`."""
    true = classes(FULL, "seen")
    seen = (bands_of(FULL)[:2].sum(0) > 0).reshape(FULL, FULL)
    apart = (modes[:, None] - true.means)[..., seen]
    return (apart**2 / true.powers[:, seen]).mean(2).min(1).values


@cache
def truth():
    """(sorted values of every mode `(TRUE_IMAGES, 256)`, the distance that 99 % of the true images stay below)."""
    modes = classes(FULL, "seen").sample(TRUE_IMAGES, seed=2**31)
    return modes.flatten(1).sort(0).values, distances(modes).quantile(0.99)


def score(modes):
    """Percent of recognisable images, and the squared W2 of single modes in percent of their power, by band."""
    values, limit = truth()
    at = ((torch.arange(len(modes)) + 0.5) / len(modes) * len(values)).long()
    apart = (modes.flatten(1).sort(0).values - values[at]).square().mean(0)
    power = values.square().mean(0)
    found = {"recognised": 100 * (distances(modes) <= limit).double().mean().item()}
    found["total"] = 100 * (apart.sum() / power.sum()).item()
    for band, mask in zip(BANDS, bands_of(FULL).bool()):
        found[band] = 100 * (apart[mask].sum() / power[mask].sum()).item()
    return found


def over_seeds(make):
    """Mean and 95 % interval of the mean of every score of make(seed) over SEEDS seeds, `[mean, half width]`."""
    scores = [score(make(seed)) for seed in range(SEEDS)]
    found = {}
    for name in scores[0]:
        values = torch.tensor([each[name] for each in scores], dtype=torch.float64)
        found[name] = [values.mean().item(), 1.96 * values.std().item() / math.sqrt(SEEDS)]
    return found

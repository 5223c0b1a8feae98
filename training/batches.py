"""The micro-batches of one phase of one update: stage, steps, noise levels, prompts and noise, all sampled.

A micro-batch of all processes together is a function of the run's seed, the update, the phase and its own number. So a
resumed run needs no generator state, and dividing a micro-batch among processes changes nothing.
"""

from copy import copy
from dataclasses import dataclass, replace

import torch

from rmd_core.noise import SeededNoise, derive_seed


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The samples ``items`` of a micro-batch, which is number ``part`` of its phase.

    ``stage``: index in the plan, one for all samples. ``steps``: step indices in the plan, (B,). ``t`` and ``s``: the
    levels to which the state is noised and from which, sigmas at the final size, (B,) float64, t > s.
    """

    stage: int
    steps: torch.Tensor
    t: torch.Tensor
    s: torch.Tensor
    prompts: tuple
    seed: int
    items: tuple
    part: int = 0
    last_step: int | None = None  # the step that trajectories are made up to; None: the last one of ``steps``

    def rows(self, start, stop):
        """A Batch of the samples ``start`` to ``stop`` (not included) alone, such as the share of one process."""
        part = slice(start, stop)
        return replace(
            self,
            steps=self.steps[part],
            t=self.t[part],
            s=self.s[part],
            prompts=self.prompts[part],
            items=self.items[part],
        )

    def up_to(self, step):
        """The same batch, whose trajectories run at least up to step ``step`` of the plan, as other processes' do."""
        return replace(self, last_step=step)

    def noise(self, purpose):
        """White noise for ``purpose`` as a NoiseSource of the cascade."""
        return SeededNoise(derive_seed(self.seed, purpose), self.items)


def describe(batches):
    """The micro-batches of a phase for a warning: their stages, and the first four prompts."""
    stages = sorted({batch.stage + 1 for batch in batches})
    prompts = [prompt for batch in batches for prompt in batch.prompts]
    shown = ", ".join(repr(prompt) for prompt in prompts[:4]) + (", ..." if len(prompts) > 4 else "")
    where = f"stage{'s' * (len(stages) > 1)} {' and '.join(map(str, stages))}"
    return f"in {where}, for the batch of {len(prompts)} prompts {shown}"


class PromptOrder:
    """An endless sequence over ``prompts``, reshuffled in every pass.

    The prompt at a position depends on the seed and the position only, so a resumed run needs no other state.
    """

    def __init__(self, prompts, seed):
        self.prompts = tuple(prompts)
        self.seed = seed
        self._passes = {}

    def take(self, start, count):
        """The ``count`` prompts from position ``start`` on, as a list."""
        size = len(self.prompts)
        return [self.prompts[self._order(place // size)[place % size]] for place in range(start, start + count)]

    def _order(self, number):
        if number not in self._passes:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "prompt order", number))
            order = torch.randperm(len(self.prompts), generator=generator).tolist()
            self._passes = {n: o for n, o in self._passes.items() if n == number - 1} | {number: order}
        return self._passes[number]


class BatchSampler:
    """The micro-batches of a run, by update and phase.

    ``size``: samples of a micro-batch, of all processes together. ``parts``: micro-batches of a phase.
    """

    def __init__(self, *, stages, intervals, order, seed, size, parts=1):
        self._stages = stages
        self._intervals = intervals
        self._order = order
        self._seed = seed
        self._size = size
        self._parts = parts
        self._only = None

    def of_stage(self, stage):
        """A sampler like this one whose micro-batches are all of one stage."""
        sampler = copy(self)
        sampler._only = stage
        return sampler

    def batches(self, update, phase, *, round_number):
        """The micro-batches of a ``phase`` of ``update`` (counted from 1); rounds of one number share their prompts."""
        return [self.batch(update, phase, round_number=round_number, part=part) for part in range(self._parts)]

    def batch(self, update, phase, *, round_number, part=0):
        """Micro-batch number ``part`` of ``batches``, a function of the seed and these arguments alone."""
        seed = self._derived("phase", update, phase, part)
        generator = torch.Generator().manual_seed(seed)
        stage = self._stages.sample_stage(update - 1, generator) if self._only is None else self._only
        steps = self._stages.sample_steps(stage, self._size, generator)
        t, s = self._intervals.sample(steps, generator)
        prompts = tuple(self._order.take((round_number * self._parts + part) * self._size, self._size))
        items = tuple(range(self._size))
        return Batch(stage=stage, steps=steps, t=t, s=s, prompts=prompts, seed=seed, items=items, part=part)

    def other_levels(self, batch, update, phase):
        """The same samples with new noise levels, for a phase that reuses their student forward."""
        generator = torch.Generator().manual_seed(self._derived("levels", update, phase, batch.part))
        t, s = self._intervals.sample(batch.steps, generator)
        return replace(batch, t=t, s=s)

    def _derived(self, what, update, phase, part):
        return derive_seed(self._seed, what, update, phase, *([part] if part else []))

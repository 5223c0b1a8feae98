"""The batch of one phase of one update: stage, steps, noise levels, prompts and noise, all sampled.

Every batch is a function of the run's seed, the update, the phase and the number of the sample in the whole batch. So a
resumed run needs no generator state, and dividing a batch among processes or into micro-batches changes nothing.
"""

from dataclasses import dataclass, replace

import torch

from rmd_core.noise import SeededNoise, derive_seed


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The samples ``items`` of the whole batch of one phase.

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
    last_step: int | None = None  # the step that trajectories are made up to; None: the last one of ``steps``

    def rows(self, start, stop):
        """The batch of a part of the samples."""
        part = slice(start, stop)
        return replace(
            self,
            steps=self.steps[part],
            t=self.t[part],
            s=self.s[part],
            prompts=self.prompts[part],
            items=self.items[part],
        )

    def micro_batches(self, count):
        """The batch as consecutive micro-batches of ``count`` samples."""
        return [self.rows(start, start + count) for start in range(0, len(self.steps), count)]

    def describe(self):
        """The batch in words."""
        prompts = ", ".join(repr(prompt) for prompt in self.prompts[:4]) + (", ..." if len(self.prompts) > 4 else "")
        return f"in stage {self.stage + 1}, for the batch of {len(self.prompts)} prompts {prompts}"

    def up_to(self, step):
        """The batch with trajectories made up to a step (or further)."""
        return replace(self, last_step=step)

    def noise(self, purpose):
        """White noise for ``purpose`` as a NoiseSource of the cascade."""
        return SeededNoise(derive_seed(self.seed, purpose), self.items)


class PromptOrder:
    """An endless sequence over ``prompts``, shuffled anew in every pass.

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
    """The batches of a run, by update and phase."""

    def __init__(self, *, stages, intervals, order, seed, size):
        self._stages = stages
        self._intervals = intervals
        self._order = order
        self._seed = seed
        self._size = size  # of a whole update: micro-batch times accumulation times processes

    def batch(self, update, phase, *, round_number):
        """The batch of a ``phase`` of ``update`` (counted from 1); rounds with one number share their prompts."""
        seed = derive_seed(self._seed, "phase", update, phase)
        generator = torch.Generator().manual_seed(seed)
        stage = self._stages.sample_stage(update - 1, generator)
        steps = self._stages.sample_steps(stage, self._size, generator)
        t, s = self._intervals.sample(steps, generator)
        prompts = tuple(self._order.take(round_number * self._size, self._size))
        return Batch(stage=stage, steps=steps, t=t, s=s, prompts=prompts, seed=seed, items=tuple(range(self._size)))

    def other_levels(self, batch, update, phase):
        """The same samples with new noise levels, for a phase that reuses their student forward."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "levels", update, phase))
        t, s = self._intervals.sample(batch.steps, generator)
        return replace(batch, t=t, s=s)

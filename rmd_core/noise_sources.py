"""Where a cascade's noise comes from: a seed, in sampling and in training alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .seeds import derive_seed, noise

FreshNoise = Callable[[str, tuple[int, ...]], torch.Tensor]
"""fresh(purpose, shape) -> white noise `(B, ...)` of one stage, float32 on the CPU."""


class SeededNoise:
    """Noise derived by hash from (seed, stage, purpose, item): repeatable, and no draw depends on another.

    Purposes in use: `start` (the first state), `switch` and `switch-low` (a change of size), `step-0`, `step-1`, ...
    (after each step of a stage), and `sampler` for the seed of a foreign sampler. `items` numbers the batch items
    (default 0, 1, ...), so that one item of a batch can be drawn again by itself.
    """

    def __init__(self, seed: int, items: Sequence[int] | None = None) -> None:
        self._seed = seed
        self._items = items

    def draw(self, shape: tuple[int, ...], stage: int, purpose: str) -> torch.Tensor:
        """White noise of `shape`, `(B, ...)`, float32 on the CPU."""
        return noise(shape, self._seed, stage, purpose, items=self._items)

    def of_stage(self, stage: int) -> FreshNoise:
        """The noise of one stage, by purpose and shape."""
        return lambda purpose, shape: self.draw(shape, stage, purpose)

    def seed(self, stage: int, purpose: str) -> int:
        """A seed for code that draws its own noise, such as a stochastic sampler."""
        return derive_seed(self._seed, stage, purpose)

"""Seeded noise by address (stage, purpose, batch item): repeatable, and no sample of it depends on another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial

import torch

from .errors import RMDError


def derive_seed(seed: int, *parts: int | str) -> int:
    """A 63-bit seed from a seed and an address, by SHA-256 over both.

    The parts are integers or text, and their order and type count: 1 and "1" give different seeds. The result is the
    same on every machine and in every version of Python. Raises RMDError for a part of another type.
    """
    for part in (seed, *parts):
        if isinstance(part, bool) or not isinstance(part, (int, str)):
            raise RMDError(f"a seed cannot be derived from {part!r}; use integers and text")
    address = ",".join(json.dumps(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(f"[{address}]".encode("ascii")).digest()[:8], "big") >> 1


FreshNoise = Callable[[str, tuple[int, ...]], torch.Tensor]
"""fresh(purpose, shape) -> white noise `(B, ...)` of one stage, float32 on the CPU."""


class SeededNoise:
    """The noise of a cascade, in sampling and in training alike.

    Purposes in use: `start` (the first state), `switch` and `switch-low` (a change of size), `step-0`, `step-1`, ...
    (after each step of a stage), and `sampler` for the seed of a foreign sampler. `items` numbers the batch items
    (default 0, 1, ...), so that one item of a batch can be made again by itself.
    """

    def __init__(self, seed: int, items: Sequence[int] | None = None) -> None:
        self._seed = seed
        self._items = items

    def sample(self, stage: int, purpose: str, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal noise `(B, ...)`, float32 on the CPU, addressed by seed, stage, purpose and batch item.

        Item i comes from its own generator seeded with `derive_seed(seed, stage, purpose, i)`, so it does not depend
        on the batch size. The global random state is untouched. PyTorch's CPU generator uses the low 32 bits of a
        seed, so among a million addresses a few share their numbers.
        Raises RMDError for an empty shape or when `items` does not name B items.
        """
        if len(shape) == 0:
            raise RMDError("noise needs a shape with a batch axis, such as (B, C, H, W); got an empty one")
        items = range(shape[0]) if self._items is None else self._items
        if len(items) != shape[0]:
            raise RMDError(f"{len(items)} items were named for a batch of {shape[0]}; name one per batch item")
        result = torch.empty(tuple(shape), dtype=torch.float32)
        for row, item in zip(result, items):
            generator = torch.Generator().manual_seed(derive_seed(self._seed, stage, purpose, int(item)))
            torch.randn(row.shape, generator=generator, out=row)
        return result

    def of_stage(self, stage: int) -> FreshNoise:
        """The noise of one stage, by purpose and shape."""
        return partial(self.sample, stage)

    def seed(self, stage: int, purpose: str) -> int:
        """A seed for code that makes its own noise, such as a stochastic sampler."""
        return derive_seed(self._seed, stage, purpose)

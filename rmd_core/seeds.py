"""Seeds by hash and noise by name: every draw has an address, and no draw depends on another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch

from .errors import RMDError


def derive_seed(seed: int, *parts: int | str) -> int:
    """A 63-bit seed from a seed and the address of a draw, by SHA-256 over both.

    The parts are integers or text, and their order and type count: 1 and "1" give different seeds. The result is the
    same on every machine and in every version of Python. Raises RMDError for a part of another type.
    """
    for part in (seed, *parts):
        if isinstance(part, bool) or not isinstance(part, (int, str)):
            raise RMDError(f"a seed cannot be derived from {part!r}; use integers and text")
    address = json.dumps([seed, *parts], separators=(",", ":")).encode("ascii")
    return int.from_bytes(hashlib.sha256(address).digest()[:8], "big") >> 1


def noise(
    shape: Sequence[int], seed: int, stage: int, purpose: str, *, items: Sequence[int] | None = None
) -> torch.Tensor:
    """Standard normal noise `(B, ...)`, float32 on the CPU, addressed by seed, stage, purpose and batch item.

    Item i comes from its own generator seeded with `derive_seed(seed, stage, purpose, i)`, so it does not depend on the
    batch size; `items` names other items than 0..B-1. The global random state is untouched.
    PyTorch's CPU generator uses the low 32 bits of a seed, so among a million draws a few share their numbers.
    Raises RMDError for an empty shape or when `items` does not name B items.
    """
    if len(shape) == 0:
        raise RMDError("noise needs a shape with a batch axis, such as (B, C, H, W); got an empty one")
    names = range(shape[0]) if items is None else items
    if len(names) != shape[0]:
        raise RMDError(f"{len(names)} items were named for a batch of {shape[0]}; name one per batch item")
    result = torch.empty(tuple(shape), dtype=torch.float32)
    for row, item in zip(result, names):
        generator = torch.Generator().manual_seed(derive_seed(seed, stage, purpose, int(item)))
        row.copy_(torch.randn(tuple(shape[1:]), generator=generator, dtype=torch.float32))
    return result

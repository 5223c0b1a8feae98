"""Levels and latents brought together: a level for each sample shaped to multiply, and the type they are worked in."""

from __future__ import annotations

import torch

from .errors import RMDError

LevelLike = float | torch.Tensor
"""One level for all samples (a float or a 0-d tensor), or one for each, `(B,)`."""


def widened(x: torch.Tensor) -> torch.Tensor:
    """A tensor in the type that is computed in: float64 where it is that already, else float32."""
    return x.to(_working_dtype(x))


def broadcast_to(level_B: LevelLike, x: torch.Tensor) -> LevelLike:
    """A per-sample level `(B,)` shaped to multiply `x_B...` of any rank, on its device, float32 or x's wider type.

    A float or a 0-d level is the same for every sample. Raises RMDError for a tensor that is not `(B,)`.
    """
    if not isinstance(level_B, torch.Tensor) or level_B.dim() == 0:
        return float(level_B)
    if level_B.shape != x.shape[:1]:
        raise RMDError(f"levels of shape {tuple(level_B.shape)} do not fit {x.shape[0]} samples; give one for each")
    shape = (-1, *(1 for _ in x.shape[1:]))
    return level_B.to(x.device, _working_dtype(x)).reshape(shape)


def _working_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32

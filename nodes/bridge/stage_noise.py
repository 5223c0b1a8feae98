"""NOISE objects and seeds that remember which cascade and which stage they belong to."""

from __future__ import annotations

from typing import Any

import torch

from ...rmd_core.errors import RMDError
from ...rmd_core.noise_sources import FreshNoise, SeededNoise


class StageSeed(int):
    """A seed that is a plain number to ComfyUI and tells our own sampler where the stage's noise comes from.

    ComfyUI hands a sampler the seed of its NOISE as it is, so a hand-built graph draws the numbers of `RMD Sampler`.
    `cascade` is the seed of the whole cascade, `items` the batch items it draws for (None: 0, 1, ...).
    """

    cascade: int
    stage: int
    items: tuple[int, ...] | None

    def __new__(cls, cascade: int, stage: int, items: tuple[int, ...] | None = None) -> StageSeed:
        seed = super().__new__(cls, SeededNoise(cascade).seed(stage, "sampler"))
        seed.cascade, seed.stage, seed.items = cascade, stage, items
        return seed

    @classmethod
    def of(cls, seed: int) -> StageSeed:
        """A seed as it came: our own with its memory, any other number as the seed of a cascade's first stage."""
        return seed if isinstance(seed, cls) else cls(int(seed), 0)

    @property
    def source(self) -> SeededNoise:
        """The noise of the cascade."""
        return SeededNoise(self.cascade, self.items)

    @property
    def fresh(self) -> FreshNoise:
        """The noise of this stage."""
        return self.source.of_stage(self.stage)

    def next_stage(self) -> StageSeed:
        """The seed of the stage after this one."""
        return StageSeed(self.cascade, self.stage + 1, self.items)

    def __reduce__(self) -> tuple[Any, ...]:
        return StageSeed, (self.cascade, self.stage, self.items)


def batch_items(latent: dict[str, Any]) -> tuple[int, ...] | None:
    """The batch items a LATENT names (`batch_index`), or None for 0, 1, ..."""
    items = latent.get("batch_index")
    return None if items is None else tuple(int(item) for item in items)


class StartNoise:
    """NOISE of the first stage of a cascade, equal to what `RMD Sampler` starts from with the same seed."""

    def __init__(self, cascade: int) -> None:
        self.seed = StageSeed(cascade, 0)

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        """Noise for a LATENT, float32 on the CPU; a core sampler reads `seed` after this, with the LATENT's items."""
        self.seed = StageSeed(self.seed.cascade, 0, batch_items(latent))
        return self.seed.fresh("start", tuple(latent["samples"].shape))


class SwitchNoise:
    """NOISE of a later stage: what came over the boundary, ready made for one LATENT."""

    def __init__(self, white: torch.Tensor, seed: StageSeed) -> None:
        self._white = white
        self.seed = seed

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        """The noise; RMDError for a LATENT of another shape than the one it was made with."""
        came, made = tuple(latent["samples"].shape), tuple(self._white.shape)
        if came != made:
            raise RMDError(
                f"the noise of RMD Stage Upscale is for a latent of shape {made}, this one has {came}; "
                "connect the LATENT of the same RMD Stage Upscale"
            )
        return self._white

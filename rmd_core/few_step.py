"""How a few-step model that people already own is to be sampled, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .boundary import Boundary
from .errors import RMDError
from .logsnr import NoiseCurve
from .mapping import NoMap, ResolutionMap, Size
from .plan import StagePlan, plan_from_split, split_counts

NOT_DISTILLED = "not distilled for the cascade"
"""What must be said wherever a profile is offered: its model never saw a change of size in training."""


@dataclass(frozen=True, kw_only=True)
class FewStepProfile:
    """The levels, guidance and noise rules of a published few-step model, with where they were found.

    family is ComfyUI's class name of the model; folder the one under `models` where `files` go, each file a
    choice that samples alike. lora_strength is None for a whole model. sigmas are levels in (0, 1] as this package
    names them, noisiest first; split is their division over two sizes. eta is the share of predicted noise inside a
    stage, boundary the rule at a change of size, cfg the guidance (1 is without). sources are "URL - what it says".
    Source: docs/profiles.md, profiles.
    """

    key: str
    title: str
    family: str
    folder: str
    files: tuple[str, ...]
    lora_strength: float | None = None
    curve: NoiseCurve
    sigmas: tuple[float, ...]
    split: tuple[int, int]
    mapping: ResolutionMap = NoMap()
    eta: float
    boundary: Boundary
    cfg: float = 1.0
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Whether the files are a whole "model" or a "lora" for one."""
        return "model" if self.lora_strength is None else "lora"

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the network is told at each level."""
        return tuple(round(self.curve.timestep(sigma), 6) for sigma in self.sigmas)

    def split_over(self, stages: int) -> tuple[int, ...]:
        """The profile's own split over a number of sizes: the last keeps its steps, the earlier ones share the rest.

        Where the rest cannot be shared evenly, the smaller sizes take more. Raises RMDError for no size, or for more
        than there are steps.
        """
        before = stages - 1
        if not 0 <= before <= self.split[0]:
            raise RMDError(
                f"{self.title} cannot share its steps {self.split[0]}+{self.split[1]} over {stages} sizes; "
                f"use 1 to {self.split[0] + 1} sizes, or give a split of its {len(self.sigmas)} steps"
            )
        if before == 0:
            return (sum(self.split),)
        each, more = divmod(self.split[0], before)
        return (*(each + 1 if place < more else each for place in range(before)), self.split[1])

    def plan(self, sizes: Sequence[Size], split: str | Sequence[int] | None = None) -> StagePlan:
        """The stage plan over latent sizes (height, width), smallest first; the split is `split_over` unless given.

        Raises RMDError for a split that is not of the profile's number of steps, and as `plan_from_split` does.
        """
        counts = self.split_over(len(sizes)) if split is None else split_counts(split)
        if sum(counts) != len(self.sigmas):
            raise RMDError(
                f"the split {'+'.join(map(str, counts))} has {sum(counts)} steps but {self.title} "
                f"has {len(self.sigmas)}; give parts that sum to {len(self.sigmas)}"
            )
        return plan_from_split(self.curve, counts, sizes=sizes, mapping=self.mapping, steps=self.sigmas)


# The two rules at a change of size. A model whose sampler draws fresh noise at every step (LCM and DMD kinds) expects
# just that at the change too. A model for an Euler sampler expects its predicted noise back: `exact` gives it back and
# stays white at the larger size; eta_switch 0, 0.5 and 1 lie close together for a network that was not trained for the
# cascade, on one tiny backbone (docs/quality.md). Interpolated noise (`mix`) is not white and was worse for it.
FRESH_AT_SWITCH = Boundary("bicubic", "fresh", 0.0)
EXACT_AT_SWITCH = Boundary("bicubic", "exact", 0.5)

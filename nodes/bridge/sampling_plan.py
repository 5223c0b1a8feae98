"""What an RMD_PLAN wire carries: the stages, the rules between and inside them, and the kind of model they are for."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...rmd_core.boundary import Boundary
from ...rmd_core.plan import Stage, StagePlan


@dataclass(frozen=True)
class ModelKind:
    """What a plan must fit: a model's family, its noise table (`flow`, or the name of a VP table) and its latents.

    `name` is ComfyUI's class of the model; the family is what it says before an underscore, so that a plan for WAN21
    also runs WAN21_Vace, and one for Wan does not run Qwen-Image, which shares its latents.
    """

    name: str = field(compare=False)
    table: str
    latents: str
    family: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.name.partition("_")[0])

    def __str__(self) -> str:
        return f"{self.name} ({self.latents} latents, {self.table})"


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """A stage plan with everything else that a sampler needs; nothing in it is bound to one loaded model.

    eta is the share of predicted noise inside a stage, cfg the guidance to sample with, size_conditioning what SDXL is
    told about the picture (`stage`, `final`, or `none` to leave the prompt as it is), cell_px the pixels of one latent
    cell. origin says in a few words where the plan comes from, notes are sentences for the user.
    """

    stages: StagePlan
    kind: ModelKind
    boundary: Boundary
    eta: float
    cfg: float
    size_conditioning: str
    cell_px: int
    origin: str
    notes: tuple[str, ...] = ()

    @property
    def final_px(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""
        height, width = self.stages.final_hw
        return height * self.cell_px, width * self.cell_px

    def sigmas(self, stage: Stage) -> tuple[float, ...]:
        """ComfyUI's sigmas of a stage's steps, then 0.0: the stage runs to its clean estimate."""
        return (*self._levels(stage), 0.0)

    def open_sigmas(self, stage: Stage) -> tuple[float, ...]:
        """The same, but a stage before the last stops at the next level of the plan, as its own size names it."""
        if stage.end_base_sigma == 0.0:
            return self.sigmas(stage)
        curve = self.stages.curve
        end = curve.with_ratio(stage.end_base_sigma, stage.ratio)
        return (*self._levels(stage), curve.comfy_sigma(end))

    def _levels(self, stage: Stage) -> list[float]:
        return [self.stages.curve.comfy_sigma(sigma) for sigma in stage.sigmas]

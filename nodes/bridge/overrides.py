"""What one stage does otherwise than the rest of its cascade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...rmd_core.boundary import Boundary
from ...rmd_core.errors import RMDError
from .sampling_plan import SamplingPlan


@dataclass(frozen=True, kw_only=True)
class StageOverride:
    """Settings of one stage (0 is the first); None means as in the rest of the cascade.

    boundary is the rule by which the stage is entered, so the first stage has none.
    """

    stage: int
    guider: Any | None = None
    sampler: Any | None = None
    boundary: Boundary | None = None

    def __post_init__(self) -> None:
        if self.stage == 0 and self.boundary is not None:
            raise RMDError("stage 1 is not entered over a boundary; set the boundary of stage 2 or later")


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What a stage is sampled with: `boundary` is None for the first stage."""

    guider: Any
    sampler: Any
    boundary: Boundary | None


def stage_settings(
    plan: SamplingPlan, guider: Any, *, sampler: Any, later_guider: Any | None, overrides: Sequence[StageOverride]
) -> tuple[StageSettings, ...]:
    """The settings of every stage; an override wins over `later_guider`, which is for all stages but the first.

    Raises RMDError for an override of a stage that the plan does not have, or two of the same stage.
    """
    count = len(plan.stages.stages)
    chosen: dict[int, StageOverride] = {}
    for override in overrides:
        if override.stage >= count:
            raise RMDError(
                f"an override is for stage {override.stage + 1}, but the plan {plan.stages.split} runs {count} "
                f"stage{'s' if count > 1 else ''}; set its stage to at most {count}"
            )
        if override.stage in chosen:
            raise RMDError(f"two overrides are for stage {override.stage + 1}; put their settings into one")
        chosen[override.stage] = override
    settings = []
    for stage in range(count):
        own = chosen.get(stage, StageOverride(stage=stage))
        usual_guider = later_guider if stage and later_guider is not None else guider
        settings.append(
            StageSettings(
                guider=usual_guider if own.guider is None else own.guider,
                sampler=sampler if own.sampler is None else own.sampler,
                boundary=None if stage == 0 else own.boundary or plan.boundary,
            )
        )
    return tuple(settings)

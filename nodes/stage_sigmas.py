"""RMD Stage Sigmas: one stage of a plan for a hand-built graph."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..rmd_core.errors import RMDError
from .bridge.sampling_plan import SamplingPlan
from .checked_inputs import checked
from .sockets import CATEGORY, Plan
from .stage_pixels import pixels


class RMDStageSigmas(io.ComfyNode):
    """The SIGMAS and the size of one stage; a stage before the last stops at the next level of the plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RMD_StageSigmas",
            display_name="RMD Stage Sigmas",
            category=CATEGORY,
            description=(
                "One stage of a plan for a graph of SamplerCustomAdvanced nodes. A stage before the last stops "
                "above 0, so that RMD Stage Upscale can recover the clean picture and the noise from its two outputs."
            ),
            search_aliases=["split sigmas", "multi-resolution sigmas", "stage size"],
            inputs=[
                Plan.Input("plan", tooltip="The plan of RMD Schedule."),
                io.Int.Input("stage", default=1, min=1, max=64, tooltip="Which stage of those that run, from 1."),
            ],
            outputs=[
                io.Sigmas.Output(display_name="sigmas", tooltip="The stage's sigmas for SamplerCustomAdvanced."),
                io.Int.Output(display_name="width", tooltip="Width of the stage in pixels."),
                io.Int.Output(display_name="height", tooltip="Height of the stage in pixels."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, plan: SamplingPlan, stage: int) -> io.NodeOutput:
        stages = plan.stages.stages
        if not 1 <= stage <= len(stages):
            known = ", ".join(f"{one.index + 1} ({pixels(plan.cell_px, one.size)} px)" for one in stages)
            raise RMDError(f"stage {stage} does not exist; this plan has {known}")
        chosen = stages[stage - 1]
        return io.NodeOutput(stage_sigmas(plan, stage), chosen.width * plan.cell_px, chosen.height * plan.cell_px)


def stage_sigmas(plan: SamplingPlan, stage: int) -> torch.Tensor:
    """The open sigmas of a stage (counted from 1), float32 on the CPU; RMDError unless they fall strictly."""
    sigmas = torch.tensor(plan.open_sigmas(plan.stages.stages[stage - 1]), dtype=torch.float32)
    if not bool((sigmas[:-1] > sigmas[1:]).all()):
        listed = ", ".join(f"{sigma:.6g}" for sigma in sigmas.tolist())
        raise RMDError(
            f"the sigmas of stage {stage}, {listed}, do not fall; "
            "use fewer steps, a smaller size ratio or a later switch"
        )
    return sigmas

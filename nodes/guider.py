"""RMD Guider: a cascade for core's SamplerCustomAdvanced."""

import torch
from comfy_api.latest import io

from .bridge.cascade_guider import CascadeGuider
from .checked_inputs import checked
from .shared_inputs import stage_inputs
from .sockets import CATEGORY, Plan


class RMDGuider(io.ComfyNode):
    """Guider and plan in, a guider that runs the plan out."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_Guider",
            display_name="RMD Guider",
            category=CATEGORY,
            description=(
                "Makes core's SamplerCustomAdvanced run a whole plan. Its noise socket then only gives the seed "
                "(DisableNoise counts as seed 0; RMD Noise also keeps batch_index), and its sigmas socket nothing: "
                "the levels are the plan's."
            ),
            search_aliases=["cascade guider"],
            inputs=[
                io.Guider.Input("guider", tooltip="Model and prompts, such as Basic Guider for a student."),
                Plan.Input("plan", tooltip="The plan of RMD Schedule."),
                *stage_inputs(),
            ],
            outputs=[
                io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced."),
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="The levels of all stages, for the sigmas socket of the same node."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, guider, plan, later_guider=None, overrides=()) -> io.NodeOutput:
        levels = [sigma for stage in plan.stages.stages for sigma in plan.sigmas(stage)[:-1]]
        cascade = CascadeGuider(guider, plan, later_guider=later_guider, overrides=overrides or ())
        return io.NodeOutput(cascade, torch.tensor([*levels, 0.0], dtype=torch.float32))

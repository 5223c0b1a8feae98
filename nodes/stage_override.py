"""RMD Stage Override: what one stage does otherwise."""

from comfy_api.latest import io

from ..rmd_core.boundary import Boundary
from ..rmd_core.errors import RMDError
from .bridge.overrides import StageOverride
from .checked_inputs import checked
from .shared_inputs import boundary_inputs
from .sockets import CATEGORY, Overrides

AS_PLANNED, OWN = "as in the plan", "own"


class RMDStageOverride(io.ComfyNode):
    """One stage's guider, sampler and boundary; several of these nodes make a chain."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_StageOverride",
            display_name="RMD Stage Override",
            category=CATEGORY,
            description="Gives one stage its own guider, sampler or way of being entered. Chain several of these.",
            search_aliases=["stage settings", "per-stage guider", "per-stage sampler"],
            inputs=[
                io.Int.Input("stage", default=2, min=1, max=64, tooltip="Which stage of those that run, from 1."),
                io.DynamicCombo.Input(
                    "boundary",
                    options=[
                        io.DynamicCombo.Option(AS_PLANNED, []),
                        io.DynamicCombo.Option(OWN, boundary_inputs()),
                    ],
                    tooltip="How the stage takes over the picture of the stage before it.",
                ),
                io.Guider.Input("guider", optional=True, tooltip="Model and prompts of this stage alone."),
                io.Sampler.Input("sampler", optional=True, tooltip="The sampler of this stage alone."),
                Overrides.Input("overrides", optional=True, tooltip="Overrides of other stages, to add this one to."),
            ],
            outputs=[
                Overrides.Output(display_name="overrides", tooltip="For RMD Sampler (Advanced) or RMD Guider."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, stage, boundary=None, guider=None, sampler=None, overrides=(), **_left_over) -> io.NodeOutput:
        if boundary is None:  # ComfyUI leaves out a dynamic choice that it does not know
            raise RMDError(f"boundary is none of the choices of RMD Stage Override; use {AS_PLANNED!r} or {OWN!r}")
        rule = None
        if boundary["boundary"] == OWN:
            rule = Boundary(boundary["upsampler"], boundary["switch_noise"], boundary["eta_switch"])
        own = StageOverride(stage=stage - 1, guider=guider, sampler=sampler, boundary=rule)
        return io.NodeOutput((*(overrides or ()), own))

"""RMD Step Sampler: the sampler a student is trained with, for any custom sampling node."""

from comfy_api.latest import io

from .bridge.step_function import rmd_step_sampler
from .checked_inputs import checked
from .sockets import CATEGORY, Plan


class RMDStepSampler(io.ComfyNode):
    """A SAMPLER with the eta rule."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_StepSampler",
            display_name="RMD Step Sampler",
            category=CATEGORY,
            description=(
                "One model call a step, then predicted and fresh noise mixed by eta. For flow, eps and v models. "
                "A step that ends above sigma 0 is made with the predicted noise alone, for RMD Stage Upscale."
            ),
            search_aliases=["lcm", "euler", "eta", "renoise"],
            inputs=[
                io.Float.Input(
                    "eta",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of predicted noise between steps: 0 is all fresh (LCM), 1 all predicted (Euler).",
                ),
                Plan.Input("plan", optional=True, tooltip="If connected, its eta is used in place of the number."),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For RMD Sampler (Advanced) or core nodes.")],
        )

    @classmethod
    @checked
    def execute(cls, eta, plan=None) -> io.NodeOutput:
        return io.NodeOutput(rmd_step_sampler(eta if plan is None else plan.eta))

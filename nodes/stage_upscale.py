"""RMD Stage Upscale: the change of size in a hand-built graph."""

from comfy_api.latest import io

from ..rmd_core.boundary import Boundary
from .bridge.model_view import ModelView
from .bridge.stage_crossing import cross_to
from .checked_inputs import checked
from .shared_inputs import boundary_inputs, size_inputs
from .sockets import CATEGORY, Plan
from .stage_pixels import final_cells


class RMDStageUpscale(io.ComfyNode):
    """A stage's outputs in, LATENT and NOISE of the next stage out."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_StageUpscale",
            display_name="RMD Stage Upscale",
            category=CATEGORY,
            description=(
                "Takes a stage to a larger size: connect LATENT and NOISE to the next SamplerCustomAdvanced. "
                "The stage before must end above sigma 0 (RMD Stage Sigmas) with RMD Step Sampler or euler. "
                "Conditioning is not sized here: areas in pixels and fixed SDXL sizes are for RMD Sampler."
            ),
            search_aliases=["latent upscale", "renoise", "stage switch"],
            inputs=[
                io.Latent.Input("output", tooltip="The output of the stage's SamplerCustomAdvanced."),
                io.Latent.Input("denoised_output", tooltip="The denoised_output of the same node."),
                io.Sigmas.Input("sigmas", tooltip="The sigmas that stage has run, from RMD Stage Sigmas."),
                io.Model.Input("model", tooltip="The model that stage was sampled with."),
                io.Noise.Input(
                    "noise", tooltip="The noise that stage started with: RMD Noise, RandomNoise, or the last Upscale's."
                ),
                *size_inputs("next stage"),
                *boundary_inputs(advanced=True),
                Plan.Input(
                    "plan", optional=True, tooltip="If connected, its rule is used in place of the three above."
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The enlarged clean estimate."),
                io.Noise.Output(display_name="noise", tooltip="The noise to start the next stage with."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        output,
        denoised_output,
        sigmas,
        model,
        noise,
        width,
        height,
        upsampler,
        switch_noise,
        eta_switch,
        plan=None,
    ) -> io.NodeOutput:
        view = ModelView.of(model)
        size = final_cells(view, width=width, height=height)
        view.check_sizes([size])
        latent, following = cross_to(
            size,
            output=output,
            denoised_output=denoised_output,
            sigmas=sigmas,
            model=model,
            noise=noise,
            boundary=Boundary(upsampler, switch_noise, eta_switch) if plan is None else plan.boundary,
        )
        return io.NodeOutput(latent, following)

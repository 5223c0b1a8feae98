"""RMD Sampler (Advanced): a cascade from a guider and a sampler of one's own."""

import latent_preview
from comfy_api.latest import io

from .bridge.cascade_run import sample_cascade
from .checked_inputs import checked
from .shared_inputs import latent_image_input, seed_input, stage_inputs
from .sockets import CATEGORY, Plan


class RMDSamplerAdvanced(io.ComfyNode):
    """Guider, sampler, plan and latent in; the result and the clean estimate of every stage out."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_SamplerAdvanced",
            display_name="RMD Sampler (Advanced)",
            category=CATEGORY,
            description=(
                "Samples a plan with a guider and a sampler of your own, and gives the picture of every stage. "
                "Noise between steps is the sampler's: connect the plan to RMD Step Sampler for the plan's eta."
            ),
            search_aliases=["cascade sampler", "multi-resolution sampler", "SamplerCustomAdvanced"],
            inputs=[
                io.Guider.Input("guider", tooltip="Model and prompts, such as Basic Guider for a student."),
                io.Sampler.Input("sampler", tooltip="RMD Step Sampler, or euler, lcm, heun, dpmpp_2m and others."),
                Plan.Input("plan", tooltip="The plan of RMD Schedule."),
                latent_image_input(),
                seed_input(
                    "noise_seed", "The same seed gives the same picture. Every stage draws its own noise from it."
                ),
                *stage_inputs(),
            ],
            outputs=[
                io.Latent.Output(display_name="output", tooltip="The result at the final size."),
                io.Latent.Output(
                    display_name="stages",
                    is_output_list=True,
                    tooltip="The clean estimate at the end of every stage, smallest first.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, guider, sampler, plan, latent_image, noise_seed, later_guider=None, overrides=()) -> io.NodeOutput:
        callback = latent_preview.prepare_callback(guider.model_patcher, len(plan.stages.steps))
        result = sample_cascade(
            plan,
            latent_image,
            guider=guider,
            sampler=sampler,
            seed=noise_seed,
            later_guider=later_guider,
            overrides=overrides or (),
            callback=callback,
        )
        return io.NodeOutput(result.latent(), result.stage_latents())

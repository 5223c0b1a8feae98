"""RMD Sampler: a whole cascade in one node."""

import comfy.samplers
import latent_preview
from comfy_api.latest import io

from .bridge.cascade_run import sample_cascade
from .bridge.checks import check_no_negative
from .bridge.step_function import rmd_step_sampler
from .checked_inputs import checked
from .shared_inputs import latent_image_input, seed_input
from .sockets import CATEGORY, Plan


class RMDSampler(io.ComfyNode):
    """Model, prompts, latent and plan in, latent out."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_Sampler",
            display_name="RMD Sampler",
            category=CATEGORY,
            description=(
                "Samples a plan in one go: the first steps on a small latent, the rest at the final size, "
                "with previews at each size."
            ),
            search_aliases=["cascade sampler", "multi-resolution sampler", "few-step sampler"],
            inputs=[
                io.Model.Input("model", tooltip="The model the plan was made with."),
                io.Conditioning.Input("positive", tooltip="What the picture shows."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What it does not show. Used, and needed, only when cfg is not 1.",
                ),
                latent_image_input(),
                Plan.Input("plan", tooltip="The plan of RMD Schedule."),
                seed_input(
                    "seed", "The same seed gives the same picture, bit for bit; each stage draws its own noise."
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance. Distilled students are made for 1.0, which also halves the work.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The result at the final size.")],
        )

    @classmethod
    @checked
    def execute(cls, model, positive, latent_image, plan, seed, cfg, negative=None) -> io.NodeOutput:
        if negative is None:
            check_no_negative(cfg)
        guider = comfy.samplers.CFGGuider(model)
        prompts = {"positive": positive} if negative is None else {"positive": positive, "negative": negative}
        guider.inner_set_conds(prompts)
        guider.set_cfg(cfg)
        callback = latent_preview.prepare_callback(model, len(plan.stages.steps))
        result = sample_cascade(
            plan, latent_image, guider=guider, sampler=rmd_step_sampler(plan.eta), seed=seed, callback=callback
        )
        return io.NodeOutput(result.latent())

"""The nodes that sample a whole plan, and what they take.

RMD Sampler does it in one node, RMD Sampler (Advanced) with a guider and a sampler of the user's own, RMD Guider inside
core's SamplerCustomAdvanced. RMD Step Sampler is the SAMPLER a student is trained with, RMD Stage Override what one
stage does otherwise, RMD Upsampler a learned upsampler for the changes of size.
"""

import comfy.samplers
import latent_preview
from comfy_api.latest import io

from ..rmd_core.boundary import Boundary
from ..rmd_core.errors import RMDError, short_repr
from ..rmd_core.upsampler import read_upsampler
from .bridge.calls import SecondModel
from .bridge.sampling import (
    OWN_STEPS,
    CascadeGuider,
    StageOverride,
    rmd_step_sampler,
    sample_cascade,
    small_overrides,
)
from .bridge.upsampling import Upsampler
from .folders import UPSCALERS, find_file, fingerprint, upsampler_files
from .inputs import (
    CATEGORY,
    Overrides,
    Plan,
    UpsamplerSocket,
    UpscaleModel,
    boundary_inputs,
    checked,
    latent_image_input,
    second_model_inputs,
    seed_input,
    stage_inputs,
    upsampler_input,
)

RMD = "rmd"
"""The choice of `sampler_name` for our own sampler."""

NO_FILE = "none"
"""The choice of `file` where RMD Upsampler enlarges with what is connected."""


class RMDSampler(io.ComfyNode):
    """Model, prompts, latent and plan in, latent out."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_Sampler",
            display_name="RMD Sampler",
            category=CATEGORY,
            description=(
                "Samples a whole plan: the first steps on a small latent, the rest at the final size. "
                "Shows previews at each size."
            ),
            search_aliases=["rmd", "cascade sampler", "multi-resolution sampler", "few-step sampler"],
            inputs=[
                io.Model.Input("model", tooltip="The model the plan was made with."),
                io.Conditioning.Input("positive", tooltip="The positive prompt."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The negative prompt. Needed, and used, only when cfg is not 1.",
                ),
                latent_image_input(),
                Plan.Input("plan", tooltip="The plan of RMD Schedule."),
                seed_input(
                    "seed", "The same seed gives the same image, bit for bit on a CPU. Each stage has its own noise."
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance. 0: the plan's value, which is 1 for most distilled models and halves the cost.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=[RMD, *(name for name in comfy.samplers.SAMPLER_NAMES if name not in OWN_STEPS)],
                    optional=True,  # saved workflows from before it have none
                    advanced=True,
                    tooltip="rmd: the plan's sampler, with its eta. Others add noise between steps in their own way.",
                ),
                upsampler_input(),
                *second_model_inputs(),
                *(
                    io.Conditioning.Input(
                        f"small_{name}",
                        optional=True,
                        tooltip=(
                            f"The {name} prompt with images encoded at the small size, for all sizes but the last."
                        ),
                    )
                    for name in ("positive", "negative")
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The result at the final size.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        positive,
        latent_image,
        plan,
        seed,
        cfg,
        negative=None,
        sampler_name=RMD,
        learned_upsampler=None,
        second_model=None,
        second_model_sigma=0.0,
        small_positive=None,
        small_negative=None,
    ) -> io.NodeOutput:
        def guider_of(**prompts):
            guider = comfy.samplers.CFGGuider(model)
            guider.inner_set_conds({name: prompt for name, prompt in prompts.items() if prompt is not None})
            guider.set_cfg(cfg or plan.cfg)
            return guider

        guider, overrides = guider_of(positive=positive, negative=negative), ()
        small = {"small_positive": small_positive, "small_negative": small_negative}
        if small := {name: prompt for name, prompt in small.items() if prompt is not None}:
            own = guider_of(positive=small_positive or positive, negative=small_negative or negative)
            overrides = small_overrides(plan, own, small)
        callback = latent_preview.prepare_callback(model, len(plan.stage_plan.steps))
        if sampler_name in (RMD, None):
            sampler = rmd_step_sampler(plan.eta)
        elif sampler_name in comfy.samplers.SAMPLER_NAMES:
            sampler = comfy.samplers.sampler_object(sampler_name)
        else:
            raise RMDError(f"the sampler {short_repr(sampler_name)} is unknown; use rmd or one of KSamplerSelect")
        result = sample_cascade(
            plan,
            latent_image,
            guider=guider,
            sampler=sampler,
            seed=seed,
            upsampler=learned_upsampler,
            overrides=overrides,
            second=_second(second_model, second_model_sigma, model),
            callback=callback,
        )
        return io.NodeOutput(result.latent)


def _second(model, sigma, first) -> SecondModel | None:
    return None if model is None else SecondModel.of(model, sigma or 0.0, first)


class RMDSamplerAdvanced(io.ComfyNode):
    """Guider, sampler, plan and latent in; the result and the clean estimate of every stage out."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_SamplerAdvanced",
            display_name="RMD Sampler (Advanced)",
            category=CATEGORY,
            description=(
                "Samples a plan with your own guider and sampler, and returns the image of every stage. "
                "The sampler makes the noise between steps: connect the plan to RMD Step Sampler for the plan's eta."
            ),
            search_aliases=["cascade sampler", "multi-resolution sampler", "SamplerCustomAdvanced"],
            inputs=[
                io.Guider.Input("guider", tooltip="Model and prompts, such as Basic Guider for a student."),
                io.Sampler.Input(
                    "sampler", tooltip="RMD Step Sampler, or any of KSamplerSelect except dpm_adaptive and dpm_fast."
                ),
                Plan.Input("plan", tooltip="The plan of RMD Schedule."),
                latent_image_input(),
                seed_input(
                    "noise_seed", "The same seed gives the same image. Every stage samples its own noise from it."
                ),
                *stage_inputs(),
                upsampler_input(),
                *second_model_inputs(),
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
    def execute(
        cls,
        guider,
        sampler,
        plan,
        latent_image,
        noise_seed,
        later_guider=None,
        overrides=(),
        learned_upsampler=None,
        second_model=None,
        second_model_sigma=0.0,
    ) -> io.NodeOutput:
        callback = latent_preview.prepare_callback(guider.model_patcher, len(plan.stage_plan.steps))
        result = sample_cascade(
            plan,
            latent_image,
            guider=guider,
            sampler=sampler,
            seed=noise_seed,
            later_guider=later_guider,
            overrides=overrides or (),
            upsampler=learned_upsampler,
            second=_second(second_model, second_model_sigma, guider.model_patcher),
            callback=callback,
        )
        return io.NodeOutput(result.latent, list(result.stages))


class RMDGuider(io.ComfyNode):
    """Guider and plan in, a guider that runs the plan out."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_Guider",
            display_name="RMD Guider",
            category=CATEGORY,
            description=(
                "Runs a whole plan in core's SamplerCustomAdvanced. Connect sigmas of this node to its sigmas socket. "
                "Its noise socket only sets the seed (DisableNoise is seed 0). RMD Noise keeps batch_index too."
            ),
            search_aliases=["cascade guider"],
            inputs=[
                io.Guider.Input("guider", tooltip="Model and prompts, such as Basic Guider for a student."),
                Plan.Input("plan", tooltip="The plan of RMD Schedule."),
                *stage_inputs(),
                upsampler_input(),
                *second_model_inputs(),
            ],
            outputs=[
                io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced."),
                io.Sigmas.Output(display_name="sigmas", tooltip="The sigmas of all stages, for SamplerCustomAdvanced."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        guider,
        plan,
        later_guider=None,
        overrides=(),
        learned_upsampler=None,
        second_model=None,
        second_model_sigma=0.0,
    ) -> io.NodeOutput:
        cascade = CascadeGuider(
            guider,
            plan,
            later_guider=later_guider,
            overrides=overrides or (),
            upsampler=learned_upsampler,
            second=_second(second_model, second_model_sigma, guider.model_patcher),
        )
        return io.NodeOutput(cascade, cascade.sigmas)


class RMDStepSampler(io.ComfyNode):
    """A SAMPLER with the eta rule."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_StepSampler",
            display_name="RMD Step Sampler",
            category=CATEGORY,
            description=(
                "Calls the model once a step, then mixes predicted and fresh noise by eta. For flow, eps and v models. "
                "If the run ends above sigma 0, the last step keeps only predicted noise, for RMD Stage Upscale."
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
                Plan.Input("plan", optional=True, tooltip="If connected, its eta replaces the number."),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For RMD Sampler (Advanced) or core nodes.")],
        )

    @classmethod
    @checked
    def execute(cls, eta, plan=None) -> io.NodeOutput:
        return io.NodeOutput(rmd_step_sampler(eta if plan is None else plan.eta))


AS_PLANNED = "as in the plan"
OWN = "own"


class RMDStageOverride(io.ComfyNode):
    """One stage's guider, sampler and boundary; several of these nodes make a chain."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_StageOverride",
            display_name="RMD Stage Override",
            category=CATEGORY,
            description="Gives one stage its own guider, sampler or switch rule. Chain one of these for each stage.",
            search_aliases=["stage settings", "per-stage guider", "per-stage sampler"],
            inputs=[
                io.Int.Input(
                    "stage",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="The stage number. 1 is the first and smallest; sizes without a step do not count.",
                ),
                io.DynamicCombo.Input(
                    "boundary",
                    options=[
                        io.DynamicCombo.Option(AS_PLANNED, []),
                        io.DynamicCombo.Option(OWN, boundary_inputs()),
                    ],
                    tooltip="How the stage takes over the image of the stage before it.",
                ),
                io.Guider.Input("guider", optional=True, tooltip="Model and prompts of this stage only."),
                io.Sampler.Input("sampler", optional=True, tooltip="The sampler of this stage only."),
                Overrides.Input(
                    "overrides", optional=True, tooltip="Overrides of other stages; this one is added to them."
                ),
            ],
            outputs=[
                Overrides.Output(display_name="overrides", tooltip="For RMD Sampler (Advanced) or RMD Guider."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, stage, boundary, guider=None, sampler=None, overrides=(), **_left_over) -> io.NodeOutput:
        rule = None
        if boundary["boundary"] == OWN:
            rule = Boundary(boundary["upsampler"], boundary["switch_noise"], boundary["eta_switch"])
        own = StageOverride(stage=stage - 1, guider=guider, sampler=sampler, boundary=rule)
        return io.NodeOutput((*(overrides or ()), own))


class RMDUpsampler(io.ComfyNode):
    """A latent upscale model, a VAE or a file of the trainer in, an upsampler for the changes of size out."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_Upsampler",
            display_name="RMD Upsampler",
            category=CATEGORY,
            description=(
                "Enlarges the clean estimate at a change of size, with a trained network or through the VAE's pixels. "
                "After a model of a fixed scale, it resizes to the stage's size."
            ),
            search_aliases=["latent upscale model", "learned upsampler", "spatial upscaler"],
            inputs=[
                UpscaleModel.Input(
                    "upscale_model",
                    optional=True,
                    tooltip="From Load Latent Upscale Model, made for this model's latents: LTX or HunyuanVideo 1.5.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The model's VAE. Alone: decode, resize, encode. LTX upscale models need it too.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *upsampler_files()],
                    default=NO_FILE,
                    optional=True,  # workflows from before have none
                    tooltip="An upsampler of the RMD trainer in models/latent_upscale_models. It needs no other input.",
                ),
            ],
            outputs=[
                UpsamplerSocket.Output(
                    display_name="learned_upsampler", tooltip="For RMD Sampler and the nodes that change the size."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file=None, **_) -> str:
        return fingerprint(UPSCALERS, file)

    @classmethod
    @checked
    def execute(cls, upscale_model=None, vae=None, file=NO_FILE) -> io.NodeOutput:
        own = None if file in (None, NO_FILE) else read_upsampler(find_file(UPSCALERS, file))
        return io.NodeOutput(Upsampler(upscale_model, vae, own, file))

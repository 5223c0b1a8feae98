"""A cascade by hand from core sampler nodes: RMD Noise, RMD Stage Sigmas and RMD Stage Upscale."""

from __future__ import annotations

import logging

import torch
from comfy_api.latest import io

from ..rmd_core.boundary import Boundary
from ..rmd_core.errors import RMDError
from .bridge.latents import final_latent, to_output
from .bridge.model import ModelView, NoiseForm
from .bridge.plans import LAST_STEP, SamplingPlan, final_cells, pixels
from .bridge.sampling import StageSeed, StartNoise, SwitchNoise, batch_items
from .bridge.upsampling import with_upsampler
from .inputs import CATEGORY, Plan, boundary_inputs, checked, seed_input, size_inputs, upsampler_input

logger = logging.getLogger(__name__)

STAGE = "rmd_stage"
"""Key of a LATENT from RMD Stage Upscale: the number of its stage, 0 being the first."""

# Deviation of noise that a network may plausibly have predicted
LEAST_DEVIATION = 1 / 3
MOST_DEVIATION = 3.0


class RMDStageSigmas(io.ComfyNode):
    """The SIGMAS and the size of one stage; a stage before the last stops just below its last level."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RMD_StageSigmas",
            display_name="RMD Stage Sigmas",
            category=CATEGORY,
            description=(
                "Gives one stage of a plan to a graph of SamplerCustomAdvanced nodes. A stage before the last stops "
                "above 0, so that RMD Stage Upscale can recover the clean image and the noise from its two outputs."
            ),
            search_aliases=["split sigmas", "multi-resolution sigmas", "stage size"],
            inputs=[
                Plan.Input("plan", tooltip="The plan of RMD Schedule."),
                io.Int.Input(
                    "stage",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="The stage number. 1 is the first and smallest; sizes without a step do not count.",
                ),
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
        stages = plan.stage_plan.stages
        if stage > len(stages):
            known = ", ".join(f"{one.index + 1} ({pixels(plan.cell_px, one.size)} px)" for one in stages)
            raise RMDError(f"stage {stage} does not exist; this plan has {known}")
        chosen = stages[stage - 1]
        sigmas = torch.tensor(plan.open_sigmas(chosen), dtype=torch.float32)
        if not bool((sigmas[:-1] > sigmas[1:]).all()):
            listed = ", ".join(f"{sigma:.6g}" for sigma in sigmas.tolist())
            raise RMDError(
                f"the sigmas of stage {stage}, {listed}, do not fall; "
                "use fewer steps, a smaller size ratio or a later switch"
            )
        return io.NodeOutput(sigmas, chosen.width * plan.cell_px, chosen.height * plan.cell_px)


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
                "The stage before must have run the sigmas of RMD Stage Sigmas. "
                "It does not resize conditioning: use RMD Sampler for areas in pixels and fixed SDXL sizes."
            ),
            search_aliases=["latent upscale", "renoise", "stage switch"],
            inputs=[
                io.Latent.Input("output", tooltip="The output of the stage's SamplerCustomAdvanced."),
                io.Latent.Input("denoised_output", tooltip="The denoised_output of the same node."),
                io.Sigmas.Input("sigmas", tooltip="The sigmas that the stage ran, from RMD Stage Sigmas."),
                io.Model.Input("model", tooltip="The model that sampled the stage."),
                io.Noise.Input(
                    "noise", tooltip="The noise that started the stage: RMD Noise, RandomNoise, or the last Upscale's."
                ),
                *size_inputs("next stage"),
                *boundary_inputs(advanced=True),
                Plan.Input("plan", optional=True, tooltip="If connected, its rule replaces the three inputs above."),
                upsampler_input(),
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
        learned_upsampler=None,
    ) -> io.NodeOutput:
        view = ModelView.of(model)
        size = final_cells(view, width=width, height=height)
        view.check_size(size)
        if len(sigmas) < 2:
            raise RMDError(f"the sigmas hold {len(sigmas)} level(s), too few for a step; connect those of the stage")
        form, last = NoiseForm.of(model), sigmas[-1].cpu().double()
        if last <= 0.0 or (form.flow and last >= 1.0):
            raise RMDError(
                f"the stage ended at sigma {last:g}, where the predicted noise is lost; "
                "run the sigmas of RMD Stage Sigmas"
            )
        if last < sigmas[-2].cpu().double() * (1.0 - 2.0 * LAST_STEP):
            logger.warning(
                "the stage's last step goes from sigma %.4g down to %.4g: the predicted noise is found only after RMD "
                "Step Sampler or euler; after any other sampler use the sigmas of RMD Stage Sigmas",
                sigmas[-2],
                last,
            )
        output, denoised_output = final_latent(model, output), final_latent(model, denoised_output)
        if output["samples"].is_nested or denoised_output["samples"].is_nested:
            raise RMDError(
                "this latent holds several tensors (such as video and audio), which cannot be switched by hand; use "
                "RMD Sampler or RMD Guider"
            )
        if output["samples"].shape != denoised_output["samples"].shape:
            raise RMDError("output and denoised_output differ in shape; connect both outputs of one sampler node")
        if "noise_mask" in output:
            raise RMDError(
                "a latent with a noise mask cannot be switched by hand, because the full-size source is missing; "
                "use RMD Sampler or RMD Guider for inpainting"
            )
        started, stage = StageSeed.of(noise.seed), output.get(STAGE, 0)
        if started.stage != stage:  # two stages would sample the same numbers
            raise RMDError(
                f"the noise is that of stage {started.stage + 1}, the output that of stage {stage + 1}; "
                "connect the same noise as to the sampler node of this output"
            )
        # The state at the last level, less its clean image, is the noise that was predicted there.
        to_model = model.model.process_latent_in
        x0 = to_model(denoised_output["samples"].float())
        state = form.unscaled(to_model(output["samples"].float()), last.float())
        eps = form.eps(state, x0, last.float())
        deviation = eps.std().item() if eps.numel() > 1 else 1.0
        if not LEAST_DEVIATION < deviation < MOST_DEVIATION:
            raise RMDError(
                f"the noise recovered from this stage has deviation {deviation:.3g} instead of about 1; connect the "
                "sigmas that the stage ran, and output and denoised_output of the same node"
            )
        boundary = Boundary(upsampler, switch_noise, eta_switch) if plan is None else plan.boundary
        if x0.shape[-2:] != size:
            boundary = with_upsampler(boundary, learned_upsampler, model, student=plan is not None and plan.student)
        elif plan is not None:
            boundary = boundary.between(size, size, eta=plan.eta)
        # A NOISE may serve several samplers, so the batch items are the LATENT's.
        seed = StageSeed(started.cascade, stage + 1, batch_items(output))
        switched = boundary.switch(x0, eps, size, seed.fresh)
        samples = to_output(model.model.process_latent_out(switched.x0))
        return io.NodeOutput({**output, "samples": samples, STAGE: seed.stage}, SwitchNoise(switched.noise.cpu(), seed))


class RMDNoise(io.ComfyNode):
    """A seed in, a NOISE out that later stages can follow."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_Noise",
            display_name="RMD Noise",
            category=CATEGORY,
            description=(
                "Makes the noise for the first stage of a hand-built cascade, the same as RMD Sampler with that seed. "
                "An item of a batch gets the same noise at every batch size."
            ),
            search_aliases=["cascade noise", "seed", "random noise"],
            inputs=[
                seed_input("noise_seed", "The seed of the whole cascade."),
            ],
            outputs=[io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced and RMD Stage Upscale.")],
        )

    @classmethod
    @checked
    def execute(cls, noise_seed) -> io.NodeOutput:
        return io.NodeOutput(StartNoise(noise_seed))

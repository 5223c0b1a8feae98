"""RMD Schedule: what runs at which size and level, as a plan, as a table and as an image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from ..rmd_core.presets import PRESETS
from .bridge.latents import final_latent, streams
from .bridge.model import ModelView
from .bridge.plans import (
    AUTO,
    MAPPINGS,
    PROFILE,
    RECIPE,
    SIGMAS,
    SPLIT,
    STEPS,
    THRESHOLDS,
    final_cells,
    last_steps,
    sampling_plan,
)
from .bridge.show import plan_image, plan_table
from .inputs import CATEGORY, Plan, RecipeSocket, checked, size_inputs
from .profiles import load_profiles, profile_stamps

NOT_OFFERED = ("official-first", "official-7gpu")
"""Methods of earlier releases, to reproduce them: saved workflows keep them, the drop-down does not show them."""


class Methods(list):
    """The methods that the drop-down shows; ComfyUI also finds those that are `NOT_OFFERED` in it."""

    def __contains__(self, value: object) -> bool:
        return super().__contains__(value) or value in NOT_OFFERED


def source_input() -> io.DynamicCombo.Input:
    """The input `source`: what each plan source asks for, by the names that `bridge.plans.sampling_plan` reads."""

    def split(default: str) -> io.String.Input:
        tooltip = (
            "Steps at each size, smallest first, such as 2+2 or 1+1+2. auto: the profile's split, or equal shares."
        )
        return io.String.Input("split", default=default, tooltip=tooltip)

    scale = io.Float.Input(
        "scale",
        default=0.5,
        min=0.05,
        max=1.0,
        step=0.05,
        round=0.001,
        tooltip="The first size divided by the final one. Sizes in between grow evenly.",
    )
    sizes = io.String.Input(
        "earlier_sizes",
        default="0.5",
        tooltip=(
            "Sizes before the last, separated by commas: factors (0.5) or pixels (832x480). Empty: one size only."
        ),
    )
    sigmas = io.String.Input(
        "sigmas",
        default="",
        advanced=True,
        tooltip="ComfyUI's sigma of each step at the first size, falling. Empty: the model's default grid.",
    )
    steps = io.Int.Input("steps", default=4, min=1, max=1000, tooltip="Total number of network calls.")

    def thresholds(default: str) -> io.String.Input:
        tooltip = "logSNR where each next size takes over, rising, one for each earlier size. Empty: split decides."
        return io.String.Input("thresholds", default=default, tooltip=tooltip)

    profile = io.Combo.Input(
        "profile",
        options=list(load_profiles()),
        tooltip="A public few-step model with its published sigmas. Only SwD students were distilled for a cascade.",
    )
    scheduler = io.Sigmas.Input(
        "scheduler_sigmas",
        tooltip="Sigmas of the final size, from a scheduler for this model. RMD maps them to earlier sizes.",
    )
    mapping = io.Combo.Input(
        "mapping",
        options=list(MAPPINGS),
        default=AUTO,
        advanced=True,
        tooltip="How sigmas change with the size. auto: the method decides; native shifts for Wan from 480p to 720p.",
    )
    method = [
        mapping,
        io.Float.Input(
            "base_shift",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="Flow shift of the first size. 0: 3 for Wan2.1, otherwise the model's own at the final size.",
        ),
        io.Combo.Input(
            "method",
            options=Methods(name for name in PRESETS if name not in NOT_OFFERED),
            default="default",
            advanced=True,
            tooltip="Rules that differ between published variants: mapping, noise at the switch, eta, upsampler.",
        ),
    ]
    recipe = RecipeSocket.Input("recipe", tooltip="The recipe of RMD Load Student.")
    return io.DynamicCombo.Input(
        "source",
        options=[  # ComfyUI's page (1.49.6) cannot make the node if its first option holds a socket and no widget
            io.DynamicCombo.Option(STEPS, [split("2+2"), scale]),
            # mapping, base_shift and method are no choice of their own (`rules: default, own`): ComfyUI would call them
            # source.rules.mapping and so on, and prompts and links that were saved with source.mapping would lose them.
            # For the same reason no choice gets another name.
            io.DynamicCombo.Option(THRESHOLDS, [steps, thresholds("-2.5"), sizes, *method]),
            io.DynamicCombo.Option(SPLIT, [split("2+2"), sigmas, sizes, *method]),
            io.DynamicCombo.Option(SIGMAS, [scheduler, split("auto"), thresholds(""), sizes, mapping]),
            io.DynamicCombo.Option(RECIPE, [recipe]),
            io.DynamicCombo.Option(PROFILE, [profile, split("auto"), sizes]),
        ],
        tooltip=(
            "Where the plan comes from: steps for each size, thresholds, a split, a scheduler, a student's recipe, "
            "a public model."
        ),
    )


ONE_FRAME = "the cost is that of one latent frame; for a video connect the latent"


class RMDSchedule(io.ComfyNode):
    """Model, size and plan source in; plan, table, image and the values that go with them out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RMD_Schedule",
            display_name="RMD Schedule",
            category=CATEGORY,
            description=(
                "Plans a cascade: the first steps run at a small size, the last ones at the final size. Each step "
                "gets the noise level that its size needs. Shows levels, steps and the cost of each step."
            ),
            search_aliases=["rmd", "multi-resolution schedule", "cascade plan", "logsnr", "few-step schedule"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will run the plan; it is not changed."),
                *size_inputs("result", " Not used when a latent is connected."),
                source_input(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Below 1, only this share of the steps runs: the last ones, starting from an image.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="If connected, its size replaces width and height, and the cost includes its frames.",
                ),
            ],
            outputs=[
                Plan.Output(display_name="plan", tooltip="For RMD Sampler and the other RMD nodes."),
                io.String.Output(display_name="table", tooltip="The plan as text."),
                io.Image.Output(
                    display_name="plan_image",
                    tooltip="The plan as an image: steps, saving, and what each switch keeps.",
                ),
                io.Float.Output(display_name="cfg", tooltip="The guidance to sample with."),
                io.Int.Output(display_name="width", tooltip="Width of the result in pixels, for an empty latent."),
                io.Int.Output(display_name="height", tooltip="Height of the result in pixels."),
                io.Int.Output(display_name="small_width", tooltip="Width of the first size, to encode images at it."),
                io.Int.Output(display_name="small_height", tooltip="Height of the first size in pixels."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, source: dict[str, Any] | None = None, **_: Any) -> str:
        """Text that changes when a file of profiles does, where the plan is made from a profile."""
        from_profile = isinstance(source, dict) and source.get("source") == PROFILE
        return "\n".join(f"{path} {time} {size}" for path, time, size in profile_stamps()) if from_profile else ""

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        width: int,
        height: int,
        source: dict[str, Any],
        denoise: float = 1.0,
        latent: dict[str, Any] | None = None,
        **_left_over: Any,  # links of a choice that is no longer taken
    ) -> io.NodeOutput:
        view = ModelView.of(model)
        frames = 1
        if latent is None:
            final_hw = final_cells(view, width=width, height=height)
        else:
            shape = streams(final_latent(model, latent)["samples"])[0].shape
            final_hw, frames = (shape[-2], shape[-1]), shape[2] if len(shape) == 5 else 1
        plan = last_steps(sampling_plan(view, final_hw, source), denoise)
        if latent is None and view.dimensions == 3:
            plan = replace(plan, notes=(*plan.notes, ONE_FRAME))
        costs = plan.stage_plan.step_costs(lambda height, width: view.relative_cost(height, width, frames))
        image = plan_image(plan, costs)
        result_height, result_width = plan.final_px
        first = plan.stage_plan.stages[0]
        return io.NodeOutput(
            plan,
            plan_table(plan, costs),
            image,
            plan.cfg,
            result_width,
            result_height,
            first.width * plan.cell_px,
            first.height * plan.cell_px,
            ui=ui.PreviewImage(image, cls=cls),
        )

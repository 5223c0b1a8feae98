"""RMD Schedule: what runs at which size and level, as a plan, as a table and as a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from ..rmd_core.errors import RMDError
from .bridge.latents import final_latent
from .bridge.model_view import ModelView
from .checked_inputs import checked
from .plan_picture import plan_picture
from .plan_source_inputs import source_input
from .plan_sources import SOURCES, asked_thresholds, kept_tail, sampling_plan
from .plan_table import plan_table
from .shared_inputs import size_inputs
from .sockets import CATEGORY, Plan
from .stage_pixels import final_cells

ONE_FRAME = "the cost is that of a picture (one latent frame); for a video connect the latent"


class RMDSchedule(io.ComfyNode):
    """Model, size and plan source in; plan, table, picture and the values that go with them out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RMD_Schedule",
            display_name="RMD Schedule",
            category=CATEGORY,
            description=(
                "Makes the plan of a cascade: the first steps at a small size, the last ones at the final size, each "
                "at the noise level that its size needs. Shows the levels, the steps and what each of them costs."
            ),
            search_aliases=["multi-resolution schedule", "cascade plan", "logsnr", "few-step schedule"],
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
                    tooltip="Below 1 only this share of the steps run, the last ones, starting from a picture.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="If connected, its size replaces width and height, and its frames count in the cost.",
                ),
            ],
            outputs=[
                Plan.Output(display_name="plan", tooltip="For RMD Sampler and the other RMD nodes."),
                io.String.Output(display_name="table", tooltip="The plan as text."),
                io.Image.Output(display_name="picture", tooltip="The plan as a picture."),
                io.Float.Output(display_name="cfg", tooltip="The guidance to sample with."),
                io.Int.Output(display_name="width", tooltip="Width of the result in pixels, for an empty latent."),
                io.Int.Output(display_name="height", tooltip="Height of the result in pixels."),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        width: int,
        height: int,
        source: dict[str, Any] | None = None,
        denoise: float = 1.0,
        latent: dict[str, Any] | None = None,
        **_left_over: Any,  # links of a choice that is no longer taken
    ) -> io.NodeOutput:
        if source is None:  # ComfyUI leaves out a dynamic choice that it does not know
            raise RMDError(f"source is none of the choices of RMD Schedule; use {', '.join(SOURCES)}")
        view = ModelView.of(model)
        frames = 1
        if latent is None:
            final_hw = final_cells(view, width=width, height=height)
        else:
            shape = final_latent(model, latent)["samples"].shape
            final_hw, frames = (shape[-2], shape[-1]), shape[2] if len(shape) == 5 else 1
        plan = kept_tail(sampling_plan(view, final_hw, source), denoise)
        if latent is None and view.dimensions == 3:
            plan = replace(plan, notes=(*plan.notes, ONE_FRAME))

        def call_cost(cells_high: int, cells_wide: int) -> float:
            return view.relative_cost(cells_high, cells_wide, frames)

        picture = plan_picture(plan, call_cost, asked_thresholds(source))
        result_height, result_width = plan.final_px
        return io.NodeOutput(
            plan,
            plan_table(plan, call_cost),
            picture,
            plan.cfg,
            result_width,
            result_height,
            ui=ui.PreviewImage(picture, cls=cls),
        )

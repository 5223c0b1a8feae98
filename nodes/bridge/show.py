"""A plan shown to the user: `plan_table` as text, `plan_image` as an image drawn by PIL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ...rmd_core.schedule import FlowCurve, NoMap
from .plans import LITTLE_SURVIVES, SamplingPlan, pixels, surviving


def plan_table(plan: SamplingPlan, costs: Sequence[float]) -> str:
    """Several lines: origin, model, curve, mapping, one line for each step, cost, rules, notes; sizes in pixels.

    costs are `StagePlan.step_costs`.
    """
    stage_plan, total, calls = plan.stage_plan, sum(costs), len(costs)
    lines = [
        f"from      {plan.origin}",
        f"model     {plan.kind}",
        f"sizes     {sizes_line(plan)}",
        f"curve     {stage_plan.curve.describe()}",
        *shift_lines(plan),
        f"mapping   {mapping_line(plan)}",
        "",
        "step stage     size px      sigma  timestep   logSNR   cost",
    ]
    for step, cost in zip(stage_plan.steps, costs):
        size, sigma = pixels(plan.cell_px, step.size), stage_plan.curve.comfy_sigma(step.sigma)
        lines.append(
            f"{step.index + 1:4d} {step.stage + 1:5d} {size:>11}  {sigma:9.5f}  {step.timestep:8.2f}  "
            f"{step.logsnr:7.3f}  {cost:5.3f}"
        )
    final = pixels(plan.cell_px, stage_plan.final_hw)
    saving = f"; {calls} at {final} px would be {calls / total:.2f} times as much" if calls - total > 0.005 else ""
    lines += [
        "",
        f"cost      {total:.2f} full-size calls for {calls} {'step' if calls == 1 else 'steps'}{saving}",
        f"boundary  {boundary_line(plan)}",
        f"eta       {plan.eta:g} (share of predicted noise between the steps of a stage)",
        f"cfg       {plan.cfg:g}",
    ]
    if plan.size_conditioning != "none":
        lines.append(f"size      SDXL receives that of the {plan.size_conditioning}")
    notes = [*plan.notes, *(note.text(lambda size: f"{pixels(plan.cell_px, size)} px") for note in stage_plan.notes)]
    if notes:
        lines += ["", "notes", *(f"- {note}" for note in notes)]
    return "\n".join(lines)


def shift_lines(plan: SamplingPlan) -> list[str]:
    """The flow shift at every size and whose it is, as one line; none for other models."""
    curve, stages = plan.stage_plan.curve, plan.stage_plan.stages
    if not isinstance(curve, FlowCurve):
        return []
    shifts = (f"{curve.shift * stage.ratio:.4g} at {pixels(plan.cell_px, stage.size)} px" for stage in stages)
    return [f"shift     {', '.join(shifts)}{plan.shift_of and f' ({plan.shift_of})'}"]


def sizes_line(plan: SamplingPlan) -> str:
    """Sizes and steps of the stages, such as `832x480 -> 1280x720 px, 3+3 steps`."""
    shown = " -> ".join(pixels(plan.cell_px, stage.size) for stage in plan.stage_plan.stages)
    calls = "+".join(map(str, plan.stage_plan.calls_per_stage))
    return f"{shown} px, {calls} {'step' if calls == '1' else 'steps'}"


def mapping_line(plan: SamplingPlan) -> str:
    """The mapping and the ratio r, for a flow also the shift, at each larger size."""
    mapping, curve = plan.stage_plan.mapping, plan.stage_plan.curve
    name = mapping.describe()
    if isinstance(mapping, NoMap):
        return name
    parts = []
    for stage in plan.stage_plan.stages:
        if stage.ratio != 1.0:
            shift = f" (shift {curve.shift * stage.ratio:.4g})" if isinstance(curve, FlowCurve) else ""
            parts.append(f"r = {stage.ratio:.4g} at {pixels(plan.cell_px, stage.size)}{shift}")
    return f"{name}: {', '.join(parts)}" if parts else f"{name}: one size, r = 1"


def boundary_line(plan: SamplingPlan) -> str:
    """The rule at a change of size in a few words."""
    rule = plan.boundary
    share = f", eta {rule.eta_switch:g}" if rule.switch_noise != "fresh" else ""
    return f"x0 upsampled {rule.upsampler.partition(' sha256:')[0]}, {rule.switch_noise} noise{share}"


# The image

Point = tuple[float, float]

WIDTH, HEIGHT = 460, 300
"""Size of the image in the units below; RMD Schedule shows it about as wide in pixels."""

SHARP, FINE = 2, 2
"""Pixels of the image for one unit, for nodes that are zoomed in, and points drawn for one pixel."""

SIDE, TOP, BOTTOM = 20, 90, 226
"""The margin, and the room for the boxes of the stages: the highest one fills it."""

BACKGROUND, TEXT, MUTED, DARK, ALERT = "#1d2026", "#eceef2", "#a3abba", "#14161a", "#ff8a5c"
STAGE_COLOURS = ("#56b4e9", "#f0a13c", "#4cc98a", "#e283b4", "#d8c95a", "#a594f0")


def plan_image(plan: SamplingPlan, costs: Sequence[float]) -> torch.Tensor:
    """The plan in large type as an IMAGE, (1, 600, 920, 3) float32 in 0..1: its steps, what a switch keeps, its saving.

    Each stage is a box in proportion to its size with the number of its steps in it. The arrow to a larger stage has
    the share that `surviving` gives, in another colour where it is nearly nothing. costs are `StagePlan.step_costs`.
    """
    canvas = Canvas(BACKGROUND)
    canvas.text((SIDE, 14), f"{plan.kind.name}: {plan.origin}", 15, MUTED, room=WIDTH - 2 * SIDE)
    canvas.text((SIDE, 40), steps_fact(plan), 28, TEXT, room=WIDTH - 2 * SIDE)
    stages, boxes = plan.stage_plan.stages, stage_boxes(plan)
    for stage, (left, top, right, bottom) in zip(stages, boxes):
        canvas.box((left, top, right, bottom), stage_colour(stage.index))
        number = min(44.0, 0.7 * (bottom - top), 0.7 * (right - left))
        canvas.text(((left + right) / 2, (top + bottom) / 2), str(len(stage.sigmas)), number, DARK, anchor="mm")
    for before, stage, (_, _, start, _), (end, _, _, _) in zip(stages, stages[1:], boxes, boxes[1:]):
        y = (TOP + BOTTOM) / 2
        canvas.arrow((start + 6, y), (end - 6, y), MUTED)
        if end - start >= 50 and before.size != stage.size:
            left = surviving(plan, stage)
            colour = ALERT if left < LITTLE_SURVIVES else TEXT
            canvas.text(((start + end) / 2, y - 10), f"{left:.0%}", 24, colour, anchor="ms")
            canvas.text(((start + end) / 2, y + 10), "kept", 17, MUTED, anchor="ma")
    canvas.text((SIDE, HEIGHT - 52), cost_fact(costs), 28, TEXT, room=WIDTH - 2 * SIDE)
    return canvas.tensor()


def steps_fact(plan: SamplingPlan) -> str:
    """How many steps run at each size, such as `2 steps at 64, 2 at 128 px`; a square has one number."""
    stages = plan.stage_plan.stages
    square = all(stage.height == stage.width for stage in stages)
    sizes = [str(stage.width * plan.cell_px) if square else pixels(plan.cell_px, stage.size) for stage in stages]
    if len(stages) > 3:
        return f"{len(plan.stage_plan.steps)} steps at {len(stages)} sizes, {sizes[0]} to {sizes[-1]} px"
    counts = [str(len(stage.sigmas)) for stage in stages]
    counts[0] += " step" if counts[0] == "1" else " steps"
    return f"{', '.join(f'{count} at {size}' for count, size in zip(counts, sizes))} px"


def cost_fact(costs: Sequence[float]) -> str:
    """How much less the plan costs than all its steps at the final size, such as `1.6 times fewer operations`."""
    times = len(costs) / sum(costs)
    return f"{times:.3g} times fewer operations" if times >= 1.005 else "every step at the full size"


def stage_boxes(plan: SamplingPlan) -> list[tuple[float, float, float, float]]:
    """(left, top, right, bottom) of each stage's box in units of the image, in proportion to its size."""
    stages = plan.stage_plan.stages
    gap = min(92.0, 240.0 / max(1, len(stages) - 1))
    room = WIDTH - 2 * SIDE - gap * (len(stages) - 1)
    scale = min((BOTTOM - TOP) / max(stage.height for stage in stages), room / sum(stage.width for stage in stages))
    boxes, left, middle = [], float(SIDE), (TOP + BOTTOM) / 2
    for stage in stages:
        width, height = scale * stage.width, scale * stage.height
        boxes.append((left, middle - height / 2, left + width, middle + height / 2))
        left += width + gap
    return boxes


def stage_colour(index: int) -> str:
    """The colour of a stage, counted from 0."""
    return STAGE_COLOURS[index % len(STAGE_COLOURS)]


class Canvas:
    """Draws in units of the image; colours are `#rrggbb`, text sizes units of height."""

    def __init__(self, background: str) -> None:
        self._scale = SHARP * FINE
        self._image = Image.new("RGB", (WIDTH * self._scale, HEIGHT * self._scale), background)
        self._draw = ImageDraw.Draw(self._image)

    def box(self, corners: tuple[float, float, float, float], fill: str) -> None:
        """A filled rectangle with round corners: left, top, right, bottom."""
        left, top, right, bottom = (round(place * self._scale) for place in corners)
        radius = min(4 * self._scale, (right - left) // 6, (bottom - top) // 6)
        self._draw.rounded_rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), radius=radius, fill=fill)

    def arrow(self, start: Point, end: Point, colour: str) -> None:
        """A level line from one point to another with a head at its end; none where there is no room."""
        (x0, y), (x1, _) = ((x * self._scale, y * self._scale) for x, y in (start, end))
        head = 7.0 * self._scale
        if x1 - x0 > head:
            self._draw.line([(x0, y), (x1 - head, y)], fill=colour, width=2 * self._scale)
            self._draw.polygon([(x1 - head, y - 0.7 * head), (x1 - head, y + 0.7 * head), (x1, y)], fill=colour)

    def text(
        self, at: Point, words: str, size: float, colour: str, *, anchor: str = "la", room: float | None = None
    ) -> None:
        """Text at a point; anchor is PIL's ("la" left top, "mm" the middle).

        Words that are wider than `room` are set smaller, down to 0.6 of the size, and then cut.
        """
        if room is not None and (width := self.text_width(words, size)) > room:
            size = max(0.6 * size, 0.98 * size * room / width)
            words = self.fitted(words, size, room)
        place = (at[0] * self._scale, at[1] * self._scale)
        self._draw.text(place, words, fill=colour, font=_font(size * self._scale), anchor=anchor)

    def text_width(self, words: str, size: float) -> float:
        """Width of words in units."""
        return self._draw.textlength(words[:1000], font=_font(size * self._scale)) / self._scale

    def fitted(self, words: str, size: float, width: float) -> str:
        """The words, cut with an ellipsis where they are wider than `width`."""
        if len(words) <= width and self.text_width(words, size) <= width:
            return words
        words = words[: int(width)]  # a letter is wider than a unit; measuring again and again takes long
        while words and self.text_width(f"{words}...", size) > width:
            words = words[:-1]
        return f"{words.rstrip(' ,')}..."

    def tensor(self) -> torch.Tensor:
        """The image as ComfyUI's IMAGE: (1, height, width, 3) float32 in 0..1."""
        return torch.from_numpy(np.asarray(self._image.reduce(FINE), dtype=np.float32) / 255.0)[None]


@lru_cache(maxsize=32)
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(max(size, 1.0))  # the box of a very narrow stage has no room; FreeType takes no 0

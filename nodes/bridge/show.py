"""A plan shown to the user: `plan_table` as text, `plan_image` as an image drawn by PIL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ...rmd_core.plan import Stage
from ...rmd_core.schedule import FlowCurve, NoiseCurve, NoMap
from .plans import SamplingPlan, pixels


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
        lines.append(f"size told that of the {plan.size_conditioning}")
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
    return f"x0 upsampled {rule.upsampler}, {rule.switch_noise} noise{share}"


Point = tuple[float, float]

SCALE = 3


class Canvas:
    """Draws in pixels of the result; colours are `#rrggbb`, text sizes pixels of height."""

    def __init__(self, width: int, height: int, background: str) -> None:
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), background)
        self._draw = ImageDraw.Draw(self._image)

    def box(self, left: float, top: float, right: float, bottom: float, fill: str, *, radius: float = 0.0) -> None:
        """A filled rectangle, with round corners if a radius is given."""
        corners = [left * SCALE, top * SCALE, right * SCALE - 1, bottom * SCALE - 1]
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            self._draw.rounded_rectangle(corners, radius=radius * SCALE, fill=fill)

    def line(self, points: Sequence[Point], colour: str, width: float = 1.0) -> None:
        """A line through points; one that is level or upright lies on whole pixels, so that it is sharp."""
        level, upright = (len({point[axis] for point in points}) == 1 for axis in (1, 0))
        scaled = [(_middle(x) if upright else x * SCALE, _middle(y) if level else y * SCALE) for x, y in points]
        if len(scaled) > 1:
            self._draw.line(scaled, fill=colour, width=round(width * SCALE), joint="curve")

    def dashes(self, start: Point, end: Point, colour: str, width: float = 1.0, *, dash: float = 6.0) -> None:
        """A dashed line from one point to another."""
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        count = max(1, int(length // dash))
        for place in range(0, count, 2):
            shares = (place / count, min(1.0, (place + 1) / count))
            self.line([tuple(a + share * (b - a) for a, b in zip(start, end)) for share in shares], colour, width)

    def dot(self, centre: Point, radius: float, fill: str, *, outline: str, width: float = 1.5) -> None:
        """A filled circle with an outline."""
        x, y, reach = centre[0] * SCALE, centre[1] * SCALE, radius * SCALE
        box = [x - reach, y - reach, x + reach, y + reach]
        self._draw.ellipse(box, fill=fill, outline=outline, width=round(width * SCALE))

    def arrow(self, start: Point, end: Point, colour: str, width: float = 2.0) -> None:
        """A vertical line from one point to another with a head at its end."""
        down = 1.0 if end[1] > start[1] else -1.0
        self.line([start, (end[0], end[1] - 5.0 * down)], colour, width)
        head = [(end[0] - 5.0, end[1] - 8.0 * down), (end[0] + 5.0, end[1] - 8.0 * down), end]
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in head], fill=colour)

    def text(
        self, at: Point, words: str, size: float, colour: str, *, anchor: str = "la", halo: str | None = None
    ) -> None:
        """Words at a point; anchor is PIL's ("la" left top, "mm" the middle), halo a colour around the letters."""
        self._draw.text(
            (at[0] * SCALE, at[1] * SCALE),
            words,
            fill=colour,
            font=_font(size),
            anchor=anchor,
            stroke_width=0 if halo is None else 3 * SCALE // 2,
            stroke_fill=halo,
        )

    def text_width(self, words: str, size: float) -> float:
        """Width of words in pixels."""
        return self._draw.textlength(words, font=_font(size)) / SCALE

    def fitted(self, words: str, size: float, width: float) -> str:
        """The words, cut with an ellipsis where they are wider than `width`."""
        if len(words) <= width and self.text_width(words, size) <= width:
            return words
        words = words[: int(width)]  # a letter is wider than a pixel; measuring again and again takes long
        while words and self.text_width(f"{words}...", size) > width:
            words = words[:-1]
        return f"{words.rstrip(' ,')}..."

    def tensor(self) -> torch.Tensor:
        """The image as ComfyUI's IMAGE: (1, height, width, 3) float32 in 0..1."""
        small = self._image.reduce(SCALE)
        return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255.0)[None]


def _middle(place: float) -> int:
    """The middle of the pixel of the result in which a place is."""
    return round(place) * SCALE + SCALE // 2


@lru_cache(maxsize=32)
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * SCALE)


WIDTH, HEIGHT = 1000, 560
BACKGROUND, PANEL, GRID, TEXT, MUTED, DARK = "#1d2026", "#262a32", "#383e4a", "#eceef2", "#a3abba", "#14161a"
STAGE_COLOURS = ("#56b4e9", "#f0a13c", "#4cc98a", "#e283b4", "#d8c95a", "#a594f0")
THRESHOLD = "#e8e8e8"

LEFT, TOP, RIGHT, BOTTOM = 62, 114, 640, 472
"""The curves' panel; the costs are to the right of it."""

MARGIN = 16.0
"""Room in the panel around what is drawn, in pixels, so that no dot is cut."""

BARS_LEFT, BARS_RIGHT = 672, 972

FAR = 20.0
"""Thresholds beyond this logSNR are not shown: they decide nothing on any model's table."""

NEAR_NOISE = -6.0
"""A logSNR that the axes hold when a plan starts from a flow's pure noise, whose own is -inf."""


def plan_image(plan: SamplingPlan, costs: Sequence[float]) -> torch.Tensor:
    """The plan as an IMAGE, (1, 560, 1000, 3) float32 in 0..1; the same plan gives the same values.

    costs are `StagePlan.step_costs`.
    """
    canvas = Canvas(WIDTH, HEIGHT, BACKGROUND)
    axes = Axes.of(plan)
    _title(canvas, plan)
    _panel(canvas, axes, plan)
    for threshold in plan.thresholds:
        if abs(threshold) < FAR:
            y = axes.y(threshold)
            canvas.dashes((LEFT, y), (RIGHT, y), THRESHOLD, 1.6)
            label = f"threshold {threshold:g}"
            canvas.text((RIGHT - 6, y + 3), label, 12, THRESHOLD, anchor="ra", halo=PANEL)
    for stage in plan.stage_plan.stages:
        pale = _mixed(stage_colour(stage.index), PANEL, 0.4)
        canvas.line(_curve_points(axes, plan.stage_plan.curve, stage.ratio, 1.0, 0.0), pale, 1.5)
    for stage in plan.stage_plan.stages:
        start, end = (axes.position(sigma) for sigma in (stage.base_sigmas[0], stage.end_base_sigma))
        points = _curve_points(axes, plan.stage_plan.curve, stage.ratio, start, end)
        canvas.line(points, stage_colour(stage.index), 3.5)
    for stage, following in zip(plan.stage_plan.stages, plan.stage_plan.stages[1:]):
        _switch(canvas, axes, plan.stage_plan.curve, stage, following)
    for stage in plan.stage_plan.stages:
        left, right = _span(axes, stage)
        size = pixels(plan.cell_px, stage.size)
        if canvas.text_width(size, 14) + 12 <= right - left:
            canvas.text((left + 8, TOP + 8), size, 14, stage_colour(stage.index), halo=PANEL)
    _dots(canvas, axes, plan)
    _legend(canvas, plan)
    _bars(canvas, plan, costs)
    return canvas.tensor()


def stage_colour(index: int) -> str:
    """The colour of a stage, counted from 0."""
    return STAGE_COLOURS[index % len(STAGE_COLOURS)]


@dataclass(frozen=True)
class Axes:
    """Where a level is in the image: to the right by base table position u, 1 to 0; upwards by logSNR."""

    curve: NoiseCurve
    lowest: float
    highest: float

    @classmethod
    def of(cls, plan: SamplingPlan) -> Axes:
        """Axes that hold every finite level of a plan, every threshold, and some of the curves beyond them."""
        levels = [step.logsnr if math.isfinite(step.logsnr) else NEAR_NOISE for step in plan.stage_plan.steps]
        shown = [*levels, *(threshold for threshold in plan.thresholds if abs(threshold) < FAR)]
        lowest = 2.0 * math.floor((min(shown) - 1.2) / 2.0)
        return cls(plan.stage_plan.curve, lowest, max(2.0 * math.ceil((max(shown) + 1.5) / 2.0), lowest + 8.0))

    def position(self, base_sigma: float) -> float:
        """u in [0, 1] of a level as the first size names it; 0 is clean."""
        return 0.0 if base_sigma <= 0.0 else (self.curve.table_index(base_sigma) + 1.0) / self.curve.table_size

    def x(self, u: float) -> float:
        return LEFT + MARGIN + (1.0 - u) * (RIGHT - LEFT - 2.0 * MARGIN)

    def y(self, logsnr: float) -> float:
        """Kept inside the panel: a flow's pure noise (-inf) is at its lower end."""
        share = (min(max(logsnr, self.lowest), self.highest) - self.lowest) / (self.highest - self.lowest)
        return BOTTOM - MARGIN - share * (BOTTOM - TOP - 2.0 * MARGIN)

    def at(self, base_sigma: float, logsnr: float) -> Point:
        return self.x(self.position(base_sigma)), self.y(logsnr)


def _title(canvas: Canvas, plan: SamplingPlan) -> None:
    canvas.text((28, 18), canvas.fitted(f"{plan.kind.name}: {sizes_line(plan)}", 21, WIDTH - 56), 21, TEXT)
    several = len(plan.stage_plan.stages) > 1
    first = f"{plan.origin}; mapping {mapping_line(plan)}" if several else plan.origin
    second = f"{f'{boundary_line(plan)}; ' if several else ''}eta {plan.eta:g}, cfg {plan.cfg:g}"
    canvas.text((28, 46), canvas.fitted(first, 13, WIDTH - 56), 13, MUTED)
    canvas.text((28, 64), canvas.fitted(second, 13, WIDTH - 56), 13, MUTED)


def _panel(canvas: Canvas, axes: Axes, plan: SamplingPlan) -> None:
    canvas.box(LEFT, TOP, RIGHT, BOTTOM, PANEL)
    for stage in plan.stage_plan.stages:
        left, right = _span(axes, stage)
        canvas.box(left, TOP, right, BOTTOM, _mixed(stage_colour(stage.index), PANEL, 0.09))
    spacing = 2 ** max(1, math.ceil(math.log2((axes.highest - axes.lowest) / 8.0)))
    for level in range(int(axes.lowest), int(axes.highest) + 1, spacing):
        canvas.line([(LEFT, axes.y(level)), (RIGHT, axes.y(level))], GRID)
        canvas.text((LEFT - 8, axes.y(level)), f"{level:d}", 13, MUTED, anchor="rm")
    for tenths in range(0, 11, 2):
        x = axes.x(tenths / 10)
        canvas.line([(x, BOTTOM), (x, BOTTOM + 4)], MUTED)
        canvas.text((x, BOTTOM + 8), f"{tenths / 10:g}", 13, MUTED, anchor="ma")
    axis = "position on the noise table (1 is the noisiest level, 0 is clean)"
    canvas.text(((LEFT + RIGHT) / 2, BOTTOM + 25), axis, 13, MUTED, anchor="ma")
    canvas.text((LEFT, TOP - 6), "logSNR", 13, MUTED, anchor="lb")


def _curve_points(axes: Axes, curve: NoiseCurve, ratio: float, start: float, end: float) -> list[Point]:
    """The curve of a size between two table positions, as far as it is inside the axes."""
    points = []
    for place in range(241):
        u = start + (end - start) * place / 240
        index = min(max(u * curve.table_size - 1.0, 0.0), curve.table_size - 1.0)
        logsnr = curve.logsnr(curve.table_sigma(index)) - 2.0 * math.log(ratio)
        if axes.lowest <= logsnr <= axes.highest:
            points.append((axes.x(u), axes.y(logsnr)))
    return points


def _switch(canvas: Canvas, axes: Axes, curve: NoiseCurve, stage: Stage, following: Stage) -> None:
    """From the level at which a stage ends, on its own curve, to where the next size starts."""
    before = axes.at(stage.end_base_sigma, curve.logsnr(curve.with_ratio(stage.end_base_sigma, stage.ratio)))
    after = axes.at(following.base_sigmas[0], curve.logsnr(following.sigmas[0]))
    canvas.dashes((before[0], TOP), (before[0], BOTTOM), MUTED, 1.0, dash=3.0)
    if abs(after[1] - before[1]) > 24.0:
        canvas.arrow(before, (after[0], after[1] - math.copysign(11.0, after[1] - before[1])), TEXT)
    label = f"r = {following.ratio / stage.ratio:.3g}"
    left, right = _span(axes, following)
    if canvas.text_width(label, 12) + 10 <= right - left:
        canvas.text((before[0] + 6, BOTTOM - 6), label, 12, MUTED, anchor="lb", halo=PANEL)
    canvas.dot(before, 5.0, PANEL, outline=stage_colour(stage.index), width=2.0)


def _dots(canvas: Canvas, axes: Axes, plan: SamplingPlan) -> None:
    steps = plan.stage_plan.steps
    numbered = len(steps) <= 16
    for step in steps:
        centre = axes.at(step.base_sigma, step.logsnr)
        canvas.dot(centre, 10.0 if numbered else 4.0, stage_colour(step.stage), outline=DARK)
        if numbered:
            canvas.text(centre, str(step.index + 1), 13, DARK, anchor="mm")
        if not math.isfinite(step.logsnr):
            canvas.text((centre[0] + 14, centre[1] + 6), "-inf", 12, MUTED, anchor="lb", halo=PANEL)


def _legend(canvas: Canvas, plan: SamplingPlan) -> None:
    x, y = float(LEFT), 538.0
    for stage in plan.stage_plan.stages:
        size = f"{pixels(plan.cell_px, stage.size)} px"
        if x > 700.0:  # room for the rest of the legend
            continue
        canvas.line([(x, y), (x + 18, y)], stage_colour(stage.index), 3.5)
        canvas.text((x + 24, y), size, 13, TEXT, anchor="lm")
        x += 24 + canvas.text_width(size, 13) + 20
    if len(plan.stage_plan.stages) > 1:
        canvas.dot((x + 6, y), 5.0, PANEL, outline=TEXT, width=2.0)
        canvas.text((x + 18, y), "hand-over", 13, TEXT, anchor="lm")
        x += 18 + canvas.text_width("hand-over", 13) + 20
    if plan.thresholds:
        canvas.dashes((x, y), (x + 20, y), THRESHOLD, 1.6)
        canvas.text((x + 26, y), "threshold", 13, TEXT, anchor="lm")


def _bars(canvas: Canvas, plan: SamplingPlan, costs: Sequence[float]) -> None:
    steps = plan.stage_plan.steps
    canvas.text((BARS_LEFT, TOP - 6), "timestep and cost of each step (final size: 1)", 13, MUTED, anchor="lb")
    canvas.box(BARS_LEFT, TOP, BARS_RIGHT, BOTTOM, PANEL)
    room = BOTTOM - TOP - 80.0
    row = min(34.0, room / len(steps))
    for step, cost in zip(steps, costs):
        left, right, top, bottom = bar_box(step.index, cost, row, max(costs))
        canvas.box(left, top, right, bottom, stage_colour(step.stage), radius=min(2.0, (bottom - top) / 4))
        if row >= 15.0:
            middle = (top + bottom) / 2
            canvas.text((BARS_LEFT + 24, middle), str(step.index + 1), 13, TEXT, anchor="rm")
            canvas.text((BARS_LEFT + 76, middle), f"t {step.timestep:.0f}", 13, MUTED, anchor="rm")
            canvas.text((right + 6, middle), f"{cost:.3f}", 13, TEXT, anchor="lm")
    total = sum(costs)
    y = BOTTOM - 64
    canvas.line([(BARS_LEFT + 12, y), (BARS_RIGHT - 12, y)], GRID)
    canvas.text((BARS_LEFT + 14, y + 10), f"{total:.2f}", 30, TEXT)
    shift = canvas.text_width(f"{total:.2f}", 30) + 24
    canvas.text((BARS_LEFT + shift, y + 13), f"full-size calls for {len(steps)} steps", 13, TEXT)
    if len(steps) - total > 0.005:
        final = pixels(plan.cell_px, plan.stage_plan.final_hw)
        more = f"all at {final} would cost {len(steps) / total:.2f}x"
        canvas.text((BARS_LEFT + shift, y + 31), more, 13, MUTED)


def bar_box(index: int, cost: float, row: float, most: float) -> tuple[float, float, float, float]:
    """(left, right, top, bottom) of a step's bar in pixels; its length is in proportion to the cost."""
    left = BARS_LEFT + 88.0
    top = TOP + 10.0 + index * row
    return left, left + (BARS_RIGHT - 54.0 - left) * cost / most, top, top + max(1.0, 0.7 * row)


def _span(axes: Axes, stage: Stage) -> tuple[float, float]:
    left = LEFT if stage.index == 0 else axes.x(axes.position(stage.base_sigmas[0]))
    return left, axes.x(axes.position(stage.end_base_sigma)) if stage.end_base_sigma else RIGHT


def _mixed(colour: str, ground: str, share: float) -> str:
    parts = ((int(colour[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(share * front + (1.0 - share) * back):02x}" for front, back in parts)

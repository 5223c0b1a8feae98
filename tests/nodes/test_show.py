"""The plan as a image and as a table: what is drawn where, in which colour, and the numbers beside it."""

import math
import re
from dataclasses import replace

import pytest
import torch

SIZES = [(32, 32), (64, 64), (128, 128)]


@pytest.fixture
def plan(nodes, tiny):
    return lambda name="sdxl", split="1+1+2", sizes=SIZES, **others: nodes.plan(
        tiny(name), sizes=sizes, split=split, **others
    )


@pytest.fixture
def drawing(pack):
    return pack.nodes.bridge.show


@pytest.fixture
def costs():
    return lambda made: made.stage_plan.step_costs(lambda height, width: float(height * width))


@pytest.fixture
def table_of(drawing, costs):
    return lambda made: drawing.plan_table(made, costs(made))


def rgb(colour):
    return torch.tensor([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255


def pixels_of(image, colour, left=0, right=None):
    """How many pixels of an area are of a colour, to what reading a byte allows."""
    return ((image[0, :, left:right] - rgb(colour)).abs().amax(-1) < 0.02).sum().item()


@pytest.mark.parametrize(("name", "split"), [("sdxl", "2+0+2"), ("sdxl", "1+1+2"), ("wan", "1+0+0"), ("wan", "9+9+12")])
def test_the_plan_is_an_image_and_repeats(plan, drawing, costs, name, split):
    made = replace(plan(name, split), thresholds=(-5.0, -2.5))
    image = drawing.plan_image(made, costs(made))
    assert image.shape == (1, 560, 1000, 3) and image.dtype == torch.float32
    assert 0 <= image.min() and image.max() <= 1
    assert torch.equal(image, drawing.plan_image(made, costs(made)))


@pytest.mark.parametrize("name", ["sdxl", "wan", "pixart"])
def test_steps_are_drawn_at_their_levels_in_the_colour_of_their_stage(plan, drawing, costs, name):
    made = plan(name)
    image = drawing.plan_image(made, costs(made))
    axes = drawing.Axes.of(made)
    for step in made.stage_plan.steps:
        # u of the base level by hand: the shifted flow solved for u, the entry of a VP table
        sigma = step.base_sigma
        shift = getattr(made.stage_plan.curve, "shift", None)
        u = sigma / (shift - (shift - 1) * sigma) if shift else (made.stage_plan.curve.timestep(sigma) + 1) / 1000
        x, y = axes.at(sigma, step.logsnr)
        assert x == pytest.approx(axes.x(1) + (1 - u) * (axes.x(0) - axes.x(1)), abs=1e-6)
        if math.isfinite(step.logsnr):
            share = (step.logsnr - axes.lowest) / (axes.highest - axes.lowest)
            assert y == pytest.approx(axes.y(axes.lowest) + share * (axes.y(axes.highest) - axes.y(axes.lowest)))
        ring = image[0, round(y) - 6, round(x) - 5]  # inside the dot, beside its number
        assert (ring - rgb(drawing.stage_colour(step.stage))).abs().max() < 0.02


def test_every_finite_level_and_threshold_is_inside_the_axes(plan, drawing):
    for name in ("sdxl", "wan", "pixart"):
        # the last threshold decides nothing on any table and is not shown
        made = replace(plan(name), thresholds=(-19.0, 9.0, 1e9))
        axes = drawing.Axes.of(made)
        levels = [step.logsnr for step in made.stage_plan.steps if math.isfinite(step.logsnr)]
        assert axes.lowest < min(*levels, -19) and max(*levels, 9) < axes.highest < 20


def test_bars_are_as_long_as_the_steps_cost(plan, drawing, costs):
    made = plan()
    image = drawing.plan_image(made, costs(made))
    room = image[:, :, drawing.BARS_LEFT :]
    row = min(34.0, (drawing.BOTTOM - drawing.TOP - 80.0) / 4)
    for index, (stage, cost) in enumerate([(0, 1 / 16), (1, 1 / 4), (2, 1), (2, 1)]):
        left, right, top, bottom = drawing.bar_box(index, cost, row, 1.0)
        middle = room[:, round((top + bottom) / 2)][:, None]
        assert pixels_of(middle, drawing.stage_colour(stage)) == pytest.approx(right - left, abs=2)
    lengths = [drawing.bar_box(0, cost, row, 1.0)[1] - drawing.bar_box(0, cost, row, 1.0)[0] for cost in (0.25, 1.0)]
    assert lengths[1] == pytest.approx(4 * lengths[0])


def test_thresholds_are_dashed_lines_at_their_level(plan, drawing, costs):
    without = plan("wan")
    shown = replace(without, thresholds=(-2.5,))
    axes = drawing.Axes.of(shown)
    y = round(axes.y(-2.5))
    assert drawing.Axes.of(without) == axes
    images = [drawing.plan_image(made, costs(made)) for made in (without, shown)]
    row = slice(drawing.LEFT, drawing.RIGHT)
    bright = [(image[0, y - 1 : y + 2, row].amin(-1).amax(0) > 0.7).float().mean() for image in images]
    assert bright[0] < 0.1 and 0.35 < bright[1] < 0.75


def test_long_words_are_cut_to_the_image(pack):
    canvas = pack.nodes.bridge.show.Canvas(200, 40, "#000000")
    for words in ("thresholds and sizes, " * 9, "x" * 1_000_000):  # the second without taking long
        cut = canvas.fitted(words, 13, 180)
        assert cut.endswith("...") and canvas.text_width(cut, 13) <= 190
    assert canvas.fitted("short", 13, 180) == "short"


# the table


def test_table_lists_every_step(table_of, plan):
    made = plan()
    table = table_of(made)
    rows = [line.split() for line in table.splitlines() if re.match(r" +\d+ +\d+ +\d+x\d+", line)]
    assert len(rows) == 4
    for step, row, cost in zip(made.stage_plan.steps, rows, (1 / 16, 1 / 4, 1, 1)):
        assert row[:3] == [str(step.index + 1), str(step.stage + 1), f"{8 * step.width}x{8 * step.height}"]
        sigma = made.stage_plan.curve.comfy_sigma(step.sigma)
        expected = (sigma, step.timestep, step.logsnr, cost)
        assert [float(value) for value in row[3:]] == pytest.approx(expected, abs=6e-3)
    assert "2.31 full-size calls for 4 steps; 4 at 1024x1024 px would be 1.73 times as much" in table
    assert "area: r = 2 at 512x512, r = 4 at 1024x1024" in table
    assert table.isascii() and str(made.kind) in table


def test_table_tells_moved_levels_and_sizes_without_a_step(pack, table_of, plan):
    core = pack.rmd_core
    moved = table_of(plan("sdxl", "2+0+2"))
    assert "- no step runs at 512x512 px" in moved
    assert "- step 4 at 1024x1024 px: the exact level is timestep 652.6; timestep 653 is used" in moved
    beyond = table_of(plan("sdxl", "0+1+1"))
    assert "- step 1 at 512x512 px: the exact level is beyond the model's table; timestep 999 is used" in beyond
    flow = plan("wan", mapping=core.schedule.ShiftPairMap(3.0, 5.0))
    shown = table_of(flow)
    assert "notes" not in shown and "native shifts 3 to 5: r = 1.291 at 512x512 (shift 3.873), r = 1.667 at" in shown


def test_table_tells_the_rules(pack, table_of, plan):
    rules = {"upsampler": "nearest", "switch_noise": "fresh", "eta_switch": 0.0}
    made = plan(eta=0.9, cfg=4.5, size_conditioning="final", mapping=pack.rmd_core.schedule.NoMap(), **rules)
    table = table_of(made)
    for line in ("x0 upsampled nearest, fresh noise\n", "eta       0.9 ", "cfg       4.5\n", "that of the final"):
        assert line in f"{table}\n"
    assert "none, every size keeps the levels of the first" in table

"""The plan as an image and as a table: its facts, what is where in which colour, and every step's numbers."""

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


def are_of(image, colour):
    """Which pixels of an image are of a colour, to what reading a byte allows."""
    return (image[0] - rgb(colour)).abs().amax(-1) < 0.02


@pytest.mark.parametrize("split", ["2+0+2", "1+1+2", "0+0+1", "9+9+12"])
@pytest.mark.parametrize("name", ["sdxl", "wan"])
def test_the_plan_is_an_image_and_repeats(plan, drawing, costs, name, split):
    made = replace(plan(name, split), origin="a long origin, " * 40)
    image = drawing.plan_image(made, costs(made))
    assert image.shape == (1, 600, 920, 3) and image.dtype == torch.float32
    assert 0 <= image.min() and image.max() <= 1
    assert torch.equal(image, drawing.plan_image(made, costs(made)))
    side = drawing.SIDE * drawing.SHARP - 4  # nothing is written beyond the margins
    assert (
        are_of(image[:, :, :side], drawing.BACKGROUND).all() and are_of(image[:, :, -side:], drawing.BACKGROUND).all()
    )


def test_a_very_narrow_stage_has_an_image_too(plan, drawing, costs):
    made = plan("sdxl", "1+1+2", sizes=[(102, 1), (1075, 8), (2048, 16)])
    assert drawing.plan_image(made, costs(made)).shape == (1, 600, 920, 3)


@pytest.mark.parametrize("sizes", [SIZES, [(15, 26), (30, 52), (60, 104)], [(8, 64), (8, 64), (16, 128)]])
def test_each_stage_is_a_box_in_proportion_to_its_size(plan, drawing, costs, sizes):
    made = plan("wan", sizes=sizes)
    image, boxes = drawing.plan_image(made, costs(made)), drawing.stage_boxes(made)
    scale = (boxes[-1][2] - boxes[-1][0]) / sizes[-1][1]
    for (left, top, right, bottom), stage in zip(boxes, made.stage_plan.stages):
        assert (right - left, bottom - top) == pytest.approx((scale * stage.width, scale * stage.height))
        rows, columns = are_of(image, drawing.stage_colour(stage.index)).nonzero(as_tuple=True)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert [int(place) / drawing.SHARP for place in found] == pytest.approx([left, top, right, bottom], abs=1.5)
    assert boxes[-1][2] <= drawing.WIDTH - drawing.SIDE


def test_facts_in_words(plan, drawing, costs):
    made = plan("wan", "2+2", [(8, 8), (16, 16)])
    assert drawing.steps_fact(made) == "2 steps at 64, 2 at 128 px"
    assert drawing.cost_fact(costs(made)) == "1.6 times fewer operations"  # 4 / (2 / 4 + 2)
    one = plan("wan", "1", [(8, 12)])
    assert drawing.steps_fact(one) == "1 step at 96x64 px" and "full size" in drawing.cost_fact(costs(one))
    four = plan("wan", "1+1+1+1", [(8, 8), (10, 10), (12, 12), (16, 16)])
    assert drawing.steps_fact(four) == "4 steps at 4 sizes, 64 to 128 px"


@pytest.mark.parametrize("name", ["pixart", "wan"])
def test_a_switch_that_keeps_almost_nothing_is_in_another_colour(pack, plan, drawing, costs, name):
    plans = pack.nodes.bridge.plans
    for split, little in (("1+1", True), ("2+2", False)):
        made = plan(name, split, [(16, 16), (128, 128)] if little else [(16, 16), (32, 32)])
        stage = made.stage_plan.stages[1]
        sigma = made.stage_plan.curve.comfy_sigma(stage.sigmas[0])
        by_hand = 1 - sigma if name == "wan" else 1 / (1 + sigma)
        assert plans.surviving(made, stage) == pytest.approx(by_hand, abs=1e-9)
        assert (by_hand < plans.LITTLE_SURVIVES) == little
        assert are_of(drawing.plan_image(made, costs(made)), drawing.ALERT).any() == little


def test_long_words_are_cut_to_the_image(pack):
    canvas = pack.nodes.bridge.show.Canvas("#000000")
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

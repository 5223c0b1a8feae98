"""The figures in the tables of the method page, computed again."""

import re
from pathlib import Path

import pytest
import torch

from rmd_core.intervals import TimestepIntervals
from rmd_core.plan import plan_from_split, plan_from_thresholds
from rmd_core.presets import PRESETS
from rmd_core.schedule import AreaMap, FlowCurve, NoMap, VPCurve

PAGE = (Path(__file__).parents[2] / "docs" / "method" / "method.md").read_text(encoding="utf-8")
SDXL = VPCurve.scaled_linear(0.00085, 0.012)
PIXART = VPCurve.linear(1e-4, 0.02)
FLOW = FlowCurve(3.0)
SIZES = [(64, 64), (128, 128)]
WAN_SIZES = [(60, 104), (90, 160)]


def rows(first_header):
    """The body of the table whose first header cell is `first_header`, as lists of cells without markup."""
    lines = PAGE.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_header} |"))
    body = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return body
        body.append([cell.strip().replace("`", "").replace("*", "") for cell in line.strip("|").split("|")])


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d*\.?\d+", text)]


@pytest.mark.parametrize("line", range(6))
def test_authors_intervals(line):
    step, stage, t_mid, offset, t, sigmas, logsnrs = rows("step")[line]
    plan = plan_from_split(FLOW, "3+3", sizes=WAN_SIZES, mapping=NoMap())
    intervals = TimestepIntervals.from_plan(plan, offset_factor=0.25, split=True)
    interval = intervals.steps[int(step)]
    assert f"{interval.lower}..{interval.upper}" == t and interval.lower == int(t_mid) + int(offset)
    assert plan.steps[int(step)].stage == ("low", "high").index(stage)
    ends = intervals.sigma_at(torch.tensor([interval.lower, interval.upper]))
    low, high = sigmas.split("-")
    assert [f"{end:.4f}"[1:] for end in ends.tolist()] == [low, high]
    assert [f"{FLOW.logsnr(end):.2f}" for end in ends.tolist()] == logsnrs.split("..")


@pytest.mark.parametrize("line", range(4))
def test_published_plans(line):
    name, at_main, at_lower, window = rows("grid")[line]
    curve, steps = [(SDXL, 4), (PIXART, 4), (FLOW, 4), (FLOW, 6)][line]
    assert name.startswith(("SDXL", "PixArt", "SD3.5 shift 3", "Wan shift 3")[line]) and name.endswith(f"K = {steps}")

    def split(threshold):
        return plan_from_thresholds(curve, steps, thresholds=[threshold], sizes=SIZES, mapping=NoMap()).split

    low, high = numbers(window)
    assert split(-2.5) == at_main and split(-5.0) == at_lower
    assert split(low + 0.001) == split(high - 0.001) == at_main
    assert at_main not in (split(low - 0.001), split(high + 0.001))


def test_levels_after_a_switch():
    sdxl, pixart, sd35, wan = rows("backbone")
    for row, curve in ((sdxl, SDXL), (pixart, PIXART)):
        t, logsnr = numbers(row[1])
        after = curve.with_ratio(curve.table_sigma(t), 2.0)
        assert curve.logsnr(curve.table_sigma(t)) == pytest.approx(logsnr, abs=5e-4)
        assert [curve.timestep(after), curve.logsnr(after)] == pytest.approx(numbers(row[3]), abs=0.05)
    assert [FLOW.with_ratio(sigma, 2.0) for sigma in numbers(sd35[1])[-2:]] == pytest.approx(numbers(sd35[3]), abs=5e-5)
    assert FLOW.grid(6)[3] == pytest.approx(numbers(wan[1])[0])
    ratio = AreaMap().ratio(WAN_SIZES[0], WAN_SIZES[1], WAN_SIZES[1])
    assert [FLOW.with_ratio(0.75, r) for r in (ratio, 5 / 3)] == pytest.approx(numbers(wan[3]), abs=5e-5)


def test_presets():
    table = {row[0]: row[1:] for row in rows("preset")}
    assert table.keys() == PRESETS.keys()
    for name, (mapping, noises, etas, draw, upsampler) in table.items():
        preset = PRESETS[name]
        offset, split = draw.split(", ")
        assert [preset.mapping, preset.upsampler] == [mapping, upsampler]
        assert [preset.switch_noise, preset.loss_noise] == noises.split(" / ")
        assert [preset.eta_train, preset.eta] == numbers(etas)[:2]
        assert [preset.offset_factor, preset.split] == [float(offset), split == "yes"]


def test_step_grids():
    grids = re.findall(r"((?:\d+ )+)for\s+K = (\d)", PAGE)
    assert len(grids) == 2
    for steps, listed in grids:
        assert [round(FLOW.table_index(sigma)) for sigma in FLOW.grid(int(listed))] == [int(i) for i in steps.split()]

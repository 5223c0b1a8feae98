"""The shipped configurations of the real models: each says where its values are from, and makes the plan it names."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from training.backbones import make_backbone
from training.config_files import load_config
from training.plans import build_intervals, build_plan

CONFIGS = Path(__file__).parents[1] / "training" / "configs"
PLANS = {  # name: (timesteps the network is told in order, frames, the backbone)
    "sdxl": ([999, 749, 692, 453], 1, "sdxl"),
    "pixart_sigma": ([999, 749, 617, 386], 1, "pixart_sigma"),
    "sd35_medium": ([1000, 900, 857.143, 666.667], 1, "sd3"),
    "wan21_1.3b": ([1000, 937.361, 857.143, 833.333, 714.286, 499.0], 21, "wan"),
}


@pytest.mark.parametrize("name", PLANS)
def test_every_value_has_its_source_beside_it(name):
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r"^  \w+: ", line) and not line.startswith("  name: ")]
    assert len(values) > 20 and not [line for line in values if "  # " not in line]


@pytest.mark.parametrize("name", PLANS)
def test_a_configuration_makes_the_plan_it_names(name):
    config = load_config(CONFIGS / f"{name}.yaml").resolved()
    backbone = make_backbone(config.backbone.name, shift=config.backbone.shift)
    plan = build_plan(config, backbone)
    timesteps, frames, family = PLANS[name]
    assert [step.timestep for step in plan.steps] == pytest.approx(timesteps, abs=1.0)
    assert (config.plan.frames, config.backbone.name) == (frames, family)
    assert len(build_intervals(config, plan).steps) == len(plan.steps)
    samples = config.train.batch * config.train.accumulation
    assert samples == 64


def test_the_flow_curve_is_the_scheduler_that_sd3_and_wan_ship_with():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    curve = make_backbone("sd3").curve
    ours = curve.table_sigma(torch.arange(999, -1, -1, dtype=torch.float64))
    assert torch.allclose(ours.float(), scheduler.sigmas[:1000], atol=1e-6)

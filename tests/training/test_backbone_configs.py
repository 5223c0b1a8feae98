"""The shipped configurations of the real models: each makes the plan it names, and its memory can be counted."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from full_size import meta_teacher
from training.backbones import make_backbone
from training.config import load_config
from training.memory import GIB, count_memory
from training.plans import build_intervals
from training.prompts import CacheFolder
from training.setup import outline_run

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
PLANS = {  # name: (timesteps the network is given in order, frames, the backbone, the full-size student, fewer layers)
    "sdxl": ([999, 749, 692, 453], 1, "sdxl", "SDXL", {"transformer_layers_per_block": (1, 1, 1)}),
    "sdxl_from_dmd2": ([999, 749, 692, 453], 1, "sdxl", "SDXL", {"transformer_layers_per_block": (1, 1, 1)}),
    "pixart_alpha": ([999, 749, 616, 386], 1, "pixart_alpha", "PixArt alpha", {"num_layers": 2}),
    "pixart_sigma": ([999, 749, 616, 386], 1, "pixart_sigma", "PixArt Sigma", {"num_layers": 2}),
    "sd35_medium": ([1000, 900, 750, 500], 1, "sd3", "SD3.5 Medium", {"num_layers": 2}),
    "sd35_large": ([1000, 900, 857.143, 666.667], 1, "sd3", "SD3.5 Large", {"num_layers": 2}),
    "z_image": ([1000, 947.368, 857.143, 666.667], 1, "z_image", "Z-Image", {"n_layers": 2}),
    "qwen_image": ([1000, 900, 857.143, 666.667], 1, "qwen_image", "Qwen-Image", {"num_layers": 2}),
    "flux2_klein_4b": ([1000, 958.1, 908.2, 767.3], 1, "flux2_klein", "FLUX.2 klein 4B", {"num_single_layers": 1}),
    "wan22_a14b": ([1000, 937.5, 833.333, 625], 21, "wan22_a14b", "Wan2.2 A14B", {"num_layers": 2}),
    "wan22_5b": ([1000, 937.5, 909.091, 769.231], 31, "wan22_5b", "Wan2.2 5B", {"num_layers": 2}),
    "wan21_1.3b": ([1000, 937.359, 856.775, 833.333, 713.979, 498.798], 21, "wan", "Wan2.1 1.3B", {"num_layers": 2}),
    "wan21_14b_from_lightx2v": ([1000, 937.5, 833.333, 625], 21, "wan", "Wan2.1 14B", {"num_layers": 2}),
    "wan21_14b": ([1000, 937.359, 856.775, 833.333, 713.979, 498.798], 21, "wan", "Wan2.1 14B", {"num_layers": 2}),
}


def test_every_shipped_configuration_is_looked_at():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {"demo", *PLANS}


@pytest.mark.parametrize("recipe", PLANS)
def test_a_configuration_makes_the_plan_it_names(recipe, tmp_path):
    timesteps, frames, family, student, _ = PLANS[recipe]
    network = meta_teacher(student)
    parts = {"transformer": network.high, "transformer_2": network.low} if family == "wan22_a14b" else {}
    for name, part in (parts or {"unet" if family == "sdxl" else "transformer": network}).items():
        deepcopy(part).save_config(tmp_path / name)  # which changes the configuration, and this network is shared
        (tmp_path / name / "diffusion_pytorch_model.safetensors").touch()  # not read
    config = load_config(CONFIGS / f"{recipe}.yaml", [f"backbone.base={tmp_path}"]).resolved()
    _, backbone, plan, intervals, outline, _ = outline_run(config)
    CacheFolder(tmp_path / config.prompts.cache)  # raises for what the first run could not fill
    assert [step.timestep for step in plan.steps] == pytest.approx(timesteps, abs=1.0)
    assert (config.plan.frames, config.backbone.name) == (frames, family)
    assert len(intervals.steps) == len(build_intervals(config, plan).steps) == len(plan.steps)
    assert sum(p.numel() for p in outline.parameters()) == sum(p.numel() for p in network.parameters())
    samples = config.train.batch * config.train.accumulation
    assert samples == 64


@pytest.mark.parametrize("name", PLANS)
def test_its_memory_can_be_counted(name):
    """With fewer layers, for the time it takes; each run and each dry run tells the whole."""
    *_, family, student, fewer = PLANS[name]
    backbone, network = make_backbone(family), meta_teacher(student)
    with torch.device("meta"):
        shallow = type(network).from_config(dict(network.config) | fewer)
    config = load_config(CONFIGS / f"{name}.yaml").resolved()
    memory = count_memory(config, backbone, shallow)
    assert memory.trained > 1e6 and sum(memory.weights.values()) < memory.total < 80 * GIB


def test_the_flow_curve_is_the_scheduler_that_sd3_and_wan_ship_with():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    curve = make_backbone("sd3").curve
    ours = curve.table_sigma(torch.arange(999, -1, -1, dtype=torch.float64))
    assert torch.allclose(ours.float(), scheduler.sigmas[:1000], atol=1e-6)

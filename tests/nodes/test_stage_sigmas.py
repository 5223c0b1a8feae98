"""RMD Stage Sigmas: one stage's sigmas, which stop above 0 before the last stage, and its size in pixels."""

import math
from dataclasses import replace

import pytest
import torch

CASES = {
    "wan": ([(8, 12), (16, 24)], "2+2"),
    "sd3": ([(8, 8), (16, 16), (32, 32)], "1+1+2"),
    "sdxl": ([(16, 16), (32, 32)], "2+2"),
    "pixart": ([(48, 48), (96, 96)], "2+2"),
}


@pytest.fixture
def plan_of(nodes, tiny):
    return lambda name, **others: nodes.plan(tiny(name), sizes=CASES[name][0], **{"split": CASES[name][1], **others})


@pytest.mark.parametrize("name", CASES)
def test_each_stage_ends_at_the_next_level_as_its_own_size_names_it(nodes, plan_of, name):
    plan = plan_of(name)
    base = plan.stages.base_sigmas
    for stage in plan.stages.stages:
        sigmas, width, height = nodes("RMD_StageSigmas", plan=plan, stage=stage.index + 1)
        assert (width, height) == (8 * stage.width, 8 * stage.height)
        assert sigmas.dtype == torch.float32 and sigmas.device.type == "cpu"
        assert torch.equal(sigmas[:-1], torch.tensor(plan.sigmas(stage)[:-1], dtype=torch.float32))
        if stage is plan.stages.stages[-1]:
            assert sigmas[-1] == 0
            continue
        following = base[base.index(stage.base_sigmas[-1]) + 1]
        alpha = 1 - following if plan.stages.curve.kind == "flow" else math.sqrt(1 - following**2)
        odds = stage.ratio * following / alpha  # sigma / alpha at this stage's size
        expected = odds / (1 + odds) if plan.stages.curve.kind == "flow" else odds
        assert sigmas[-1].item() == pytest.approx(expected, rel=1e-6)
        assert sigmas[-1] > 0 and bool((sigmas.diff() < 0).all())


@pytest.mark.parametrize("stage", [3, 64])
def test_a_stage_that_does_not_exist_is_refused(pack, nodes, plan_of, stage):
    with pytest.raises(pack.rmd_core.errors.RMDError) as caught:
        nodes("RMD_StageSigmas", plan=plan_of("sdxl"), stage=stage)
    assert str(caught.value) == f"stage {stage} does not exist; this plan has 1 (128x128 px), 2 (256x256 px)"


def test_sigmas_that_do_not_fall_in_float32_are_refused(pack, nodes, plan_of):
    plan = plan_of("wan")
    core = pack.rmd_core
    close = core.plan.plan_from_split(
        plan.stages.curve,
        "2+2",
        sizes=plan.stages.sizes,
        mapping=plan.stages.mapping,
        steps=(1.0, 0.9, 0.9 - 1e-9, 0.5),
    )
    with pytest.raises(core.errors.RMDError, match=r"the sigmas of stage 1, 1, 0.9, 0.9, do not fall; use fewer steps"):
        nodes("RMD_StageSigmas", plan=replace(plan, stages=close), stage=1)

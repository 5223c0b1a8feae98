"""Every state that a network receives from RMD Sampler, against the method's formula in float64."""

import pytest
import torch

from cascade_rig import TINY, Recorder, alpha_sigma, fresh_noise, is_flow, predicted_noise, relative
from rmd_core.boundary import Boundary, step_noise

RULES = {
    "default": {},
    "all predicted": {"eta_switch": 1.0},
    "mix": {"upsampler": "bilinear", "switch_noise": "mix", "eta_switch": 0.9},
    "fresh": {"upsampler": "nearest", "switch_noise": "fresh"},
}


def expected_states(plan, calls):
    """(picture, noise) parts of the state of every call, by the formula, from the recorded call before it."""
    rule = Boundary(plan.boundary.upsampler, plan.boundary.switch_noise, plan.boundary.eta_switch)
    before = None
    for step, call in zip(plan.stages.steps, calls, strict=True):
        alpha, sigma = alpha_sigma(plan, call.sigma)
        if before is None:
            noise = fresh_noise(call.x.shape, 0, "start")
            yield 0.0 * noise, noise if is_flow(plan) else noise * (1.0 + sigma**2) ** 0.5
        elif step.index_in_stage == 0:
            crossing = rule.cross(
                before.x0,  # float32: torch's kernels place their samples in the precision of what they enlarge
                predicted_noise(plan, before),
                (step.height, step.width),
                lambda purpose, shape, stage=step.stage: fresh_noise(shape, stage, purpose),
            )
            yield alpha * crossing.x0, sigma * crossing.noise
        else:
            fresh = fresh_noise(call.x.shape, step.stage, f"step-{step.index_in_stage - 1}")
            yield alpha * before.x0.double(), sigma * step_noise(predicted_noise(plan, before), plan.eta, fresh)
        before = call


def assert_states_follow_the_formula(nodes, model, plan):
    recorder = Recorder()
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher))
    steps = plan.stages.steps
    assert recorder.sizes == [(step.height, step.width) for step in steps]
    for step, call, (picture, noise) in zip(steps, recorder.calls, expected_states(plan, recorder.calls), strict=True):
        assert call.sigma == pytest.approx(plan.stages.curve.comfy_sigma(step.sigma), rel=1e-6)
        error = (call.x.double() - (picture + noise)).abs().max()
        assert error <= (1e-6 if is_flow(plan) else 1e-6 * (picture.abs() + noise.abs()).max())


@pytest.mark.parametrize("name", TINY)
def test_every_state_is_the_formulas(nodes, tiny, name):
    model = tiny(name)
    assert_states_follow_the_formula(nodes, model, nodes.plan(model, sizes=TINY[name]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_every_rule_of_the_boundary(nodes, tiny, name, rule):
    model = tiny(name)
    assert_states_follow_the_formula(nodes, model, nodes.plan(model, sizes=TINY[name], **RULES[rule]))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", ["wan", "sdxl_v"])
def test_the_ends_of_eta(nodes, tiny, name, eta):
    model = tiny(name)
    assert_states_follow_the_formula(nodes, model, nodes.plan(model, sizes=TINY[name], eta=eta))


@pytest.mark.parametrize("name", ["wan", "sd3", "sdxl"])
def test_three_stages_of_odd_sizes_and_uneven_scale(nodes, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=((5, 7), (9, 10), (13, 17)), split="1+1+2")
    assert_states_follow_the_formula(nodes, model, plan)


def test_no_mapping_keeps_the_levels(nodes, tiny):
    model = tiny("sdxl")
    plan = nodes.plan(model, sizes=TINY["sdxl"], mapping=nodes.pack.rmd_core.schedule.NoMap())
    sigmas = [step.sigma for step in plan.stages.steps]
    assert sigmas == list(plan.stages.curve.grid(4))
    assert_states_follow_the_formula(nodes, model, plan)


def test_a_video_crosses_frame_by_frame(nodes, tiny):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=TINY["wan"])
    recorder = Recorder()
    latent = model.latent(*plan.stages.final_hw, frames=3)
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher), latent=latent)
    for call, (picture, noise) in zip(recorder.calls, expected_states(plan, recorder.calls), strict=True):
        assert call.x.shape[2] == 3
        assert (call.x.double() - (picture + noise)).abs().max() <= 1e-6


def test_the_latent_that_comes_out_is_the_last_clean_estimate(nodes, tiny):
    for name, sizes in TINY.items():
        model, recorder = tiny(name), Recorder()
        out = nodes.sample(model, nodes.plan(model, sizes=sizes), patcher=recorder.watch(model.patcher))
        expected = model.patcher.model.process_latent_out(recorder.calls[-1].x0)
        assert out["samples"].dtype == torch.float32
        assert relative(out["samples"], expected) <= 1e-6

"""The cascade: one engine for every plan, repeatable, lazy where training needs it, and the same numbers everywhere."""

from math import sqrt

import pytest
import torch

from core_world import FLOW3, SDXL, grid_at
from rmd_core.boundary import Boundary, step_noise, upsample
from rmd_core.cascade import DenoiserRunner, StageEnd, run_cascade, trajectory
from rmd_core.errors import RMDError
from rmd_core.noise import SeededNoise
from rmd_core.plan import plan_from_split
from rmd_core.schedule import AreaMap, NoMap

LOW, MIDDLE, HIGH = (6, 7), (8, 9), (9, 15)


def make_plan(split="2+2", sizes=(LOW, HIGH), curve=FLOW3, mapping=None, steps=None):
    return plan_from_split(curve, split, sizes=sizes, mapping=mapping or AreaMap(), steps=steps)


class ToyDenoiser:
    """A smooth nonlinear stand-in for a network, elementwise, with exact x = alpha x0 + sigma eps; keeps its inputs."""

    def __init__(self, curve=FLOW3):
        self.curve = curve
        self.steps = []
        self.inputs = []

    def __call__(self, x, step):
        self.steps.append(step)
        self.inputs.append(x)
        alpha = self.curve.alpha(step.sigma)
        x0 = torch.tanh(0.7 * x + 0.1 * step.sigma)
        return x0, (x - alpha * x0) / step.sigma


def sample(plan, *, batch=2, channels=3, frames=None, eta=0.5, boundary=None, noise=None, denoise=None, **hooks):
    denoise = denoise or ToyDenoiser(plan.curve)
    shape = (batch, channels) if frames is None else (batch, channels, frames)
    runner = DenoiserRunner(denoise, eta=eta)
    boundary, noise = boundary or Boundary("bicubic", "exact", eta), noise or SeededNoise(7)
    return run_cascade(plan, runner, shape=shape, noise=noise, boundary=boundary, **hooks), denoise


def written_out(plan, shape, seed, boundary, eta, denoise):
    """The sampler written as one flat loop over steps."""
    source, curve, x, results = SeededNoise(seed), plan.curve, None, []
    for step in plan.steps:
        if x is None:
            x = source.sample(0, "start", (*shape, step.height, step.width))
            if step.sigma < curve.sigma_max:
                x = step.sigma * x
        x0, eps = denoise(x, step)
        results.append(x0)
        if step is plan.steps[-1]:
            return x0, results
        following = plan.steps[step.index + 1]
        if following.stage != step.stage:

            def fresh(purpose, full_shape, stage=following.stage):
                return source.sample(stage, purpose, full_shape)

            size, kernel = (following.height, following.width), boundary.upsampler
            x0 = upsample(x0, size, kernel)
            rule, eta_switch = boundary.switch_noise, boundary.eta_switch
            noise = Boundary(kernel, rule, eta_switch).noise(eps, size, fresh)
        else:
            noise = step_noise(eps, eta, source.sample(step.stage, f"step-{step.index_in_stage}", tuple(eps.shape)))
        x = curve.alpha(following.sigma) * x0 + following.sigma * noise


PLANS = {
    "1+3": make_plan("1+3"),
    "3+1": make_plan("3+1"),
    "4+0": make_plan("4+0"),
    "0+4": make_plan("0+4"),
    "4": make_plan("4", sizes=(HIGH,)),
    "1": make_plan("1", sizes=(HIGH,)),
    "1+1": make_plan("1+1"),
    "1+1+2": make_plan("1+1+2", sizes=(LOW, MIDDLE, HIGH)),
    "2+0+2": make_plan("2+0+2", sizes=(LOW, MIDDLE, HIGH)),
    "2+2 sdxl": make_plan(curve=SDXL),
    "2+2 sdxl from 899": make_plan(curve=SDXL, steps=grid_at(SDXL, [899, 674, 449, 224])),
    "2+2 equal sizes": make_plan(sizes=(HIGH, HIGH)),
}


# Invariants 6 and 7
@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize("name", PLANS)
def test_every_plan_runs_with_one_call_per_step(name, frames):
    plan = PLANS[name]
    result, denoise = sample(plan, frames=frames)
    assert [step.index for step in denoise.steps] == list(range(len(plan.steps)))
    sizes = [tuple(x.shape[-2:]) for x in denoise.inputs]
    assert sizes == [(step.height, step.width) for step in plan.steps]
    middle = () if frames is None else (frames,)
    assert result.x0.shape == (2, 3, *middle, *plan.final_hw)
    assert len(result.stage_x0) == len(plan.stages)
    assert torch.isfinite(result.x0).all()


@pytest.mark.parametrize("rule", ["exact", "mix", "fresh"])
@pytest.mark.parametrize("name", PLANS)
def test_cascade_equals_the_sampler_written_out(name, rule):
    plan, boundary = PLANS[name], Boundary("bilinear", rule, 0.4)
    result, _ = sample(plan, eta=0.7, boundary=boundary)
    expected, estimates = written_out(plan, (2, 3), 7, boundary, 0.7, ToyDenoiser(plan.curve))
    torch.testing.assert_close(result.x0, expected, rtol=0, atol=1e-5)
    stage_ends = [max(step.index for step in plan.steps if step.stage == stage.index) for stage in plan.stages]
    for got, index in zip(result.stage_x0, stage_ends, strict=True):
        torch.testing.assert_close(got, estimates[index], rtol=0, atol=1e-5)


# Invariant 25
@pytest.mark.parametrize("name", PLANS)
def test_training_trajectory_is_the_sampler_bit_for_bit(name):
    plan, boundary = PLANS[name], Boundary("bicubic", "exact", 0.5)
    _, denoise = sample(plan, boundary=boundary)
    runner = DenoiserRunner(ToyDenoiser(plan.curve), eta=0.5)
    visits = list(trajectory(plan, runner, shape=(2, 3), noise=SeededNoise(7), boundary=boundary))
    assert [visit.step for visit in visits] == denoise.steps
    for visit, x in zip(visits, denoise.inputs, strict=True):
        assert torch.equal(visit.x, x)
        assert visit.x.dtype == torch.float32


@pytest.mark.parametrize("stop", range(4))
def test_trajectory_calls_the_network_only_before_the_step_it_yields(stop):
    denoise = ToyDenoiser()
    runner = DenoiserRunner(denoise, eta=0.5)
    for visit in trajectory(make_plan(), runner, shape=(2, 3), noise=SeededNoise(7), boundary=Boundary()):
        if visit.step.index == stop:
            break
    assert len(denoise.steps) == stop


@pytest.mark.parametrize("frames", [None, 2])
@pytest.mark.parametrize("rule", ["exact", "mix", "fresh"])
@pytest.mark.parametrize("name", ["2+2 sdxl", "1+1+2", "2+0+2"])
def test_an_item_does_not_depend_on_its_batch(name, rule, frames):
    plan, boundary = PLANS[name], Boundary("bicubic", rule, 0.5)
    whole, _ = sample(plan, batch=3, frames=frames, boundary=boundary)
    alone, _ = sample(plan, batch=1, frames=frames, boundary=boundary)
    third, _ = sample(plan, batch=1, frames=frames, boundary=boundary, noise=SeededNoise(7, items=[2]))
    assert torch.equal(whole.x0[:1], alone.x0)
    assert torch.equal(whole.x0[2:], third.x0)


def test_global_random_state_is_untouched():
    before = torch.random.get_rng_state()
    sample(make_plan())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_draw_has_its_own_address():
    class Listing(SeededNoise):
        def __init__(self):
            super().__init__(7)
            self.addresses = []

        def sample(self, stage, purpose, shape):
            self.addresses.append((stage, purpose))
            return super().sample(stage, purpose, shape)

    noise = Listing()
    sample(PLANS["1+1+2"], noise=noise)
    assert len(set(noise.addresses)) == len(noise.addresses)
    assert set(noise.addresses) == {
        (0, "start"), (1, "switch"), (1, "switch-low"), (2, "switch"), (2, "switch-low"), (2, "step-0")
    }  # fmt: skip


# Invariants 24 and 25
@pytest.mark.parametrize("curve", [FLOW3, SDXL])
@pytest.mark.parametrize("part", ["x0", "eps"])
def test_the_network_gets_the_level_of_its_state(curve, part):
    """An impulse in x0 alone must arrive as alpha, an impulse in eps alone as sigma, of that step."""
    plan = make_plan("2+2", sizes=((4, 4), (8, 8)), curve=curve)
    calls = []

    def denoise(x, step):
        calls.append((step, x))
        impulse = torch.ones_like(x)
        return (impulse, 0 * impulse) if part == "x0" else (0 * impulse, impulse)

    sample(plan, eta=1.0, denoise=denoise, boundary=Boundary("nearest", "mix", 1.0))
    for step, x in calls[1:]:
        alpha = curve.alpha(step.sigma)
        expected = alpha if part == "x0" else step.sigma
        torch.testing.assert_close(x, torch.full_like(x, expected))
        assert step.timestep == pytest.approx(curve.timestep(step.sigma), abs=1e-6)


# Invariant 13
def test_the_last_estimate_is_returned_as_it_is_without_noise():
    estimates = []

    def denoise(x, step):
        estimates.append(torch.full_like(x, step.index + 1.0))
        return estimates[-1], x

    result, _ = sample(make_plan(), denoise=denoise)
    assert torch.equal(result.x0, estimates[-1])
    assert torch.equal(result.stage_x0[0], estimates[1])
    assert result.stage_x0[-1] is result.x0


# Invariant 21
def test_no_graph_is_recorded():
    weight = torch.tensor(0.5, requires_grad=True)

    def denoise(x, step):
        return weight * x, x

    result, _ = sample(make_plan(), denoise=denoise)
    assert not result.x0.requires_grad
    runner = DenoiserRunner(denoise, eta=0.5)
    for visit in trajectory(make_plan(), runner, shape=(2, 3), noise=SeededNoise(7), boundary=Boundary()):
        assert not visit.x.requires_grad
        assert torch.is_grad_enabled()  # the consumer's own forward on a yielded state may record one


@pytest.mark.parametrize(("name", "pure"), [("2+2 sdxl", True), ("2+2 sdxl from 899", False), ("1+3", True)])
def test_first_state_is_what_comfyui_makes(name, pure):
    """ComfyUI works in x0 + s eps: noise sqrt(1 + s^2) at its noisiest level, s noise below; times alpha here."""
    plan = PLANS[name]
    _, denoise = sample(plan)
    noise = SeededNoise(7).sample(0, "start", tuple(denoise.inputs[0].shape))
    sigma = plan.steps[0].sigma
    if plan.curve.kind == "flow":
        expected = sigma * noise
    else:
        s = plan.curve.comfy_sigma(sigma)
        expected = plan.curve.alpha(sigma) * (sqrt(1 + s * s) if pure else s) * noise
    torch.testing.assert_close(denoise.inputs[0], expected)
    assert torch.equal(denoise.inputs[0], noise) == pure


def test_a_foreign_stage_runner_gets_all_it_needs():
    plan = make_plan(mapping=NoMap())
    jobs = []

    def run_stage(job):
        jobs.append(job)
        return StageEnd(torch.ones_like(job.noise), None)

    boundary = Boundary("nearest", "fresh")
    result = run_cascade(plan, run_stage, shape=(2, 3), noise=SeededNoise(7), boundary=boundary)
    assert jobs[0].x0 is None and jobs[0].noise.shape == (2, 3, *LOW)
    assert torch.equal(jobs[1].x0, torch.ones(2, 3, *HIGH))
    assert torch.equal(jobs[1].noise, SeededNoise(7).sample(1, "switch", (2, 3, *HIGH)))
    assert [step.index for step in jobs[1].steps] == [2, 3]
    for job in jobs:
        assert torch.equal(job.fresh("step-0", (2, 3)), SeededNoise(7).sample(job.stage.index, "step-0", (2, 3)))
    assert len({SeededNoise(7).seed(0, "sampler"), SeededNoise(7).seed(1, "sampler"), 7}) == 3
    assert torch.equal(result.x0, torch.ones(2, 3, *HIGH))


def test_bad_runners_and_shapes_are_named():
    plan = make_plan()

    def run(run_stage, shape=(2, 3)):
        run_cascade(plan, run_stage, shape=shape, noise=SeededNoise(7), boundary=Boundary("nearest", "exact", 0.5))

    with pytest.raises(RMDError, match=r"stage 1 returned x0 of shape \(2, 3, 1, 1\)"):
        run(lambda job: StageEnd(torch.zeros(2, 3, 1, 1), None))
    with pytest.raises(RMDError, match="no predicted noise"):
        run(lambda job: StageEnd(job.noise, None))
    with pytest.raises(RMDError, match="without height and width"):
        run(DenoiserRunner(ToyDenoiser(), eta=0.5), shape=(2, 3, 4, 4))
    with pytest.raises(RMDError, match="eta"):
        DenoiserRunner(ToyDenoiser(), eta=1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_has_the_dtype_of_the_runner(dtype):
    denoise = ToyDenoiser()
    runner = DenoiserRunner(lambda x, step: tuple(part.half() for part in denoise(x, step)), eta=0.5, dtype=dtype)
    result = run_cascade(make_plan(), runner, shape=(2, 3), noise=SeededNoise(7), boundary=Boundary())
    assert all(x.dtype == dtype for x in denoise.inputs)
    assert result.x0.dtype == dtype

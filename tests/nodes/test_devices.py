"""No float64 on any device but the CPU: MPS and most XPUs have none."""

import pytest
import torch

from cascade_rig import SEED, TINY
from rmd_core.boundary import SWITCH_NOISES, UPSAMPLERS, Boundary
from rmd_core.cascade import DenoiserRunner, run_cascade
from rmd_core.noise import SeededNoise
from rmd_core.plan import plan_from_split
from rmd_core.schedule import AreaMap, FlowCurve, VPCurve


class Elsewhere(torch.Tensor):
    """A tensor that stands for one on an accelerator: what is made from it stays there until it moves to the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        to_cpu = func is torch.Tensor.to and "cpu" in map(str, (*args[1:], *(kwargs or {}).values()))
        if func is torch.Tensor.cpu or to_cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError(f"{func.__name__} made float64 on an accelerator")
        return result


def elsewhere(tensor):
    return tensor.as_subclass(Elsewhere)


def test_the_stand_in_refuses_float64_until_it_is_on_the_cpu():
    value = elsewhere(torch.ones(2))
    with pytest.raises(TypeError, match="float64"):
        value.double()
    with pytest.raises(TypeError, match="float64"):
        value.to(torch.float64).cpu()
    assert value.cpu().double().dtype == torch.float64


@pytest.mark.parametrize("name", TINY)
def test_a_loaded_model_is_read(nodes, tiny, name):
    patcher = tiny(name).patcher.clone()
    sampling = patcher.get_model_object("model_sampling")
    kept = sampling.sigmas
    try:
        sampling.sigmas = elsewhere(kept)
        view = nodes.pack.nodes.bridge.model.ModelView.of(patcher)
    finally:
        sampling.sigmas = kept
    assert view == nodes.pack.nodes.bridge.model.ModelView.of(patcher)


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_a_switch_by_hand(nodes, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name])
    sigmas, width, height = nodes("RMD_StageSigmas", plan=plan, stage=1)
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    latent = model.latent(height // 8, width // 8)
    guider = nodes.guider(model)
    output, denoised = nodes.by_core(noise, guider, nodes("RMD_StepSampler", eta=0.5)[0], sigmas, latent)
    for part in (output, denoised):
        part["samples"] = elsewhere(part["samples"])
    following = plan.stage_plan.stages[1]
    wires = {"width": 8 * following.width, "height": 8 * following.height, "model": model.patcher, "noise": noise}
    nodes("RMD_StageUpscale", output=output, denoised_output=denoised, sigmas=elsewhere(sigmas), plan=plan, **wires)


@pytest.mark.parametrize("rule", SWITCH_NOISES)
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_every_rule_of_the_switch(rule, upsampler):
    x0, eps = (elsewhere(torch.randn(1, 2, 4, 4)) for _ in range(2))
    made = Boundary(upsampler, rule, 0.5).switch(x0, eps, (6, 8), SeededNoise(SEED).of_stage(1))
    assert all(part.dtype == torch.float32 for part in made)


@pytest.mark.parametrize("curve", [FlowCurve(3.0), VPCurve.scaled_linear(0.00085, 0.012)], ids=["flow", "vp"])
def test_the_native_cascade(curve):
    plan = plan_from_split(curve, "2+2", sizes=((4, 4), (8, 8)), mapping=AreaMap())
    runner = DenoiserRunner(lambda x, step: (elsewhere(0.5 * x), elsewhere(x)), eta=0.5)
    run_cascade(plan, runner, shape=(1, 2), noise=SeededNoise(SEED), boundary=Boundary())

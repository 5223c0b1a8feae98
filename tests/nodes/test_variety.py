"""The sampler nodes among other nodes: the guider form with masks and guidance, other noise tables, other guiders."""

import pytest
import torch

from cascade_rig import SEED, TINY, Recorder, relative
from demo import files

SIZES = ((8, 8), (16, 16))


@pytest.fixture
def core(comfy):
    """Core's sampling nodes."""
    import comfy_extras.nodes_custom_sampler

    return comfy_extras.nodes_custom_sampler


def source(model, batch=1):
    latent = model.latent(16, 16, batch=batch)
    generator = torch.Generator().manual_seed(2)
    return torch.randn(latent["samples"].shape, generator=generator) + 0.3


def left_half():
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1.0
    return mask


CASES = {
    "inpainting": ({"noise_mask": left_half()}, 1.0),
    "guidance": ({}, 2.5),
    "batch index": ({"batch_index": [4, 1]}, 1.0),
    "all": ({"noise_mask": left_half(), "batch_index": [4, 1]}, 2.5),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_the_guider_form_is_rmd_sampler_with(nodes, core, tiny, name, case):
    model, (extra, cfg) = tiny(name), CASES[case]
    plan = nodes.plan(model, sizes=SIZES, cfg=cfg)
    latent = {"samples": source(model, len(extra.get("batch_index", [0]))), **extra}
    negative = None if cfg == 1.0 else model.conditioning(2)
    expected = nodes.sample(model, plan, latent=latent, negative=negative, cfg=cfg)
    if negative is None:
        (guider,) = core.BasicGuider.execute(model.patcher, model.conditioning(1)).args
    else:
        (guider,) = core.CFGGuider.execute(model.patcher, model.conditioning(1), negative, cfg).args
    cascade, sigmas = nodes("RMD_Guider", guider=guider, plan=plan)
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    output, _ = core.SamplerCustomAdvanced.execute(noise, cascade, sampler, sigmas, latent).args
    assert torch.equal(output["samples"], expected["samples"])
    assert output.keys() == expected.keys()


def with_sampling(model, kind, zsnr=False):
    """A MODEL under another noise rule, as core's ModelSamplingDiscrete node makes it."""
    import comfy_extras.nodes_model_advanced as advanced

    (patched,) = advanced.ModelSamplingDiscrete().patch(model.patcher, kind, zsnr)
    return patched


@pytest.mark.parametrize(("kind", "zsnr"), [("lcm", False), ("v_prediction", True), ("eps", True)])
def test_other_tables_of_noise_run_and_start_at_their_own_level(nodes, tiny, kind, zsnr):
    from dataclasses import replace

    model = tiny("sdxl_v" if kind == "v_prediction" else "sdxl")
    patched = with_sampling(model, kind, zsnr)
    plan = nodes.plan(replace(model, patcher=patched), sizes=SIZES)
    recorder = Recorder()
    out = nodes.sample(model, plan, patcher=recorder.watch(patched))["samples"]
    sigma_max = float(patched.get_model_object("model_sampling").sigma_max)
    assert recorder.calls[0].sigma == pytest.approx(sigma_max, rel=1e-4)
    assert recorder.calls[2].sigma < sigma_max
    assert torch.isfinite(out).all()
    assert torch.equal(nodes.sample(model, plan, patcher=patched)["samples"], out)


def test_a_plan_of_one_table_is_refused_on_another(nodes, tiny, pack):
    model = tiny("sdxl")
    with pytest.raises(pack.rmd_core.errors.RMDError, match="the plan was made for"):
        nodes.sample(model, nodes.plan(model, sizes=SIZES), patcher=with_sampling(model, "eps", zsnr=True))


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_the_loaders_shift_does_not_matter(nodes, tiny, shift):
    import comfy_extras.nodes_model_advanced as advanced

    model = tiny("sd3")
    (shifted,) = advanced.ModelSamplingSD3().patch(model.patcher, shift)
    plan = nodes.plan(model, sizes=SIZES)
    assert torch.equal(nodes.sample(model, plan, patcher=shifted)["samples"], nodes.sample(model, plan)["samples"])


def test_guiders_of_three_conditionings(nodes, core, tiny):
    model = tiny("sdxl")
    plan = nodes.plan(model, sizes=SIZES)
    (guider,) = core.DualCFGGuider.execute(
        model.patcher, model.conditioning(1), model.conditioning(2), model.conditioning(3), 2.0, 1.5, "regular"
    ).args
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    run = {"sampler": sampler, "plan": plan, "latent_image": model.latent(16, 16), "noise_seed": SEED}
    output, _ = nodes("RMD_SamplerAdvanced", guider=guider, **run)
    assert torch.isfinite(output["samples"]).all()
    assert relative(output["samples"], nodes.sample(model, plan)["samples"]) > 1e-3


def test_prompts_of_different_length_and_a_batch_of_them(nodes, tiny):
    model = tiny("sdxl")
    plan = nodes.plan(model, sizes=SIZES, cfg=2.0)
    positive, negative = model.conditioning(1, tokens=8), model.conditioning(2, tokens=4)
    latent = model.latent(16, 16, batch=2)
    out = nodes.sample(model, plan, positive=positive, negative=negative, cfg=2.0, latent=latent)["samples"]
    alone = nodes.sample(model, plan, positive=positive, negative=negative, cfg=2.0)["samples"]
    assert relative(alone[0], out[0]) <= 1e-5


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_any_seed_of_the_widget(nodes, core, tiny, seed):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=SIZES)
    expected = nodes.sample(model, plan, seed=seed)["samples"]
    (guider,) = core.BasicGuider.execute(model.patcher, model.conditioning(1)).args
    run = {"plan": plan, "latent_image": model.latent(16, 16), "noise_seed": seed, "guider": guider}
    for name in ("lcm", "euler_ancestral"):  # these seed generators of their own
        (sampler,) = core.KSamplerSelect.execute(name).args
        assert torch.isfinite(nodes("RMD_SamplerAdvanced", sampler=sampler, **run)[0]["samples"]).all()
    cascade, sigmas = nodes("RMD_Guider", guider=guider, plan=plan)
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    noise = core.RandomNoise.execute(seed).args[0]
    output, _ = core.SamplerCustomAdvanced.execute(noise, cascade, sampler, sigmas, model.latent(16, 16)).args
    assert torch.equal(output["samples"], expected)


@pytest.mark.parametrize("name", TINY)
def test_one_stage_is_core_sampling(nodes, core, tiny, name):
    """A plan of one stage at eta 1 is what core's euler makes of the same noise."""
    model = tiny(name)
    plan = nodes.plan(model, sizes=(TINY[name][1],), split="4", eta=1.0)
    (guider,) = core.BasicGuider.execute(model.patcher, model.conditioning(1)).args
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    (sampler,) = core.KSamplerSelect.execute("euler").args
    sigmas, width, height = nodes("RMD_StageSigmas", plan=plan, stage=1)
    latent = model.latent(height // 8, width // 8)
    output, _ = core.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args
    assert relative(nodes.sample(model, plan)["samples"], output["samples"]) <= 1e-5


def test_a_student_in_fp8_samples(nodes):
    def sampled(weight_dtype):
        kind = {"kind": "full model", "student": files.STUDENT.name, "weight_dtype": weight_dtype}
        model, recipe, _ = nodes("RMD_LoadStudent", kind=kind)
        (positive,) = nodes("RMD_LoadPromptEmbeddings", file=files.PROMPTS.name, prompt="apple noto on-blue")
        source = {"source": "student recipe", "recipe": recipe}
        plan, *_ = nodes("RMD_Schedule", model=model, width=128, height=128, source=source)
        latent = {"samples": torch.zeros(1, 16, 1, 16, 16)}
        run = {"model": model, "positive": positive, "latent_image": latent, "plan": plan, "seed": SEED, "cfg": 1.0}
        return nodes("RMD_Sampler", **run)[0]["samples"]

    exact, rough = sampled("default"), sampled("fp8_e4m3fn")
    assert torch.isfinite(rough).all()
    assert 0.0 < ((rough - exact).norm() / exact.norm()).item() < 0.3

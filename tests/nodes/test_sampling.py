"""The cascade: the states a network receives against the method, and every way to run it against the others."""

import itertools
import random
from dataclasses import replace

import numpy
import pytest
import torch

from cascade_rig import (
    SEED,
    SHIFT,
    TINY,
    HandBuilt,
    Recorder,
    alpha_sigma,
    fresh_noise,
    is_flow,
    predicted_noise,
    relative,
)
from comfy_models import tiny_sdxl, tiny_wan
from demo import files
from rmd_core.boundary import Boundary, step_noise, upsample
from rmd_core.cascade import DenoiserRunner, run_cascade
from rmd_core.noise import SeededNoise
from rmd_core.noising import guide
from rmd_core.plan import plan_from_split
from rmd_core.recipe import read_recipe
from rmd_core.schedule import AreaMap, FlowCurve, curve_from_dict
from training.backbones import make_backbone
from training.prompts import PromptCache
from training.sample import sample_latents

PARITY = 5e-6  # of the largest value; 2e-7 to 1.5e-6 measured
PROMPT = "apple noto on-blue"


def native_plan(name, model_plan):
    """The same plan made by the installed core."""
    curve = FlowCurve(SHIFT) if model_plan.stage_plan.curve.kind == "flow" else None
    curve = curve or curve_from_dict(model_plan.stage_plan.curve.as_dict())
    return plan_from_split(curve, "2+2", sizes=TINY[name], mapping=AreaMap())


def native_samples(model, plan, arguments, *, eta, batch=1, items=None, cfg=1.0):
    """The cascade by the core's runner, with one `apply_model` of the ComfyUI model a call.

    ``arguments``: for each size of latent, what the network is given beside state and level, a list of one
    (positive) or two (positive, negative).
    """
    network = model.patcher.model

    def denoise(x, step):
        alpha, sigma = plan.curve.alpha(step.sigma), plan.curve.comfy_sigma(step.sigma)
        state = x if plan.curve.kind == "flow" else x / alpha
        seen = torch.full((len(x),), sigma, dtype=torch.float32)
        answers = [network.apply_model(state, seen, **c) for c in arguments[(step.height, step.width)]]
        x0 = guide(answers[0], answers[-1] if len(answers) > 1 else None, cfg)
        if plan.curve.kind == "flow":
            return x0, (x - alpha * x0) / step.sigma
        return x0, (state - x0) / sigma

    shape = (batch, model.channels, 1) if model.video else (batch, model.channels)
    with torch.no_grad():
        end = run_cascade(
            plan,
            DenoiserRunner(denoise, eta=eta),
            shape=shape,
            noise=SeededNoise(SEED, items),
            boundary=Boundary(),
        )
        return network.process_latent_out(end.x0)


def given_by_size(recorder):
    """What the network was given beside state and level in each size, less ComfyUI's own bookkeeping."""
    return {
        size: [{key: value for key, value in call.conditioning.items() if key != "transformer_options"}]
        for size, call in zip(recorder.sizes, recorder.calls)
    }


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", TINY)
def test_the_cores_runner_gives_the_same_latents(nodes, tiny, name, eta):
    model, recorder = tiny(name), Recorder()
    plan = nodes.plan(model, sizes=TINY[name], eta=eta)
    out = nodes.sample(model, plan, patcher=recorder.watch(model.patcher))["samples"]
    expected = native_samples(model, native_plan(name, plan), given_by_size(recorder), eta=eta)
    assert out.shape == expected.shape
    assert relative(out, expected) <= PARITY


def test_guidance_is_the_cores_guidance(nodes, tiny):
    for name in ("wan", "sdxl"):
        model = tiny(name)
        plan, arguments = nodes.plan(model, sizes=TINY[name], cfg=2.5), {}
        for prompt in (1, 2):
            recorder = Recorder()
            nodes.sample(model, plan, patcher=recorder.watch(model.patcher), positive=model.conditioning(prompt))
            for size, seen in given_by_size(recorder).items():
                arguments.setdefault(size, []).extend(seen)
        out = nodes.sample(model, plan, negative=model.conditioning(2), cfg=2.5)["samples"]
        expected = native_samples(model, native_plan(name, plan), arguments, eta=0.5, cfg=2.5)
        assert relative(out, expected) <= PARITY


def test_the_trainers_sampler_gives_the_same_latents_of_the_shipped_student(nodes):
    """Files, recipe, prompts, schedule and sampler: the diffusers class in training against the nodes in ComfyUI."""
    recipe = read_recipe(files.STUDENT)
    backbone = make_backbone("wan", shift=recipe.curve.shift)
    expected = sample_latents(
        backbone,
        backbone.load(files.STUDENT, dtype=torch.float32),
        recipe.plan(),
        conditioning=backbone.conditioning(PromptCache(files.PROMPTS), [PROMPT]),
        noise=SeededNoise(SEED),
        boundary=recipe.boundary(),
        eta=recipe.eta,
    ).x0

    model, read, _ = nodes(
        "RMD_LoadStudent", kind={"kind": "full model", "student": files.STUDENT.name, "weight_dtype": "default"}
    )
    (positive,) = nodes("RMD_LoadPromptEmbeddings", file=files.PROMPTS.name, prompt=PROMPT)
    plan, _, _, cfg, width, height, *_ = nodes(
        "RMD_Schedule", model=model, width=128, height=128, source={"source": "student recipe", "recipe": read}
    )
    assert (cfg, width, height) == (recipe.cfg, 128, 128)
    (out,) = nodes(
        "RMD_Sampler",
        model=model,
        positive=positive,
        latent_image={"samples": torch.zeros(1, 16, 16, 16)},
        plan=plan,
        seed=SEED,
        cfg=cfg,
    )
    got = model.model.process_latent_in(out["samples"])
    assert got.shape == expected.shape == (1, 16, 1, 16, 16)
    assert relative(got, expected) <= PARITY


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_the_advanced_sampler_is_rmd_sampler_and_shows_every_stage(nodes, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name])
    output, stages = nodes.advanced(model, plan)
    assert torch.equal(output["samples"], nodes.sample(model, plan)["samples"])
    assert [tuple(stage["samples"].shape[-2:]) for stage in stages] == list(TINY[name])
    assert relative(stages[-1]["samples"], output["samples"]) <= 1e-6


@pytest.mark.parametrize("name", TINY)
def test_the_same_seed_gives_the_same_bits(nodes, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name])
    first = nodes.sample(model, plan)["samples"]
    other = nodes.sample(model, plan, seed=SEED + 1)["samples"]
    assert torch.equal(nodes.sample(model, plan)["samples"], first)
    assert relative(other, first) > 0.01


@pytest.mark.parametrize("name", ["wan", "sd3", "sdxl"])
def test_an_item_depends_neither_on_its_batch_nor_on_its_place(nodes, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name])
    size = plan.stage_plan.final_hw
    whole = nodes.sample(model, plan, latent=model.latent(*size, batch=3))["samples"]
    alone = nodes.sample(model, plan)["samples"]
    chosen = nodes.sample(model, plan, latent=model.latent(*size, batch=2, batch_index=[2, 0]))["samples"]
    assert relative(alone[0], whole[0]) <= PARITY
    assert relative(chosen[0], whole[2]) <= PARITY
    assert relative(chosen[1], whole[0]) <= PARITY
    assert relative(whole[1], whole[0]) > 0.1


def test_noise_of_different_steps_and_stages_is_uncorrelated(nodes, tiny):
    """All fresh noise, read back from the states: number by number, and place by place in the image."""
    model, recorder = tiny("wan"), Recorder()
    plan = nodes.plan(model, sizes=((16, 16), (32, 32)), switch_noise="fresh", eta=0.0)
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher))
    noises = [recorder.calls[0].x]
    for before, call in zip(recorder.calls, recorder.calls[1:]):
        alpha, sigma = alpha_sigma(plan, call.sigma)
        noises.append((call.x - alpha * upsample(before.x0, tuple(call.x.shape[-2:]), "nearest")) / sigma)
    for one, other in itertools.combinations(noises, 2):
        count = one.numel()
        by_number = other.flatten()[:count]
        by_place = upsample(one, tuple(other.shape[-2:]), "nearest").flatten()
        for pair in ((one.flatten(), by_number), (by_place, other.flatten())):
            assert torch.corrcoef(torch.stack(pair))[0, 1].abs() < 4.0 / count**0.5


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_global_random_state_stays_untouched(nodes, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name])
    torch.manual_seed(77)
    before = torch.get_rng_state(), random.getstate(), str(numpy.random.get_state())
    nodes.sample(model, plan)
    HandBuilt(nodes, model, plan).run()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(numpy.random.get_state())) == before[1:]


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_what_comes_in_is_not_changed(nodes, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name], size_conditioning="stage")
    positive = model.conditioning(1, area=(8, 6, 2, 2), strength=1.0, width=128, height=96)
    latent = model.latent(*plan.stage_plan.final_hw, batch_index=[1], noise_mask=torch.ones(1, 12, 16))
    latent["samples"] = latent["samples"] + 0.5
    weights = {key: value.clone() for key, value in model.patcher.model.state_dict().items()}
    options = str(model.patcher.model_options)
    samples, prompt = latent["samples"].clone(), positive[0][0].clone()
    values = {key: value.clone() if torch.is_tensor(value) else value for key, value in positive[0][1].items()}
    out = nodes.sample(model, plan, latent=latent, positive=positive)
    assert torch.equal(latent["samples"], samples) and set(latent) == {"samples", "batch_index", "noise_mask"}
    assert latent["batch_index"] == [1] and out is not latent
    assert torch.equal(positive[0][0], prompt) and positive[0][1].keys() == values.keys()
    for key, value in values.items():
        assert torch.equal(positive[0][1][key], value) if torch.is_tensor(value) else positive[0][1][key] == value
    assert str(model.patcher.model_options) == options
    assert all(torch.equal(value, weights[key]) for key, value in model.patcher.model.state_dict().items())


RULES = {
    "default": {},
    "all predicted": {"eta_switch": 1.0},
    "mix": {"upsampler": "bilinear", "switch_noise": "mix", "eta_switch": 0.9},
    "fresh": {"upsampler": "nearest", "switch_noise": "fresh"},
}


def expected_states(plan, calls):
    """(image, noise) parts of the state of every call, by the formula, from the recorded call before it."""
    rule = Boundary(plan.boundary.upsampler, plan.boundary.switch_noise, plan.boundary.eta_switch)
    before = None
    for step, call in zip(plan.stage_plan.steps, calls, strict=True):
        alpha, sigma = alpha_sigma(plan, call.sigma)
        if before is None:
            noise = fresh_noise(call.x.shape, 0, "start")
            yield 0.0 * noise, noise if is_flow(plan) else noise * (1.0 + sigma**2) ** 0.5
        elif step.index_in_stage == 0:
            switched = rule.switch(
                before.x0,  # float32: torch's kernels place their samples in the precision of what they enlarge
                predicted_noise(plan, before),
                (step.height, step.width),
                lambda purpose, shape, stage=step.stage: fresh_noise(shape, stage, purpose),
            )
            yield alpha * switched.x0, sigma * switched.noise
        else:
            fresh = fresh_noise(call.x.shape, step.stage, f"step-{step.index_in_stage - 1}")
            yield alpha * before.x0.double(), sigma * step_noise(predicted_noise(plan, before), plan.eta, fresh)
        before = call


def assert_states_follow_the_formula(nodes, model, plan):
    recorder = Recorder()
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher))
    steps = plan.stage_plan.steps
    assert recorder.sizes == [(step.height, step.width) for step in steps]
    for step, call, (image, noise) in zip(steps, recorder.calls, expected_states(plan, recorder.calls), strict=True):
        assert call.sigma == pytest.approx(plan.stage_plan.curve.comfy_sigma(step.sigma), rel=1e-6)
        error = (call.x.double() - (image + noise)).abs().max()
        assert error <= (1e-6 if is_flow(plan) else 1e-6 * (image.abs() + noise.abs()).max())


@pytest.mark.parametrize("name", TINY)
def test_every_state_is_the_formulas(nodes, tiny, name):
    model = tiny(name)
    assert_states_follow_the_formula(nodes, model, nodes.plan(model, sizes=TINY[name]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_every_rule_of_the_boundary(nodes, tiny, name, rule):
    model = tiny(name)
    assert_states_follow_the_formula(nodes, model, nodes.plan(model, sizes=TINY[name], **RULES[rule]))


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_a_stage_of_equal_size_is_an_ordinary_step(nodes, tiny, name):
    """A plan cut in two at one size, such as to change the model, is the plan in one."""
    model, size = tiny(name), TINY[name][1]
    for eta in (1.0, 0.5):
        one, two = (
            nodes.plan(model, sizes=(size,) * len(split.split("+")), split=split, eta=eta, eta_switch=0.25)
            for split in ("4", "2+2")
        )
        whole, cut = nodes.sample(model, one)["samples"], nodes.sample(model, two)["samples"]
        graph, (noise,) = HandBuilt(nodes, model, two), nodes("RMD_Noise", noise_seed=SEED)
        latent, noise = graph.upscale(1, *graph.stage(1, noise), noise, plan=two)
        assert relative(graph.stage(2, noise, latent)[0]["samples"], cut) <= PARITY
        assert (relative(cut, whole) <= PARITY) == (eta == 1.0)  # below 1 the fresh noise is another
        recorder = Recorder()
        nodes.sample(model, two, patcher=recorder.watch(model.patcher))
        before, call = recorder.calls[1:3]
        alpha, sigma = alpha_sigma(two, call.sigma)
        fresh = fresh_noise(call.x.shape, 1, "switch-low")
        expected = alpha * before.x0.double() + sigma * step_noise(predicted_noise(two, before), eta, fresh)
        assert relative(call.x, expected) <= PARITY


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
    sigmas = [step.sigma for step in plan.stage_plan.steps]
    assert sigmas == list(plan.stage_plan.curve.grid(4))
    assert_states_follow_the_formula(nodes, model, plan)


def test_a_video_crosses_frame_by_frame(nodes, tiny):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=TINY["wan"])
    recorder = Recorder()
    latent = model.latent(*plan.stage_plan.final_hw, frames=3)
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher), latent=latent)
    for call, (image, noise) in zip(recorder.calls, expected_states(plan, recorder.calls), strict=True):
        assert call.x.shape[2] == 3
        assert (call.x.double() - (image + noise)).abs().max() <= 1e-6


def test_the_latent_that_comes_out_is_the_last_clean_estimate(nodes, tiny):
    for name, sizes in TINY.items():
        model, recorder = tiny(name), Recorder()
        out = nodes.sample(model, nodes.plan(model, sizes=sizes), patcher=recorder.watch(model.patcher))
        expected = model.patcher.model.process_latent_out(recorder.calls[-1].x0)
        assert out["samples"].dtype == torch.float32
        assert relative(out["samples"], expected) <= 1e-6


def switched_by_hand(plan, calls):
    """The first state of the second stage out of the last network call at the first one's last level."""
    sizes = [stage.size for stage in plan.stage_plan.stages]
    last = plan.sigmas(plan.stage_plan.stages[0])[-2]
    before = [call for call in calls if tuple(call.x.shape[-2:]) == sizes[0] and call.sigma >= 0.999 * last][-1]
    rule = Boundary(plan.boundary.upsampler, plan.boundary.switch_noise, plan.boundary.eta_switch)
    fresh = SeededNoise(SEED).of_stage(1)
    x0, noise = rule.switch(before.x0, predicted_noise(plan, before), sizes[1], fresh)
    alpha, sigma = alpha_sigma(plan, plan.sigmas(plan.stage_plan.stages[1])[0])
    return alpha * x0 + sigma * noise


def of_the_positive(call):
    """The part of a call that is for the positive prompt; samplers along the negative ask for both at once."""
    row = call.conditioning["transformer_options"]["cond_or_uncond"].index(0)
    return replace(call, x=call.x[row : row + 1], x0=call.x0[row : row + 1])


@pytest.mark.parametrize("make", [tiny_wan, tiny_sdxl])
def test_the_predicted_noise_of_every_sampler_is_the_networks(comfy, nodes, make, caplog):
    """Whatever a sampler shows in its callback: what crosses is what the network was given and made of it."""
    model = make()
    plan = nodes.plan(model, sizes=((8, 8), (16, 16)), split="2+1", eta_switch=0.9)
    names = set(comfy.samplers.SAMPLER_NAMES) - set(nodes.pack.nodes.bridge.sampling.OWN_STEPS)
    samplers = [comfy.samplers.sampler_object(name) for name in sorted(names)]
    churned, euler = comfy.samplers.ksampler("euler", {"s_churn": 0.5}), comfy.samplers.sampler_object("euler")
    samplers.append(churned)  # it churns the first state of the second stage, too
    usual = {"boundary": "as in the plan"}
    negative = {"positive": model.conditioning(1), "negative": model.conditioning(2)}
    for sampler in samplers:
        recorder = Recorder()
        guider = nodes.guider(model, patcher=recorder.watch(model.patcher))
        guider.inner_set_conds(negative)
        overrides = nodes("RMD_StageOverride", stage=2, boundary=usual, sampler=euler)[0] if sampler is churned else ()
        nodes.advanced(model, plan, sampler=sampler, guider=guider, overrides=overrides)
        calls = [of_the_positive(call) for call in recorder.calls]
        first = next(call for call in calls if tuple(call.x.shape[-2:]) == (16, 16))
        assert relative(first.x, switched_by_hand(plan, calls)) <= PARITY, sampler.sampler_function
    assert "fresh noise" not in caplog.text


def test_a_sampler_that_calls_at_other_levels_starts_the_next_stage_with_fresh_noise(comfy, nodes, tiny, caplog):
    def far_off(model, x, sigmas, extra_args=None, callback=None, disable=None):
        x0 = model(x, sigmas[-2] * 0.5 * x.new_ones(len(x)), **extra_args)
        for step in range(len(sigmas) - 1):
            callback({"x": x, "denoised": x0, "i": step})
        return x0

    class Foreign(comfy.samplers.Sampler):
        def sample(self, *arguments):
            return comfy.samplers.sampler_object("euler").sample(*arguments)

    model = tiny("sdxl")
    plan = nodes.plan(model, sizes=TINY["sdxl"], switch_noise="mix")
    for sampler in (comfy.samplers.KSAMPLER(far_off), Foreign()):
        caplog.clear()
        recorder = Recorder()
        guider = nodes.guider(model, patcher=recorder.watch(model.patcher))
        nodes.advanced(model, plan, sampler=sampler, guider=guider)
        assert sum("stage 2 starts with fresh noise" in record.getMessage() for record in caplog.records) == 1
        first = next(at for at, call in enumerate(recorder.calls) if call.x.shape[-2:] == TINY["sdxl"][1])
        sigma = plan.sigmas(plan.stage_plan.stages[1])[0]
        image = upsample(recorder.calls[first - 1].x0, TINY["sdxl"][1], "nearest")
        noise = fresh_noise(recorder.calls[first].x.shape, 1, "switch")
        assert relative(recorder.calls[first].x, image + sigma * noise) <= PARITY


def test_every_sampler_is_known_by_the_name_that_comfyui_lists(comfy, pack):
    """A ddim SAMPLER is euler's; dpm_fast and dpm_adaptive are wrapped; all others carry their name."""
    names = {
        name: pack.nodes.bridge.sampling.sampler_name(comfy.samplers.sampler_object(name))
        for name in (comfy.samplers.SAMPLER_NAMES)
    }
    assert {name: found for name, found in names.items() if name != found} == {"ddim": "euler"}


def test_our_sampler_records_no_graph(pack, tiny):
    """Also where a caller did not turn gradients off, such as a script of one's own."""
    patcher, weight = tiny("wan").patcher, torch.ones(1, requires_grad=True)

    class Network:
        inner_model = type("Guider", (), {"model_patcher": patcher})

        def __call__(self, x, sigma):
            return weight * x

    x = torch.ones(1, 16, 1, 4, 4)
    out = pack.nodes.bridge.sampling.sample_rmd(Network(), x, torch.tensor([1.0, 0.5, 0.0]), disable=True, eta=0.5)
    assert not out.requires_grad


def test_rmd_sampler_takes_the_samplers_of_comfyui(nodes, tiny, refused):
    model = tiny("sdxl")
    plan = nodes.plan(model, sizes=TINY["sdxl"])
    wires = {"model": model.patcher, "positive": model.conditioning(1), "latent_image": model.latent(16, 16)}
    wires |= {"plan": plan, "seed": SEED, "cfg": 1.0}
    by_default = nodes("RMD_Sampler", **wires)[0]["samples"]
    assert torch.equal(nodes("RMD_Sampler", **wires, sampler_name="rmd")[0]["samples"], by_default)
    for name in ("heun", "dpmpp_2m"):
        out = nodes("RMD_Sampler", **wires, sampler_name=name)[0]["samples"]
        assert torch.equal(out, nodes.advanced(model, plan, sampler=name)[0]["samples"])
        assert not torch.equal(out, by_default)
    refused(lambda: nodes("RMD_Sampler", **wires, sampler_name="unheard of"), "'unheard of' is unknown")


def test_rmd_guider_refuses_the_sigmas_of_another_plan(nodes, tiny, refused):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=TINY["wan"])
    cascade, sigmas = nodes("RMD_Guider", guider=nodes.guider(model), plan=plan)
    (noise,), (sampler,) = nodes("RMD_Noise", noise_seed=SEED), nodes("RMD_StepSampler", eta=0.5)
    latent = model.latent(*TINY["wan"][1])
    nodes.by_core(noise, cascade, sampler, sigmas, latent)
    for other in (sigmas[1:], 0.9 * sigmas):
        refused(
            lambda other=other: nodes.by_core(noise, cascade, sampler, other, latent), "sigmas output of RMD Guider"
        )

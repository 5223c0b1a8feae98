"""One cascade, several ways to run it: RMD Sampler against the core's own runner, the trainer and hand-built graphs."""

import itertools
import random

import numpy
import pytest
import torch

from cascade_rig import SEED, SHIFT, TINY, Recorder, alpha_sigma, relative
from demo import files
from rmd_core.boundary import Boundary, upsample
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


@pytest.fixture
def core(comfy):
    """Core's sampling nodes."""
    import comfy_extras.nodes_custom_sampler

    return comfy_extras.nodes_custom_sampler


def advanced(core, noise, guider, sampler, sigmas, latent):
    """(output, denoised_output) of core's SamplerCustomAdvanced."""
    return core.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args


def basic_guider(core, model):
    return core.BasicGuider.execute(model.patcher, model.conditioning(1)).args[0]


def native_plan(name, model_plan):
    """The same plan made by the installed core."""
    curve = FlowCurve(SHIFT) if model_plan.stages.curve.kind == "flow" else None
    curve = curve or curve_from_dict(model_plan.stages.curve.as_dict())
    return plan_from_split(curve, "2+2", sizes=TINY[name], mapping=AreaMap())


def native_samples(model, plan, arguments, *, eta, batch=1, items=None, cfg=1.0):
    """The cascade by the core's runner, with one `apply_model` of the ComfyUI model a call.

    ``arguments``: for each size of latent, what the network is told beside state and level, a list of one
    (positive) or two (positive, negative).
    """
    network = model.patcher.model

    def denoise(x, step):
        alpha, sigma = plan.curve.alpha(step.sigma), plan.curve.comfy_sigma(step.sigma)
        state = x if plan.curve.kind == "flow" else x / alpha
        told = torch.full((len(x),), sigma, dtype=torch.float32)
        answers = [network.apply_model(state, told, **c) for c in arguments[(step.height, step.width)]]
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


def told_by_size(recorder):
    """What the network was told beside state and level in each size, less ComfyUI's own bookkeeping."""
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
    expected = native_samples(model, native_plan(name, plan), told_by_size(recorder), eta=eta)
    assert out.shape == expected.shape
    assert relative(out, expected) <= PARITY


def test_guidance_is_the_cores_guidance(nodes, tiny):
    for name in ("wan", "sdxl"):
        model = tiny(name)
        plan, arguments = nodes.plan(model, sizes=TINY[name], cfg=2.5), {}
        for prompt in (1, 2):
            recorder = Recorder()
            nodes.sample(model, plan, patcher=recorder.watch(model.patcher), positive=model.conditioning(prompt))
            for size, told in told_by_size(recorder).items():
                arguments.setdefault(size, []).extend(told)
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
    plan, _, _, cfg, width, height = nodes(
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
def test_the_guider_form_is_rmd_sampler_bit_for_bit(nodes, core, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name])
    guider, sigmas = nodes("RMD_Guider", guider=basic_guider(core, model), plan=plan)
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    latent = model.latent(*plan.stages.final_hw)
    output, denoised = advanced(core, noise, guider, sampler, sigmas, latent)
    expected = nodes.sample(model, plan)["samples"]
    assert torch.equal(output["samples"], expected)
    assert relative(denoised["samples"], expected) <= 1e-6
    assert len(sigmas) == 5 and sigmas[-1] == 0


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_a_plain_seed_in_the_guider_form_is_that_seed(nodes, core, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name])
    guider, sigmas = nodes("RMD_Guider", guider=basic_guider(core, model), plan=plan)
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    noise = core.RandomNoise.execute(SEED).args[0]
    output, _ = advanced(core, noise, guider, sampler, sigmas, model.latent(*plan.stages.final_hw))
    assert torch.equal(output["samples"], nodes.sample(model, plan)["samples"])


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_the_advanced_sampler_is_rmd_sampler_and_shows_every_stage(nodes, core, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name])
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    output, stages = nodes(
        "RMD_SamplerAdvanced",
        guider=basic_guider(core, model),
        sampler=sampler,
        plan=plan,
        latent_image=model.latent(*plan.stages.final_hw),
        noise_seed=SEED,
    )
    assert torch.equal(output["samples"], nodes.sample(model, plan)["samples"])
    assert [tuple(stage["samples"].shape[-2:]) for stage in stages] == list(TINY[name])
    assert relative(stages[-1]["samples"], output["samples"]) <= 1e-6


def hand_built(nodes, core, model, plan, *, seed=SEED, batch=1, extra=None):
    """The latent of a graph of Stage Sigmas, SamplerCustomAdvanced and Stage Upscale, one of each a stage."""
    (noise,) = nodes("RMD_Noise", noise_seed=seed)
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    guider, output, denoised, sigmas = basic_guider(core, model), None, None, None
    for stage in range(1, len(plan.stages.stages) + 1):
        following, width, height = nodes("RMD_StageSigmas", plan=plan, stage=stage)
        if output is None:
            latent = model.latent(height // 8, width // 8, batch=batch, **(extra or {}))
        else:
            latent, noise = nodes(
                "RMD_StageUpscale",
                output=output,
                denoised_output=denoised,
                sigmas=sigmas,
                model=model.patcher,
                noise=noise,
                width=width,
                height=height,
                upsampler=plan.boundary.upsampler,
                switch_noise=plan.boundary.switch_noise,
                eta_switch=plan.boundary.eta_switch,
            )
        sigmas = following
        output, denoised = advanced(core, noise, guider, sampler, sigmas, latent)
    return output


@pytest.mark.parametrize("name", TINY)
def test_a_hand_built_graph_is_rmd_sampler(nodes, core, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name])
    out = hand_built(nodes, core, model, plan)["samples"]
    assert relative(out, nodes.sample(model, plan)["samples"]) <= PARITY


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_a_hand_built_graph_of_three_stages_with_a_batch_index(nodes, core, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=((6, 6), (9, 10), (12, 14)), split="1+2+1")
    out = hand_built(nodes, core, model, plan, batch=2, extra={"batch_index": [3, 8]})
    latent = model.latent(12, 14, batch=2, batch_index=[3, 8])
    expected = nodes.sample(model, plan, latent=latent)
    assert relative(out["samples"], expected["samples"]) <= PARITY
    assert out["batch_index"] == expected["batch_index"] == [3, 8]


def test_one_noise_node_may_start_two_hand_built_graphs(nodes, core, tiny):
    """What the first sampler's items were must not reach the second: the LATENT says which items it holds."""
    model = tiny("wan")
    plan = nodes.plan(model, sizes=TINY["wan"])
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    sigmas, width, height = nodes("RMD_StageSigmas", plan=plan, stage=1)
    made = []
    for extra in ({}, {"batch_index": [4]}):
        latent = model.latent(height // 8, width // 8, **extra)
        made.append(advanced(core, noise, basic_guider(core, model), sampler, sigmas, latent))
    crossed = []
    for output, denoised in made:
        _, white = nodes(
            "RMD_StageUpscale",
            output=output,
            denoised_output=denoised,
            sigmas=sigmas,
            model=model.patcher,
            noise=noise,
            width=128,
            height=96,
            upsampler="bicubic",
            switch_noise="fresh",
            eta_switch=0.5,
        )
        crossed.append(white.generate_noise({"samples": torch.zeros(1, 16, 1, 12, 16)}))
    for white, items in zip(crossed, (None, (4,))):
        assert torch.equal(white, SeededNoise(SEED, items).draw((1, 16, 1, 12, 16), 1, "switch"))


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
    size = plan.stages.final_hw
    whole = nodes.sample(model, plan, latent=model.latent(*size, batch=3))["samples"]
    alone = nodes.sample(model, plan)["samples"]
    chosen = nodes.sample(model, plan, latent=model.latent(*size, batch=2, batch_index=[2, 0]))["samples"]
    assert relative(alone[0], whole[0]) <= PARITY
    assert relative(chosen[0], whole[2]) <= PARITY
    assert relative(chosen[1], whole[0]) <= PARITY
    assert relative(whole[1], whole[0]) > 0.1


def test_noise_of_different_steps_and_stages_is_uncorrelated(nodes, tiny):
    """All fresh noise, read back from the states: number by number, and place by place in the picture."""
    model, recorder = tiny("wan"), Recorder()
    plan = nodes.plan(model, sizes=((16, 16), (32, 32)), switch_noise="fresh", eta=0.0)
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher))
    drawn = [recorder.calls[0].x]
    for before, call in zip(recorder.calls, recorder.calls[1:]):
        alpha, sigma = alpha_sigma(plan, call.sigma)
        drawn.append((call.x - alpha * upsample(before.x0, tuple(call.x.shape[-2:]), "nearest")) / sigma)
    for one, other in itertools.combinations(drawn, 2):
        count = one.numel()
        by_number = other.flatten()[:count]
        by_place = upsample(one, tuple(other.shape[-2:]), "nearest").flatten()
        for pair in ((one.flatten(), by_number), (by_place, other.flatten())):
            assert torch.corrcoef(torch.stack(pair))[0, 1].abs() < 4.0 / count**0.5


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_global_random_state_stays_untouched(nodes, core, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name])
    torch.manual_seed(77)
    before = torch.get_rng_state(), random.getstate(), str(numpy.random.get_state())
    nodes.sample(model, plan)
    hand_built(nodes, core, model, plan)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(numpy.random.get_state())) == before[1:]


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_what_comes_in_is_not_changed(nodes, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name], size_conditioning="stage")
    positive = model.conditioning(1, area=(8, 6, 2, 2), strength=1.0, width=128, height=96)
    latent = model.latent(*plan.stages.final_hw, batch_index=[1], noise_mask=torch.ones(1, 12, 16))
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

"""RMD Schedule on the sigmas of core's schedulers: levels of the final size, exact there and mapped before it."""

import math

import pytest
import torch

import zoo
from cascade_rig import SEED, Recorder
from schedule_rig import Schedules, by_sigmas, by_split, pixel_sizes

SIZE = (256, 192)


@pytest.fixture
def plan(pack, tiny):
    return Schedules(pack, tiny).plan


@pytest.fixture
def refused(pack, tiny):
    return Schedules(pack, tiny).refused


def basic(patcher, steps, scheduler="simple", denoise=1.0):
    """Core's BasicScheduler."""
    from comfy_extras.nodes_custom_sampler import BasicScheduler

    return BasicScheduler.execute(patcher, scheduler, steps, denoise).args[0]


def levels(plan):
    """ComfyUI's sigmas of all steps, float32."""
    return torch.tensor([sigma for stage in plan.stage_plan.stages for sigma in plan.sigmas(stage)[:-1]])


def plan_of(nodes, model, size, source):
    bridge = nodes.pack.nodes.bridge
    return bridge.plans.sampling_plan(bridge.model.ModelView.of(model.patcher), size, source)


@pytest.mark.parametrize("scheduler", ["simple", "karras", "beta", "normal"])
@pytest.mark.parametrize("name", ["wan", "sd3", "sdxl", "sdxl_v"])
def test_one_size_is_core_bit_for_bit(nodes, tiny, name, scheduler):
    model = tiny(name)
    sigmas = basic(model.patcher, 5, scheduler)
    made = plan_of(nodes, model, (12, 16), by_sigmas(sigmas, earlier_sizes=""))
    assert torch.equal(levels(made), sigmas[:-1]) and made.stage_plan.split == "5"
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    (sampler,) = nodes("RMD_StepSampler", eta=0.5, plan=made)
    core, _ = nodes.by_core(noise, nodes.guider(model), sampler, sigmas, model.latent(12, 16))
    assert torch.equal(nodes.sample(model, made)["samples"], core["samples"])


@pytest.mark.parametrize("name", ["CosmosT2IPredict2", "CogVideoX_T2V"])
def test_one_size_is_core_for_models_of_another_form(nodes, name):
    model, bridge = zoo.tiny_model(name), nodes.pack.nodes.bridge
    empty = bridge.latents.final_latent(model.patcher, zoo.empty_latent(name))
    sigmas = basic(model.patcher, 4)
    made = plan_of(nodes, model, tuple(empty["samples"].shape[-2:]), by_sigmas(sigmas, earlier_sizes=""))
    assert torch.equal(levels(made), sigmas[:-1])
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    (sampler,) = nodes("RMD_StepSampler", eta=0.5, plan=made)
    core, _ = nodes.by_core(noise, nodes.guider(model), sampler, sigmas, empty)
    assert torch.equal(nodes.sample(model, made, latent=empty)["samples"], core["samples"])


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_without_mapping_the_network_gets_the_given_levels(nodes, tiny, name):
    model, recorder = tiny(name), Recorder()
    sigmas = basic(model.patcher, 4, "beta")
    made = plan_of(nodes, model, (12, 16), by_sigmas(sigmas, "2+2", mapping="none"))
    nodes.sample(model, made, patcher=recorder.watch(model.patcher))
    assert [call.sigma for call in recorder.calls] == sigmas[:-1].tolist()
    assert recorder.sizes == [(6, 8), (6, 8), (12, 16), (12, 16)]


@pytest.mark.parametrize("name", ["wan", "ltxv", "qwen", "sdxl"])
def test_the_final_size_keeps_them_and_earlier_ones_are_mapped(plan, tiny, name):
    """By area, r = 2: half the sigma / alpha at the first size, and pure noise stays pure noise."""
    sigmas = basic(tiny(name).patcher, 6, "normal")
    made = plan(name, (512, 512), by_sigmas(sigmas, "3+3"))
    got, given = levels(made), sigmas[:-1]
    assert torch.equal(got[3:], given[3:])
    assert got[0].item() == pytest.approx(given[0].item(), rel=1e-6)  # LTXV's own is 1 but for the last digit
    if made.stage_plan.curve.kind == "flow":
        mapped = [sigma / (sigma + 2 * (1 - sigma)) for sigma in given[1:3].double().tolist()]
    else:
        mapped = (given[1:3] / 2).tolist()
    assert got[1:3].tolist() == pytest.approx(mapped, rel=1e-6)
    three = plan(name, (512, 512), by_sigmas(sigmas, "2+2+2", earlier_sizes="0.25, 0.5"))
    assert torch.equal(levels(three)[4:], given[4:])
    curve, steps = three.stage_plan.curve, three.stage_plan.steps[1:4]
    given = [curve.from_comfy_sigma(sigma) for sigma in given[1:4].tolist()]
    ratios = [curve.logsnr(step.sigma) - curve.logsnr(sigma) for step, sigma in zip(steps, given)]
    assert ratios == pytest.approx([2 * math.log(4), 2 * math.log(2), 2 * math.log(2)], abs=1e-5)


def test_sigmas_in_a_split_are_those_of_the_first_size(plan):
    """The text of the split names levels as the first size does, the socket as the final size does."""
    sigmas = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
    first = plan("qwen", (512, 512), by_split("2+2", "1, .9, .75, .5"))
    final = plan("qwen", (512, 512), by_sigmas(sigmas, "2+2"))
    assert levels(first).tolist() == pytest.approx([1, 0.9, 6 / 7, 2 / 3])
    assert levels(final).tolist() == pytest.approx([1, 9 / 11, 0.75, 0.5])


@pytest.mark.parametrize(("side", "expected"), [(512, [1, 0.9581, 0.884, 0.7175]), (1024, [1, 0.9674, 0.9081, 0.7672])])
def test_flux2_scheduler(nodes, side, expected):
    """Core computes its levels for the final size; mapped by area, the first half has twice the signal to noise."""
    from comfy_extras.nodes_flux import Flux2Scheduler

    sigmas = Flux2Scheduler.execute(4, side, side).args[0]
    assert sigmas[:-1].tolist() == pytest.approx(expected, abs=1e-4)
    model = zoo.tiny_model("Flux2")
    made = plan_of(nodes, model, (side // 16, side // 16), by_sigmas(sigmas))
    assert made.stage_plan.split == "2+2" and pixel_sizes(made)[0] == (side // 2, side // 2)
    second = expected[1] / (2 - expected[1])
    assert levels(made).tolist() == pytest.approx([1, second, *expected[2:]], abs=2e-4)
    assert torch.equal(levels(made)[2:], sigmas[2:4])


def test_manual_sigmas_and_ltxv(plan, tiny):
    from comfy_extras.nodes_custom_sampler import ManualSigmas
    from comfy_extras.nodes_lt import LTXVScheduler

    manual = ManualSigmas.execute("1.0, 0.75, 0.5").args[0]  # without a closing 0
    assert levels(plan("wan", SIZE, by_sigmas(manual, "1+2"))).tolist() == [1.0, 0.75, 0.5]
    own = LTXVScheduler.execute(8, 2.05, 0.95, True, 0.1).args[0]
    made = plan("ltxv", (512, 512), by_sigmas(own))
    assert made.stage_plan.split == "4+4" and torch.equal(levels(made)[4:], own[4:8])


@pytest.mark.parametrize(
    ("steps", "earlier", "split"),
    [(5, "0.5", "2+3"), (20, "0.5", "10+10"), (7, "0.25, 0.5", "2+2+3"), (1, "0.5", "0+1")],
)
def test_auto_shares_the_steps(plan, tiny, steps, earlier, split):
    sigmas = basic(tiny("sd3").patcher, steps)
    assert plan("sd3", (256, 256), by_sigmas(sigmas, " Auto ", earlier_sizes=earlier)).stage_plan.split == split


def test_a_threshold_is_the_split_it_makes(plan, tiny):
    sigmas = basic(tiny("sdxl").patcher, 8)
    made = plan("sdxl", (512, 512), by_sigmas(sigmas, thresholds="-2.5"))
    split = plan("sdxl", (512, 512), by_sigmas(sigmas, made.stage_plan.split))
    assert made.stage_plan == split.stage_plan and made.thresholds == (-2.5,)
    before, after = made.stage_plan.stages[0].base_sigmas[-1], made.stage_plan.stages[1].base_sigmas[0]
    assert made.stage_plan.curve.logsnr(before) < -2.5 <= made.stage_plan.curve.logsnr(after)


def test_sigmas_of_a_part_start_from_the_image(nodes, tiny, caplog):
    """BasicScheduler with denoise 0.5, at one size: core's image to image, bit for bit."""
    model = tiny("sdxl")
    sigmas = basic(model.patcher, 4, denoise=0.5)
    made = plan_of(nodes, model, (16, 16), by_sigmas(sigmas, earlier_sizes=""))
    assert any("below pure noise (14.61); the latent is the image" in note for note in made.notes)
    image = {"samples": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))}
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    (sampler,) = nodes("RMD_StepSampler", eta=0.5, plan=made)
    core, _ = nodes.by_core(noise, nodes.guider(model), sampler, sigmas, image)
    assert torch.equal(nodes.sample(model, made, latent=image)["samples"], core["samples"])
    nodes.sample(model, plan_of(nodes, model, (16, 16), by_sigmas(sigmas)))
    assert "the plan starts from an image, but the latent is empty" in caplog.text


def test_denoise_keeps_the_last_levels(plan, tiny):
    sigmas = basic(tiny("sdxl").patcher, 4, "karras")
    whole, part = (plan("sdxl", (512, 512), by_sigmas(sigmas), denoise=share) for share in (1.0, 0.75))
    assert part.stage_plan.split == "1+2" and torch.equal(levels(part), levels(whole)[1:])


def test_a_plan_knows_its_levels_before_the_mapping(nodes, tiny, caplog):
    """So a second model is not said to lose a step to the mapping that it does not have at the final size."""
    model, sigmas = tiny("wan"), torch.tensor([1.0, 0.9, 0.8, 0.5, 0.0])
    first = plan_of(nodes, model, (12, 16), by_split("2+2", "1, .9, .8, .5"))
    final = plan_of(nodes, model, (12, 16), by_sigmas(sigmas))
    for made in (first, final):
        given = [made.given_sigma(step) for step in made.stage_plan.steps]
        assert given == pytest.approx(sigmas[:-1].tolist(), rel=1e-6)
    wires = {"model": model.patcher, "positive": model.conditioning(1), "latent_image": model.latent(12, 16)}
    second = {"second_model": model.patcher, "second_model_sigma": 0.75}
    nodes("RMD_Sampler", plan=final, seed=SEED, **wires, **second)
    assert final.stage_plan.steps[2].base_sigma < 0.75 and "the mapping" not in caplog.text


@pytest.mark.parametrize(
    ("sigmas", "others", "message"),
    [
        ([1.0, 0.5, 0.75, 0.0], {}, "the sigmas are '1, 0.5, 0.75'; connect finite sigmas that fall"),
        ([1.0, 0.5, 0.5], {}, "connect finite sigmas that fall; only the last may be 0"),
        ([1.0, 0.5, -0.5], {}, "the sigmas are '1, 0.5, -0.5'"),
        ([1.0, 0.5, 0.0, 0.0], {}, "the sigmas are '1, 0.5, 0'"),
        ([1.0, math.nan, 0.5], {}, "connect a list of finite sigmas"),
        ([math.inf, 0.5], {}, "connect a list of finite sigmas"),
        ([], {}, "the SIGMAS have no level above 0"),
        ([0.0], {}, "the SIGMAS have no level above 0"),
        ([14.6, 5.0, 0.0], {}, "the first sigma is 14.6, above this model's largest, 1;"),
        ([1.0, 0.5, 0.0], {"split": "2+2"}, "the split 2+2 has 4 steps but there are 2 levels"),
        ([1.0, 0.5, 0.0], {"split": "1+1", "thresholds": "-2"}, "set split to auto, or leave thresholds empty"),
        ([1.0, 0.5, 0.0], {"split": "2+0"}, "no step runs at the final size"),
        ([1.0, 0.5, 0.0], {"thresholds": "-2, -1"}, "thresholds has 2 entries for 2 sizes"),
    ],
)
def test_sigmas_that_are_refused(refused, sigmas, others, message):
    assert message in refused("wan", SIZE, by_sigmas(torch.tensor(sigmas), **others))


def test_what_is_no_sigmas_is_refused(refused):
    assert "scheduler_sigmas is of type list" in refused("wan", SIZE, by_sigmas([1.0, 0.5]))
    assert "also needs scheduler_sigmas" in refused("wan", SIZE, by_sigmas(None))

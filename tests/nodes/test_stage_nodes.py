"""A cascade by hand: RMD Stage Sigmas, RMD Stage Upscale and RMD Noise with core's sampler nodes."""

from dataclasses import replace

import pytest
import torch

from cascade_rig import SEED, TINY, HandBuilt, Recorder, predicted_noise, relative
from rmd_core.noise import SeededNoise

SIZES = ((8, 8), (12, 12), (16, 16))
PARITY = 5e-6  # of the largest value; 2e-7 to 1.5e-6 measured


@pytest.fixture
def graph(nodes, tiny):
    model = tiny("wan")
    return HandBuilt(nodes, model, nodes.plan(model, sizes=SIZES, split="1+2+1", eta=0.2))


def first(graph):
    """What a graph's first stage puts out, and the NOISE it started from."""
    (noise,) = graph.nodes("RMD_Noise", noise_seed=SEED)
    return (*graph.stage(1, noise), noise)


@pytest.mark.parametrize("name", TINY)
def test_a_hand_built_graph_is_rmd_sampler(nodes, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name])
    out = HandBuilt(nodes, model, plan).run()["samples"]
    assert relative(out, nodes.sample(model, plan)["samples"]) <= PARITY


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_a_hand_built_graph_of_three_stages_with_a_batch_index(nodes, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=((6, 6), (9, 10), (12, 14)), split="1+2+1")
    out = HandBuilt(nodes, model, plan).run(batch=2, batch_index=[3, 8])
    expected = nodes.sample(model, plan, latent=model.latent(12, 14, batch=2, batch_index=[3, 8]))
    assert relative(out["samples"], expected["samples"]) <= PARITY
    assert out["batch_index"] == expected["batch_index"] == [3, 8]


def test_one_noise_node_may_start_two_hand_built_graphs(nodes, tiny):
    """What the first sampler's items were must not reach the second: the LATENT says which items it holds."""
    model = tiny("wan")
    graph = HandBuilt(nodes, model, nodes.plan(model, sizes=TINY["wan"], switch_noise="fresh"))
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    made = [graph.stage(1, noise, **extra) for extra in ({}, {"batch_index": [4]})]
    for (output, denoised), items in zip(made, (None, (4,))):
        latent, later = graph.upscale(1, output, denoised, noise)
        expected = SeededNoise(SEED, items).sample(1, "switch", (1, 16, 1, 12, 16))
        assert torch.equal(later.generate_noise(latent), expected)


def test_a_plan_decides_eta_and_boundary(nodes, graph):
    """The plan's own rule wins over what the widgets say."""
    output, denoised, noise = first(graph)
    other = {"upsampler": "bilinear", "switch_noise": "fresh", "eta_switch": 0.0, "plan": graph.plan}
    one, two = (graph.upscale(1, output, denoised, noise, **wires) for wires in ({}, other))
    assert torch.equal(one[0]["samples"], two[0]["samples"])
    assert torch.equal(one[1].generate_noise(one[0]), two[1].generate_noise(two[0]))
    out, expected = graph.run()["samples"], nodes.sample(graph.model, graph.plan)["samples"]
    assert graph.plan.eta == 0.2 and relative(out, expected) <= PARITY


def test_the_noise_of_another_stage_is_refused(graph, refused):
    output, denoised, noise = first(graph)
    latent, second = graph.upscale(1, output, denoised, noise)
    output, denoised = graph.stage(2, second, latent)
    refused(lambda: graph.upscale(2, output, denoised, noise), "that of stage 1, the output that of stage 2")


def test_wires_that_give_no_noise_are_refused(graph, refused):
    output, denoised, noise = first(graph)
    other = {"sigmas": torch.tensor([0.9, 0.05])}
    refused(lambda: graph.upscale(1, output, denoised, noise, **other), "deviation", "about 1", "sigmas")
    refused(lambda: graph.upscale(1, denoised, denoised, noise), "deviation")


def test_sizes_that_the_model_cannot_take(nodes, tiny, refused):
    model = tiny("sd3")
    noise = nodes("RMD_Noise", noise_seed=SEED)[0]
    latent = model.latent(8, 8)
    wires = dict(output=latent, denoised_output=latent, sigmas=torch.tensor([1.0, 0.5]), model=model.patcher)
    refused(lambda: nodes("RMD_StageUpscale", **wires, noise=noise, width=400, height=400), "position table")


SAMPLERS = ["dpmpp_2m", "dpmpp_3m_sde", "res_multistep", "ipndm", "deis", "heun", "euler_ancestral", "er_sde"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_the_noise_that_crosses_by_hand_is_the_networks_whatever_the_sampler(nodes, tiny, name, sampler, caplog):
    import comfy.samplers

    model, recorder = tiny(name), Recorder()
    plan = nodes.plan(model, sizes=((8, 8), (16, 16)), split="3+1", switch_noise="mix", eta_switch=1.0)
    graph = HandBuilt(nodes, model, plan)
    graph.sampler = comfy.samplers.sampler_object(sampler)
    graph.guider = nodes.guider(model, patcher=recorder.watch(model.patcher))
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    output, denoised = graph.stage(1, noise)
    latent, crossed = graph.upscale(1, output, denoised, noise)
    got = crossed.generate_noise(latent)[..., ::2, ::2]  # nearest, so every second cell
    last = plan.sigmas(plan.stage_plan.stages[0])[-2]
    expected = predicted_noise(plan, [call for call in recorder.calls if call.sigma > 0.99999 * last][-1])
    # An ancestral sampler replaces up to sqrt(2 * 0.0001) of the noise over the last step.
    stochastic = sampler in ("euler_ancestral", "dpmpp_3m_sde", "er_sde")
    assert (got - expected).std() <= (0.04 if stochastic else 0.001) * expected.std()
    assert "found only after" not in caplog.text


def test_a_long_last_step_is_warned_of(nodes, graph, caplog):
    output, denoised, noise = first(graph)
    graph.upscale(1, output, denoised, noise)
    assert "found only after" not in caplog.text
    sigmas, *_ = nodes("RMD_StageSigmas", plan=graph.plan, stage=1)
    sigmas[-1] = 0.9 * sigmas[-2]
    latent = graph.model.latent(8, 8)
    output, denoised = nodes.by_core(noise, graph.guider, graph.sampler, sigmas, latent)
    graph.upscale(1, output, denoised, noise, sigmas=sigmas)
    assert "found only after" in caplog.text


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
def test_each_stage_but_the_last_ends_just_below_its_last_level(nodes, plan_of, name):
    plan = plan_of(name)
    for stage in plan.stage_plan.stages:
        sigmas, width, height = nodes("RMD_StageSigmas", plan=plan, stage=stage.index + 1)
        assert (width, height) == (8 * stage.width, 8 * stage.height)
        assert sigmas.dtype == torch.float32 and sigmas.device.type == "cpu"
        assert torch.equal(sigmas[:-1], torch.tensor(plan.sigmas(stage)[:-1], dtype=torch.float32))
        if stage is plan.stage_plan.stages[-1]:
            assert sigmas[-1] == 0
            continue
        assert sigmas[-1].item() == pytest.approx(0.9999 * sigmas[-2].item(), rel=1e-6)
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
        plan.stage_plan.curve,
        "3+1",
        sizes=plan.stage_plan.sizes,
        mapping=plan.stage_plan.mapping,
        steps=(1.0, 0.9, 0.9 - 1e-9, 0.5),
    )
    with pytest.raises(
        core.errors.RMDError, match=r"the sigmas of stage 1, 1, 0.9, 0.9, 0.89991, do not fall; use fewer steps"
    ):
        nodes("RMD_StageSigmas", plan=replace(plan, stage_plan=close), stage=1)

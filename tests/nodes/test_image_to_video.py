"""Image to video: the start image of a smaller stage is the one that core encodes at that size."""

import pytest
import torch

from cascade_rig import SEED, Recorder, relative
from comfy_models import second_of, tiny_wan_vae

FRAMES = 5
SIZES = ((6, 8), (12, 16))


@pytest.fixture(scope="module")
def vae(comfy):
    return tiny_wan_vae()


def start(model, vae, size, seed=0, frames=FRAMES):
    """WanImageToVideo of core at a latent size: positive, negative and the empty latent."""
    from comfy_extras.nodes_wan import WanImageToVideo

    image = torch.rand(1, 150, 200, 3, generator=torch.Generator().manual_seed(seed))
    prompts, (height, width) = (model.conditioning(1), model.conditioning(2)), size
    return WanImageToVideo.execute(*prompts, vae, 8 * width, 8 * height, frames, 1, start_image=image).args


def record(nodes, model, vae, plan, *, small=(), **run):
    """The Recorder of RMD Sampler with the start image at the final size, and also at `small` sizes, and the result."""
    recorder = Recorder()
    positive, negative, latent = start(model, vae, plan.stage_plan.final_hw)
    own = {}
    for size in small:
        own["small_positive"], own["small_negative"], _ = start(model, vae, size)
    wires = {"model": recorder.watch(model.patcher), "positive": positive, "negative": negative, "plan": plan}
    (out,) = nodes("RMD_Sampler", **(wires | {"latent_image": latent, "seed": SEED, "cfg": 2.0} | own | run))
    return recorder, out["samples"]


def plain(nodes, model, vae, plan, stage=0, patcher=None):
    """The Recorder of core's own run at a stage's size, with its levels and the start image encoded there."""
    recorder, chosen = Recorder(), plan.stage_plan.stages[stage]
    positive, negative, latent = start(model, vae, chosen.size)
    guider = nodes.guider(model, patcher=recorder.watch(patcher or model.patcher), cfg=2.0)
    guider.set_conds(positive, negative)
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    nodes.by_core(noise, guider, sampler, torch.tensor(plan.sigmas(chosen)), latent)
    return recorder


def same(calls, others):
    return all(
        torch.equal(one.x, two.x)
        and torch.equal(one.x0, two.x0)
        and torch.equal(one.conditioning["c_concat"], two.conditioning["c_concat"])
        for one, two in zip(calls, others, strict=True)
    )


@pytest.mark.parametrize("name", ["wan_image", "wan22_image"])
def test_the_small_stage_is_a_plain_run_at_its_size(nodes, tiny, vae, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=SIZES, split="3+2")
    expected = plain(nodes, model, vae, plan).calls
    with_its_own, _ = record(nodes, model, vae, plan, small=SIZES[:1])
    averaged, _ = record(nodes, model, vae, plan)
    assert with_its_own.sizes == averaged.sizes == [SIZES[0]] * 3 + [SIZES[1]] * 2
    assert same(with_its_own.calls[:3], expected)
    difference = relative(averaged.calls[0].conditioning["c_concat"], expected[0].conditioning["c_concat"])
    assert difference > 0.01 and relative(averaged.calls[0].x0, expected[0].x0) > 1e-3
    assert torch.equal(with_its_own.calls[-1].conditioning["c_concat"], averaged.calls[-1].conditioning["c_concat"])


def test_with_two_models(nodes, tiny, vae):
    """Each model's calls at the small size are those of one core run that changes the model by hand."""
    model = tiny("wan22_image")
    second, late = second_of("wan22_image"), Recorder()
    plan = nodes.plan(model, sizes=SIZES, split="3+2")
    sigmas = plan.sigmas(plan.stage_plan.stages[0])
    sigma = 0.5 * (sigmas[1] + sigmas[2])
    early, out = record(
        nodes, model, vae, plan, small=SIZES[:1], second_model=late.watch(second.patcher), second_model_sigma=sigma
    )
    assert early.sizes == [SIZES[0]] * 2
    assert same(early.calls, plain(nodes, model, vae, plan).calls[:2])
    assert late.sizes == [SIZES[0]] + [SIZES[1]] * 2
    by_itself = plain(nodes, model, vae, plan, patcher=second.patcher).calls
    assert torch.equal(late.calls[0].conditioning["c_concat"], by_itself[2].conditioning["c_concat"])
    assert torch.isfinite(out).all()

    positive, negative, latent = start(model, vae, SIZES[1])
    small_positive, small_negative, _ = start(model, vae, SIZES[0])
    guiders = [nodes.guider(model, cfg=2.0) for _ in range(2)]
    for guider, prompts in zip(guiders, ((small_positive, small_negative), (positive, negative))):
        guider.set_conds(*prompts)
    by_guiders, _ = nodes.advanced(
        model,
        plan,
        guider=guiders[0],
        later_guider=guiders[1],
        latent=latent,
        second_model=second.patcher,
        second_model_sigma=sigma,
    )
    assert torch.equal(by_guiders["samples"], out)


def test_of_more_sizes_each_needs_its_own(nodes, tiny, vae, refused, caplog):
    model = tiny("wan22_image")
    sizes = (SIZES[0], (8, 12), SIZES[1])
    plan = nodes.plan(model, sizes=sizes, split="1+1+1", cfg=2.0)
    for given, named in ((sizes[0], ("64x48 px", "96x64 px")), (sizes[2], ("128x96 px", "64x48 px"))):
        refused(
            lambda given=given: record(nodes, model, vae, plan, small=[given]),
            *("small_positive", "small_width", "RMD Stage Override", *named),
        )
    overrides, expected = (), []
    for stage in (0, 1):
        guider = nodes.guider(model, cfg=2.0)
        guider.set_conds(*start(model, vae, sizes[stage])[:2])
        (overrides,) = nodes(
            "RMD_StageOverride",
            stage=stage + 1,
            boundary={"boundary": "as in the plan"},
            guider=guider,
            overrides=overrides,
        )
        expected.append(plain(nodes, model, vae, plan, stage).calls[0].conditioning["c_concat"])
    recorder = Recorder()
    positive, negative, latent = start(model, vae, sizes[2])
    guider = nodes.guider(model, cfg=2.0)
    guider.set_conds(positive, negative)
    for override in overrides:
        override.guider.model_patcher = recorder.watch(model.patcher)
        override.guider.model_options = override.guider.model_patcher.model_options
    nodes.advanced(model, plan, guider=guider, latent=latent, overrides=overrides)
    assert all(torch.equal(recorder.calls[s].conditioning["c_concat"], expected[s]) for s in (0, 1))
    assert not caplog.records


def test_a_negative_of_the_final_size_needs_none_of_its_own_without_guidance(nodes, tiny, vae):
    model = tiny("wan22_image")
    plan = nodes.plan(model, sizes=SIZES)
    small_positive, small_negative, _ = start(model, vae, SIZES[0])
    outs = [
        record(nodes, model, vae, plan, cfg=1.0, small_positive=small_positive, **negative)[1]
        for negative in ({}, {"small_negative": small_negative})
    ]
    assert torch.equal(*outs)


def test_at_one_size_it_is_not_used(nodes, tiny, vae, caplog):
    model = tiny("wan22_image")
    plan = nodes.plan(model, sizes=SIZES[1:], split="2", cfg=2.0)
    outs = [record(nodes, model, vae, plan, small=small)[1] for small in ((), SIZES[:1])]
    assert torch.equal(*outs)
    assert "small_positive" in caplog.text


def test_the_schedule_gives_the_small_size_in_pixels(nodes, tiny, vae):
    model = tiny("wan22_image")
    source = {"source": "split", "split": "1+1", "sigmas": "", "earlier_sizes": "0.6", "mapping": "auto"}
    source |= {"base_shift": 0.0, "method": "default"}
    plan, *_, small_width, small_height = nodes(
        "RMD_Schedule", model=model.patcher, width=160, height=96, source=source
    )
    assert (small_width, small_height) == (96, 64)  # whole patches of 16 px
    size = (small_height // 8, small_width // 8)
    recorder, _ = record(nodes, model, vae, plan, small=[size])
    assert recorder.sizes[0] == size == plan.stage_plan.stages[0].size

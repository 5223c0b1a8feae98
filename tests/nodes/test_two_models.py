"""A second model that takes over below a sigma, between two stages or inside one, against one model and core's own."""

from dataclasses import replace

import pytest
import torch

from cascade_rig import TINY, Recorder, relative
from comfy_models import second_of, tiny_wan


def levels(plan):
    """ComfyUI's sigmas of every stage's steps."""
    return [plan.sigmas(stage)[:-1] for stage in plan.stage_plan.stages]


def inside(plan, stage):
    """A sigma between the first two levels of a stage."""
    first, second = levels(plan)[stage][:2]
    return 0.5 * (first + second)


def pair(nodes, model, plan, sigma, *, patchers=None, **run):
    """RMD Sampler's samples with two models, the second below sigma; both the model itself unless `patchers` says."""
    first, second = patchers or (model.patcher, model.patcher.clone())
    (out,) = nodes(
        "RMD_Sampler",
        **{
            "model": first,
            "positive": model.conditioning(1),
            "latent_image": model.latent(*plan.stage_plan.final_hw),
            "plan": plan,
            "seed": 5,
            "cfg": 1.0,
            "second_model": second,
            "second_model_sigma": sigma,
        }
        | run,
    )
    return out["samples"]


@pytest.mark.parametrize("name", ["wan", "sdxl", "pixart"])
@pytest.mark.parametrize("stage", [0, 1])
def test_the_same_model_twice_is_one_model_bit_for_bit(nodes, tiny, name, stage):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY[name], split="3+3")
    assert torch.equal(pair(nodes, model, plan, inside(plan, stage)), nodes.sample(model, plan)["samples"])


def test_whatever_the_sampler_is(nodes, tiny, comfy):
    """State, history and random numbers go on: of multi-step samplers and of those with noise of their own too."""
    model = tiny("wan")
    plan = nodes.plan(model, sizes=((4, 4),), split="4")
    second = {"second_model": model.patcher.clone(), "second_model_sigma": sum(levels(plan)[0][1:3]) / 2}
    own_steps = nodes.pack.nodes.bridge.sampling.OWN_STEPS
    for sampler in comfy.samplers.SAMPLER_NAMES:
        if sampler in own_steps or sampler.endswith("_cfg_pp"):
            continue
        one, two = (nodes.advanced(model, plan, sampler=sampler, **models)[0]["samples"] for models in ({}, second))
        assert torch.equal(one, two), sampler


def test_with_guidance_a_mask_and_items_of_a_batch(nodes, tiny):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=TINY["wan"], split="3+3")
    height, width = plan.stage_plan.final_hw
    mask = torch.linspace(0.0, 1.0, height * width).reshape(1, height, width)
    latent = model.latent(height, width, batch=2, batch_index=[3, 7], noise_mask=mask)
    latent["samples"] = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(2))
    run = {"latent": latent, "cfg": 3.0, "negative": model.conditioning(2)}
    expected = nodes.sample(model, plan, **run)["samples"]
    run["latent_image"] = run.pop("latent")
    for stage in (0, 1):
        assert torch.equal(pair(nodes, model, plan, inside(plan, stage), **run), expected)


@pytest.mark.parametrize("name", ["wan", "sdxl"])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_it_is_two_samplers_of_core_with_leftover_noise(nodes, tiny, comfy, name, step):
    from comfy_extras.nodes_custom_sampler import DisableNoise, SplitSigmas

    model = tiny(name)
    second = second_of(name)
    plan = nodes.plan(model, sizes=TINY[name][1:], split="6")
    (sigmas,) = levels(plan)
    out = nodes.advanced(
        model,
        plan,
        sampler="euler",
        second_model=second.patcher,
        second_model_sigma=0.5 * (sigmas[step - 1] + sigmas[step]),
    )[0]["samples"]

    high, low = SplitSigmas.execute(torch.tensor([*sigmas, 0.0]), step).args
    (noise,) = nodes("RMD_Noise", noise_seed=5)
    euler = comfy.samplers.sampler_object("euler")
    latent = model.latent(*plan.stage_plan.final_hw)
    latent, _ = nodes.by_core(noise, nodes.guider(model), euler, high, latent)
    output, _ = nodes.by_core(*DisableNoise.execute().args, nodes.guider(second), euler, low, latent)
    assert relative(out, output["samples"]) < 1e-5
    for one in (model, second):
        assert relative(nodes.advanced(one, plan, sampler="euler")[0]["samples"], out) > 1e-2


def watch_both(tiny, name):
    """A Recorder of a model and of a second one, with their MODELs."""
    recorders = Recorder(), Recorder()
    return recorders, [one.watch(each.patcher) for one, each in zip(recorders, (tiny(name), second_of(name)))]


def test_the_experts_of_lightx2v_are_the_two_sizes(nodes, tiny, caplog):
    """Steps 1 and 2 at 1 and .9375, steps 3 and 4 at .8333 and .625: Wan2.2's own sigma, for text and for an image."""
    source = {"source": "split", "split": "2+2", "sigmas": "1, 0.9375, 0.8333, 0.625", "earlier_sizes": "0.5"}
    source |= {"mapping": "none", "base_shift": 5.0, "method": "default"}
    for name in ("wan", "wan22_image"):
        model = tiny(name)
        recorders, patchers = watch_both(tiny, name)
        plan, *_ = nodes("RMD_Schedule", model=model.patcher, width=128, height=96, source=source)
        pair(nodes, model, plan, 0.0, patchers=patchers)
        assert [[call.sigma for call in one.calls] for one in recorders] == [
            pytest.approx([1.0, 0.9375]),
            pytest.approx([0.8333, 0.625]),
        ]
        assert [one.sizes for one in recorders] == [[(6, 8)] * 2, [(12, 16)] * 2]
    assert not caplog.records


@pytest.mark.parametrize(("name", "sigma"), [("wan", 0.875), ("wan22_image", 0.9)])
def test_a_step_at_the_sigma_itself_is_the_first_models(nodes, tiny, name, sigma):
    model = tiny(name)
    plan = nodes.plan(model, sizes=TINY["wan"][1:], split="3")
    curve, core = plan.stage_plan.curve, nodes.pack.rmd_core
    for level, calls in ((sigma, [2, 1]), (sigma - 1e-4, [1, 2])):
        stages = core.plan.plan_from_split(
            curve, "3", sizes=TINY["wan"][1:], mapping=core.schedule.NoMap(), steps=[1.0, level, 0.5]
        )
        recorders, patchers = watch_both(tiny, name)
        pair(nodes, model, replace(plan, stage_plan=stages), 0.0, patchers=patchers)
        assert [len(one.calls) for one in recorders] == calls


def test_each_call_is_made_by_the_model_of_its_level(nodes, tiny):
    """Heun asks for the end of a step, too; a stage that the mapping lifts is the first model's again."""
    model = tiny("wan")
    plan = nodes.plan(model, sizes=TINY["wan"], split="3+3")
    small, large = levels(plan)
    for sigma in (inside(plan, 0), inside(plan, 1), 0.5 * (small[-1] + large[0])):
        recorders, patchers = watch_both(tiny, "wan")
        nodes.advanced(
            model,
            plan,
            sampler="heun",
            guider=nodes.guider(model, patcher=patchers[0]),
            second_model=patchers[1],
            second_model_sigma=sigma,
        )
        assert all(call.sigma > sigma for call in recorders[0].calls)
        assert all(call.sigma < sigma for call in recorders[1].calls)
        assert len(recorders[0].calls) + len(recorders[1].calls) == 10


def test_a_lora_stays_on_its_own_model(nodes, tiny, comfy):
    model = tiny("wan")
    generator = torch.Generator().manual_seed(3)
    lora = {
        "diffusion_model.head.head.lora_up.weight": torch.randn(64, 2, generator=generator),
        "diffusion_model.head.head.lora_down.weight": torch.randn(2, 48, generator=generator) * 0.1,
    }
    plan = nodes.plan(model, sizes=TINY["wan"], split="3+3")
    patched, _ = comfy.sd.load_lora_for_models(model.patcher, None, lora, 1.0, 0.0)
    sigma, plain = inside(plan, 1), nodes.sample(model, plan)["samples"]
    outs = [
        pair(nodes, model, plan, sigma, patchers=both) for both in ((patched, model.patcher), (model.patcher, patched))
    ]
    assert all(relative(out, plain) > 1e-3 for out in outs) and relative(*outs) > 1e-3

    second = tiny_wan()  # the same change as weights of its own
    with torch.no_grad():
        weight = second.patcher.model.diffusion_model.head.head.weight
        weight += lora["diffusion_model.head.head.lora_up.weight"] @ lora["diffusion_model.head.head.lora_down.weight"]
    merged = pair(nodes, model, plan, sigma, patchers=(model.patcher, second.patcher))
    assert relative(outs[1], merged) < 1e-5


def test_one_model_is_left_before_the_other_is_loaded(nodes, tiny, comfy):
    """Core loads each inside its OUTER_SAMPLE: none of these runs inside another, so core may unload the first."""
    model, events = tiny("wan"), []

    def logged(patcher, name):
        def outer_sample(executor, *arguments, **options):
            events.append(f"{name} begins")
            result = executor(*arguments, **options)
            events.append(f"{name} ends")
            return result

        copy = patcher.clone()
        copy.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "test", outer_sample)
        return copy

    plan = nodes.plan(model, sizes=TINY["wan"], split="3+3")
    patchers = logged(model.patcher, "first"), logged(second_of("wan").patcher, "second")
    pair(nodes, model, plan, inside(plan, 0), patchers=patchers)
    runs = ["first", "second", "second"]
    assert events == [f"{name} {event}" for name in runs for event in ("begins", "ends")]


def test_progress_counts_over_the_whole_plan(nodes, tiny, comfy, progress, monkeypatch):
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    model = tiny("wan")
    plan = nodes.plan(model, sizes=((6, 5), (9, 8)), split="3+2")
    pair(nodes, model, plan, inside(plan, 0), patchers=(model.patcher, second_of("wan").patcher))
    assert [event[:2] for event in progress] == [(step, 5) for step in range(1, 6)]
    assert [preview[1].size for _, _, preview in progress] == [(5, 6)] * 3 + [(8, 9)] * 2


def test_with_guiders_and_samplers_of_single_stages(nodes, tiny, comfy):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=((4, 4), (6, 6), (8, 8)), split="2+3+2")
    own = {"boundary": "own", "upsampler": "bicubic", "switch_noise": "fresh", "eta_switch": 0.0}
    (overrides,) = nodes(
        "RMD_StageOverride",
        stage=2,
        boundary=own,
        sampler=comfy.samplers.sampler_object("lcm"),
        guider=nodes.guider(model, positive=model.conditioning(3)),
    )
    run = {"overrides": overrides, "later_guider": nodes.guider(model, positive=model.conditioning(2))}
    expected = nodes.advanced(model, plan, **run)
    second = {"second_model": model.patcher.clone(), "second_model_sigma": inside(plan, 1)}
    output, stages = nodes.advanced(model, plan, **run, **second)
    assert torch.equal(output["samples"], expected[0]["samples"])
    assert all(torch.equal(one["samples"], two["samples"]) for one, two in zip(stages, expected[1]))

    second["second_model"] = second_of("wan").patcher
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    guider, sigmas = nodes("RMD_Guider", guider=nodes.guider(model), plan=plan, **run, **second)
    (noise,) = nodes("RMD_Noise", noise_seed=5)
    inside_core, _ = nodes.by_core(noise, guider, sampler, sigmas, model.latent(8, 8))
    output, _ = nodes.advanced(model, plan, **run, **second)
    assert torch.equal(inside_core["samples"], output["samples"])
    assert relative(output["samples"], expected[0]["samples"]) > 1e-2


def test_a_lora_of_hooks_is_the_second_models_too(nodes, tiny, comfy):
    import comfy.hooks

    model = tiny("wan")
    plan = nodes.plan(model, sizes=TINY["wan"], split="3+3")
    lora = {
        "diffusion_model.head.head.lora_up.weight": torch.ones(64, 2),
        "diffusion_model.head.head.lora_down.weight": torch.full((2, 48), 0.05),
    }
    hooked = comfy.hooks.set_hooks_for_conditioning(model.conditioning(1), comfy.hooks.create_hook_lora(lora, 1.0, 0.0))
    expected = nodes.sample(model, plan, positive=hooked)["samples"]
    assert torch.equal(pair(nodes, model, plan, inside(plan, 1), positive=hooked), expected)
    assert relative(expected, nodes.sample(model, plan)["samples"]) > 1e-3


def test_warnings_name_steps_that_the_mapping_gives_to_the_first_model(nodes, tiny, caplog):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=TINY["wan"], split="2+2")
    base, lifted = plan.stage_plan.steps[2].base_sigma, plan.stage_plan.steps[2].sigma
    assert base < lifted
    pair(nodes, model, plan, 0.5 * (base + lifted))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "step 3" in warning and f"{base:.4g}" in warning and f"{lifted:.4g}" in warning
    caplog.clear()
    pair(nodes, model, plan, 0.01)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "second model is not used" in warning


def test_what_is_refused(nodes, tiny, comfy, refused):
    wan = tiny("wan")
    plan = nodes.plan(wan, sizes=TINY["wan"], split="3+3")

    def run(second, sigma):
        return lambda: pair(nodes, wan, plan, sigma, patchers=(wan.patcher, tiny(second).patcher))

    refused(run("wan22_image", 0.0), "16 channels", "36", "image to video")
    refused(run("sd3", inside(plan, 0)), "SD3", "WAN21")
    sdxl = tiny("sdxl")
    its_plan = nodes.plan(sdxl, sizes=TINY["sdxl"], split="3+3")
    refused(lambda: pair(nodes, sdxl, its_plan, 0.0), "SDXL", "second_model_sigma")

    second = {"second_model": wan.patcher, "second_model_sigma": inside(plan, 0)}
    guider = nodes.guider(wan)
    guider.set_conds(wan.conditioning(1), wan.conditioning(2))
    refused(
        lambda: nodes.advanced(wan, plan, sampler="euler_cfg_pp", guider=guider, **second),
        *("euler_cfg_pp", "inside stage 1"),
    )
    whole = comfy.samplers.Sampler()
    refused(lambda: nodes.advanced(wan, plan, sampler=whole, **second), "stage 1", "Sampler")

    generator = torch.Generator().manual_seed(1)

    def sample_by_itself(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for index, sigma in enumerate(sigmas[:-1]):
            x0 = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
            callback({"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})
            x = x0 + sigmas[index + 1] * torch.randn(x.shape, generator=generator)
        return x

    sampler = comfy.samplers.KSAMPLER(sample_by_itself)
    refused(lambda: nodes.advanced(wan, plan, sampler=sampler, **second), "sample_by_itself", "same seed")

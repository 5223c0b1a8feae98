"""RMD Sampler as a citizen of ComfyUI: patches, masks, pictures to start from, interruption, progress, latents."""

import pytest
import torch
import torch.nn.functional as F

from cascade_rig import SEED, TINY, Recorder, alpha_sigma, fresh_noise, relative

SIZES = ((8, 8), (16, 16))


def lora_of(weight_name, out, inner, seed=3):
    """A LoRA of rank 2 for one matrix, and the change that it makes to it."""
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(out, 2, generator=generator), torch.randn(2, inner, generator=generator) * 0.1
    return {f"{weight_name}.lora_up.weight": up, f"{weight_name}.lora_down.weight": down}, up @ down


def tail_plan(nodes, model, steps, split):
    """A plan that leaves out the first of the curve's steps, as denoise below 1 does."""
    from dataclasses import replace

    core = nodes.pack.rmd_core
    whole = nodes.plan(model, sizes=SIZES)
    curve = whole.stages.curve
    stages = core.plan.plan_from_split(
        curve, split, sizes=SIZES, mapping=core.schedule.AreaMap(), steps=curve.grid(steps)[1:]
    )
    return replace(whole, stages=stages)


def picture(model, seed=2, side=16):
    """A LATENT that holds something, in ComfyUI's space."""
    latent = model.latent(side, side)
    values = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(seed))
    return {"samples": 2.0 * values + 0.3}


def test_a_lora_acts_like_its_matrix_and_leaves_the_weights(nodes, tiny, comfy):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=TINY["wan"])
    plain = nodes.sample(model, plan)["samples"]
    lora, change = lora_of("diffusion_model.head.head", 64, 48)
    patched, _ = comfy.sd.load_lora_for_models(model.patcher, None, lora, 0.7, 0.0)
    out = nodes.sample(model, plan, patcher=patched)["samples"]
    assert relative(out, plain) > 1e-3
    assert torch.equal(nodes.sample(model, plan)["samples"], plain)

    weight = model.patcher.model.diffusion_model.head.head.weight
    before = weight.clone()
    try:
        weight += 0.7 * change
        merged = nodes.sample(model, plan)["samples"]
    finally:
        weight.copy_(before)
    assert relative(out, merged) < 1e-5


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_inpainting_keeps_the_source_outside_the_mask_in_every_stage(nodes, tiny, name):
    model, recorder = tiny(name), Recorder()
    plan = nodes.plan(model, sizes=SIZES)
    latent = picture(model)
    mask = torch.zeros(1, 128, 128)
    mask[..., 64:] = 1.0  # paint into the right half
    out = nodes.sample(model, plan, latent={**latent, "noise_mask": mask}, patcher=recorder.watch(model.patcher))[
        "samples"
    ]
    source = latent["samples"]
    assert relative(out[..., :8], source[..., :8]) <= 1e-6
    assert relative(out[..., 8:], source[..., 8:]) > 0.1

    to_model = model.patcher.model.process_latent_in
    small = to_model(F.avg_pool2d(source.flatten(1, -3), 2).reshape(*source.shape[:-2], 8, 8))
    under = {}  # side of the latent -> the noise that each of its calls has over the source
    for call in recorder.calls:
        side = call.x.shape[-1]
        kept = (small if side == 8 else to_model(source))[..., : side // 2]
        alpha, sigma = alpha_sigma(plan, call.sigma)
        under.setdefault(side, []).append((call.x[..., : side // 2] - alpha * kept).double() / sigma)
    start = fresh_noise(recorder.calls[0].x.shape, 0, "start")[..., :4]
    for side, noises in under.items():
        assert len(noises) == 2
        for noise in noises:
            assert torch.allclose(noise, start if side == 8 else noises[0], atol=1e-4)
            assert abs(noise.std().item() - 1.0) < 3.0 / noise.numel() ** 0.5


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_a_mask_of_ones_is_no_mask(nodes, tiny, name):
    model = tiny(name)
    plan, latent = tail_plan(nodes, model, 4, "1+2"), picture(model)
    out = nodes.sample(model, plan, latent={**latent, "noise_mask": torch.ones(1, 64, 64)})["samples"]
    assert relative(out, nodes.sample(model, plan, latent=latent)["samples"]) <= 1e-5


@pytest.mark.parametrize("name", ["wan", "sd3", "sdxl"])
def test_a_picture_to_start_from_is_averaged_and_noised_to_the_first_level(nodes, tiny, name):
    model, recorder = tiny(name), Recorder()
    plan, latent = tail_plan(nodes, model, 4, "1+2"), picture(model)
    out = nodes.sample(model, plan, latent=latent, patcher=recorder.watch(model.patcher))["samples"]
    source = latent["samples"]
    small = F.avg_pool2d(source.flatten(1, -3), 2).reshape(*source.shape[:-2], 8, 8)
    first = recorder.calls[0]
    alpha, sigma = alpha_sigma(plan, first.sigma)
    expected = alpha * model.patcher.model.process_latent_in(small) + sigma * fresh_noise(first.x.shape, 0, "start")
    assert relative(first.x, expected) <= 1e-6
    assert relative(nodes.sample(model, plan, latent=picture(model, seed=9))["samples"], out) > 1e-2


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_interruption_stops_at_once_in_any_stage_and_the_next_run_is_fine(nodes, tiny, comfy, at):
    management = comfy.model_management
    model, recorder = tiny("sdxl"), Recorder()
    plan = nodes.plan(model, sizes=SIZES)
    expected = nodes.sample(model, plan)["samples"]
    watched = recorder.watch(model.patcher)
    inner = watched.model_options["model_function_wrapper"]

    def stop(apply_model, arguments):
        x0 = inner(apply_model, arguments)
        if len(recorder.calls) == at:
            management.interrupt_current_processing()
        return x0

    watched.set_model_unet_function_wrapper(stop)
    with pytest.raises(management.InterruptProcessingException):
        nodes.sample(model, plan, patcher=watched)
    assert len(recorder.calls) == at
    assert not management.processing_interrupted()
    assert torch.equal(nodes.sample(model, plan)["samples"], expected)


@pytest.fixture
def progress(comfy):
    """What ComfyUI's progress bar is told: (value, total, preview) of each event."""
    events = []
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None: events.append((value, total, preview))
    )
    yield events
    comfy.utils.set_progress_bar_global_hook(None)


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_one_progress_bar_and_previews_at_each_size(nodes, tiny, comfy, progress, monkeypatch, name):
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    model = tiny(name)
    nodes.sample(model, nodes.plan(model, sizes=((6, 5), (9, 8), (12, 16)), split="1+1+2"))
    assert [event[:2] for event in progress] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [preview[1].size for _, _, preview in progress] == [(5, 6), (8, 9), (16, 12), (16, 12)]


def test_without_previews_the_bar_still_ends_at_its_total(nodes, tiny, progress):
    model = tiny("wan")
    nodes.sample(model, nodes.plan(model, sizes=SIZES))
    assert progress[0][:2] == (1, 4) and progress[-1][:2] == (4, 4)
    assert {total for _, total, _ in progress} == {4}


@pytest.mark.parametrize(
    ("name", "came"),
    [
        ("wan", {"samples": torch.zeros(1, 4, 16, 16), "downscale_ratio_spacial": 8}),
        ("wan", {"samples": torch.zeros(1, 16, 16, 16)}),
        ("wan", {"samples": torch.zeros(1, 16, 1, 16, 16)}),
        ("sdxl", {"samples": torch.zeros(1, 4, 16, 16), "downscale_ratio_spacial": 8}),
        ("sd3", {"samples": torch.zeros(1, 4, 16, 16)}),
    ],
)
def test_any_empty_latent_of_the_size_gives_the_same_result(nodes, tiny, name, came):
    model = tiny(name)
    plan = nodes.plan(model, sizes=SIZES)
    out = nodes.sample(model, plan, latent=came)
    assert torch.equal(out["samples"], nodes.sample(model, plan)["samples"])
    assert set(out) == {"samples"}


def test_a_picture_without_a_time_axis_is_one_frame(nodes, tiny):
    model = tiny("wan")
    plan, latent = tail_plan(nodes, model, 4, "1+2"), picture(model)
    flat = {"samples": latent["samples"][:, :, 0]}
    expected = nodes.sample(model, plan, latent=latent)["samples"]
    assert torch.equal(nodes.sample(model, plan, latent=flat)["samples"], expected)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "lcm", "euler_ancestral", "res_multistep"])
def test_core_samplers_run_a_cascade_and_repeat(nodes, tiny, comfy, sampler):
    import comfy.samplers

    model = tiny("sdxl")
    plan = nodes.plan(model, sizes=SIZES, split="3+3")
    results = []
    for _ in range(2):
        guider = comfy.samplers.CFGGuider(model.patcher)
        guider.inner_set_conds({"positive": model.conditioning(1)})
        output, _ = nodes(
            "RMD_SamplerAdvanced",
            guider=guider,
            sampler=comfy.samplers.sampler_object(sampler),
            plan=plan,
            latent_image=model.latent(16, 16),
            noise_seed=SEED,
        )
        results.append(output["samples"])
    assert torch.isfinite(results[0]).all() and torch.equal(*results)


def test_euler_is_the_step_sampler_of_eta_one(nodes, tiny, comfy):
    import comfy.samplers

    for name in ("wan", "sdxl"):
        model = tiny(name)
        plan = nodes.plan(model, sizes=SIZES, eta=1.0)
        guider = comfy.samplers.CFGGuider(model.patcher)
        guider.inner_set_conds({"positive": model.conditioning(1)})
        output, _ = nodes(
            "RMD_SamplerAdvanced",
            guider=guider,
            sampler=comfy.samplers.sampler_object("euler"),
            plan=plan,
            latent_image=model.latent(16, 16),
            noise_seed=SEED,
        )
        assert relative(output["samples"], nodes.sample(model, plan)["samples"]) <= 1e-5

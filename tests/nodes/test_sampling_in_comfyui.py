"""RMD Sampler among ComfyUI's own: patches, masks, images, interruption, progress, guiders, noise tables."""

import pytest
import torch
import torch.nn.functional as F

from cascade_rig import SEED, TINY, Recorder, alpha_sigma, fresh_noise, relative
from demo import files
from rmd_core.cascade import StageJob

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
    curve = whole.stage_plan.curve
    stages = core.plan.plan_from_split(
        curve, split, sizes=SIZES, mapping=core.schedule.AreaMap(), steps=curve.grid(steps)[1:]
    )
    return replace(whole, stage_plan=stages)


def image_latent(model, seed=2, side=16):
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
    latent = image_latent(model)
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
    plan, latent = tail_plan(nodes, model, 4, "1+2"), image_latent(model)
    out = nodes.sample(model, plan, latent={**latent, "noise_mask": torch.ones(1, 64, 64)})["samples"]
    assert relative(out, nodes.sample(model, plan, latent=latent)["samples"]) <= 1e-5


@pytest.mark.parametrize("name", ["wan", "sd3", "sdxl"])
def test_an_image_to_start_from_is_averaged_and_noised_to_the_first_level(nodes, tiny, name):
    model, recorder = tiny(name), Recorder()
    plan, latent = tail_plan(nodes, model, 4, "1+2"), image_latent(model)
    out = nodes.sample(model, plan, latent=latent, patcher=recorder.watch(model.patcher))["samples"]
    source = latent["samples"]
    small = F.avg_pool2d(source.flatten(1, -3), 2).reshape(*source.shape[:-2], 8, 8)
    first = recorder.calls[0]
    alpha, sigma = alpha_sigma(plan, first.sigma)
    expected = alpha * model.patcher.model.process_latent_in(small) + sigma * fresh_noise(first.x.shape, 0, "start")
    assert relative(first.x, expected) <= 1e-6
    assert relative(nodes.sample(model, plan, latent=image_latent(model, seed=9))["samples"], out) > 1e-2


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


def test_an_image_without_a_time_axis_is_one_frame(nodes, tiny):
    model = tiny("wan")
    plan, latent = tail_plan(nodes, model, 4, "1+2"), image_latent(model)
    flat = {"samples": latent["samples"][:, :, 0]}
    expected = nodes.sample(model, plan, latent=latent)["samples"]
    assert torch.equal(nodes.sample(model, plan, latent=flat)["samples"], expected)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "lcm", "euler_ancestral", "res_multistep"])
def test_core_samplers_run_a_cascade_and_repeat(nodes, tiny, sampler):
    model = tiny("sdxl")
    plan = nodes.plan(model, sizes=SIZES, split="3+3")
    one, two = (nodes.advanced(model, plan, sampler=sampler)[0]["samples"] for _ in range(2))
    assert torch.isfinite(one).all() and torch.equal(one, two)


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_euler_is_the_step_sampler_of_eta_one(nodes, tiny, name):
    model = tiny(name)
    plan = nodes.plan(model, sizes=SIZES, eta=1.0)
    output, _ = nodes.advanced(model, plan, sampler="euler")
    assert relative(output["samples"], nodes.sample(model, plan)["samples"]) <= 1e-5


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
    "nothing else": ({}, 1.0),
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
    output, denoised = nodes.by_core(noise, cascade, sampler, sigmas, latent)
    assert torch.equal(output["samples"], expected["samples"])
    assert output.keys() == expected.keys() and relative(denoised["samples"], expected["samples"]) <= 1e-6
    assert len(sigmas) == 5 and sigmas[-1] == 0


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
    output, _ = nodes.advanced(model, plan, guider=guider)
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
    for name in ("lcm", "euler_ancestral"):  # these seed generators of their own
        assert torch.isfinite(nodes.advanced(model, plan, sampler=name, seed=seed)[0]["samples"]).all()
    cascade, sigmas = nodes("RMD_Guider", guider=nodes.guider(model), plan=plan)
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    noise = core.RandomNoise.execute(seed).args[0]
    output, _ = nodes.by_core(noise, cascade, sampler, sigmas, model.latent(16, 16))
    assert torch.equal(output["samples"], expected)


@pytest.mark.parametrize("name", TINY)
def test_one_stage_is_core_sampling(nodes, core, tiny, name):
    """A plan of one stage at eta 1 is what core's euler makes of the same noise."""
    model = tiny(name)
    plan = nodes.plan(model, sizes=(TINY[name][1],), split="4", eta=1.0)
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    (sampler,) = core.KSamplerSelect.execute("euler").args
    sigmas, width, height = nodes("RMD_StageSigmas", plan=plan, stage=1)
    latent = model.latent(height // 8, width // 8)
    output, _ = nodes.by_core(noise, nodes.guider(model), sampler, sigmas, latent)
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


PAINTED, SOURCE = 3.0, -1.0


def painter(comfy, patcher):
    """A MODEL whose network always estimates one clean value."""
    patcher = patcher.clone()
    model = patcher.model
    value = model.process_latent_in(torch.full((1, model.latent_format.latent_channels, 1, 1, 1), PAINTED))
    value = value if model.latent_format.latent_dimensions == 3 else value[:, :, 0]
    patcher.set_model_unet_function_wrapper(lambda apply, arguments: value.expand_as(arguments["input"]).clone())
    return patcher


@pytest.mark.parametrize("name", ["wan", "sdxl"])
@pytest.mark.parametrize("split", ["2+2", "1+1+2"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_constant_soft_mask_mixes_as_core_does(comfy, nodes, tiny, name, split, share):
    model = tiny(name)
    sizes = ((8, 8), (12, 12), (16, 16))[-len(split.split("+")) :]
    latent = model.latent(16, 16, noise_mask=torch.full((1, 128, 128), share))
    latent["samples"] += SOURCE
    plan = nodes.plan(model, sizes=sizes, split=split)
    ours = nodes.sample(model, plan, latent=latent, patcher=painter(comfy, model.patcher))["samples"]
    core = nodes.guider(model, patcher=painter(comfy, model.patcher)).sample(
        torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(SEED)),
        latent["samples"],
        comfy.samplers.sampler_object("euler"),
        torch.tensor(plan.sigmas(plan.stage_plan.stages[-1])),
        denoise_mask=latent["noise_mask"],
        disable_pbar=True,
        seed=SEED,
    )
    expected = share * PAINTED + (1.0 - share) * SOURCE
    assert torch.allclose(core, torch.full_like(core, expected), atol=1e-4)
    assert torch.allclose(ours, core, atol=1e-4)


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_a_soft_cell_starts_a_stage_from_the_stage_before(nodes, tiny, name):
    """The state there is that of the upsampled estimate, whatever the samples hold; hard cells are left alone."""
    model, bridge = tiny(name), nodes.pack.nodes.bridge
    latent = model.latent(4, 4, noise_mask=torch.tensor([[0.0, 0.5, 0.5, 1.0]]).expand(1, 4, 4).clone())
    latent["samples"] += SOURCE
    source = bridge.latents.SourceImage(latent, model.patcher)
    form = bridge.model.NoiseForm.of(model.patcher)
    generator = torch.Generator().manual_seed(1)
    x0, white = (torch.randn(latent["samples"].shape, generator=generator) for _ in range(2))
    sigma = torch.tensor(0.7)
    job = StageJob(plan=None, stage=None, x0=x0, noise=white, fresh=None)
    samples, noise = source.start(job, form=form, sigma=sigma, eta=0.5)
    inside = model.patcher.model.process_latent_in
    kept, wanted = form.state(inside(samples), noise, sigma), form.state(x0, white, sigma)
    assert torch.allclose(kept[..., 1:], wanted[..., 1:], atol=1e-5)
    assert torch.equal(noise[..., 0], white[..., 0]) and torch.equal(noise[..., 3], white[..., 3])
    assert torch.allclose(samples[..., :3], latent["samples"][..., :3], atol=1e-5)

"""What the sampler nodes refuse: one line each, with what came, what is allowed and what to change."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import Linear

import comfy_models
from cascade_rig import SEED, TINY

SIZES = ((8, 8), (16, 16))


@pytest.mark.parametrize("cfg", [0.0, 2.5])
def test_guidance_without_a_negative(nodes, tiny, refused, cfg):
    model = tiny("sdxl")
    plan = nodes.plan(model, sizes=SIZES)
    if cfg:  # 0 is the plan's own in RMD Sampler
        refused(lambda: nodes.sample(model, plan, cfg=cfg), f"cfg is {cfg:g}", "negative", "1.0")
    refused(lambda: nodes.advanced(model, plan, guider=nodes.guider(model, cfg=cfg)), f"cfg is {cfg:g}", "negative")


def test_a_first_level_above_the_models(nodes, tiny, refused):
    """A plan over PixArt's table, whose noise goes further than SDXL's, on SDXL."""
    model = tiny("sdxl")
    foreign = nodes.plan(tiny("pixart"), sizes=((34, 34), (40, 40)))
    plan = replace(foreign, kind=nodes.plan(model, sizes=SIZES).kind)
    refused(lambda: nodes.sample(model, plan), "sigma 157.4", "sigma_max 14.61", "stage 1")


def test_a_later_stage_at_pure_noise(nodes, tiny, refused):
    model = tiny("wan")
    far = nodes.pack.rmd_core.schedule.FixedRatioMap(1e7)
    plan = nodes.plan(model, sizes=SIZES, mapping=far)
    refused(lambda: nodes.sample(model, plan), "stage 2 would start at sigma 1", "pure noise", "one more step")


@pytest.mark.parametrize("sizes", [((16, 16), (36, 36)), ((32, 32), (64, 64)), ((34, 35), (64, 64))])
def test_pixart_at_sizes_where_comfyui_fails(nodes, tiny, refused, sizes):
    model = tiny("pixart")
    plan = nodes.plan(model, sizes=sizes)
    small = f"{8 * sizes[0][1]}x{8 * sizes[0][0]} px"
    refused(lambda: nodes.sample(model, plan), "PixArt", small, "multiples of 16 px", "above 256 px", "512x512")


def test_sd3_beyond_its_position_table(nodes, tiny, refused):
    model = tiny("sd3")
    plan = nodes.plan(model, sizes=((16, 16), (34, 32)))
    refused(lambda: nodes.sample(model, plan), "256x272 px", "position table", "at most 256 px")
    nodes.sample(model, nodes.plan(model, sizes=((16, 16), (32, 32))))


def test_each_stage_is_judged_by_its_own_model(nodes, tiny, refused):
    """An early model with a small position table is enough for the small stage, and too little for the large one."""
    small, large = tiny("sd3"), comfy_models.tiny_sd3(table=32)
    plan = nodes.plan(small, sizes=((16, 16), (40, 40)))
    output, stages = nodes.advanced(small, plan, later_guider=nodes.guider(large))
    assert output["samples"].shape[-2:] == (40, 40) and len(stages) == 2
    refused(lambda: nodes.advanced(small, plan), "320x320 px", "position table")
    refused(lambda: nodes.advanced(large, plan, later_guider=nodes.guider(small)), "320x320 px", "position table")


def test_nested_latents(nodes, tiny, refused):
    import comfy.nested_tensor

    model = tiny("wan")
    nested = comfy.nested_tensor.NestedTensor((torch.zeros(1, 16, 1, 16, 16), torch.zeros(1, 8, 20, 4)))
    plan = nodes.plan(model, sizes=SIZES)
    refused(lambda: nodes.sample(model, plan, latent={"samples": nested}), "several tensors", "takes one")


@pytest.mark.parametrize("sampler", ["dpm_adaptive", "dpm_fast"])
def test_samplers_with_steps_of_their_own(nodes, tiny, refused, sampler):
    model = tiny("sdxl")
    refused(
        lambda: nodes.advanced(model, nodes.plan(model, sizes=SIZES), sampler=sampler), sampler, "own steps", "euler"
    )


@pytest.mark.parametrize(("made_for", "runs_on"), [("wan", "sd3"), ("sdxl", "pixart"), ("sd3", "sdxl")])
def test_a_plan_for_another_type_of_model(nodes, tiny, refused, made_for, runs_on):
    model = tiny(runs_on)
    plan = nodes.plan(tiny(made_for), sizes=((34, 34), (40, 40)))
    refused(lambda: nodes.sample(model, plan), "the plan was made for", "with this model")


def test_a_latent_of_another_size_or_kind(nodes, tiny, refused):
    model = tiny("sdxl")
    plan = nodes.plan(model, sizes=SIZES)
    refused(lambda: nodes.sample(model, plan, latent=model.latent(16, 24)), "192x128 px", "128x128 px", "RMD Schedule")
    foreign = {"samples": torch.ones(1, 16, 16, 16)}
    refused(lambda: nodes.sample(model, plan, latent=foreign), "(1, 16, 16, 16)", "C = 4")


def test_a_cascade_inside_a_cascade(nodes, tiny, refused):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=SIZES)
    cascade, _ = nodes("RMD_Guider", guider=nodes.guider(model), plan=plan)
    refused(lambda: nodes.advanced(model, plan, guider=cascade), "RMD Guider", "inside it")


def test_overrides_that_fit_no_stage(nodes, tiny, refused):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=SIZES)
    usual, own = {"boundary": "as in the plan"}, {"boundary": "own", "upsampler": "area", "switch_noise": "fresh"}
    (third,) = nodes("RMD_StageOverride", stage=3, boundary=usual)
    refused(lambda: nodes.advanced(model, plan, overrides=third), "stage 3", "2+2", "at most 2")
    (second,) = nodes("RMD_StageOverride", stage=2, boundary=usual)
    (twice,) = nodes("RMD_StageOverride", stage=2, boundary=usual, overrides=second)
    refused(lambda: nodes.advanced(model, plan, overrides=twice), "two overrides", "stage 2")
    refused(lambda: nodes("RMD_StageOverride", stage=1, boundary=own | {"eta_switch": 0.0}), "stage 1", "stage 2")


def left_open(model, sigma):
    """The output of a stage of a flow model that stopped at sigma with an empty clean image."""
    latent = model.latent(8, 8)
    state = sigma * torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(2))
    zero = model.patcher.model.process_latent_in(latent["samples"])
    mixed = state + (1.0 - sigma) * zero
    latent["samples"] = model.patcher.model.process_latent_out(mixed / max(1.0 - sigma, 1e-3))
    return latent


def crossed(nodes, model, *, sigmas, latent=None, denoised=None, width=128, height=128):
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    output = left_open(model, sigmas[-1]) if latent is None else latent
    return nodes(
        "RMD_StageUpscale",
        output=output,
        denoised_output=model.latent(8, 8) if denoised is None else denoised,
        sigmas=torch.tensor(sigmas),
        model=model.patcher,
        noise=noise,
        width=width,
        height=height,
        upsampler="bicubic",
        switch_noise="exact",
        eta_switch=0.5,
    )


def test_stage_upscale_after_the_wrong_stage(nodes, tiny, refused):
    model = tiny("wan")
    refused(lambda: crossed(nodes, model, sigmas=[1.0, 0.5, 0.0]), "ended at sigma 0", "RMD Stage Sigmas")
    refused(lambda: crossed(nodes, model, sigmas=[1.0]), "1 level", "those of the stage")
    masked = model.latent(8, 8, noise_mask=torch.ones(1, 8, 8))
    refused(lambda: crossed(nodes, model, sigmas=[1.0, 0.5], latent=masked), "noise mask", "RMD Sampler")
    refused(lambda: crossed(nodes, model, sigmas=[1.0, 0.5], denoised=model.latent(8, 6)), "differ in shape")
    refused(lambda: crossed(nodes, model, sigmas=[1.0, 0.5], width=32), "8x8", "cells")
    refused(lambda: crossed(nodes, model, sigmas=[1.0, 0.5], width=100), "100x128 px", "multiples of 8 px", "104x128")


def test_the_noise_of_stage_upscale_on_another_latent(nodes, tiny, refused):
    _, noise = crossed(nodes, tiny("wan"), sigmas=[1.0, 0.5])
    refused(lambda: noise.generate_noise(tiny("wan").latent(8, 8)), "RMD Stage Upscale", "(1, 16, 1, 8, 8)")


@pytest.mark.parametrize(
    ("name", "extra", "words"),
    [
        ("wan", {"time_dim_concat": torch.zeros(1, 16, 1, 10, 10)}, ("time_dim_concat", "10 x 10", "16 x 16")),
        ("sdxl", {"gligen": ("position", None, [])}, ("GLIGEN", "one size")),
    ],
)
def test_conditioning_that_cannot_follow(nodes, tiny, refused, name, extra, words):
    model = tiny(name)
    plan = nodes.plan(model, sizes=SIZES)
    refused(lambda: nodes.sample(model, plan, positive=model.conditioning(1, **extra)), *words)


@pytest.mark.parametrize("name", TINY)
def test_nothing_ran_before_a_refusal(nodes, tiny, refused, name):
    """A wrong latent is refused before the first call of the network."""
    model, calls = tiny(name), []
    watched = model.patcher.clone()
    watched.set_model_unet_function_wrapper(lambda apply_model, arguments: calls.append(1))
    plan = nodes.plan(model, sizes=TINY[name])
    height, width = plan.stage_plan.final_hw
    refused(lambda: nodes.sample(model, plan, patcher=watched, latent=model.latent(height + 2, width)), "px")
    assert calls == []


def test_steps_along_a_negative_that_is_missing(nodes, tiny, refused):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=SIZES)
    refused(lambda: nodes.advanced(model, plan, sampler="euler_cfg_pp"), "euler_cfg_pp", "negative", "euler")


def test_guidance_that_is_no_number(nodes, tiny, refused):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=SIZES)
    refused(lambda: nodes.sample(model, plan, cfg=math.nan, negative=model.conditioning(2)), "cfg is nan", "0 to 100")
    nodes.sample(model, plan, cfg=1.0 + 1e-12)  # 1 but for rounding needs no negative


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_prompts_without_a_pooled_output(nodes, tiny, refused, name):
    model = tiny(name)
    prompt = [[model.conditioning(1)[0][0], {"pooled_output": None}]]
    plan = nodes.plan(model, sizes=SIZES)
    refused(lambda: nodes.sample(model, plan, positive=prompt), "pooled output", "own text encoders")


def test_an_empty_batch(nodes, tiny, refused):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=SIZES)
    refused(lambda: nodes.sample(model, plan, latent=model.latent(16, 16, batch=0)), "has no items", "at least 1")


def test_a_choice_that_comfyui_left_out(nodes, tiny, refused):
    """ComfyUI drops a dynamic choice that it does not know, and leaves links of its former options behind."""
    left_over = {"source.recipe": None}
    refused(lambda: nodes("RMD_Schedule", model=tiny("wan").patcher, width=128, height=128, **left_over), "source")
    refused(lambda: nodes("RMD_LoadStudent", **{"kind.model": None}), "kind", "'full model'")
    refused(lambda: nodes("RMD_StageOverride", stage=2, **{"boundary.upsampler": "area"}), "boundary", "'own'")


def test_a_setting_off_the_plan_is_warned_of_once_for_all_stages(nodes, tiny, caplog):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=TINY["wan"], cfg=2.0)
    (sampler,) = nodes("RMD_StepSampler", eta=0.25)
    nodes.advanced(model, plan, sampler=sampler)
    said = [record.getMessage() for record in caplog.records if "the plan is made for" in record.getMessage()]
    assert [text.split(" is ")[0] for text in said] == ["cfg", "eta"]


def guided(nodes, model, patcher):
    guider = nodes.guider(model, patcher=patcher, cfg=2.0)
    guider.inner_set_conds({"positive": model.conditioning(1), "negative": model.conditioning(2)})
    return guider


def test_a_patch_whose_state_cannot_cross_a_change_of_size_is_named(nodes, tiny, refused):
    """APG with momentum keeps the guidance of the step before, at the size of that step."""
    from comfy_extras.nodes_apg import APG

    model = tiny("sdxl")
    plan = nodes.plan(model, sizes=SIZES, cfg=2.0)
    first, second = (APG.execute(model.patcher, 1.0, 5.0, -0.5).args[0] for _ in range(2))
    refused(
        lambda: nodes.advanced(model, plan, guider=guided(nodes, model, first)),
        *("pre_cfg_function of comfy_extras.nodes_apg", "stage 2", "later_guider"),
    )
    early, later = guided(nodes, model, first), guided(nodes, model, second)
    output, _ = nodes.advanced(model, plan, guider=early, later_guider=later)
    assert torch.isfinite(output["samples"]).all()


def test_an_error_of_the_network_under_a_patch_is_not_the_patchs(nodes, tiny):
    model, broken = tiny("sdxl"), comfy_models.tiny_sdxl()
    broken.patcher.model.diffusion_model.time_embed = Linear(3, 3)
    patcher = broken.patcher.clone()
    patcher.set_model_unet_function_wrapper(lambda apply, given: apply(given["input"], given["timestep"], **given["c"]))
    plan, later = nodes.plan(model, sizes=SIZES), nodes.guider(broken, patcher=patcher)
    with pytest.raises(RuntimeError, match="^mat1 and mat2"):
        nodes.advanced(model, plan, later_guider=later)

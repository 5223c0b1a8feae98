"""What is bound to a place or a size in the image follows every stage: areas, masks, hints, sizes, image latents."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cascade_rig import TINY, Recorder, relative
from comfy_models import tiny_controlnet

SIZES = ((8, 8), (16, 16))
PAINT, GROUND = 3.0, -1.0


def painter(model):
    """A copy of a MODEL whose every clean estimate is the first number of the prompt, everywhere."""
    copy = model.patcher.clone()

    def call(apply_model, arguments):
        value = arguments["c"]["c_crossattn"][:, 0, 0]
        return value.reshape(-1, *[1] * (arguments["input"].ndim - 1)).expand_as(arguments["input"]).clone()

    copy.set_model_unet_function_wrapper(call)
    return copy


def prompt(model, value, **extra):
    """A CONDITIONING for `painter` that paints a value."""
    ((embedding, values),) = model.conditioning(0, **extra)
    return [[torch.full_like(embedding, value), values]]


def painted(nodes, model, conditioning, sizes=SIZES):
    """The clean estimate (B, C, ..., H, W) of every stage, in the model's own space."""
    guider = nodes.guider(model, patcher=painter(model), positive=conditioning)
    _, stages = nodes.advanced(model, nodes.plan(model, sizes=sizes), guider=guider)
    return [model.patcher.model.process_latent_in(stage["samples"]) for stage in stages]


def box(size, top, left, height, width):
    """A map (H, W) that is true inside a box."""
    inside = torch.zeros(size, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    return inside


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("sdxl", (8, 4, 4, 8)),  # height, width, top, left
        ("wan", (8, 4, 4, 8)),
        ("sdxl", ("percentage", 0.5, 0.25, 0.25, 0.5)),
        ("wan", ("percentage", 1.0, 0.5, 0.25, 0.0, 0.25, 0.5)),  # with time
    ],
)
def test_an_area_is_the_same_place_in_every_stage(nodes, tiny, name, area):
    model = tiny(name)
    small, large = painted(nodes, model, prompt(model, PAINT, area=area) + prompt(model, 0.0))
    for x0, where in ((small, box((8, 8), 2, 4, 4, 2)), (large, box((16, 16), 4, 8, 8, 4))):
        values = x0[0, 0, 0] if model.video else x0[0, 0]
        assert torch.equal(values.abs() > 1e-4, where)


def test_an_area_that_reaches_the_edge_still_does_when_sizes_do_not_divide(nodes, tiny):
    model = tiny("sdxl")
    small, large = painted(
        nodes, model, prompt(model, PAINT, area=(6, 13, 9, 0)) + prompt(model, 0.0), sizes=((9, 8), (15, 13))
    )
    assert torch.equal(small[0, 0].abs() > 1e-4, box((9, 8), 5, 0, 4, 8))  # rows 9/15 and 15/15 of 9: 5.4 and 9
    assert torch.equal(large[0, 0].abs() > 1e-4, box((15, 13), 9, 0, 6, 13))


@pytest.mark.parametrize("name", ["sdxl", "wan"])
def test_a_mask_is_the_same_place_in_every_stage(nodes, tiny, name):
    model = tiny(name)
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1.0
    stages = painted(nodes, model, prompt(model, PAINT, mask=left) + prompt(model, GROUND, mask=1.0 - left))
    for x0, side in zip(stages, (8, 16)):
        values = x0[0, 0, 0] if model.video else x0[0, 0]
        assert torch.allclose(values[:, : side // 2], torch.tensor(PAINT), atol=1e-4)
        assert torch.allclose(values[:, side // 2 :], torch.tensor(GROUND), atol=1e-4)


def test_a_controlnet_hint_has_the_size_of_each_stage(nodes, tiny, comfy):
    import nodes as comfy_nodes

    model, hints = tiny("sdxl"), []
    control = tiny_controlnet()
    control.control_model.register_forward_pre_hook(
        lambda _, args, kwargs: hints.append(kwargs["hint"].clone()), with_kwargs=True
    )
    image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(4))
    plan = nodes.plan(model, sizes=SIZES)
    plain = nodes.sample(model, plan)["samples"]
    positive, _ = comfy_nodes.ControlNetApplyAdvanced().apply_controlnet(
        model.conditioning(1), model.conditioning(2), control, image, 1.0, 0.0, 1.0
    )
    out = nodes.sample(model, plan, positive=positive)["samples"]
    assert [tuple(hint.shape[-2:]) for hint in hints] == [(64, 64), (64, 64), (128, 128), (128, 128)]
    for hint in hints:
        expected = F.interpolate(image.movedim(-1, 1), size=tuple(hint.shape[-2:]), mode="nearest-exact")
        assert torch.equal(hint[:1], expected)
    assert relative(out, plain) > 1e-3
    assert torch.equal(nodes.sample(model, plan, positive=positive)["samples"], out)
    assert torch.equal(nodes.sample(model, plan)["samples"], plain)


def given_sizes(nodes, model, size_conditioning, **values):
    """What SDXL is given beside the pooled prompt in each of two stages."""
    recorder = Recorder()
    plan = nodes.plan(model, sizes=SIZES, size_conditioning=size_conditioning)
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher), positive=model.conditioning(1, **values))
    return recorder.calls[0].conditioning["y"], recorder.calls[-1].conditioning["y"]


def size_vector(model, **values):
    return model.patcher.model.encode_adm(pooled_output=model.conditioning(1)[0][1]["pooled_output"], **values)


SQUARE = {side: {"width": side, "height": side, "target_width": side, "target_height": side} for side in (64, 128)}
# SDXL prompt of CLIPTextEncodeSDXL for a final size of 128 px, with a crop
EXPLICIT = {**SQUARE[128], "crop_w": 16, "crop_h": 8}
HALF = {**SQUARE[64], "crop_w": 8, "crop_h": 4}


@pytest.mark.parametrize(
    ("rule", "values", "small", "large"),
    [
        ("none", {}, SQUARE[64], SQUARE[128]),
        ("stage", {}, SQUARE[64], SQUARE[128]),
        ("final", {}, SQUARE[128], SQUARE[128]),
        ("none", EXPLICIT, EXPLICIT, EXPLICIT),
        ("stage", EXPLICIT, HALF, EXPLICIT),
        ("final", EXPLICIT, EXPLICIT, EXPLICIT),
    ],
)
def test_sdxl_is_given_the_size_that_the_recipe_says(nodes, tiny, rule, values, small, large):
    model = tiny("sdxl")
    for vector, wanted in zip(given_sizes(nodes, model, rule, **values), (small, large)):
        assert torch.allclose(vector, size_vector(model, **wanted), atol=1e-6)


def test_an_image_to_video_latent_is_averaged_to_each_stage(nodes, tiny):
    model, recorder = tiny("wan_image"), Recorder()
    plan = nodes.plan(model, sizes=SIZES)
    generator = torch.Generator().manual_seed(6)
    image = torch.randn(1, 16, 3, 16, 16, generator=generator)
    mask = torch.ones(1, 1, 3, 16, 16)
    mask[:, :, 0] = 0.0  # the first frame is given
    positive = model.conditioning(1, concat_latent_image=image, concat_mask=mask)
    latent = model.latent(16, 16, frames=3)
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher), positive=positive, latent=latent)
    to_model = model.patcher.model.process_latent_in
    for call, expected in ((recorder.calls[0], F.avg_pool3d(image, (1, 2, 2))), (recorder.calls[-1], image)):
        concat = call.conditioning["c_concat"]
        assert concat.shape == (1, 20, 3, *expected.shape[-2:])
        assert torch.allclose(concat[:, 4:], to_model(expected), atol=1e-5)
        assert torch.equal(concat[:, :4, 0], torch.ones_like(concat[:, :4, 0]))
        assert torch.equal(concat[:, :4, 1:], torch.zeros_like(concat[:, :4, 1:]))


def test_a_latent_on_the_grid_of_a_video_is_averaged_to_each_stage(nodes, tiny):
    model, recorder = tiny("wan"), Recorder()
    plan = nodes.plan(model, sizes=SIZES)
    extra = torch.randn(1, 16, 1, 16, 16, generator=torch.Generator().manual_seed(7))
    positive = model.conditioning(1, time_dim_concat=extra)
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher), positive=positive)
    to_model = model.patcher.model.process_latent_in
    for call, expected in ((recorder.calls[0], F.avg_pool3d(extra, (1, 2, 2))), (recorder.calls[-1], extra)):
        assert torch.allclose(call.conditioning["time_dim_concat"], to_model(expected), atol=1e-5)


def test_an_image_model_gets_its_references_as_they_are(nodes, tiny):
    """Qwen-Image-Edit takes a reference at any size; one of the result's size must not be shrunk with the stage."""
    model, recorder = tiny("qwen"), Recorder()
    plan = nodes.plan(model, sizes=SIZES)
    given = [torch.randn(1, 16, 1, *size, generator=torch.Generator().manual_seed(7)) for size in ((16, 16), (12, 20))]
    positive = model.conditioning(1, reference_latents=given)
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher), positive=positive)
    to_model = model.patcher.model.process_latent_in
    assert recorder.sizes[0] == (8, 8) and recorder.sizes[-1] == (16, 16)
    for call in recorder.calls:
        for got, latent in zip(call.conditioning["ref_latents"], given, strict=True):
            assert torch.equal(got, to_model(latent))


@pytest.mark.parametrize("frames", [1, 3])
def test_a_reference_of_wan_is_averaged_to_each_stage(nodes, tiny, frames):
    model, recorder = tiny("wan"), Recorder()
    plan = nodes.plan(model, sizes=SIZES)
    given = torch.randn(1, 16, 1, 16, 16, generator=torch.Generator().manual_seed(7))
    positive = model.conditioning(1, reference_latents=[given])
    latent = model.latent(16, 16, frames=frames)
    nodes.sample(model, plan, patcher=recorder.watch(model.patcher), positive=positive, latent=latent)
    assert [tuple(call.conditioning["reference_latent"].shape[-2:]) for call in recorder.calls] == recorder.sizes


def test_tensors_that_nobody_knows_are_warned_of_once(nodes, tiny, caplog):
    model = tiny("wan")
    extra = {"novel_latent": torch.zeros(1, 16, 1, 16, 16), "novel_list": [torch.zeros(1, 3, 8, 8)], "novel": 3.0}
    prompts = model.conditioning(1, concat_latent_image=torch.zeros(1, 16, 1, 16, 16), **extra)
    for sizes in (SIZES, SIZES[1:]):
        caplog.clear()
        nodes.sample(model, nodes.plan(model, sizes=sizes, split="+".join("2" for _ in sizes)), positive=prompts)
        messages = [record.getMessage() for record in caplog.records if "does not know" in record.getMessage()]
        named = [name for name in ("novel_latent", "novel_list") for text in messages if repr(name) in text]
        assert named == (["novel_latent", "novel_list"] if len(sizes) == 2 else []) and len(messages) == len(named)


def test_a_second_guider_takes_the_later_stages(nodes, tiny):
    model = tiny("sdxl")
    plan = nodes.plan(model, sizes=SIZES)
    early, later = (
        nodes.guider(model, patcher=painter(model), positive=prompt(model, value)) for value in (PAINT, GROUND)
    )
    _, (small, large) = nodes.advanced(model, plan, guider=early, later_guider=later)
    scale = 1.0 / model.patcher.model.latent_format.scale_factor
    assert torch.allclose(small["samples"], torch.tensor(PAINT * scale), rtol=1e-5)
    assert torch.allclose(large["samples"], torch.tensor(GROUND * scale), rtol=1e-5)


def test_a_hook_lora_acts_in_every_stage_and_leaves_the_weights(nodes, tiny):
    import comfy.hooks
    import comfy.lora

    model = tiny("wan")
    plan = nodes.plan(model, sizes=TINY["wan"])
    plain = nodes.sample(model, plan)["samples"]
    names = comfy.lora.model_lora_keys_unet(model.patcher.model, {})
    generator = torch.Generator().manual_seed(8)
    lora = {
        "diffusion_model.head.head.lora_up.weight": torch.randn(64, 2, generator=generator),
        "diffusion_model.head.head.lora_down.weight": torch.randn(2, 48, generator=generator) * 0.1,
    }
    assert "diffusion_model.head.head" in names
    hooked = comfy.hooks.set_hooks_for_conditioning(model.conditioning(1), comfy.hooks.create_hook_lora(lora, 1.0, 0.0))
    out = nodes.sample(model, plan, positive=hooked)["samples"]
    assert relative(out, plain) > 1e-3
    assert torch.equal(nodes.sample(model, plan, positive=hooked)["samples"], out)
    assert torch.equal(nodes.sample(model, plan)["samples"], plain)


def guided(model, latent, guide):
    """(positive, LATENT) of LTXV with a guide in the latent of its first frame, as core's node adds one."""
    from comfy_extras.nodes_lt import LTXVAddGuide, _append_guide_attention_entry, get_noise_mask

    prompts = (model.conditioning(seed, attention_mask=torch.ones(1, 5)) for seed in (1, 2))
    *prompts, samples, mask = LTXVAddGuide.append_keyframe(
        *prompts, 0, latent["samples"], get_noise_mask(latent), guide, 1.0, (8, 32, 32)
    )
    positive, _ = _append_guide_attention_entry(*prompts, guide[0, 0].numel(), list(guide.shape[2:]))
    return positive, {"samples": samples, "noise_mask": mask}


def test_guides_of_ltxv_are_for_one_size_and_a_later_guider_has_its_own(nodes, tiny, refused):
    model, recorder = tiny("ltxv"), Recorder()
    plan = nodes.plan(model, sizes=((4, 4), (8, 8)))
    plan = replace(plan, cell_px=32)
    generator = torch.Generator().manual_seed(3)
    guide = torch.randn(1, 128, 1, 8, 8, generator=generator)
    positive, latent = guided(model, model.latent(8, 8, frames=2), guide)
    refused(
        lambda: nodes.sample(model, plan, positive=positive, latent=latent),
        *("256x256 px", "128x128 px", "LTXVAddGuide", "later_guider"),
    )
    small, _ = guided(model, model.latent(4, 4, frames=2), F.avg_pool3d(guide, (1, 2, 2)))
    watched = recorder.watch(model.patcher)
    guiders = [nodes.guider(model, patcher=watched, positive=one) for one in (small, positive)]
    output, _ = nodes.advanced(model, plan, guider=guiders[0], later_guider=guiders[1], latent=latent)
    assert output["samples"].shape == latent["samples"].shape and torch.isfinite(output["samples"]).all()
    for call in recorder.calls:
        places = call.conditioning["keyframe_idxs"]
        assert int(places[:, 1, :, 1].max()) == 32 * call.x.shape[-2] and places.shape[2] == call.x[0, 0, 0].numel()


def test_differential_diffusion_counts_its_thresholds_over_the_whole_plan(nodes, tiny):
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    for name in ("wan", "sdxl"):
        model, seen = tiny(name), []
        forward = DifferentialDiffusion.forward

        def recorded(sigma, mask, extra_options, forward=forward, seen=seen):
            result = forward(sigma, mask, extra_options=extra_options, strength=1.0)
            seen.append(((result > 0).float().mean().item(), extra_options["sigmas"].tolist(), float(sigma[0])))
            return result

        patcher = model.patcher.clone()
        patcher.set_model_denoise_mask_function(recorded)
        for split, sizes in (("2+2", TINY[name]), ("4", TINY[name][1:])):
            seen.clear()
            plan = nodes.plan(model, sizes=sizes, split=split)
            height, width = plan.stage_plan.final_hw
            mask = torch.linspace(0.0, 1.0, height * width).reshape(1, height, width)
            nodes.sample(model, plan, patcher=patcher, latent=model.latent(height, width, noise_mask=mask))
            shares = [share for share, *_ in seen]
            assert len(seen) == 4 and shares == sorted(shares) and shares[1] < shares[2]
            for place, (_, sigmas, sigma) in enumerate(seen):
                assert sigmas[place] == pytest.approx(sigma, rel=2e-3) and sigmas[-1] == 0.0


def test_what_was_made_for_the_stage_stays_as_it_is(pack):
    """In cells or, as camera poses, in pixels; the same at the final size is averaged or refused."""
    view = pack.nodes.bridge.conditioning.StageView((6, 8), (12, 16), 8, "none", False)
    cells, pixels = torch.ones(1, 16, 3, 6, 8), torch.ones(1, 6, 9, 48, 64)
    entry = {"vace_frames": [cells], "vace_mask": [cells], "time_dim_concat": cells, "camera_conditions": pixels}
    changed = view.entry(entry)
    assert changed["vace_frames"][0] is cells and changed["vace_mask"][0] is cells
    assert changed["time_dim_concat"] is cells and changed["camera_conditions"] is pixels

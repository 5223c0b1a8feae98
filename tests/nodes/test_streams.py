"""Latents of video and sound: the video follows the stages, the sound goes on as if there were none."""

from dataclasses import replace

import pytest
import torch

import comfy_upscalers
import zoo
from cascade_rig import SEED, Recorder, relative

PARITY = 5e-6  # of the largest value


@pytest.fixture(scope="module")
def models(comfy):
    return {name: zoo.tiny_model(name) for name in ("LTXAV", "MiniMaxH3")}


def nested(*tensors):
    from comfy.nested_tensor import NestedTensor

    return NestedTensor(tensors)


def empty(name, height, width):
    """An empty LATENT of a size in cells."""
    frames, video, sound = {"LTXAV": (3, 128, (8, 6, 16)), "MiniMaxH3": (2, 24, (32, 2, 8))}[name]
    return {"samples": nested(torch.zeros(1, video, frames, height, width), torch.zeros(1, *sound))}


def positive(name, model):
    return model.conditioning(1, **zoo.ZOO[name].extra)


def plan_of(nodes, model, size, split, mapping="none"):
    """A plan on the model's own levels; 0.5 of the size first where the split has two numbers."""
    plans, view = nodes.pack.nodes.bridge.plans, nodes.pack.nodes.bridge.model.ModelView.of(model.patcher)
    source = {"source": "split", "split": split, "sigmas": "", "mapping": mapping, "base_shift": 0.0}
    earlier = "0.5" if "+" in split else ""
    return plans.sampling_plan(view, size, source | {"earlier_sizes": earlier, "method": "default"})


def deaf(model, recorder):
    """A MODEL whose sound does not depend on the video: the network's answer is a function of each alone.

    It takes the network's place, so that core's own scaling of the sound is around it.
    """
    from comfy.patcher_extension import WrappersMP

    def network(_executor, x, timestep, _context, *arguments, **_others):
        options = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
        level = torch.as_tensor(timestep[1] if isinstance(timestep, (list, tuple)) else timestep).flatten()[0] / 1000.0
        shift = options.get("minimax_h3_sigma_shift_video", 12.0)
        if x[0].shape[1] == 24:  # the sound of MiniMax H3 has shift 3
            base = level / (shift + level * (1.0 - shift))
            level = 3.0 * base / (1.0 + 2.0 * base)
        recorder.append((tuple(x[0].shape[-2:]), float(level), x[1].clone()))
        return [0.5 * x[0], torch.tanh(x[1]) * (0.4 + level)]

    changed = model.patcher.clone()
    changed.add_wrapper(WrappersMP.DIFFUSION_MODEL, network)
    return changed


@pytest.mark.parametrize(("name", "mapping"), [("LTXAV", "none"), ("MiniMaxH3", "none"), ("MiniMaxH3", "area")])
def test_a_change_of_the_videos_size_leaves_the_sound_alone(nodes, models, name, mapping):
    """Euler in two stages against euler in one, with the network's levels of the sound and its states."""
    model, runs = models[name], []
    size = (8, 8)
    for split in ("2+2", "4"):
        heard = []
        plan = plan_of(nodes, model, size, split, mapping)
        guider = nodes.guider(model, patcher=deaf(model, heard), positive=positive(name, model))
        (sampler,) = nodes("RMD_StepSampler", eta=1.0)
        plan = replace(plan, eta=1.0)
        out, _ = nodes.advanced(model, plan, sampler=sampler, guider=guider, latent=empty(name, *size))
        runs.append((heard, out["samples"].unbind()[1]))
    (cascade, sound), (whole, expected) = runs
    assert [video for video, *_ in cascade] == [(4, 4), (4, 4), (8, 8), (8, 8)]
    assert [level for _, level, _ in cascade] == pytest.approx([level for _, level, _ in whole], rel=1e-5)
    for (_, _, got), (_, _, wanted) in zip(cascade, whole):
        assert relative(got, wanted) < PARITY
    assert relative(sound, expected) < PARITY


@pytest.mark.parametrize("name", ["LTXAV", "MiniMaxH3"])
def test_every_way_to_run_it_gives_the_same(nodes, models, name):
    model = models[name]
    plan = plan_of(nodes, model, (8, 8), "1+2", "area")
    guider = nodes.guider(model, positive=positive(name, model))
    output, stages = nodes.advanced(model, plan, guider=guider, latent=empty(name, 8, 8))
    assert [tuple(one.shape[-2:]) for one in (stages[0]["samples"].unbind()[0], output["samples"])] == [(4, 4), (8, 8)]
    assert len({tuple(one["samples"].unbind()[1].shape) for one in (*stages, output)}) == 1
    by_node = nodes.sample(model, plan, latent=empty(name, 8, 8), positive=positive(name, model))
    cascade, sigmas = nodes("RMD_Guider", guider=guider, plan=plan)
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    by_core, _ = nodes.by_core(noise, cascade, sampler, sigmas, empty(name, 8, 8))
    for other in (by_node, by_core, stages[-1]):
        for got, wanted in zip(other["samples"].unbind(), output["samples"].unbind(), strict=True):
            assert relative(got, wanted) < PARITY


@pytest.mark.parametrize("name", ["LTXAV", "MiniMaxH3"])
def test_two_stages_of_one_size_are_one(nodes, models, name):
    """The step between them is an ordinary one for both streams; at eta 1 it needs no noise."""
    model, out = models[name], []
    for split, sizes in (("4", [(8, 8)]), ("2+2", [(8, 8), (8, 8)])):
        curve = nodes.pack.nodes.bridge.model.ModelView.of(model.patcher).curve
        core = nodes.pack.rmd_core.plan
        plan = plan_of(nodes, model, (8, 8), "4")
        stages = core.plan_from_split(curve, split, sizes=sizes, mapping=plan.stage_plan.mapping)
        plan = replace(plan, stage_plan=stages, eta=1.0)
        guider = nodes.guider(model, positive=positive(name, model))
        out.append(nodes.advanced(model, plan, guider=guider, latent=empty(name, 8, 8))[0]["samples"])
    for got, wanted in zip(out[1].unbind(), out[0].unbind(), strict=True):
        assert relative(got, wanted) < PARITY


def test_the_noise_of_the_sound_does_not_depend_on_the_videos_size(nodes):
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    small, large = (noise.generate_noise(empty("LTXAV", *size)).unbind() for size in ((4, 4), (8, 8)))
    assert torch.equal(small[1], large[1]) and small[0].shape != large[0].shape


def test_a_masked_video_keeps_its_source_and_one_stage_is_cores(nodes, models):
    """As image to video does it in LTX-2: the first frame is given, and the sound is free."""
    import comfy.samplers

    model = models["LTXAV"]
    generator = torch.Generator().manual_seed(3)
    latent = empty("LTXAV", 8, 8)
    video, sound = latent["samples"].unbind()
    video = torch.randn(video.shape, generator=generator)
    mask = torch.ones(1, 1, *video.shape[2:])
    mask[:, :, 0] = 0.0
    for noise_mask in (mask, nested(mask, torch.ones_like(sound))):
        given = {"samples": nested(video, sound), "noise_mask": noise_mask}
        guider = nodes.guider(model, positive=positive("LTXAV", model))
        out, stages = nodes.advanced(model, plan_of(nodes, model, (8, 8), "2+2"), guider=guider, latent=given)
        assert relative(out["samples"].unbind()[0][:, :, 0], video[:, :, 0]) < PARITY
        whole, sampler = plan_of(nodes, model, (8, 8), "2"), comfy.samplers.sampler_object("euler")
        ours, _ = nodes.advanced(model, whole, sampler=sampler, guider=guider, latent=given)
        (noise,) = nodes("RMD_Noise", noise_seed=SEED)
        core, _ = nodes.by_core(noise, guider, sampler, nodes("RMD_StageSigmas", plan=whole, stage=1)[0], given)
        for got, wanted in zip(ours["samples"].unbind(), core["samples"].unbind(), strict=True):
            assert torch.equal(got, wanted)


def test_keyframes_and_references_of_minimax_follow_the_stage(nodes, models):
    model, generator = models["MiniMaxH3"], torch.Generator().manual_seed(4)

    def latent(*size):
        return torch.randn(1, 24, 1, *size, generator=generator)

    frames = [{"resolved_frame_index": 0, "latent": latent(8, 12)}, {"resolved_frame_index": 1, "audio_latent": None}]
    references = [
        {"kind": "image", "latent": latent(h, w), "latent_h": h, "latent_w": w} for h, w in ((12, 8), (4, 4), (16, 16))
    ]
    prompt = model.conditioning(1, minimax_keyframes=frames[:1], minimax_refs=references)
    recorder = Recorder()
    plan = plan_of(nodes, model, (8, 12), "1+1")
    guider = nodes.guider(model, patcher=recorder.watch(model.patcher), positive=prompt)
    nodes.advanced(model, plan, guider=guider, latent=empty("MiniMaxH3", 8, 12))
    small, large = (call.conditioning["minimax_payload"] for call in recorder.calls)
    sizes = [tuple(one.shape[-2:]) for one in small["cond_video_latents"]]
    assert sizes == [(4, 6), (6, 4), (4, 4), (16, 16)]
    assert [tuple(one.shape[-2:]) for one in large["cond_video_latents"]] == [(8, 12), (12, 8), (4, 4), (16, 16)]
    averaged = frames[0]["latent"].reshape(1, 24, 1, 4, 2, 6, 2).mean((4, 6))
    assert relative(small["cond_video_latents"][0], averaged) < PARITY
    assert frames[0]["latent"].shape[-2:] == (8, 12)


def test_what_does_not_fit_is_refused(nodes, tiny, models, refused):
    model = models["MiniMaxH3"]
    plan = plan_of(nodes, model, (8, 8), "1+1")
    masked = empty("MiniMaxH3", 8, 8) | {"noise_mask": torch.zeros(1, 1, 2, 8, 8)}
    refused(lambda: nodes.sample(model, plan, latent=masked), "cannot mask", "MiniMaxH3")
    keyframe = model.conditioning(
        1, minimax_keyframes=[{"resolved_frame_index": 0, "latent": torch.zeros(1, 24, 1, 6, 6)}]
    )
    refused(lambda: nodes.sample(model, plan, latent=empty("MiniMaxH3", 8, 8), positive=keyframe), "6 x 6 cells")
    ltxv = tiny("ltxv")
    latent = empty("LTXAV", 8, 8)
    refused(lambda: nodes.sample(ltxv, nodes.plan(ltxv, sizes=((4, 4), (8, 8))), latent=latent), "LTXV takes one")
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    wires = {"output": latent, "denoised_output": latent, "sigmas": torch.tensor([1.0, 0.5]), "noise": noise}
    refused(lambda: nodes("RMD_StageUpscale", model=models["LTXAV"].patcher, width=512, height=512, **wires), "by hand")


def test_a_learned_upsampler_enlarges_the_video_alone(nodes, models):
    model, runs = models["LTXAV"], []
    network, _ = comfy_upscalers.latent_upscaler()
    (made,) = nodes("RMD_Upsampler", upscale_model=network, vae=comfy_upscalers.ltx_vae())
    for upsampler in (made, None):
        guider = nodes.guider(model, patcher=deaf(model, []), positive=positive("LTXAV", model))
        plan = plan_of(nodes, model, (8, 8), "1+1")
        out, _ = nodes.advanced(model, plan, guider=guider, latent=empty("LTXAV", 8, 8), learned_upsampler=upsampler)
        runs.append(out["samples"].unbind())
    assert torch.equal(runs[0][1], runs[1][1]) and relative(runs[0][0], runs[1][0]) > 0.01

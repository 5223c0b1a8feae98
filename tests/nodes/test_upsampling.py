"""Learned upsamplers at the switch: what core's own nodes make of the same estimate, then our noise."""

from dataclasses import replace

import pytest
import torch

import comfy_models
import comfy_upscalers
from cascade_rig import SEED, HandBuilt, Recorder, fresh_noise, relative
from demo import files
from rmd_core.boundary import learned_name, resize, upsample
from rmd_core.files import weights_digest
from rmd_core.upsampler import LatentUpsampler, read_upsampler

PARITY = 5e-6  # of the largest value
SIZES = ((4, 6), (8, 12))


@pytest.fixture(scope="module")
def ltx(nodes, tiny):
    """A tiny LTXV, its VAE and a 2x upscale model."""
    return tiny("ltxv"), comfy_upscalers.ltx_vae(), comfy_upscalers.latent_upscaler()[0]


def upsampler(nodes, **inputs):
    (made,) = nodes("RMD_Upsampler", **inputs)
    return made


def switched(nodes, model, sizes, made, *, frames=1, batch=1):
    """Stage 1's clean estimate as a LATENT, and the one that the first call of stage 2 holds, without our noise."""
    recorder = Recorder()
    plan = nodes.plan(model, sizes=sizes, switch_noise="fresh")
    positive = model.conditioning(1, attention_mask=torch.ones(1, 5))
    guider = nodes.guider(model, patcher=recorder.watch(model.patcher), positive=positive)
    latent = model.latent(*sizes[-1], batch=batch, **({"frames": frames} if model.video else {}))
    _, stages = nodes.advanced(model, plan, guider=guider, latent=latent, learned_upsampler=made)
    call = next(call for call in recorder.calls if call.x.shape[-2:] == sizes[-1])
    noise = fresh_noise(call.x.shape, 1, "switch")
    sampling = model.patcher.get_model_object("model_sampling")
    flow = hasattr(sampling, "shift")
    x0 = (call.x.double() - call.sigma * noise) / (1.0 - call.sigma if flow else 1.0)
    return stages[0]["samples"], model.patcher.model.process_latent_out(x0)


def test_the_2x_network_of_ltx_is_cores_node_on_the_same_estimate(nodes, ltx):
    from comfy_extras.nodes_lt_upsampler import LTXVLatentUpsampler

    model, vae, network = ltx
    given, got = switched(nodes, model, SIZES, upsampler(nodes, upscale_model=network, vae=vae), frames=2)
    (expected,) = LTXVLatentUpsampler.execute({"samples": given}, network, vae).args
    assert relative(got, expected["samples"]) < PARITY


@pytest.mark.parametrize("scale, small", [(2.0, (6, 4)), (1.5, (4, 4))])
def test_a_fixed_scale_is_followed_by_a_resize_to_the_stage(nodes, ltx, scale, small):
    from comfy_extras.nodes_lt_upsampler import LTXVLatentUpsampler

    model, vae, _ = ltx
    network, _ = comfy_upscalers.latent_upscaler(scale)
    given, got = switched(nodes, model, (small, (9, 8)), upsampler(nodes, upscale_model=network, vae=vae))
    (expected,) = LTXVLatentUpsampler.execute({"samples": given}, network, vae).args
    assert expected["samples"].shape[-1] == small[1] * scale
    assert relative(got, resize(expected["samples"].float(), (9, 8))) < PARITY


def test_hunyuans_network_is_cores_node_on_the_same_estimate(nodes, tiny):
    from comfy_extras.nodes_hunyuan import HunyuanVideo15LatentUpscaleWithModel

    model = tiny("wan")
    network, _ = comfy_upscalers.sr_model(model.channels)
    given, got = switched(nodes, model, ((4, 6), (8, 10)), upsampler(nodes, upscale_model=network), frames=2)
    size = {"width": 160, "height": 128, "crop": "disabled", "upscale_method": "bilinear"}
    (expected,) = HunyuanVideo15LatentUpscaleWithModel.execute(network, {"samples": given}, **size).args
    assert relative(got, expected["samples"]) < PARITY


def test_the_vae_alone_is_decode_scale_encode_by_cores_nodes(nodes, tiny):
    from comfy.sd import VAE
    from comfy.utils import load_torch_file

    import nodes as core_nodes

    wan = VAE(sd=load_torch_file(str(files.VAE)))
    for model, vae, frames in (
        (tiny("wan"), wan, 2),
        (tiny("wan"), wan, 1),
        (tiny("sdxl"), comfy_upscalers.image_vae(), 1),
    ):
        given, got = switched(nodes, model, ((8, 8), (12, 16)), upsampler(nodes, vae=vae), frames=frames, batch=2)
        for item, mine in zip(given.split(1), got.split(1)):
            (pixels,) = core_nodes.VAEDecode().decode(vae, {"samples": item})
            (pixels,) = core_nodes.ImageScale().upscale(pixels, "bicubic", 128, 96, "disabled")
            (expected,) = core_nodes.VAEEncode().encode(vae, pixels)
            assert relative(mine, expected["samples"]) < PARITY


@pytest.fixture
def own_file(comfy, tmp_path, monkeypatch):
    """Writes an upsampler as the trainer does, with random weights, into a folder of ComfyUI's: its name and path."""
    import folder_paths

    known, suffixes = folder_paths.folder_names_and_paths["latent_upscale_models"]
    folders = ([str(tmp_path), *known], suffixes)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "latent_upscale_models", folders)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})

    def write(channels, *, seed=1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = LatentUpsampler(channels=channels, width=8, blocks=1, latents="wan")
            torch.nn.init.normal_(network.leave.weight, std=0.05)
        return "own.safetensors", network.save(tmp_path / "own.safetensors")

    return write


@pytest.mark.parametrize(("model_name", "frames"), [("wan", 2), ("sdxl", 1)])
def test_a_file_of_the_trainer_enlarges_what_the_model_sees(nodes, tiny, own_file, model_name, frames):
    model = tiny(model_name)
    name, path = own_file(model.channels)
    made = upsampler(nodes, file=name)
    assert made.name == learned_name(name, read_upsampler(path).digest())
    given, got = switched(nodes, model, ((4, 6), (6, 10)), made, frames=frames, batch=2)
    inner = model.patcher.model
    expected = read_upsampler(path)(inner.process_latent_in(given), (6, 10))
    assert relative(inner.process_latent_in(got), expected) < PARITY
    assert relative(expected, upsample(inner.process_latent_in(given), (6, 10), "bicubic")) > 0.01


def test_the_list_of_files_has_those_of_the_trainer_alone(nodes, node_classes, pack, refused, own_file):
    comfy_upscalers.sr_model(16)
    name, path = own_file(16)
    assert (
        name in pack.nodes.folders.upsampler_files() and "sr_16.safetensors" not in pack.nodes.folders.upsampler_files()
    )
    before = node_classes["RMD_Upsampler"].fingerprint_inputs(file=name)
    own_file(16, seed=2)
    assert node_classes["RMD_Upsampler"].fingerprint_inputs(file=name) != before
    refused(lambda: upsampler(nodes, file="sr_16.safetensors"), "is not an RMD upsampler", "Load Latent Upscale Model")
    refused(lambda: upsampler(nodes, file=name, vae=comfy_upscalers.image_vae()), "neither upscale_model nor vae")
    refused(lambda: upsampler(nodes, file="gone.safetensors"), "no file 'gone.safetensors' in models/latent_upscale")


def test_a_decoder_that_samples_noise_repeats_itself_and_leaves_the_global_one(nodes, ltx):
    model, vae, _ = ltx
    enlarge = upsampler(nodes, vae=vae).on(model.patcher)
    x0 = torch.randn(1, 128, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    assert torch.equal(enlarge(x0, (4, 4)), enlarge(x0, (4, 4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_node_gives_the_same(nodes, tiny):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=((4, 6), (8, 12)), eta=0.5)
    made = upsampler(nodes, upscale_model=comfy_upscalers.sr_model(model.channels)[0])
    output, _ = nodes.advanced(model, plan, learned_upsampler=made)
    inputs = {"model": model.patcher, "positive": model.conditioning(1), "plan": plan, "seed": SEED, "cfg": 1.0}
    (one,) = nodes("RMD_Sampler", **inputs, latent_image=model.latent(8, 12), learned_upsampler=made)
    assert torch.equal(one["samples"], output["samples"])
    guider, sigmas = nodes("RMD_Guider", guider=nodes.guider(model), plan=plan, learned_upsampler=made)
    (sampler,) = nodes("RMD_StepSampler", eta=plan.eta)
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    by_guider, _ = nodes.by_core(noise, guider, sampler, sigmas, model.latent(8, 12))
    assert torch.equal(by_guider["samples"], output["samples"])
    by_hand = HandBuilt(nodes, model, plan)
    small = by_hand.stage(1, noise)
    for rule in ({}, {"plan": plan}):
        latent, later = by_hand.upscale(1, *small, noise, learned_upsampler=made, **rule)
        assert relative(by_hand.stage(2, later, latent)[0]["samples"], output["samples"]) < PARITY
    plain, _ = nodes.advanced(model, plan)
    assert relative(plain["samples"], output["samples"]) > 0.01


def test_equal_sizes_do_not_use_it(nodes, tiny):
    model = tiny("wan")
    plan = nodes.plan(model, sizes=((8, 8), (8, 8)))
    made = upsampler(nodes, upscale_model=comfy_upscalers.sr_model(model.channels)[0])
    with_it, without = (nodes.advanced(model, plan, learned_upsampler=one)[0] for one in (made, None))
    assert torch.equal(with_it["samples"], without["samples"])


def test_a_student_takes_only_the_network_it_was_trained_with(nodes, tiny, refused, caplog):
    model = tiny("wan")
    network, weights = comfy_upscalers.sr_model(model.channels)
    made = upsampler(nodes, upscale_model=network)
    named = learned_name("sr.safetensors", weights_digest(one.half().float() for one in weights.values()))
    right = learned_name("sr.safetensors", weights_digest(weights.values()))
    assert made.name.endswith(right.removeprefix("sr.safetensors"))

    def run(upsampler_name, **inputs):
        plan = replace(nodes.plan(model, sizes=SIZES, upsampler=upsampler_name), student=True)
        return nodes.advanced(model, plan, **inputs)

    refused(lambda: run(named, learned_upsampler=made), "was trained with the upsampler sr.safetensors", "SRModel3DV2")
    refused(lambda: run(named), "the connected one is none", "RMD Upsampler")
    run(right, learned_upsampler=made)
    assert "was trained with" not in caplog.text
    run("bicubic", learned_upsampler=made)
    assert caplog.text.count("was trained with the upsampler bicubic") == 1


def test_what_cannot_enlarge_is_refused(nodes, tiny, refused, own_file):
    refused(lambda: upsampler(nodes), "nothing to enlarge with")
    ltx_network, _ = comfy_upscalers.latent_upscaler()
    refused(lambda: upsampler(nodes, upscale_model=ltx_network), "connect the video VAE")
    model = tiny("wan")
    plan = nodes.plan(model, sizes=SIZES)
    made = upsampler(nodes, vae=comfy_upscalers.image_vae())  # for 4 channels, the model has 16
    refused(lambda: nodes.advanced(model, plan, learned_upsampler=made), "of 4 channels, this model's have 16")
    made = upsampler(nodes, upscale_model=comfy_upscalers.sr_model(32)[0])
    refused(lambda: nodes.advanced(model, plan, learned_upsampler=made), "of 32 channels, this model's have 16")
    made = upsampler(nodes, vae=comfy_models.tiny_wan_vae())  # for 16 channels, as the model, and for videos
    image_model = tiny("sd3")
    image_plan = nodes.plan(image_model, sizes=SIZES)
    refused(lambda: nodes.advanced(image_model, image_plan, learned_upsampler=made), "is for videos", "images")
    made = upsampler(nodes, file=own_file(4)[0])
    refused(lambda: nodes.advanced(model, plan, learned_upsampler=made), "file own.safetensors", "of 4 channels")
    refused(lambda: upsampler(nodes, vae=model.patcher), "vae is of type")

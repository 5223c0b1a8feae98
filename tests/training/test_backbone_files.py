"""Files of networks and autoencoders: names against ComfyUI and diffusers, round trips, damaged and foreign files."""

import json

import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
    convert_wan_transformer_to_diffusers,
)
from safetensors.torch import load_file, save_file

from backbone_world import NAMES, TINY, random_network, tiny_network, write_backbone_world
from full_size import STUDENTS, meta_student
from rmd_core.errors import RMDError
from rmd_core.files import read_tensors, save_safetensors
from training.backbones import make_backbone
from training.backbones.wan import WanBackbone
from training.config import load_config
from training.lora import adapted_layers
from training.setup import outline_run
from training_world import TEXT_DIM, equal, tensors, tiny_vae, tiny_wan, write_native_vae

PUBLISHED = {  # parameters in thousand millions, and the name of the architecture in the file
    "SDXL": (2.567, "stable-diffusion-xl-v1-base"),
    "PixArt alpha": (0.611, "pixart-alpha-xl-2"),
    "PixArt Sigma": (0.611, "pixart-ms-sigma-xl-2"),
    "SD3.5 Medium": (2.243, "stable-diffusion-v3.5-medium"),  # the 2.47 it is known by counts the position table
    "SD3.5 Large": (8.06, "stable-diffusion-v3.5-large"),
    "Wan2.1 1.3B": (1.419, "wan2.1"),
    "Wan2.1 14B": (14.288, "wan2.1"),
    "Wan2.2 A14B": (14.288, "wan2.2-a14b"),
    "Wan2.2 5B": (5.0, "wan2.2-5b"),
    "Z-Image": (6.155, "z-image"),
    "Qwen-Image": (20.43, "qwen-image"),
    "FLUX.2 klein 4B": (3.876, "Flux.2-klein-4b"),
    "FLUX.2 klein 9B": (9.08, "Flux.2-klein-9b"),
}
CONVERTERS = {  # diffusers' own, to its names
    "wan": convert_wan_transformer_to_diffusers,
    "wan22_5b": convert_wan_transformer_to_diffusers,
    "sd3": convert_sd3_transformer_checkpoint_to_diffusers,
    "sdxl": convert_ldm_unet_checkpoint,
    "flux2_klein": convert_flux2_transformer_checkpoint_to_diffusers,
}


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def converted(name, network, native):
    """What diffusers' converter makes of a whole checkpoint with these native tensors."""
    prefix = "" if name == "flux2_klein" else "model.diffusion_model."  # which that one does not take off
    whole = {f"{prefix}{key}": tensor for key, tensor in native.items()}
    return CONVERTERS[name](whole, config=dict(network.config))


@pytest.fixture(scope="module")
def detection(comfy):
    import comfy.model_detection

    return comfy.model_detection


def exported(backbone, network):
    """What `export` writes of a network on the meta device: half-precision tensors without data, and the metadata."""
    state = {name: tensor.to(torch.float16) for name, tensor in backbone.native_state(network).items()}
    return state, backbone.native_metadata(network)


@pytest.mark.parametrize("name", STUDENTS)
def test_comfyui_detects_the_student_and_takes_every_key(detection, name):
    backbone, network, expected = meta_student(name)
    state, metadata = exported(backbone, network)
    assert detection.unet_prefix_from_state_dict(state) == "model."  # no prefix is taken off
    config = detection.model_config_from_unet(state, "", metadata=metadata)
    assert type(config).__name__ == expected
    config.set_inference_dtype(torch.float16, None)
    built = config.get_model(dict(state), "", device=torch.device("meta")).diffusion_model
    theirs, ours = shapes(built.state_dict()), shapes(config.process_unet_state_dict(state))
    assert sorted(theirs.keys() - ours.keys()) == [] and sorted(ours.keys() - theirs.keys()) == []
    assert {key: (ours[key], shape) for key, shape in theirs.items() if ours[key] != shape} == {}


@pytest.mark.parametrize("name", STUDENTS)
def test_the_student_has_the_published_parameters_and_name(name):
    backbone, network, _ = meta_student(name)
    parameters, architecture = PUBLISHED[name]
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters * 1e9, rel=0.01)
    assert backbone.architecture_of(network) == architecture


@pytest.mark.parametrize("name", STUDENTS)
def test_every_layer_that_a_lora_is_put_on_has_a_native_layer_of_its_shape(name):
    backbone, network, _ = meta_student(name)
    state, keys = backbone.native_state(network), backbone.keys(network.config)
    layers = adapted_layers(network, backbone.adapter_targets)
    assert {target for target in backbone.adapter_targets if any(n.endswith(f".{target}") for n in layers)} == set(
        backbone.adapter_targets
    )
    for layer in layers:
        native, stacked = keys.native_layer(layer)
        rows = sum(network.get_submodule(part).weight.shape[0] for part in stacked)
        assert layer in stacked and state[f"{native}.weight"].shape[0] == rows


@pytest.mark.parametrize("name", STUDENTS)
def test_a_full_size_native_file_gives_the_network_it_was_written_from(name):
    backbone, network, _ = meta_student(name)
    state, metadata = exported(backbone, network)
    with torch.device("meta"):
        again = type(network)(**backbone.native_config(state, metadata))
    assert shapes(again.state_dict()) == shapes(network.state_dict())
    differing = {key for key, value in network.config.items() if again.config[key] != value}
    assert differing <= {"_use_default_values"}
    if backbone.name in CONVERTERS:  # diffusers knows no PixArt files
        theirs = converted(backbone.name, network, backbone.native_state(network))
        assert shapes(theirs) == shapes(network.state_dict())


@pytest.mark.parametrize("name", CONVERTERS)
def test_native_names_are_those_of_diffusers_own_converter(name):
    backbone, network = make_backbone(name), tiny_network(name)
    native, state = backbone.native_state(network), network.state_dict()
    assert equal(converted(name, network, native), state)
    assert equal(backbone.keys(network.config).to_diffusers(native), state)


@pytest.mark.parametrize("name", ["sd3", "pixart_alpha", "pixart_sigma", "qwen_image", "z_image", "flux2_klein"])
def test_a_native_file_gives_the_same_network_as_the_folder(tmp_path, name):
    """PixArt's heads are 72 wide in every release, which a native file does not tell."""
    kind, config, *_ = TINY[name]
    heads = {"num_attention_heads": 1, "attention_head_dim": 72, "cross_attention_dim": 72}
    network = random_network(kind, config | (heads if name.startswith("pixart") else {}))
    backbone = make_backbone(name)
    backbone.export(network, tmp_path / "m.safetensors", dtype=torch.float32, metadata={})
    again = backbone.load(tmp_path / "m.safetensors", dtype=torch.float32)
    assert equal(network.state_dict(), again.state_dict())
    if name == "sd3":
        assert again.config.dual_attention_layers == (0,) and again.config.qk_norm == "rms_norm"
    whole = {f"model.diffusion_model.{key}": tensor for key, tensor in tensors(tmp_path / "m.safetensors").items()}
    save_safetensors(tmp_path / "whole.safetensors", whole | {"first_stage_model.post_quant_conv.bias": torch.zeros(4)})
    assert equal(network.state_dict(), backbone.load(tmp_path / "whole.safetensors", dtype=torch.float32).state_dict())
    save_safetensors(tmp_path / "part.safetensors", dict(list(whole.items())[1:]))
    save_safetensors(tmp_path / "more.safetensors", whole | {"model.diffusion_model.extra": torch.zeros(4)})
    save_safetensors(tmp_path / "other.safetensors", {"weight": torch.zeros(4)})
    for file, words in (("part", "tensors"), ("more", "'extra'"), ("other", "native key names")):
        with pytest.raises(RMDError, match=words):
            backbone.load(tmp_path / f"{file}.safetensors", dtype=torch.float32)


def forward(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 16, 1, 6, 4, generator=generator)
    text = torch.randn(2, 5, TEXT_DIM, generator=generator)
    with torch.no_grad():
        return model(x, torch.tensor([1000.0, 412.5]), text, return_dict=False)[0]


@pytest.mark.parametrize(("dim", "heads"), [(128, 1), (256, 2), (96, 2)])
def test_file_round_trip_gives_equal_outputs(tmp_path, dim, heads):
    model = tiny_wan(layers=2, dim=dim, heads=heads)
    WanBackbone().export(model, tmp_path / "m.safetensors", dtype=torch.float32)
    again = WanBackbone().load(tmp_path / "m.safetensors")
    assert again.config.num_attention_heads == heads
    assert torch.equal(forward(model), forward(again))


def test_half_precision_and_wrapped_keys(tmp_path):
    model = tiny_wan()
    WanBackbone().export(model, tmp_path / "m.safetensors", dtype=torch.float16)
    tensors, metadata = read_tensors(tmp_path / "m.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    save_safetensors(
        tmp_path / "w.safetensors", {f"model.diffusion_model.{k}": t for k, t in tensors.items()}, metadata=metadata
    )
    a, b = (WanBackbone().load(tmp_path / f"{n}.safetensors") for n in "mw")
    assert next(a.parameters()).dtype == torch.float32 and next(a.parameters()).requires_grad
    assert torch.equal(forward(a), forward(b))


def damaged_files(folder):
    WanBackbone().export(tiny_wan(), folder / "good.safetensors", dtype=torch.float32)
    good, metadata = read_tensors(folder / "good.safetensors")
    content = (folder / "good.safetensors").read_bytes()
    (folder / "short.safetensors").write_bytes(content[:-1000])
    (folder / "stub.safetensors").write_bytes(content[:5])
    torch.save(good, folder / "pickled.safetensors")
    torch.save(good, folder / "old.safetensors", _use_new_zipfile_serialization=False)
    save_safetensors(folder / "other.safetensors", {"conv_in.weight": torch.zeros(3)})
    lacking = {k: v for k, v in good.items() if k != "blocks.0.self_attn.q.weight"}
    save_safetensors(folder / "lacking.safetensors", lacking, metadata=metadata)
    save_safetensors(folder / "i2v.safetensors", {**good, "img_emb.proj.0.weight": torch.zeros(3)}, metadata=metadata)
    wrong = {**good, "blocks.0.ffn.2.weight": torch.zeros(7, 7)}
    save_safetensors(folder / "shape.safetensors", wrong, metadata=metadata)
    save_safetensors(folder / "config.safetensors", good, metadata={"config": "[1, 2"})
    for name, sizes in {
        "heads": {"num_heads": 7},
        "narrow": {"num_heads": 128},
        "boolean": {"num_heads": True},
        "eps": {"eps": "x"},
        "null": {"eps": None},
    }.items():
        save_safetensors(folder / f"{name}.safetensors", good, {"config": json.dumps({"transformer": sizes})})
    for name, key, tensor in (
        ("flat", "text_embedding.0.weight", torch.zeros(16)),
        ("scalar", "head.head.weight", torch.zeros(())),
        ("patch", "patch_embedding.weight", torch.zeros(128, 16, 1, 0, 2)),
        ("integers", "blocks.0.ffn.2.weight", good["blocks.0.ffn.2.weight"].to(torch.int8)),
        ("nan", "blocks.0.ffn.2.bias", torch.full_like(good["blocks.0.ffn.2.bias"], float("nan"))),
        ("gap", "blocks.99999999999.ffn.2.bias", torch.zeros(3)),
    ):
        save_safetensors(folder / f"{name}.safetensors", {**good, key: tensor}, metadata)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    damaged_files(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "no such file"),
        ("short", "truncated"),
        ("stub", "truncated"),
        ("pickled", "pickled"),
        ("old", "pickled"),
        ("other", "not a WanTransformer3DModel"),
        ("lacking", "self_attn.q.weight"),
        ("i2v", "img_emb"),
        ("shape", "size mismatch for blocks.0.ffn.net.2.weight"),
        ("config", "'config'"),
        ("heads", "7 heads"),
        ("narrow", "128 heads"),
        ("boolean", "True heads"),
        ("eps", "eps is 'x'"),
        ("null", "eps is None"),
        ("flat", "not a WanTransformer3DModel"),
        ("scalar", "not a WanTransformer3DModel"),
        ("patch", "not a WanTransformer3DModel"),
        ("integers", "'blocks.0.ffn.2.weight' holds int8"),
        ("nan", "'blocks.0.ffn.2.bias' holds values that are not finite"),
        ("gap", r"first 'blocks\.1\."),
    ],
)
def test_bad_files_give_one_line(damaged, name, words):
    with pytest.raises(RMDError, match=words) as caught:
        WanBackbone().load(damaged / f"{name}.safetensors")
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(("value", "words"), [(1e6, "set output.dtype to bfloat16"), (float("nan"), "lower the learn")])
def test_weights_that_are_not_finite_are_not_written(tmp_path, value, words):
    model = tiny_wan()
    with torch.no_grad():
        model.blocks[0].ffn.net[2].bias[3] = value
    with pytest.raises(RMDError, match=words) as caught:
        WanBackbone().export(model, tmp_path / "m.safetensors", dtype=torch.float16)
    assert "'blocks.0.ffn.2.bias'" in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wan", "sd3", "pixart_sigma"])
def test_a_foreign_tensor_of_a_long_name_is_refused_in_one_short_line(tmp_path, name):
    path, backbone = tmp_path / "model.safetensors", make_backbone(name)
    heads = {"num_attention_heads": 1, "attention_head_dim": 72, "cross_attention_dim": 72}
    changes = heads if name == "pixart_sigma" else {}
    network = tiny_wan() if name == "wan" else random_network(TINY[name][0], TINY[name][1] | changes)
    backbone.export(network, path, dtype=torch.float32, metadata={})
    save_file({**load_file(path), "z\n" + "y" * 5000: torch.zeros(1)}, path)
    with pytest.raises(RMDError, match=r"first 'z\\nyyyy") as caught:
        backbone.load(path, dtype=torch.float32)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("marker", ["v_pred", "ztsnr", "edm_mean"])
def test_marked_checkpoints_are_no_eps_models(tmp_path, marker):
    path = tmp_path / "model.safetensors"
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4), marker: torch.zeros(1)}, path)
    for load in (make_backbone("sdxl").outline, lambda p: make_backbone("sdxl").load(p, dtype=torch.float32)):
        with pytest.raises(RMDError, match=f"not an eps model: it has the tensor '{marker}'"):
            load(path)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_damaged_folders_are_refused(tmp_path):
    write_backbone_world("sdxl", tmp_path)
    model, backbone = tmp_path / "model", make_backbone("sdxl")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    good = weights.read_bytes()

    def refuses(words):
        with pytest.raises(RMDError, match=words) as caught:
            backbone.load(model, dtype=torch.float32)
        assert "\n" not in str(caught.value)

    (model / "scheduler").mkdir()
    (model / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    refuses("v_prediction")
    (model / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    assert backbone.load(model, dtype=torch.bfloat16).dtype == torch.bfloat16
    weights.write_bytes(good[: len(good) // 2])
    refuses("truncated")
    weights.unlink()
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"PK")
    refuses("only safetensors are read")
    (model / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(good)
    assert backbone.load(model, dtype=torch.float32).dtype == torch.float32
    change(model / "unet" / "config.json", transformer_layers_per_block=[1, 3])
    refuses("are missing")
    change(model / "unet" / "config.json", transformer_layers_per_block=[1, 1])
    refuses("also contain")
    change(model / "unet" / "config.json", transformer_layers_per_block=[1, 2], cross_attention_dim=32)
    refuses("cannot be loaded")
    (model / "unet" / "config.json").write_text("[")
    refuses("JSON")


def test_a_folder_may_go_by_the_older_name_of_its_class(tmp_path):
    write_backbone_world("pixart_alpha", tmp_path)
    backbone, network = make_backbone("pixart_alpha"), tiny_network("pixart_alpha")
    change(tmp_path / "model" / "transformer" / "config.json", _class_name="Transformer2DModel")
    for dtype in (torch.float32, torch.bfloat16):
        state = {key: tensor.to(dtype) for key, tensor in network.state_dict().items()}
        assert equal(backbone.load(tmp_path / "model", dtype=dtype).state_dict(), state)
    assert type(backbone.outline(tmp_path / "model")) is type(network)


def test_weights_that_are_not_finite_and_another_autoencoder_are_refused(tmp_path):
    write_backbone_world("sd3", tmp_path)
    backbone, network = make_backbone("sd3"), tiny_network("sd3")
    with torch.no_grad():
        next(network.parameters())[0] = torch.nan
    network.save_pretrained(tmp_path / "model" / "transformer")
    with pytest.raises(RMDError, match="not finite"):
        backbone.load(tmp_path / "model", dtype=torch.float32)
    change(tmp_path / "model" / "vae" / "config.json", scaling_factor=0.3611)
    with pytest.raises(RMDError, match="channels, scale and shift"):
        backbone.load_vae(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_in_a_folder(tmp_path, dtype):
    tiny_network("sd3").save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    name = next(name for name, tensor in state.items() if tensor.ndim == 2)
    save_file({**state, name: state[name].to(dtype)}, path)
    with pytest.raises(RMDError, match="not quantised"):
        make_backbone("sd3").load(tmp_path, dtype=torch.float32)


def test_a_folder_that_says_it_is_quantised(tmp_path):
    tiny_network("sd3").save_pretrained(tmp_path)
    change(tmp_path / "config.json", quantization_config="x")
    with pytest.raises(RMDError, match="quantised model"):
        make_backbone("sd3").outline(tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(make_backbone(name), "scaling")])
def test_latents_of_an_encoded_image_decode_to_it_as_the_autoencoder_says(tmp_path, name):
    write_backbone_world(name, tmp_path)
    backbone = make_backbone(name)
    vae = backbone.load_vae(tmp_path / "model")
    raw = torch.randn(2, backbone.channels, 3, 4, generator=torch.Generator().manual_seed(0))
    config = vae.config
    latents = (raw - (config.shift_factor or 0.0)) * config.scaling_factor
    with torch.no_grad():
        expected = (vae.decode(raw).sample * 0.5 + 0.5).clamp(0, 1)
    images = backbone.decode(vae, latents)
    assert images.shape == (2, 3, 1, 24, 32) and torch.allclose(images[:, :, 0], expected, atol=1e-5)
    mode = vae.encode(2 * expected - 1).latent_dist.mode().detach()
    scaled = (mode - (config.shift_factor or 0.0)) * config.scaling_factor
    assert torch.allclose(backbone.encode(vae, expected), scaled, atol=1e-5)


def test_flux2_latents_are_unpacked_as_its_pipeline_does(tmp_path):
    write_backbone_world("flux2_klein", tmp_path)
    backbone = make_backbone("flux2_klein")
    vae = backbone.load_vae(tmp_path / "model")
    latents = torch.randn(2, 128, 2, 3, generator=torch.Generator().manual_seed(0))
    mean, variance = vae.bn.running_mean.view(1, -1, 1, 1), vae.bn.running_var.view(1, -1, 1, 1)
    raw = Flux2KleinPipeline._unpatchify_latents(latents * torch.sqrt(variance + vae.config.batch_norm_eps) + mean)
    with torch.no_grad():
        expected = (vae.decode(raw).sample * 0.5 + 0.5).clamp(0, 1)
    images = backbone.decode(vae, latents)
    assert images.shape == (2, 3, 1, 32, 48) and torch.allclose(images[:, :, 0], expected, atol=1e-5)
    packed = Flux2KleinPipeline._patchify_latents(vae.encode(2 * expected - 1).latent_dist.mode().detach())
    normalised = (packed - mean) / torch.sqrt(variance + vae.config.batch_norm_eps)
    assert torch.allclose(backbone.encode(vae, expected), normalised, atol=1e-5)


def test_flux2_files_that_comfyui_saved_are_read_and_other_models_are_refused(tmp_path):
    backbone, network = make_backbone("flux2_klein"), tiny_network("flux2_klein")
    native = backbone.native_state(network)
    theirs = {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in native.items()}
    save_safetensors(tmp_path / "m.safetensors", theirs)
    assert theirs.keys() != native.keys()
    assert equal(backbone.load(tmp_path / "m.safetensors").state_dict(), network.state_dict())
    guided = {f"guidance_in.{layer}.weight": torch.zeros(1) for layer in ("in_layer", "out_layer")}
    save_safetensors(tmp_path / "dev.safetensors", native | guided)
    kind, config, *_ = TINY["flux2_klein"]
    random_network(kind, config | {"guidance_embeds": True}).save_pretrained(tmp_path / "dev" / "transformer")
    for path in ("dev.safetensors", "dev"):
        with pytest.raises(RMDError, match="takes the guidance as an input"):
            backbone.load(tmp_path / path)


def test_a_folder_that_says_it_is_distilled_is_no_teacher_but_may_be_started_from(tmp_path):
    config = write_backbone_world("flux2_klein", tmp_path)
    (tmp_path / "model" / "model_index.json").write_text('{"is_distilled": true}')
    with pytest.raises(RMDError, match="distilled already"):
        outline_run(load_config(config).resolved())
    assert make_backbone("flux2_klein").load(tmp_path / "model").config.num_single_layers == 2


def test_autoencoder_file_decodes_like_the_model(tmp_path):
    vae = tiny_vae()
    write_native_vae(vae, tmp_path / "vae.safetensors")
    again = WanBackbone().load_vae(tmp_path / "vae.safetensors")
    latents = torch.randn(2, 16, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 16, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        expected = (vae.decode(latents * std + mean).sample / 2 + 0.5).clamp(0, 1)
    images = WanBackbone().decode(again, latents)
    assert images.shape == (2, 3, 1, 32, 48)
    assert torch.allclose(images, expected, atol=1e-6)
    mode = vae.encode(2 * expected - 1).latent_dist.mode().detach()
    assert torch.allclose(WanBackbone().encode(again, expected[:, :, 0]), (mode - mean) / std, atol=1e-5)
    assert not any(p.requires_grad for p in again.parameters())


def test_a_transformer_is_no_autoencoder(tmp_path):
    WanBackbone().export(tiny_wan(), tmp_path / "m.safetensors")
    with pytest.raises(RMDError, match="not a AutoencoderKLWan"):
        WanBackbone().load_vae(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("conv2.weight", torch.zeros(())),
        ("conv2.weight", torch.zeros(48, 48, 1, 1, 1)),
        ("decoder.head.0.gamma", torch.zeros(())),
        ("decoder.head.0.gamma", torch.zeros(0, 1, 1, 1)),
        ("conv1.weight", torch.zeros(())),
        ("conv1.bias", torch.full((32,), float("inf"))),
        ("decoder.upsamples.x.residual.0.gamma", torch.zeros(3)),
    ],
)
def test_damaged_autoencoders_give_one_line(tmp_path, key, tensor):
    write_native_vae(tiny_vae(), tmp_path / "good.safetensors")
    tensors, _ = read_tensors(tmp_path / "good.safetensors")
    save_safetensors(tmp_path / "vae.safetensors", {**tensors, key: tensor})
    with pytest.raises(RMDError, match="vae.safetensors") as caught:
        WanBackbone().load_vae(tmp_path / "vae.safetensors")
    assert "\n" not in str(caught.value)

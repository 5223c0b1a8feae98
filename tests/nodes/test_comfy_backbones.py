"""Students of the image backbones through ComfyUI's own loader: detected, with the forward of diffusers' class."""

import logging

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2

from backbone_world import random_network
from comfy_students import (
    KEY_COMPLAINTS,
    STUDENTS,
    TOKENS,
    comfy_output,
    load_in_comfy,
    relative_error,
    tell_difference,
)
from full_size import meta_student
from rmd_core.files import read_tensors, save_safetensors
from training.backbones import make_backbone
from training.backbones.files import load_kl_vae


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_detected_and_runs_alike(comfy, caplog, tmp_path, name):
    family, kind, config, width, pooled_width, detected, sizes = STUDENTS[name]
    backbone, network = make_backbone(family), random_network(kind, config)
    path = tmp_path / "student.safetensors"
    backbone.export(network, path, dtype=torch.float32, metadata={"note": "text"})
    caplog.set_level(logging.DEBUG)
    model = load_in_comfy(comfy, path)
    assert type(model.model_config).__name__ == detected
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith(KEY_COMPLAINTS)] == []

    generator = torch.Generator().manual_seed(7)
    worst = 0.0
    for height, width_cells in sizes:
        tokens = TOKENS[family]
        lengths = (5, 3) if family.startswith("pixart") else (tokens, tokens)
        x = torch.randn(2, backbone.channels, height, width_cells, generator=generator)
        text = torch.randn(2, tokens, width, generator=generator)
        conditioning = {"text": text, "mask": (torch.arange(tokens) < torch.tensor(lengths)[:, None]).float()}
        if pooled_width is not None:
            conditioning["pooled"] = torch.randn(2, pooled_width, generator=generator)
        # VP levels of table entries: between them ComfyUI tells the nearest one.
        sigma = [backbone.curve.table_sigma(index) for index in (998.0, 375.0)]
        with torch.no_grad():
            expected = backbone.predict(network, x, torch.tensor(sigma, dtype=torch.float64), conditioning)
            for i, length in enumerate(lengths):
                own = text[i : i + 1, :length]
                pooled = conditioning["pooled"][i : i + 1] if pooled_width else None
                got = comfy_output(model, backbone, x[i : i + 1], sigma[i], own, pooled)
                worst = max(worst, relative_error(got, expected[i : i + 1]))
    tell_difference(name, worst)


NARROWER = {  # the width of text among them is that of the test
    "Z-Image": {"dim": 1152, "n_heads": 9, "n_kv_heads": 9, "n_layers": 1, "n_refiner_layers": 1, "cap_feat_dim": 32},
    "Qwen-Image": {"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 32},
}


@pytest.mark.parametrize("name", NARROWER)
def test_what_comfyui_detects_in_one_width_runs_alike_in_a_smaller_one(comfy, tmp_path, name):
    """ComfyUI detects the width of the releases alone, so its configuration for that is made narrower here."""
    import comfy.model_detection

    backbone, full, _ = meta_student(name)
    less = NARROWER[name]
    network = random_network(type(full), dict(full.config) | less)
    backbone.export(network, tmp_path / "student.safetensors", dtype=torch.float32)
    config = comfy.model_detection.model_config_from_unet(backbone.native_state(full), "")
    config.unet_config.update(less)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    missing, foreign = model.diffusion_model.load_state_dict(read_tensors(tmp_path / "student.safetensors")[0])
    assert not missing and not foreign
    generator, lengths, worst = torch.Generator().manual_seed(7), (40, 3), 0.0
    text, sigma = torch.randn(2, 40, 32, generator=generator), [0.95, 0.3]
    for size in ((8, 8), (12, 20)):
        x = torch.randn(*backbone.latent_shape(2, 1), *size, generator=generator)
        mask = (torch.arange(40) < torch.tensor(lengths)[:, None]).float()
        conditioning = {"text": text, "mask": mask, "lengths": torch.tensor(lengths)}
        with torch.no_grad():
            expected = backbone.predict(network, x, torch.tensor(sigma, dtype=torch.float64), conditioning)
            for i, length in enumerate(lengths):
                got = comfy_output(model, backbone, x[i : i + 1], sigma[i], text[i : i + 1, :length], None)
                worst = max(worst, relative_error(got, expected[i : i + 1]))
    tell_difference(name, worst)


@pytest.mark.parametrize("inside", [True, False])
def test_a_native_autoencoder_of_flux2_decodes_as_in_comfyui(comfy, tmp_path, inside):
    from comfy.diffusers_convert import convert_vae_state_dict
    from comfy.ldm.models.autoencoder import AutoencoderKL as ComfyKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLFlux2(block_out_channels=(32, 32, 64, 64), layers_per_block=2)
        vae.bn.running_mean.normal_(0, 1)
        vae.bn.running_var.uniform_(0.5, 2)
    native = {name: tensor.contiguous() for name, tensor in convert_vae_state_dict(vae.state_dict()).items()}
    sizes = {"double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "num_res_blocks": 2}
    widths = {"ch": 32, "ch_mult": [1, 1, 2, 2], "attn_resolutions": [], "dropout": 0.0, "batch_norm_latent": True}
    theirs = ComfyKL(ddconfig=sizes | widths, embed_dim=32).eval()
    theirs.load_state_dict(native)
    if inside:  # as the publisher names them
        native = {
            f"encoder.{n}" if n.startswith("quant") else f"decoder.{n}" if n.startswith("post_quant") else n: tensor
            for n, tensor in native.items()
        }
    save_safetensors(tmp_path / "vae.safetensors", native)
    backbone = make_backbone("flux2_klein")
    latents = torch.randn(1, 128, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = (theirs.decode(latents) * 0.5 + 0.5).clamp(0, 1)
    got = backbone.decode(backbone.load_vae(tmp_path / "vae.safetensors"), latents)
    assert got.shape == (1, 3, 1, 32, 48) and torch.allclose(got[:, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize(("channels", "shift", "quantised"), [(4, 0.0, True), (16, 0.0609, False)])
def test_a_native_autoencoder_is_read_as_comfyui_names_it(comfy, tmp_path, channels, shift, quantised):
    from comfy.diffusers_convert import convert_vae_state_dict

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 64, 64),
            layers_per_block=2,
            latent_channels=channels,
            use_quant_conv=quantised,
            use_post_quant_conv=quantised,
        )
    native = {name: tensor.contiguous() for name, tensor in convert_vae_state_dict(vae.state_dict()).items()}
    for prefix in ("", "first_stage_model."):
        path = tmp_path / "vae.safetensors"
        save_safetensors(path, {prefix + name: tensor for name, tensor in native.items()})
        again = load_kl_vae(path, channels=channels, scaling=1.5, shift=shift)
        assert again.config.block_out_channels == [32, 32, 64, 64] and again.config.shift_factor == (shift or None)
        state = again.state_dict()
        assert state.keys() == vae.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in vae.state_dict().items())

"""Students of the picture backbones through ComfyUI's own loader: detected, with the forward of diffusers' class."""

import logging

import pytest
import torch
from diffusers import AutoencoderKL

from backbone_world import random_network
from comfy_students import KEY_COMPLAINTS, STUDENTS, comfy_output, load_in_comfy, relative_error, tell_difference
from rmd_core.files import save_safetensors
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
        lengths = (5, 3) if family.startswith("pixart") else (5, 5)
        x = torch.randn(2, backbone.channels, height, width_cells, generator=generator)
        text = torch.randn(2, 5, width, generator=generator)
        conditioning = {"text": text, "mask": (torch.arange(5) < torch.tensor(lengths)[:, None]).float()}
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

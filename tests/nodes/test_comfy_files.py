"""Files that the trainer writes and the demo ships, through ComfyUI's own loaders, against diffusers' models."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfy_students import KEY_COMPLAINTS, load_in_comfy, relative_error, tell_difference
from training.backbones.wan import WanBackbone
from training_world import tiny_vae, tiny_wan, write_native_vae

MODELS = Path(__file__).parents[2] / "demo" / "models"
TRANSFORMERS = ["rmd_tiny_wan_teacher.safetensors", "rmd_tiny_wan_student.safetensors"]
VAE_FILE = MODELS / "vae" / "rmd_tiny_wan_vae.safetensors"


@pytest.fixture
def complaints(comfy, caplog):
    """A function that gives what ComfyUI's loaders have logged so far about keys missing, unexpected or left over."""
    caplog.set_level(logging.DEBUG)

    def so_far():
        messages = [record.getMessage() for record in caplog.records]
        return [line for line in messages if line.startswith(KEY_COMPLAINTS)]

    return so_far


def assert_equal_transformers(comfy, path, sizes):
    """ComfyUI's loader detects Wan2.1 text-to-video and its network gives the velocity that diffusers' class gives."""
    ours, theirs = load_in_comfy(comfy, path), WanBackbone().load(path)
    assert type(ours.model_config).__name__ == "WAN21_T2V"
    assert ours.model_sampling.sigma_max == 1
    generator, worst = torch.Generator().manual_seed(7), 0.0
    for height, width in sizes:
        for sigma in (1.0, 0.625):
            x = torch.randn(2, 16, 1, height, width, generator=generator)
            text = torch.randn(2, 9, theirs.config.text_dim, generator=generator)
            with torch.no_grad():
                x0 = ours.apply_model(x, torch.full((2,), sigma), c_crossattn=text)
                velocity = theirs(x, torch.full((2,), 1000 * sigma), text, return_dict=False)[0]
            worst = max(worst, relative_error((x - x0) / sigma, velocity))
    tell_difference(f"Wan2.1, {path.name}", worst)


def assert_equal_vaes(comfy, path, frames):
    """ComfyUI's VAE codes and decodes images as diffusers' AutoencoderKLWan does."""
    tensors, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    ours, theirs = comfy.sd.VAE(sd=tensors, metadata=metadata), WanBackbone().load_vae(path)
    ours.throw_exception_if_invalid()
    images = torch.rand(frames, 64, 48, 3, generator=torch.Generator().manual_seed(3))  # ComfyUI's IMAGE, 0..1
    with torch.no_grad():
        expected = theirs.encode(images.movedim(-1, 0)[None] * 2 - 1).latent_dist.mode()
        latents = ours.encode(images)
        assert latents.shape == expected.shape == (1, 16, 1 + frames // 4, 8, 6)
        assert relative_error(latents, expected) < 1e-5
        expected = theirs.decode(latents, return_dict=False)[0].clamp(-1, 1)[0].movedim(0, -1) * 0.5 + 0.5
        decoded = ours.decode(latents)[0]
        assert decoded.shape == expected.shape == images.shape
        assert relative_error(decoded, expected) < 1e-5


@pytest.mark.parametrize(("dim", "heads"), [(128, 1), (256, 2), (96, 2)])
def test_written_transformer_is_detected_and_runs_alike(comfy, complaints, tmp_path, dim, heads):
    path = tmp_path / "wan.safetensors"
    WanBackbone().export(tiny_wan(dim=dim, heads=heads, layers=2), path, dtype=torch.float32)
    assert_equal_transformers(comfy, path, sizes=[(8, 8), (6, 10)])
    assert complaints() == []


@pytest.mark.parametrize("frames", [1, 5])
def test_written_vae_codes_alike(comfy, complaints, tmp_path, frames):
    path = tmp_path / "vae.safetensors"
    write_native_vae(tiny_vae(), path)
    assert_equal_vaes(comfy, path, frames)
    assert complaints() == []


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_shipped_transformer_is_detected_and_runs_alike(comfy, complaints, name):
    assert_equal_transformers(comfy, MODELS / "diffusion_models" / name, sizes=[(8, 8), (16, 16), (8, 16)])
    assert complaints() == []


def test_shipped_vae_codes_alike(comfy, complaints):
    assert_equal_vaes(comfy, VAE_FILE, frames=1)
    assert complaints() == []


def test_a_missing_or_foreign_key_is_noticed(comfy, complaints, tmp_path):
    model, backbone = tiny_wan(), WanBackbone()
    tensors = backbone.native_state(model)
    tensors["blocks.0.self_attn.extra.weight"] = tensors.pop("blocks.0.self_attn.q.weight")
    save_file(tensors, tmp_path / "wan.safetensors", metadata=backbone.native_metadata(model))
    load_in_comfy(comfy, tmp_path / "wan.safetensors")
    text = " ".join(complaints())
    assert "unet missing" in text and "self_attn.q.weight" in text and "self_attn.extra.weight" in text

    write_native_vae(tiny_vae(), tmp_path / "vae.safetensors")
    tensors = load_file(tmp_path / "vae.safetensors")
    tensors["extra.weight"] = tensors.pop("decoder.conv1.weight")
    comfy.sd.VAE(sd=tensors)
    text = " ".join(complaints())
    assert "Missing VAE keys ['decoder.conv1.weight']" in text and "Leftover VAE keys ['extra.weight']" in text

"""Native Wan key names, files and autoencoder against diffusers' own classes and converter."""

import json

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from rmd_core.errors import RMDError
from rmd_core.files import read_tensors, save_safetensors
from training.backbones.wan import (
    decode_latents,
    load_wan_transformer,
    load_wan_vae,
    native_wan_state_dict,
    save_wan_transformer,
    to_diffusers,
)
from training_world import TEXT_DIM, tiny_vae, tiny_wan, write_native_vae


def forward(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 16, 1, 6, 4, generator=generator)
    text = torch.randn(2, 5, TEXT_DIM, generator=generator)
    with torch.no_grad():
        return model(x, torch.tensor([1000.0, 412.5]), text, return_dict=False)[0]


@pytest.mark.parametrize(("dim", "heads"), [(128, 1), (256, 2), (96, 2)])
def test_file_round_trip_gives_equal_outputs(tmp_path, dim, heads):
    model = tiny_wan(layers=2, dim=dim, heads=heads)
    save_wan_transformer(model, tmp_path / "m.safetensors", dtype=torch.float32)
    again = load_wan_transformer(tmp_path / "m.safetensors")
    assert again.config.num_attention_heads == heads
    assert torch.equal(forward(model), forward(again))


def test_native_names_are_those_of_diffusers_own_converter():
    model = tiny_wan(layers=2)
    native = native_wan_state_dict(model)
    theirs = convert_wan_transformer_to_diffusers(dict(native))
    assert theirs.keys() == model.state_dict().keys() == to_diffusers(native).keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(theirs[name], tensor) and torch.equal(to_diffusers(native)[name], tensor)


def test_native_keys_are_the_ones_comfyui_detects_by():
    names = native_wan_state_dict(tiny_wan()).keys()
    block = {name.removeprefix("blocks.0.").rsplit(".", 1)[0] for name in names if name.startswith("blocks.0.")}
    attention = {
        f"{kind}.{part}" for kind in ("self_attn", "cross_attn") for part in ("q", "k", "v", "o", "norm_q", "norm_k")
    }
    assert block == attention | {"norm3", "ffn.0", "ffn.2", "modulation"}
    assert {"head.modulation", "head.head.weight", "patch_embedding.weight", "blocks.0.modulation"} <= names


def test_half_precision_and_wrapped_keys(tmp_path):
    model = tiny_wan()
    save_wan_transformer(model, tmp_path / "m.safetensors", dtype=torch.float16)
    tensors, metadata = read_tensors(tmp_path / "m.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    save_safetensors(
        tmp_path / "w.safetensors", {f"model.diffusion_model.{k}": t for k, t in tensors.items()}, metadata=metadata
    )
    a, b = (load_wan_transformer(tmp_path / f"{n}.safetensors") for n in "mw")
    assert next(a.parameters()).dtype == torch.float32 and next(a.parameters()).requires_grad
    assert torch.equal(forward(a), forward(b))


def damaged_files(folder):
    save_wan_transformer(tiny_wan(), folder / "good.safetensors", dtype=torch.float32)
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
        ("other", "no Wan2.1 transformer"),
        ("lacking", "self_attn.q.weight"),
        ("i2v", "img_emb"),
        ("shape", "blocks.0.ffn.2.weight"),
        ("config", "'config'"),
        ("heads", "7 heads"),
        ("narrow", "128 heads"),
        ("boolean", "True heads"),
        ("eps", "eps is 'x'"),
        ("null", "eps is None"),
        ("flat", "text_embedding.0.weight"),
        ("scalar", "head.head.weight"),
        ("patch", "patch_embedding.weight"),
        ("integers", "'blocks.0.ffn.2.weight' holds int8"),
        ("nan", "'blocks.0.ffn.2.bias' holds values that are not finite"),
        ("gap", "no block 1"),
    ],
)
def test_bad_files_give_one_line(damaged, name, words):
    with pytest.raises(RMDError, match=words) as caught:
        load_wan_transformer(damaged / f"{name}.safetensors")
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_autoencoder_file_decodes_like_the_model(tmp_path):
    vae = tiny_vae()
    write_native_vae(vae, tmp_path / "vae.safetensors")
    again = load_wan_vae(tmp_path / "vae.safetensors")
    latents = torch.randn(2, 16, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 16, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        expected = (vae.decode(latents * std + mean).sample / 2 + 0.5).clamp(0, 1)
    pictures = decode_latents(again, latents)
    assert pictures.shape == (2, 3, 1, 32, 48)
    assert torch.allclose(pictures, expected, atol=1e-6)
    assert not any(p.requires_grad for p in again.parameters())


def test_a_transformer_is_no_autoencoder(tmp_path):
    save_wan_transformer(tiny_wan(), tmp_path / "m.safetensors")
    with pytest.raises(RMDError, match="no Wan2.1 autoencoder"):
        load_wan_vae(tmp_path / "m.safetensors")


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
        load_wan_vae(tmp_path / "vae.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "words"), [(1e6, "set output.dtype to bfloat16"), (float("nan"), "lower the learn")])
def test_weights_that_are_not_finite_are_not_written(tmp_path, value, words):
    model = tiny_wan()
    with torch.no_grad():
        model.blocks[0].ffn.net[2].bias[3] = value
    with pytest.raises(RMDError, match=words) as caught:
        save_wan_transformer(model, tmp_path / "m.safetensors", dtype=torch.float16)
    assert "'blocks.0.ffn.2.bias'" in str(caught.value) and not list(tmp_path.iterdir())

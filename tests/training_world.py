"""A tiny random world for the trainer's tests: a Wan transformer, its autoencoder and prompts, made in milliseconds."""

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from rmd_core.header import save_safetensors

TEXT_DIM = 16


def tiny_wan(seed=0, *, layers=1, dim=128, heads=1):
    """A WanTransformer3DModel with random weights, none of them zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=dim // heads, in_channels=16, out_channels=16,
            text_dim=TEXT_DIM, freq_dim=32, ffn_dim=64, num_layers=layers, cross_attn_norm=True,
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    parameter.normal_(0, 0.05)
    return model.eval()


def tiny_vae(seed=0):
    """An AutoencoderKLWan of base width 4 with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKLWan(base_dim=4).eval()


def write_native_vae(vae, path):
    """Write an AutoencoderKLWan under native key names."""
    state = vae.state_dict()
    native = {ours: name for name in _native_vae_names() if (ours := _converted(name)) in state}
    assert native.keys() == state.keys()
    save_safetensors(path, {native[name]: tensor for name, tensor in state.items()})


def _converted(name):
    (ours,) = convert_wan_vae_to_diffusers({name: None})
    return ours


def _native_vae_names():
    """Every key that a native Wan2.1 autoencoder could have."""
    inner = [f"residual.{i}" for i in (0, 2, 3, 6)] + ["shortcut", "resample.1", "time_conv", "norm", "to_qkv", "proj"]
    places = ["conv1", "conv2"]
    for half, blocks in (("encoder", "downsamples"), ("decoder", "upsamples")):
        places += [f"{half}.conv1", f"{half}.head.0", f"{half}.head.2"]
        places += [f"{half}.middle.{i}.{part}" for i in range(3) for part in inner]
        places += [f"{half}.{blocks}.{i}.{part}" for i in range(16) for part in inner]
    return [f"{place}.{kind}" for place in places for kind in ("weight", "bias", "gamma")]

"""Load a Wan2.1 autoencoder from a native-key file, and decode latents to pictures."""

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from rmd_core.errors import RMDError, one_line

from .tensor_files import finite_weights, read_tensors

CHANNELS = 16
_WIDTH_KEY = "decoder.head.0.gamma"


def load_wan_vae(path, *, dtype=torch.float32):
    """The ``AutoencoderKLWan`` in a native-key safetensors file, frozen, in eval mode, on the CPU.

    Its base width is read from the file as ComfyUI reads it; everything else is Wan2.1's.
    Raises RMDError for a missing, pickled, truncated or foreign file, and for weights of integers or not finite.
    """
    tensors, _ = read_tensors(path)
    if _WIDTH_KEY not in tensors or "conv2.weight" not in tensors:
        raise RMDError(
            f"{path} is no Wan2.1 autoencoder in native key names: it has no '{_WIDTH_KEY}' or no 'conv2.weight'"
        )
    if not tensors[_WIDTH_KEY].ndim or tensors["conv2.weight"].shape[:1] != (CHANNELS,):
        raise RMDError(
            f"{path} is no Wan2.1 autoencoder: '{_WIDTH_KEY}' has shape {tuple(tensors[_WIDTH_KEY].shape)} and "
            f"'conv2.weight' {tuple(tensors['conv2.weight'].shape)}, whose first axis should be {CHANNELS}"
        )
    weights = finite_weights(tensors, path, dtype=dtype)
    try:
        with init_empty_weights(include_buffers=False):
            vae = AutoencoderKLWan(base_dim=tensors[_WIDTH_KEY].shape[0], z_dim=CHANNELS)
        state = convert_wan_vae_to_diffusers(weights)
    except (ArithmeticError, AssertionError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise RMDError(f"{path} is no Wan2.1 autoencoder ({one_line(error)})") from None
    wanted = vae.state_dict()
    wrong = sorted(wanted.keys() ^ state.keys()) or [
        name for name, tensor in wanted.items() if tensor.shape != state[name].shape
    ]
    if wrong:
        raise RMDError(f"{path} is no Wan2.1 autoencoder: {len(wrong)} tensors do not fit, first {wrong[0][:80]!r}")
    vae.load_state_dict(state, strict=True, assign=True)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def decode_latents(vae, latents):
    """Pictures (B, 3, T, 8h, 8w) in 0..1 from normalised latents (B, 16, t, h, w), as float32."""
    mean = _per_channel(vae.config.latents_mean, latents)
    std = _per_channel(vae.config.latents_std, latents)
    decoded = vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]
    return (decoded.float() * 0.5 + 0.5).clamp(0, 1)


def _per_channel(values, latents):
    return torch.tensor(values, dtype=torch.float32, device=latents.device).view(1, -1, 1, 1, 1)

"""Wan2.1 text-to-video (and, with one frame, text-to-image)."""

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from rmd_core.errors import RMDError
from rmd_core.logsnr import FlowCurve

from ..wan_files import (
    load_wan_transformer,
    native_wan_state_dict,
    outline_wan_transformer,
    save_wan_transformer,
)
from ..wan_keys import native_name
from ..wan_vae import decode_latents, load_wan_vae
from .base import Backbone, network_dtype
from .checks import check_width, refuse_masked
from .network_files import is_folder, load_component, outline_component

NATIVE_SHIFT = 3.0


class WanBackbone(Backbone):
    """Wan2.1: rectified flow, 16 latent channels, timestep = 1000 sigma in float32."""

    name = "wan"
    prompt_tokens = 512
    architecture = "wan2.1"
    prediction = "flow"
    channels = 16
    multiple = 2
    pixels_per_cell = 8
    size_conditioning = "none"
    temporal = True
    known_batch = 64  # the authors', see docs/training.md, on several devices
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

    def __init__(self, *, shift=None):
        self.curve = FlowCurve(NATIVE_SHIFT if shift is None else shift)

    def load(self, path, *, dtype):
        if is_folder(path):
            network = load_component(WanTransformer3DModel, path, component="transformer", dtype=dtype)
        else:
            network = load_wan_transformer(path, dtype=dtype)
        return self._checked(network, path)

    def outline(self, path):
        if is_folder(path):
            network = outline_component(WanTransformer3DModel, path, component="transformer")
        else:
            network = outline_wan_transformer(path)
        return self._checked(network, path)

    def _checked(self, network, path):
        channels = (network.config.in_channels, network.config.out_channels)
        if channels != (self.channels, self.channels):
            raise RMDError(
                f"{path}: its transformer takes and gives {channels} channels; Wan2.1 text-to-video has 16 and 16"
            )
        return network

    def predict(self, network, x, sigma_B, conditioning):
        dtype = network_dtype(network)
        timestep = self.curve.timestep(sigma_B).to(x.device, torch.float32)
        return network(x.to(dtype), timestep, conditioning["text"].to(dtype), return_dict=False)[0].float()

    def conditioning(self, cache, texts):
        return {"text": cache.batch(texts)}

    def check_cache(self, network, cache):
        refuse_masked(cache)
        check_width(cache, cache.dim, network.config.text_dim)

    def blank_conditioning(self, network, tokens, device):
        return {"text": torch.zeros(1, tokens, network.config.text_dim, device=device)}

    def flops(self, network, height, width, frames, tokens):
        """The same count as a formula, which is faster for long videos."""
        config = network.config
        dim = config.num_attention_heads * config.attention_head_dim
        n = frames * (height // self.multiple) * (width // self.multiple)
        patch = self.multiple**2 * (config.in_channels + config.out_channels) * dim * n
        linear = n * dim * (6 * dim + 2 * config.ffn_dim) + tokens * 2 * dim * dim  # q k v o, q o, ffn; k v of the text
        attention = 2 * dim * n * (n + tokens)
        return 2 * (patch + config.num_layers * (linear + attention))

    def load_vae(self, path):
        if not is_folder(path):
            return load_wan_vae(path)
        return load_component(AutoencoderKLWan, path, component="vae", dtype=torch.float32).requires_grad_(False)

    def decode(self, vae, latents):
        return decode_latents(vae, latents)

    def native_state(self, network):
        return native_wan_state_dict(network)

    def native_layer(self, network, layer):
        return native_name(layer), (layer,)

    def export(self, network, path, *, dtype, metadata):
        save_wan_transformer(network, path, dtype=dtype, metadata=metadata)

"""Wan2.1 text-to-video (and, with one frame, text-to-image)."""

import torch

from rmd_core.errors import RMDError
from rmd_core.logsnr import FlowCurve

from ..wan_files import load_wan_transformer, outline_wan_transformer, save_wan_transformer
from ..wan_keys import native_name
from ..wan_vae import decode_latents, load_wan_vae
from .base import Backbone

NATIVE_SHIFT = 3.0


class WanBackbone(Backbone):
    """Wan2.1: rectified flow, 16 latent channels, timestep = 1000 sigma in float32."""

    name = "wan"
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
        network = load_wan_transformer(path, dtype=dtype)
        channels = (network.config.in_channels, network.config.out_channels)
        if channels != (self.channels, self.channels):
            raise RMDError(
                f"{path}: its transformer takes and gives {channels} channels; Wan2.1 text-to-video has 16 and 16"
            )
        return network

    def outline(self, path):
        return outline_wan_transformer(path)

    def predict(self, network, x, sigma_B, conditioning):
        dtype = next(network.parameters()).dtype
        timestep = self.curve.timestep(sigma_B).to(x.device, torch.float32)
        return network(x.to(dtype), timestep, conditioning["text"].to(dtype), return_dict=False)[0].float()

    def conditioning(self, cache, texts):
        return {"text": cache.batch(texts)}

    def check_cache(self, network, cache):
        if cache.dim != network.config.text_dim:
            raise RMDError(
                f"{cache.path} holds embeddings of width {cache.dim}, "
                f"but the transformer takes {network.config.text_dim}; "
                "use the cache of its own text encoder"
            )

    def blank_conditioning(self, network, tokens, device):
        return {"text": torch.zeros(1, tokens, network.config.text_dim, device=device)}

    def flops(self, network, height, width, frames, tokens):
        config = network.config
        dim = config.num_attention_heads * config.attention_head_dim
        n = frames * (height // self.multiple) * (width // self.multiple)
        patch = self.multiple**2 * (config.in_channels + config.out_channels) * dim * n
        linear = n * dim * (6 * dim + 2 * config.ffn_dim) + tokens * 2 * dim * dim  # q k v o, q o, ffn; k v of the text
        attention = 2 * dim * n * (n + tokens)
        return 2 * (patch + config.num_layers * (linear + attention))

    def load_vae(self, path):
        return load_wan_vae(path)

    def decode(self, vae, latents):
        return decode_latents(vae, latents)

    def export(self, network, path, *, dtype, metadata):
        save_wan_transformer(network, path, dtype=dtype, metadata=metadata)

    def native_layer(self, network, layer):
        return native_name(layer), (layer,)

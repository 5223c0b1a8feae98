"""Qwen-Image (the text-to-image models of 60 blocks, 2512 among them)."""

import torch
from diffusers import QwenImageTransformer2DModel
from einops import rearrange

from rmd_core.errors import RMDError
from rmd_core.noising import place

from .base import Backbone, network_dtype, tell_exactly
from .files import KeyMap
from .wan import decode_normalised, encode_normalised, load_wan_vae

HEAD = 128


def qwen_image_keys(config):
    """The KeyMap of a ``QwenImageTransformer2DModel``: native files have diffusers' names."""
    keys = KeyMap()
    ends = (
        "img_in",
        "txt_in",
        *(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
        "norm_out.linear",
        "proj_out",
    )
    attention = [f"attn.{name}" for name in (*QwenImageBackbone.attention, "to_add_out", "to_out.0")]
    feed_forward = [
        f"{stream}_{part}" for stream in ("img", "txt") for part in ("mod.1", "mlp.net.0.proj", "mlp.net.2")
    ]
    layers = [
        f"transformer_blocks.{i}.{name}" for i in range(config.num_layers) for name in (*attention, *feed_forward)
    ]
    for layer in (*ends, *layers):
        keys.add(layer, layer)
    norms = [f"transformer_blocks.{i}.attn.norm_{part}" for i in range(config.num_layers) for part in NORMS]
    for norm in ("txt_norm", *norms):
        keys.add(norm, norm, ends=("weight",))
    return keys


NORMS = ("q", "k", "added_q", "added_k")


class QwenImageBackbone(Backbone):
    """Qwen-Image: rectified flow, 16 latent channels of one frame, timestep = sigma, masked text of Qwen2.5-VL."""

    name = "qwen_image"
    prompt_tokens = 1024
    architecture = "qwen-image"
    prediction = "flow"
    latents = "wan"
    channels = 16
    multiple = 2
    pixels_per_cell = 8
    temporal = True
    masked = True
    attention = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
    adapter_targets = (
        *(f"attn.{name}" for name in (*attention, "to_add_out", "to_out.0")),
        *(f"{stream}_mlp.{part}" for stream in ("img", "txt") for part in ("net.0.proj", "net.2")),
    )
    kind = QwenImageTransformer2DModel
    keys = staticmethod(qwen_image_keys)
    text_width = "joint_attention_dim"

    @staticmethod
    def native_config(tensors, metadata):
        """Constructor arguments for a native file, from its shapes."""
        width, packed = tensors["img_in.weight"].shape
        if "__index_timestep_zero__" in tensors or "time_text_embed.addition_t_embedding.weight" in tensors:
            raise RMDError("it is a model that edits images or makes layers; qwen_image trains text to image")
        return {
            "in_channels": packed,
            "out_channels": tensors["proj_out.weight"].shape[0] // 4,
            "num_layers": len({name.split(".")[1] for name in tensors if name.startswith("transformer_blocks.")}),
            "attention_head_dim": HEAD,
            "num_attention_heads": width // HEAD,
            "joint_attention_dim": tensors["txt_in.weight"].shape[1],
        }

    def check_network(self, network, path):
        config = network.config
        if (config.in_channels, config.out_channels) != (4 * self.channels, self.channels):
            raise RMDError(
                f"{path}: its network takes {config.in_channels // 4} and gives {config.out_channels} channels; "
                f"qwen_image has {self.channels}"
            )
        if config.zero_cond_t or config.use_additional_t_cond:
            raise RMDError(f"{path} is a model that edits images or makes layers; qwen_image trains text to image")

    def predict(self, network, x, sigma_B, conditioning):
        dtype, (height, width) = network_dtype(network), x.shape[-2:]
        timestep = place(sigma_B, x.device, torch.float32)
        tell_exactly(network, timestep)
        output = network(
            rearrange(x.to(dtype), "b c 1 (h p) (w q) -> b (h w) (c p q)", p=2, q=2),
            encoder_hidden_states=conditioning["text"].to(dtype),
            encoder_hidden_states_mask=conditioning["mask"].bool(),
            timestep=timestep,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x),
            return_dict=False,
        )[0]
        return rearrange(output.float(), "b (h w) (c p q) -> b c 1 (h p) (w q)", h=height // 2, p=2, q=2)

    def load_vae(self, path):
        """The autoencoder of a folder or file, frozen, in float32 on the CPU: Wan2.1's network, other weights."""
        from diffusers import AutoencoderKLQwenImage

        return load_wan_vae(path, AutoencoderKLQwenImage, channels=self.channels)

    def decode(self, vae, latents):
        """Images (B, 3, 1, 8h, 8w) in 0..1 from normalised latents (B, 16, 1, h, w), as float32."""
        return decode_normalised(vae, latents)

    def encode(self, vae, images):
        """Normalised latents (B, 16, 1, H/8, W/8) of images (B, 3, H, W) in 0..1, as float32."""
        return encode_normalised(vae, images)

"""Wan2.1 text-to-video (and, with one frame, text-to-image), and Wan2.2 5B."""

import json
import math

import torch
from diffusers import WanTransformer3DModel
from einops import rearrange

from rmd_core.errors import RMDError
from rmd_core.noising import place

from ..hub import is_folder
from .base import Backbone, network_dtype
from .files import KeyMap, load_component, load_vae_file


def wan_keys(config):
    """The KeyMap of a ``WanTransformer3DModel`` of this configuration, without its image-to-video layers."""
    keys = KeyMap()
    keys.add("patch_embedding", "patch_embedding")
    for native, ours in (("text_embedding", "text_embedder"), ("time_embedding", "time_embedder")):
        keys.add(f"{native}.0", f"condition_embedder.{ours}.linear_1")
        keys.add(f"{native}.2", f"condition_embedder.{ours}.linear_2")
    keys.add("time_projection.1", "condition_embedder.time_proj")
    keys.add("head.head", "proj_out")
    keys.add_tensor("head.modulation", "scale_shift_table")
    for block in (f"blocks.{i}" for i in range(config.num_layers)):
        for native, ours in (("self_attn", "attn1"), ("cross_attn", "attn2")):
            for part in "qkv":
                keys.add(f"{block}.{native}.{part}", f"{block}.{ours}.to_{part}")
            keys.add(f"{block}.{native}.o", f"{block}.{ours}.to_out.0")
            for norm in ("norm_q", "norm_k"):
                keys.add(f"{block}.{native}.{norm}", f"{block}.{ours}.{norm}", ends=("weight",))
        keys.add(f"{block}.norm3", f"{block}.norm2")
        keys.add(f"{block}.ffn.0", f"{block}.ffn.net.0.proj")
        keys.add(f"{block}.ffn.2", f"{block}.ffn.net.2")
        keys.add_tensor(f"{block}.modulation", f"{block}.scale_shift_table")
    return keys


class WanBackbone(Backbone):
    """Wan2.1: rectified flow, 16 latent channels, timestep = 1000 sigma in float32."""

    name = "wan"
    prompt_tokens = 512
    architecture = "wan2.1"
    prediction = "flow"
    latents = "wan"
    channels = 16
    multiple = 2
    pixels_per_cell = 8
    temporal = True
    sequence_plan = ("rope", "blocks.0", "proj_out")  # without that of timesteps of each token, which no call has
    adapter_targets = (*Backbone.adapter_targets, "ffn.net.0.proj", "ffn.net.2")
    kind = WanTransformer3DModel
    keys = staticmethod(wan_keys)
    text_width = "text_dim"

    @staticmethod
    def native_config(tensors, metadata):
        """Constructor arguments for a native file, from the shapes of its tensors.

        What shapes cannot tell (the number of heads) comes from the metadata entry ``config`` =
        ``{"transformer": {...}}`` that ComfyUI reads too, else heads are 128 wide.
        """
        try:
            sizes = dict(json.loads(metadata.get("config", "{}")).get("transformer", {}))
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise RMDError("its metadata entry 'config' is not a JSON object with a 'transformer' object") from None
        dim, channels, *patch = tensors["patch_embedding.weight"].shape
        heads, eps = sizes.get("num_heads", max(1, dim // 128)), sizes.get("eps", 1e-6)
        if type(heads) is not int or heads < 1 or dim % heads or (dim // heads) % 2:
            raise RMDError(
                f"a width of {dim} cannot be divided among {heads!r} heads of even width (metadata 'config')"
            )
        if type(eps) not in (int, float) or not 0 < eps < 1:
            raise RMDError(f"eps is {eps!r}; a number between 0 and 1 is expected (metadata 'config')")
        return {
            "patch_size": tuple(patch),
            "num_attention_heads": heads,
            "attention_head_dim": dim // heads,
            "in_channels": channels,
            "out_channels": tensors["head.head.weight"].shape[0] // math.prod(patch),
            "text_dim": tensors["text_embedding.0.weight"].shape[1],
            "freq_dim": tensors["time_embedding.0.weight"].shape[1],
            "ffn_dim": tensors["blocks.0.ffn.0.weight"].shape[0],
            "num_layers": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
            "cross_attn_norm": "blocks.0.norm3.weight" in tensors,
            "qk_norm": "rms_norm_across_heads",
            "eps": float(eps),
        }

    def native_metadata(self, network):
        """The entry ``config`` by which ComfyUI detects a Wan model of unusual sizes."""
        config = network.config
        sizes = {"num_heads": config.num_attention_heads, "text_dim": config.text_dim, "freq_dim": config.freq_dim}
        return {"config": json.dumps({"transformer": sizes}, sort_keys=True)}

    def predict(self, network, x, sigma_B, conditioning, **further):
        dtype = network_dtype(network)
        timestep = place(self.curve.timestep(sigma_B), x.device, torch.float32)
        text = conditioning["text"].to(dtype)
        return network(x.to(dtype), timestep, text, return_dict=False, **further)[0].float()

    def recommended_batch(self, network):
        """The authors' 64 (docs/train/gpus.md, several GPUs) for networks of Wan's sizes: 1536 wide and more."""
        return 64 if network.config.num_attention_heads * network.config.attention_head_dim >= 1536 else None

    def flops(self, network, height, width, frames, tokens):
        """The same count as a formula: counting a forward of Wan 14B takes seconds for each size."""
        config = network.config
        dim = config.num_attention_heads * config.attention_head_dim
        n = frames * (height // self.multiple) * (width // self.multiple)
        patch = self.multiple**2 * (config.in_channels + config.out_channels) * dim * n
        linear = n * dim * (6 * dim + 2 * config.ffn_dim) + tokens * 2 * dim * dim  # q k v o, q o, ffn; k v of the text
        attention = 2 * dim * n * (n + tokens)
        return 2 * (patch + config.num_layers * (linear + attention))

    def load_vae(self, path):
        """The ``AutoencoderKLWan`` of a folder or file, frozen, in float32 on the CPU. Raises RMDError for another."""
        from diffusers import AutoencoderKLWan

        return load_wan_vae(path, AutoencoderKLWan, channels=self.channels)

    def decode(self, vae, latents):
        """Images (B, 3, T, 8h, 8w) in 0..1 from normalised latents (B, 16, t, h, w), as float32."""
        return decode_normalised(vae, latents)

    def encode(self, vae, images):
        """Normalised latents (B, 16, 1, H/8, W/8) of images (B, 3, H, W) in 0..1, as float32."""
        return encode_normalised(vae, images)


class Wan22Backbone(WanBackbone):
    """Wan2.2 5B, which makes videos of text: 48 latent channels of 16 px, the text encoder of Wan2.1."""

    name = "wan22_5b"
    prompts_of = "wan"
    architecture = "wan2.2-5b"
    latents = "wan22_5b"
    channels = 48
    pixels_per_cell = 16
    fps = 24

    def load_vae(self, path):
        """The ``AutoencoderKLWan`` of a folder, frozen, in float32 on the CPU. Raises RMDError for a file."""
        if not is_folder(path):
            raise RMDError(f"backbone.vae: {path} is a file; give the Diffusers-format folder of Wan2.2 5B")
        return super().load_vae(path)


def load_wan_vae(path, kind, *, channels):
    """The autoencoder of Wan2.1's network, of diffusers class ``kind``, frozen, in float32 on the CPU.

    Of a file the base width is read, as ComfyUI reads it; everything else is Wan2.1's. Raises RMDError for any other
    autoencoder.
    """
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    def config_of(tensors):
        return {"base_dim": tensors["decoder.head.0.gamma"].shape[0], "z_dim": channels}

    if is_folder(path):
        vae = load_component(kind, path, component="vae", dtype=torch.float32)
    else:
        vae = load_vae_file(kind, path, config_of=config_of, convert=convert_wan_vae_to_diffusers)
    if vae.config.z_dim != channels:
        raise RMDError(
            f"{path}: its latents have {vae.config.z_dim} channels, the network's {channels}; use its own autoencoder"
        )
    return vae.requires_grad_(False)


@torch.no_grad()
def decode_normalised(vae, latents):
    """Images (B, 3, T, 8h, 8w) in 0..1 from latents (B, C, t, h, w) of mean 0 and deviation 1, as float32."""
    mean, std = _statistics(vae, latents.device)
    decoded = vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]
    return (decoded.float() * 0.5 + 0.5).clamp(0, 1)


@torch.no_grad()
def encode_normalised(vae, images):
    """Latents (B, C, 1, h, w) of mean 0 and deviation 1, the posterior's mode, of images (B, 3, H, W) in 0..1."""
    mean, std = _statistics(vae, images.device)
    mode = vae.encode(rearrange((2 * images - 1).to(vae.dtype), "b c h w -> b c 1 h w")).latent_dist.mode()
    return (mode.float() - mean) / std


def _statistics(vae, device):
    return (
        rearrange(torch.tensor(values, dtype=torch.float32, device=device), "c -> c 1 1 1")
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )

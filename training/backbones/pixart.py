"""PixArt alpha and PixArt Sigma."""

import math

import torch
from diffusers import PixArtTransformer2DModel

from rmd_core.errors import RMDError
from rmd_core.noising import place
from rmd_core.schedule import VPCurve

from .base import Backbone, network_dtype
from .files import KeyMap


def pixart_keys(config):
    """The KeyMap of a ``PixArtTransformer2DModel`` of this configuration, with or without size conditioning."""
    keys = KeyMap()
    embedders = (
        ("t_embedder", "timestep_embedder"),
        ("csize_embedder", "resolution_embedder"),
        ("ar_embedder", "aspect_ratio_embedder"),
    )
    for native, ours in embedders:
        keys.add(f"{native}.mlp.0", f"adaln_single.emb.{ours}.linear_1")
        keys.add(f"{native}.mlp.2", f"adaln_single.emb.{ours}.linear_2")
    keys.add("t_block.1", "adaln_single.linear")
    keys.add("x_embedder.proj", "pos_embed.proj")
    keys.add("y_embedder.y_proj.fc1", "caption_projection.linear_1")
    keys.add("y_embedder.y_proj.fc2", "caption_projection.linear_2")
    keys.add("final_layer.linear", "proj_out")
    keys.add_tensor("final_layer.scale_shift_table", "scale_shift_table")
    for i in range(config.num_layers):
        native, ours = f"blocks.{i}", f"transformer_blocks.{i}"
        keys.add_tensor(f"{native}.scale_shift_table", f"{ours}.scale_shift_table")
        keys.add(f"{native}.attn.qkv", *(f"{ours}.attn1.to_{part}" for part in "qkv"))
        keys.add(f"{native}.attn.proj", f"{ours}.attn1.to_out.0")
        keys.add(f"{native}.cross_attn.q_linear", f"{ours}.attn2.to_q")
        keys.add(f"{native}.cross_attn.kv_linear", f"{ours}.attn2.to_k", f"{ours}.attn2.to_v")
        keys.add(f"{native}.cross_attn.proj", f"{ours}.attn2.to_out.0")
        keys.add(f"{native}.mlp.fc1", f"{ours}.ff.net.0.proj")
        keys.add(f"{native}.mlp.fc2", f"{ours}.ff.net.2")
    return keys


HEAD = 72
GRID = 32  # positions run from 0 to 32 at every size: 64 patches over interpolation 2 at 1024 px
SMALLEST_MEAN = 32  # ComfyUI rounds the mean side over 64 to the scale of its positions, and 0 ends in an error


class PixArtBackbone(Backbone):
    """PixArt: eps prediction on linear betas; eps are the first 4 of 8 output channels, padding is masked."""

    prediction = "eps"
    channels = 4
    variance = True
    multiple = 2
    pixels_per_cell = 8
    masked = True
    curve = VPCurve.linear(1e-4, 0.02)
    kind = PixArtTransformer2DModel
    keys = staticmethod(pixart_keys)
    aliases = ("Transformer2DModel",)  # the class PixArt alpha's folders name
    left_over = ("caption_projection.y_embedding",)  # a caption for dropout in training, which early folders contain
    unused = ("pos_embed", "y_embedder.y_embedding")  # a position table, which is computed, a caption for dropout
    text_width = "caption_channels"
    adapter_targets = (*Backbone.adapter_targets, "ff.net.0.proj", "ff.net.2")
    captions: int  # length of the original release's captions
    takes_size: bool  # whether the network takes resolution and aspect ratio

    @staticmethod
    def native_config(tensors, metadata):
        """Constructor arguments for a native file, from its shapes; heads are 72 wide, as in every release."""
        width, channels = tensors["x_embedder.proj.weight"].shape[:2]
        table = tensors.get("pos_embed")
        side = 2 * math.isqrt(table.shape[1]) if table is not None else 128
        return {
            "sample_size": side,
            "num_layers": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
            "num_attention_heads": width // HEAD,
            "attention_head_dim": HEAD,
            "cross_attention_dim": width,
            "in_channels": channels,
            "out_channels": tensors["final_layer.linear.weight"].shape[0] // 4,
            "caption_channels": tensors["y_embedder.y_proj.fc1.weight"].shape[1],
            "use_additional_conditions": "csize_embedder.mlp.0.weight" in tensors,
        }

    def check_network(self, network, path):
        super().check_network(network, path)
        if bool(network.config.use_additional_conditions) != self.takes_size:
            takes = "takes" if network.config.use_additional_conditions else "does not take"
            raise RMDError(
                f"{path}: its transformer {takes} resolution and aspect ratio; "
                "backbone.name is pixart_alpha for those that do, else pixart_sigma"
            )
        grid = network.pos_embed.base_size / network.pos_embed.interpolation_scale
        if grid != GRID:
            raise RMDError(
                f"{path}: its positions span {grid:g}, but ComfyUI computes {GRID}, so a student would differ there; "
                "correct interpolation_scale"
            )

    def predict(self, network, x, sigma_B, conditioning):
        dtype = network_dtype(network)
        height, width = x.shape[-2:]
        sizes = {"resolution": None, "aspect_ratio": None}
        if self.takes_size:
            pixels = [float(side * self.pixels_per_cell) for side in (height, width)]
            sizes["resolution"] = place(torch.tensor(pixels), x.device).expand(len(x), 2)
            sizes["aspect_ratio"] = torch.full((len(x), 1), height / width, device=x.device)
        output = network(
            x.to(dtype),
            encoder_hidden_states=conditioning["text"].to(dtype),
            timestep=place(self.curve.timestep(sigma_B), x.device, torch.float32),
            added_cond_kwargs=sizes,
            encoder_attention_mask=conditioning["mask"],
            return_dict=False,
        )[0]
        return output[:, : self.channels].float()

    def check_sizes(self, network, sizes):
        for height, width in sizes:
            if height + width <= 2 * SMALLEST_MEAN:
                px = self.pixels_per_cell
                raise RMDError(
                    f"plan.sizes: ComfyUI's PixArt cannot run {height}x{width} latent cells; the mean of the sides "
                    f"must be above {SMALLEST_MEAN} cells, {SMALLEST_MEAN * px} pixels"
                )

    def native_state(self, network):
        """The network's tensors under native names, and the one buffer more that ComfyUI's class has and never reads.

        The position table of the original files is left out: with it ComfyUI keeps to the scale of one size, without it
        computes positions as diffusers and the original code do at any size.
        """
        config = network.config
        native = super().native_state(network)
        like = native["y_embedder.y_proj.fc1.weight"]
        return native | {"y_embedder.y_embedding": like.new_zeros(self.captions, config.caption_channels)}


class PixArtAlphaBackbone(PixArtBackbone):
    """PixArt alpha at 1024 px, which takes resolution and aspect ratio, on Stable Diffusion 1.5's latents."""

    name = "pixart_alpha"
    prompt_tokens = 120
    architecture = "pixart-alpha-xl-2"
    size_conditioning = "stage"
    latents = "sd15"
    scaling = 0.18215
    captions = 120
    takes_size = True


class PixArtSigmaBackbone(PixArtBackbone):
    """PixArt Sigma on SDXL's latents."""

    name = "pixart_sigma"
    prompt_tokens = 300
    architecture = "pixart-ms-sigma-xl-2"
    latents = "sdxl"
    scaling = 0.13025
    captions = 300
    takes_size = False

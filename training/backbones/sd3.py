"""Stable Diffusion 3.5 Medium and Large (and 3 Medium, the same without normalised queries)."""

import math

import torch
from diffusers import SD3Transformer2DModel

from rmd_core.errors import RMDError
from rmd_core.noising import place

from .base import Backbone, network_dtype
from .files import KeyMap


def sd3_keys(config):
    """The KeyMap of an ``SD3Transformer2DModel`` whose configuration is ``config``; its last block drops the text."""
    keys = KeyMap()
    keys.add("context_embedder", "context_embedder")
    keys.add("x_embedder.proj", "pos_embed.proj")
    keys.add_tensor("pos_embed", "pos_embed.pos_embed")
    for native, ours in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        keys.add(f"{native}.mlp.0", f"time_text_embed.{ours}.linear_1")
        keys.add(f"{native}.mlp.2", f"time_text_embed.{ours}.linear_2")
    keys.add("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True)
    keys.add("final_layer.linear", "proj_out")
    for i in range(config.num_layers):
        last = i == config.num_layers - 1
        native, ours = f"joint_blocks.{i}", f"transformer_blocks.{i}"
        keys.add(f"{native}.x_block.adaLN_modulation.1", f"{ours}.norm1.linear")
        keys.add(f"{native}.context_block.adaLN_modulation.1", f"{ours}.norm1_context.linear", swapped=last)
        _attention(keys, f"{native}.x_block.attn", f"{ours}.attn", [f"to_{part}" for part in "qkv"], "to_out.0")
        _attention(keys, f"{native}.x_block.attn2", f"{ours}.attn2", [f"to_{part}" for part in "qkv"], "to_out.0")
        _attention(
            keys,
            f"{native}.context_block.attn",
            f"{ours}.attn",
            [f"add_{part}_proj" for part in "qkv"],
            "to_add_out",
            norms="norm_added_",
        )
        for native_part, our_part in (("x_block", "ff"), ("context_block", "ff_context")):
            keys.add(f"{native}.{native_part}.mlp.fc1", f"{ours}.{our_part}.net.0.proj")
            keys.add(f"{native}.{native_part}.mlp.fc2", f"{ours}.{our_part}.net.2")
    return keys


def _attention(keys, native, ours, projections, out, norms="norm_"):
    keys.add(f"{native}.qkv", *(f"{ours}.{name}" for name in projections))
    keys.add(f"{native}.proj", f"{ours}.{out}")
    for part in "qk":
        keys.add(f"{native}.ln_{part}", f"{ours}.{norms}{part}", ends=("weight",))


HEAD = 64


class SD3Backbone(Backbone):
    """SD3: rectified flow, 16 latent channels, timestep = 1000 sigma, sequence and pooled text."""

    name = "sd3"
    prompt_tokens = 154
    architecture = "stable-diffusion-v3.5-medium"
    prediction = "flow"
    latents = "sd3"
    channels = 16
    multiple = 2
    pixels_per_cell = 8
    pooled = True
    kind = SD3Transformer2DModel
    keys = staticmethod(sd3_keys)
    text_width = "joint_attention_dim"
    scaling, latent_shift = 1.5305, 0.0609
    adapter_targets = (
        *Backbone.adapter_targets,
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    @staticmethod
    def native_config(tensors, metadata):
        """Constructor arguments for a native file, from its shapes, as ComfyUI reads them."""
        width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
        layers = {int(name.split(".")[1]) for name in tensors if name.startswith("joint_blocks.")}
        dual = [i for i in sorted(layers) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in tensors]
        return {
            "patch_size": patch,
            "in_channels": channels,
            "out_channels": tensors["final_layer.linear.weight"].shape[0] // patch**2,
            "num_layers": len(layers),
            "attention_head_dim": HEAD,
            "num_attention_heads": width // HEAD,
            "joint_attention_dim": tensors["context_embedder.weight"].shape[1],
            "caption_projection_dim": width,
            "pooled_projection_dim": tensors["y_embedder.mlp.0.weight"].shape[1],
            "pos_embed_max_size": math.isqrt(tensors["pos_embed"].shape[1]),
            "dual_attention_layers": tuple(dual),
            "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in tensors else None,
        }

    def check_network(self, network, path):
        super().check_network(network, path)
        if network.config.num_layers * HEAD != network.inner_dim:
            raise RMDError(
                f"{path}: {network.config.num_layers} blocks of width {network.inner_dim}; ComfyUI reads the number of "
                "blocks of SD3 from the width, 64 for each, and would not load a student of this one"
            )

    def architecture_of(self, network):
        if network.config.qk_norm is None:
            return "stable-diffusion-v3-medium"
        return "stable-diffusion-v3.5-" + ("medium" if network.config.dual_attention_layers else "large")

    def predict(self, network, x, sigma_B, conditioning):
        dtype = network_dtype(network)
        return network(
            x.to(dtype),
            encoder_hidden_states=conditioning["text"].to(dtype),
            pooled_projections=conditioning["pooled"].to(dtype),
            timestep=place(self.curve.timestep(sigma_B), x.device, torch.float32),
            return_dict=False,
        )[0].float()

    def pooled_width(self, network):
        return network.config.pooled_projection_dim

    def check_sizes(self, network, sizes):
        most = network.config.pos_embed_max_size * network.config.patch_size
        for height, width in sizes:
            if max(height, width) > most:
                raise RMDError(
                    f"plan.sizes: {height}x{width} latent cells are beyond the network's positions; "
                    f"use at most {most} a side"
                )

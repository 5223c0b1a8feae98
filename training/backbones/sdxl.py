"""Stable Diffusion XL."""

from types import SimpleNamespace

import torch
from diffusers import UNet2DConditionModel

from rmd_core.errors import RMDError
from rmd_core.files import read_header
from rmd_core.noising import place
from rmd_core.schedule import VPCurve

from ..hub import is_folder
from .base import Backbone, network_dtype
from .files import KeyMap, scheduler_config

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_IN_BLOCK = ("norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
_WITHOUT_BIAS = tuple(f"{attention}.to_{part}" for attention in ("attn1", "attn2") for part in "qkv")


def sdxl_keys(config):
    """The KeyMap of a ``UNet2DConditionModel`` with text and size embeddings, whose configuration is ``config``."""
    keys = KeyMap()
    keys.add("time_embed.0", "time_embedding.linear_1")
    keys.add("time_embed.2", "time_embedding.linear_2")
    keys.add("label_emb.0.0", "add_embedding.linear_1")
    keys.add("label_emb.0.2", "add_embedding.linear_2")
    keys.add("input_blocks.0.0", "conv_in")
    keys.add("out.0", "conv_norm_out")
    keys.add("out.2", "conv_out")
    levels, layers = len(config.block_out_channels), config.layers_per_block
    depths = config.transformer_layers_per_block
    depths = (depths,) * levels if isinstance(depths, int) else tuple(depths)
    number = 1
    for level, kind in enumerate(config.down_block_types):
        for layer in range(layers):
            _resnet(keys, f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{layer}")
            if "CrossAttn" in kind:
                _transformer(keys, f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{layer}", depths[level])
            number += 1
        if level < levels - 1:
            keys.add(f"input_blocks.{number}.0.op", f"down_blocks.{level}.downsamplers.0.conv")
            number += 1
    _resnet(keys, "middle_block.0", "mid_block.resnets.0")
    _transformer(keys, "middle_block.1", "mid_block.attentions.0", depths[-1])
    _resnet(keys, "middle_block.2", "mid_block.resnets.1")
    number = 0
    for level, kind in enumerate(config.up_block_types):
        for layer in range(layers + 1):
            _resnet(keys, f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{layer}")
            if "CrossAttn" in kind:
                _transformer(
                    keys, f"output_blocks.{number}.1", f"up_blocks.{level}.attentions.{layer}", depths[::-1][level]
                )
            if layer == layers and level < levels - 1:
                after = 2 if "CrossAttn" in kind else 1
                keys.add(f"output_blocks.{number}.{after}.conv", f"up_blocks.{level}.upsamplers.0.conv")
            number += 1
    return keys


def _resnet(keys, native, ours):
    for theirs, name in _RESNET.items():
        keys.add(f"{native}.{theirs}", f"{ours}.{name}")


def _transformer(keys, native, ours, depth):
    """Within it both have the same names."""
    blocks = [f"transformer_blocks.{i}" for i in range(depth)]
    for name in ("norm", "proj_in", "proj_out", *(f"{block}.{name}" for block in blocks for name in _IN_BLOCK)):
        keys.add(f"{native}.{name}", f"{ours}.{name}")
    for name in (f"{block}.{name}" for block in blocks for name in _WITHOUT_BIAS):
        keys.add(f"{native}.{name}", f"{ours}.{name}", ends=("weight",))


TIME_IDS = 6
BASE = {  # stabilityai/stable-diffusion-xl-base-1.0, unet/config.json
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
# What a scheduler of SDXL's says of its noise.
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

# Empty tensors by which ComfyUI knows checkpoints of other predictions.
MARKERS = {"v_pred", "ztsnr", "edm_mean", "edm_vpred.sigma_max"}


class SDXLBackbone(Backbone):
    """SDXL: eps prediction on scaled linear betas; takes the table index, the pooled text and the stage's size."""

    name = "sdxl"
    prompt_tokens = 77
    architecture = "stable-diffusion-xl-v1-base"
    prediction = "eps"
    latents = "sdxl"
    channels = 4
    multiple = 4
    pixels_per_cell = 8
    size_conditioning = "stage"
    pooled = True
    curve = VPCurve.scaled_linear(BETAS["beta_start"], BETAS["beta_end"])
    kind = UNet2DConditionModel
    keys = staticmethod(sdxl_keys)
    component = "unet"
    text_width = "cross_attention_dim"
    scaling = 0.13025
    adapter_targets = (*Backbone.adapter_targets, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")

    @classmethod
    def keys_of_file(cls, names):
        """The KeyMap of SDXL base."""
        return sdxl_keys(SimpleNamespace(**BASE))

    @staticmethod
    def native_config(tensors, metadata):
        """Those of SDXL base, the only architecture such files are read in."""
        return dict(BASE) if tensors["label_emb.0.0.weight"].shape[1] == 2816 else None

    def check_file(self, path):
        """Raise RMDError for a checkpoint with one of the empty tensors by which ComfyUI knows a v or EDM model."""
        found = sorted(MARKERS & read_header(path).tensors.keys())
        if found:
            raise RMDError(
                f"{path} is not an eps model: it has the tensor '{found[0]}'; give a model that predicts eps"
            )

    def check_network(self, network, path):
        if network.config.addition_embed_type != "text_time":
            kind = network.config.addition_embed_type
            raise RMDError(f"{path}: its UNet has {kind} embeddings; SDXL text-to-image has text_time")
        super().check_network(network, path)
        if not is_folder(path):
            return
        scheduler = scheduler_config(path)
        kind = scheduler.get("prediction_type", "epsilon")
        if kind != "epsilon":
            raise RMDError(f"{path}: its scheduler says prediction_type {kind}; only epsilon models can be distilled")
        other = {name: scheduler[name] for name, value in BETAS.items() if scheduler.get(name, value) != value}
        if other:
            own = ", ".join(f"{name} {value}" for name, value in BETAS.items())
            raise RMDError(f"{path}: its scheduler says {other}; only SDXL's own noise can be distilled, {own}")

    def predict(self, network, x, sigma_B, conditioning):
        dtype = network_dtype(network)
        timestep = place(self.curve.timestep(sigma_B), x.device, torch.float32)
        height, width = (side * self.pixels_per_cell for side in x.shape[-2:])
        sizes = place(torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32), x.device)
        added = {"text_embeds": conditioning["pooled"].to(dtype), "time_ids": sizes.expand(len(x), TIME_IDS)}
        text = conditioning["text"].to(dtype)
        return network(x.to(dtype), timestep, text, added_cond_kwargs=added, return_dict=False)[0].float()

    def pooled_width(self, network):
        config = network.config
        return config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim

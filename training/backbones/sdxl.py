"""Stable Diffusion XL."""

import torch
from diffusers import UNet2DConditionModel

from rmd_core.errors import RMDError
from rmd_core.header import read_header
from rmd_core.logsnr import VPCurve

from .base import network_dtype
from .checks import check_width, refuse_masked, refuse_shift
from .keyed import KeyedBackbone
from .network_files import is_folder, scheduler_config
from .sdxl_keys import sdxl_keys

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


class SDXLBackbone(KeyedBackbone):
    """SDXL: eps prediction on scaled linear betas; told the table index, the pooled text and the size of the stage."""

    name = "sdxl"
    prompt_tokens = 77
    architecture = "stable-diffusion-xl-v1-base"
    prediction = "eps"
    channels = 4
    multiple = 4
    pixels_per_cell = 8
    size_conditioning = "stage"
    temporal = False
    kind = UNet2DConditionModel
    keys = staticmethod(sdxl_keys)
    component = "unet"
    scaling = 0.13025
    adapter_targets = (*KeyedBackbone.adapter_targets, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")

    def __init__(self, *, shift=None):
        refuse_shift(self, shift)
        self.curve = VPCurve.scaled_linear(BETAS["beta_start"], BETAS["beta_end"])

    @staticmethod
    def native_config(tensors):
        """Those of SDXL base, the only architecture such files are read in."""
        return dict(BASE) if tensors["label_emb.0.0.weight"].shape[1] == 2816 else None

    def check_file(self, path):
        """Raise RMDError for a checkpoint with one of the empty tensors by which ComfyUI knows a v or EDM model."""
        found = sorted(MARKERS & read_header(path).tensors.keys())
        if found:
            raise RMDError(
                f"{path} says by its tensor '{found[0]}' that it is no eps model; only those can be distilled"
            )

    def checked(self, network, path):
        if not is_folder(path):
            return network
        told = scheduler_config(path)
        kind = told.get("prediction_type", "epsilon")
        if kind != "epsilon":
            raise RMDError(f"{path}: its scheduler says prediction_type {kind}; only epsilon models can be distilled")
        other = {name: told[name] for name, value in BETAS.items() if told.get(name, value) != value}
        if other:
            wanted = ", ".join(f"{name} {value}" for name, value in BETAS.items())
            raise RMDError(f"{path}: its scheduler says {other}; students of SDXL's own noise are made, {wanted}")
        config = network.config
        if (config.addition_embed_type, config.in_channels, config.out_channels) != ("text_time", 4, 4):
            raise RMDError(
                f"{path}: its UNet takes {config.in_channels} channels, gives {config.out_channels} and is told "
                f"{config.addition_embed_type}; SDXL text-to-image has 4, 4 and text_time"
            )
        return network

    def predict(self, network, x, sigma_B, conditioning):
        dtype = network_dtype(network)
        timestep = self.curve.timestep(sigma_B).to(x.device, torch.float32)
        height, width = (side * self.pixels_per_cell for side in x.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=x.device)
        added = {"text_embeds": conditioning["pooled"].to(dtype), "time_ids": sizes.expand(len(x), TIME_IDS)}
        text = conditioning["text"].to(dtype)
        return network(x.to(dtype), timestep, text, added_cond_kwargs=added, return_dict=False)[0].float()

    def conditioning(self, cache, texts):
        return {"text": cache.batch(texts), "pooled": cache.pooled(texts)}

    def check_cache(self, network, cache):
        refuse_masked(cache)
        check_width(cache, cache.dim, network.config.cross_attention_dim)
        check_width(cache, cache.pooled_dim, self._pooled(network), "pooled embeddings")

    def blank_conditioning(self, network, tokens, device):
        return {
            "text": torch.zeros(1, tokens, network.config.cross_attention_dim, device=device),
            "pooled": torch.zeros(1, self._pooled(network), device=device),
        }

    @staticmethod
    def _pooled(network):
        config = network.config
        return config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim

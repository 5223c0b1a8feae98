"""The full-size networks on the meta device: real architectures without data, to compare keys and shapes."""

import torch
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, WanTransformer3DModel

from training.backbones import make_backbone

# What each publisher's config.json says; where it agrees with the class's own default it is left out, `meta_network`
# builds the rest from those defaults. Sources beside each; docs/backbones.md lists them.
SDXL = {  # stabilityai/stable-diffusion-xl-base-1.0, unet/config.json
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
PIXART = {  # PixArt-alpha/PixArt-XL-2-1024-MS and PixArt-Sigma-XL-2-1024-MS, transformer/config.json
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "out_channels": 8,
    "sample_size": 128,
}
SD3 = {"joint_attention_dim": 4096, "pooled_projection_dim": 2048, "out_channels": 16, "qk_norm": "rms_norm"}
SD35_MEDIUM = SD3 | {  # stabilityai/stable-diffusion-3.5-medium, transformer/config.json
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
}
SD35_LARGE = SD3 | {  # stabilityai/stable-diffusion-3.5-large, transformer/config.json
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
}
WAN_1_3B = {  # Wan-AI/Wan2.1-T2V-1.3B-Diffusers, transformer/config.json
    "num_attention_heads": 12,
    "ffn_dim": 8960,
    "num_layers": 30,
}
WAN_14B = {  # Wan-AI/Wan2.1-T2V-14B-Diffusers, transformer/config.json
    "num_attention_heads": 40,
    "ffn_dim": 13824,
    "num_layers": 40,
}

STUDENTS = {  # name: (backbone, diffusers class, configuration, the class ComfyUI should detect)
    "SDXL": ("sdxl", UNet2DConditionModel, SDXL, "SDXL"),
    "PixArt alpha": (
        "pixart_alpha",
        PixArtTransformer2DModel,
        PIXART | {"use_additional_conditions": True},
        "PixArtAlpha",
    ),
    "PixArt Sigma": (
        "pixart_sigma",
        PixArtTransformer2DModel,
        PIXART | {"use_additional_conditions": False},
        "PixArtSigma",
    ),
    "SD3.5 Medium": ("sd3", SD3Transformer2DModel, SD35_MEDIUM, "SD3"),
    "SD3.5 Large": ("sd3", SD3Transformer2DModel, SD35_LARGE, "SD3"),
    "Wan2.1 1.3B": ("wan", WanTransformer3DModel, WAN_1_3B, "WAN21_T2V"),
    "Wan2.1 14B": ("wan", WanTransformer3DModel, WAN_14B, "WAN21_T2V"),
}


def meta_student(name):
    """A full-size student: its backbone, its network on the meta device, and the class ComfyUI should detect."""
    backbone, kind, config, detected = STUDENTS[name]
    with torch.device("meta"):
        network = kind(**config)
    return make_backbone(backbone), network, detected

"""The full-size architectures as their publishers' configurations give them, tiny ones of the same classes, and both
with random weights, on which neither speed nor memory depends."""

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    Flux2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from torch.nn import Parameter

from training.backbones.experts import Experts
from training.backbones.sdxl import BASE as SDXL

# What each publisher's config.json says; where it agrees with the class's own default it is left out. Sources beside
# each; docs/develop/extending.md lists them.
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
WAN22_5B = {  # Wan-AI/Wan2.2-TI2V-5B-Diffusers, transformer/config.json
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "num_layers": 30,
    "in_channels": 48,
    "out_channels": 48,
}
WAN_14B = {  # Wan-AI/Wan2.1-T2V-14B-Diffusers, transformer/config.json
    "num_attention_heads": 40,
    "ffn_dim": 13824,
    "num_layers": 40,
}
WAN22_A14B = WAN_14B | {"boundary": 0.875}  # Wan-AI/Wan2.2-T2V-A14B-Diffusers, both transformers and model_index.json
Z_IMAGE = {"axes_lens": [1536, 512, 512]}  # Tongyi-MAI/Z-Image, transformer/config.json
FLUX2_KLEIN_4B = {  # black-forest-labs/FLUX.2-klein-base-4B, transformer/config.json
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
FLUX2_KLEIN_9B = FLUX2_KLEIN_4B | {  # black-forest-labs/FLUX.2-klein-base-9B
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
}

KL_VAE = {  # stabilityai/stable-diffusion-xl-base-1.0, vae/config.json; PixArt's is the same network
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
SD3_VAE = KL_VAE | {  # stabilityai/stable-diffusion-3.5-medium, vae/config.json
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
WAN_VAE = {}  # Wan-AI/Wan2.1-T2V-1.3B-Diffusers, vae/config.json: the class's own defaults

ARCHITECTURES = {  # name: (backbone, class of the network, its configuration)
    "SDXL": ("sdxl", UNet2DConditionModel, SDXL),
    "PixArt alpha": ("pixart_alpha", PixArtTransformer2DModel, PIXART | {"use_additional_conditions": True}),
    "PixArt Sigma": ("pixart_sigma", PixArtTransformer2DModel, PIXART | {"use_additional_conditions": False}),
    "SD3.5 Medium": ("sd3", SD3Transformer2DModel, SD35_MEDIUM),
    "SD3.5 Large": ("sd3", SD3Transformer2DModel, SD35_LARGE),
    "Wan2.1 1.3B": ("wan", WanTransformer3DModel, WAN_1_3B),
    "Wan2.1 14B": ("wan", WanTransformer3DModel, WAN_14B),
    "Wan2.2 A14B": ("wan22_a14b", Experts, WAN22_A14B),
    "Wan2.2 5B": ("wan22_5b", WanTransformer3DModel, WAN22_5B),
    "Z-Image": ("z_image", ZImageTransformer2DModel, Z_IMAGE),
    "Qwen-Image": ("qwen_image", QwenImageTransformer2DModel, {}),  # Qwen/Qwen-Image: the class's own defaults
    "FLUX.2 klein 4B": ("flux2_klein", Flux2Transformer2DModel, FLUX2_KLEIN_4B),
    "FLUX.2 klein 9B": ("flux2_klein", Flux2Transformer2DModel, FLUX2_KLEIN_9B),
}
VAES = {  # backbone: (class of the autoencoder, its configuration)
    "sdxl": (AutoencoderKL, KL_VAE),
    "pixart_alpha": (AutoencoderKL, KL_VAE),
    "pixart_sigma": (AutoencoderKL, KL_VAE),
    "sd3": (AutoencoderKL, SD3_VAE),
    "wan": (AutoencoderKLWan, WAN_VAE),
    "qwen_image": (AutoencoderKLQwenImage, {}),
    "flux2_klein": (AutoencoderKLFlux2, {}),  # black-forest-labs/FLUX.2-klein-base-4B: the class's own defaults
    "z_image": (AutoencoderKL, SD3_VAE),  # FLUX.1's, of the same sizes
}

TINY = {  # name: what the tiny network of its class has otherwise
    "SDXL": {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "norm_num_groups": 8,
    },
    "PixArt Sigma": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 24, "cross_attention_dim": 48},
    "SD3.5 Medium": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "caption_projection_dim": 128,
        "dual_attention_layers": (0,),
    },
    "Wan2.1 1.3B": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128},
    "Wan2.1 14B": {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128},
}


def outline(kind, config):
    """A network without data, on the meta device."""
    with torch.device("meta"):
        return (kind.from_config(config) if kind is Experts else kind(**config)).eval()


def random_network(kind, config, *, device, dtype):
    """A frozen network with random weights of order one, as a checkpoint of it is loaded in ``dtype``.

    What diffusers keeps in float32 stays in float32. The global generators are left alone.
    """
    with init_empty_weights(include_buffers=False):
        network = kind(**config)
    generator = torch.Generator(device).manual_seed(0)
    kept = set(getattr(kind, "_keep_in_fp32_modules", None) or ())
    for name, outline in list(network.named_parameters()):
        path = name.split(".")
        values = torch.empty(outline.shape, device=device, dtype=torch.float32 if kept & set(path) else dtype)
        if outline.ndim > 1:
            values.normal_(0, outline[0].numel() ** -0.5, generator=generator)
        else:
            values.fill_(1.0 if path[-1] == "weight" else 0.0)
        owner = network.get_submodule(".".join(path[:-1]))
        setattr(owner, path[-1], Parameter(values, requires_grad=False))
    return network.to(device).eval()


def random_conditioning(backbone, network, *, tokens, batch, device, seed):
    """Conditioning of a batch: random embeddings, nothing masked."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, blank in backbone.zero_conditioning(network, tokens, "cpu").items():
        shape = (batch, *blank.shape[1:])
        values = torch.ones(shape) if name == "mask" else torch.randn(shape, generator=generator)
        found[name] = values.to(device)
    return found

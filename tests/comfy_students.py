"""Students in ComfyUI: the smallest networks that its detection knows, what it makes of them, and how far apart it is.

It fixes PixArt's width, and SDXL's channels and depths.
"""

from collections import defaultdict

import torch
from diffusers import Flux2Transformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

from training.backbones.sdxl import BASE

SDXL = BASE | {  # the depths of KOALA 700M, which ComfyUI loads as SDXL
    "block_out_channels": (320, 320, 320),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 2, 5),
    "attention_head_dim": (5, 5, 5),
}
PIXART = {"num_layers": 1, "caption_channels": 4096, "sample_size": 128}
SD3 = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "caption_projection_dim": 128,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 40,
    "pos_embed_max_size": 32,
    "qk_norm": "rms_norm",
}
FLUX2 = {
    "num_layers": 1,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "guidance_embeds": False,
}
STUDENTS = {  # name: (backbone, class, configuration, text width, pooled width, ComfyUI's class, sizes)
    "SDXL": ("sdxl", UNet2DConditionModel, SDXL, 2048, 1280, "KOALA_700M", [(8, 8), (12, 20)]),
    "PixArt alpha": (
        "pixart_alpha",
        PixArtTransformer2DModel,
        PIXART | {"use_additional_conditions": True},
        4096,
        None,
        "PixArtAlpha",
        [(34, 34), (96, 104)],
    ),
    "PixArt Sigma": (
        "pixart_sigma",
        PixArtTransformer2DModel,
        PIXART | {"use_additional_conditions": False},
        4096,
        None,
        "PixArtSigma",
        [(34, 52)],
    ),
    "SD3.5 Medium": (
        "sd3",
        SD3Transformer2DModel,
        SD3 | {"dual_attention_layers": (0,)},
        48,
        40,
        "SD3",
        [(8, 8), (12, 20), (64, 32)],
    ),
    "SD3.5 Large": ("sd3", SD3Transformer2DModel, SD3, 48, 40, "SD3", [(8, 8), (12, 20)]),
    "FLUX.2 klein": ("flux2_klein", Flux2Transformer2DModel, FLUX2, 48, None, "Flux2", [(4, 4), (6, 10)]),
}
TOKENS = defaultdict(lambda: 5, flux2_klein=512)  # of a prompt; ComfyUI makes a shorter one for FLUX.2 as long as that
KEY_COMPLAINTS = ("unet missing", "unet unexpected", "left over keys", "Missing VAE keys", "Leftover VAE keys")


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def tell_difference(name, error):
    """Prints the error, which `pytest -rP` shows; docs/develop/extending.md has the largest one."""
    print(f"| {name} | {error:.1e} |")
    assert error < 1e-5


def load_in_comfy(comfy, path):
    patcher = comfy.sd.load_diffusion_model(str(path))
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    return patcher.model


def comfy_output(model, backbone, x, sigma, text, pooled):
    """What ComfyUI's network predicts for one sample at a state and level that are named our way."""
    curve = backbone.curve
    level, alpha = curve.comfy_sigma(sigma), curve.alpha(sigma)
    state = x if backbone.prediction == "flow" else x / alpha
    pixels = {"height": 8 * x.shape[-2], "width": 8 * x.shape[-1]}
    conditions = model.extra_conds(
        cross_attn=text, pooled_output=pooled, noise=x, device=torch.device("cpu"), prompt_type="positive", **pixels
    )
    given = {name: condition.cond for name, condition in conditions.items()}
    x0 = model.apply_model(state, torch.full((1,), level), **given)
    return (state - x0) / level

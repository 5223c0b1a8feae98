"""Tiny random networks of every backbone, and a world to train each in: a Diffusers folder and a prompt cache."""

import json

import torch
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

from rmd_core.experts import EXPERTS
from training.backbones import make_backbone
from training.backbones.wan import WanBackbone
from training.config import load_config
from training.prompts import PromptCache, write_prompt_cache
from training.setup import outline_run, prepare
from training_world import PROMPTS, tiny_wan

TINY = {  # name: (diffusers class, configuration, text width, pooled width)
    "wan22_5b": (
        WanTransformer3DModel,
        {
            "num_attention_heads": 1,
            "in_channels": 48,
            "out_channels": 48,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 1,
        },
        16,
        None,
    ),
    "sdxl": (
        UNet2DConditionModel,
        {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (2, 4),
            "cross_attention_dim": 24,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 20 + 6 * 8,
            "use_linear_projection": True,
            "norm_num_groups": 8,
        },
        24,
        20,
    ),
    "pixart_alpha": (
        PixArtTransformer2DModel,
        {
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "cross_attention_dim": 48,
            "caption_channels": 24,
            "sample_size": 64,
            "use_additional_conditions": True,
        },
        24,
        None,
    ),
    "sd3": (
        SD3Transformer2DModel,
        {
            "num_layers": 2,
            "num_attention_heads": 2,
            "caption_projection_dim": 128,
            "joint_attention_dim": 24,
            "pooled_projection_dim": 20,
            "pos_embed_max_size": 32,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        24,
        20,
    ),
    "qwen_image": (
        QwenImageTransformer2DModel,
        {"num_layers": 2, "num_attention_heads": 1, "joint_attention_dim": 16},
        16,
        None,
    ),
    "z_image": (
        ZImageTransformer2DModel,
        {
            "dim": 128,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 1,
            "n_kv_heads": 1,
            "cap_feat_dim": 24,
            "axes_lens": (1536, 512, 512),
        },
        24,
        None,
    ),
    "flux2_klein": (
        Flux2Transformer2DModel,
        {
            "num_layers": 1,
            "num_single_layers": 2,
            "num_attention_heads": 1,
            "joint_attention_dim": 24,
            "guidance_embeds": False,
        },
        24,
        None,
    ),
}
_ALPHA = TINY["pixart_alpha"]
TINY["pixart_sigma"] = (_ALPHA[0], _ALPHA[1] | {"use_additional_conditions": False}, *_ALPHA[2:])
NAMES = ("wan", *TINY)

CONFIG = """
backbone: {{name: {name}, base: "{folder}/model"}}
model: {{mode: three networks}}
plan: {{steps: 2, split: 1+1, sizes: [[{low}, {low}], [{high}, {high}]]}}
loss: {{cfg: 2.0}}
prompts: {{cache: "{folder}/prompts.safetensors", encoder: toy}}
optimiser: {{student_lr: 1e-3, fake_lr: 1e-3, weight_decay: 0.0}}
train: {{updates: 1, batch: 2, warmup_updates: 0, device: cpu}}
output: {{folder: "{folder}/out", images: 2, validate_every: 1, trackers: [], dtype: float32}}
"""


def random_network(kind, config, *, seed=0):
    """A diffusers network with random weights of order one, none of them zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = kind(**config)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, parameter[0].numel() ** -0.5)
                elif name.endswith("weight"):
                    parameter.normal_(1, 0.1)
                else:
                    parameter.normal_(0, 0.1)
    return network.eval()


def tiny_network(name):
    """A tiny network of a backbone."""
    return tiny_wan() if name == "wan" else random_network(*TINY[name][:2])


def tiny_kl_vae(backbone):
    """An autoencoder of a few channels with a backbone's latents."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if backbone.name == "qwen_image":
            return AutoencoderKLQwenImage(base_dim=4, num_res_blocks=1)
        if backbone.name == "wan22_5b":
            sizes = {"base_dim": 4, "num_res_blocks": 1, "z_dim": 48, "in_channels": 12, "out_channels": 12}
            scale = {"latents_mean": [0.1] * 48, "latents_std": [2.0] * 48}
            return AutoencoderKLWan(**sizes, **scale, patch_size=2, is_residual=True, scale_factor_spatial=16)
        if backbone.name == "flux2_klein":
            vae = AutoencoderKLFlux2(block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2)
            vae.bn.running_mean.normal_(0, 1)
            vae.bn.running_var.uniform_(0.5, 2)
            return vae
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4,) * 4,
            norm_num_groups=2,
            latent_channels=backbone.channels,
            scaling_factor=backbone.scaling,
            shift_factor=backbone.latent_shift or None,
        )


def write_prompts(name, path):
    """A prompt cache of random embeddings of several lengths, as a backbone needs it."""
    _, _, width, pooled = TINY.get(name, (None, None, 16, None))
    generator = torch.Generator().manual_seed(1)
    texts = ("", *PROMPTS)
    masked = make_backbone(name).masked
    lengths = {text: 1 + i if masked else 6 for i, text in enumerate(texts)}
    embeddings = {text: torch.randn(lengths[text], width, generator=generator) for text in texts}
    extra = {} if pooled is None else {"pooled": {text: torch.randn(pooled, generator=generator) for text in texts}}
    write_prompt_cache(path, embeddings, encoder="toy", masked=masked, dtype=torch.float32, **extra)
    return PromptCache(path)


def write_backbone_world(name, folder):
    """Write a Diffusers-format folder, a prompt cache and a configuration; returns the configuration's path."""
    backbone = make_backbone(name)
    tiny_network(name).save_pretrained(folder / "model" / ("unet" if name == "sdxl" else "transformer"))
    if name != "wan":
        tiny_kl_vae(backbone).save_pretrained(folder / "model" / "vae")
    write_prompts(name, folder / "prompts.safetensors")
    low, high = (34, 40) if name.startswith("pixart") else (4, 8)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(name=name, folder=folder, low=low, high=high), encoding="utf-8")
    return path


def backbone_setup(name, folder, *overrides):
    """The Setup of a backbone's world in ``folder``, written there if need be."""
    path = folder / "config.yaml"
    if not path.exists():
        write_backbone_world(name, folder)
    return prepare(outline_run(load_config(path, overrides).resolved()))


# A pair of experts

EXPERT_BOUNDARY = 0.875
EXPERT_CONFIG = """
backbone: {{name: wan22_a14b, base: "{folder}/model", shift: 5.0}}
model: {{mode: adapters, rank: 3, alpha: 1.5}}
plan: {{steps: 4, split: 2+2, sizes: [[4, 4], [8, 8]]}}
method: {{mapping: none}}
loss: {{cfg: 2.0}}
prompts: {{cache: "{folder}/prompts.safetensors", encoder: toy}}
optimiser: {{student_lr: 1e-2, fake_lr: 1e-2, weight_decay: 0.0}}
train: {{updates: 2, batch: 3, accumulation: 2, warmup_updates: 0, device: cpu, ema: 0.9}}
output: {{folder: "{folder}/out", checkpoint_every: 1, images: 1, trackers: [], dtype: float32}}
"""


def expert(name):
    """The tiny network of an expert."""
    return tiny_wan(seed=EXPERTS.index(name))


def write_pair(folder, *, boundary=EXPERT_BOUNDARY):
    """Write both experts as a Diffusers-format folder, and as ``base_high_noise.safetensors`` and so on beside it."""
    for name, part in zip(EXPERTS, ("transformer", "transformer_2")):
        expert(name).save_pretrained(folder / part)
        WanBackbone().export(expert(name), folder.parent / f"base_{name}_noise.safetensors", dtype=torch.float32)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", "boundary_ratio": boundary}))


def write_expert_world(folder):
    """Write a pair of experts, prompts and a configuration; returns the folder."""
    write_pair(folder / "model")
    write_prompts("wan", folder / "prompts.safetensors")
    (folder / "config.yaml").write_text(EXPERT_CONFIG.format(folder=folder), encoding="utf-8")
    return folder


def student_file(folder, name):
    """The file of an expert's student in an output folder."""
    return folder / f"student_{name}_noise.safetensors"

"""Tiny models of real ComfyUI classes with random weights, made in memory in milliseconds."""

from dataclasses import dataclass

import torch

WEIGHTS_SEED = 11


@dataclass(frozen=True)
class TinyModel:
    """A ModelPatcher on the CPU, and the shapes of what goes into it: pooled 0 means none."""

    patcher: object
    channels: int
    context: int
    pooled: int = 0
    video: bool = False

    def conditioning(self, seed=0, *, batch=1, tokens=5, **extra):
        """A CONDITIONING of random embeddings; ``extra`` goes into its dictionary."""
        generator = torch.Generator().manual_seed(1000 + seed)
        values = dict(extra)
        if self.pooled:
            values["pooled_output"] = torch.randn(batch, self.pooled, generator=generator)
        return [[torch.randn(batch, tokens, self.context, generator=generator), values]]

    def latent(self, height, width, *, batch=1, frames=1, **extra):
        """An empty LATENT of a size in cells."""
        shape = (batch, self.channels, *((frames,) if self.video else ()), height, width)
        return {"samples": torch.zeros(shape), **extra}


def tiny_wan():
    """Wan2.1 text-to-video, 16 channels with time; ComfyUI gives it shift 8."""
    return TinyModel(_patcher("WAN21_T2V", _wan_config()), channels=16, context=24, video=True)


def tiny_wan_image():
    """Wan2.1 image-to-video: a mask of 4 channels and an image latent are concatenated."""
    config = _wan_config(model_type="i2v", in_dim=36)
    return TinyModel(_patcher("WAN21_I2V", config), channels=16, context=24, video=True)


def tiny_wan22():
    """Wan2.2 5B, latents of 48 channels; its class derives from Wan2.1's."""
    config = _wan_config(in_dim=48) | {"out_dim": 48}
    return TinyModel(_patcher("WAN22_T2V", config), channels=48, context=24, video=True)


def tiny_sd3(table=16):
    """SD3 (flow, shift 3) with a position table of so many patches a side, 2 cells each."""
    config = {
        "in_channels": 16,
        "patch_size": 2,
        "depth": 1,
        "input_size": None,
        "adm_in_channels": 40,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 64}},
        "num_patches": table**2,
        "pos_embed_max_size": table,
        "pos_embed_scaling_factor": None,
    }
    return TinyModel(_patcher("SD3", config), channels=16, context=24, pooled=40)


def tiny_sdxl():
    """SDXL with eps prediction, scaled linear betas."""
    return TinyModel(_patcher("SDXL", _sdxl_config()), channels=4, context=32, pooled=1280)


def tiny_sdxl_v():
    """SDXL with v prediction."""
    patcher = _patcher("SDXL", _sdxl_config(), state_dict={"v_pred": torch.tensor([])})
    return TinyModel(patcher, channels=4, context=32, pooled=1280)


def tiny_pixart():
    """PixArt Sigma, linear betas, eps prediction of 4 of its 8 output channels."""
    config = {
        "image_model": "pixart_sigma",
        "hidden_size": 32,
        "num_heads": 2,
        "patch_size": 2,
        "depth": 1,
        "input_size": 128,
        "pe_interpolation": 2,
        "caption_channels": 24,
        "model_max_length": 300,
        "mlp_ratio": 2.0,
        "micro_condition": False,
    }
    return TinyModel(_patcher("PixArtSigma", config), channels=4, context=24)


def tiny_qwen():
    """Qwen-Image: images in Wan2.1's latents, which have a time axis, with reference latents as tokens of their own."""
    config = {
        "image_model": "qwen_image",
        "in_channels": 64,
        "num_layers": 1,
        "attention_head_dim": 24,
        "axes_dims_rope": (8, 8, 8),
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
    }
    return TinyModel(_patcher("QwenImage", config), channels=16, context=24, video=True)


def tiny_ltxv():
    """LTXV: latents of 32 px a cell, with guides as frames behind the video's own."""
    config = {
        "image_model": "ltxv",
        "cross_attention_dim": 48,
        "attention_head_dim": 24,
        "num_attention_heads": 2,
        "caption_channels": 24,
        "num_layers": 1,
    }
    return TinyModel(_patcher("LTXV", config), channels=128, context=24, video=True)


def tiny_controlnet():
    """A ControlNet for `tiny_sdxl`, its own object on every call."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    left_out = ("out_channels", "transformer_depth_output", "use_temporal_attention")
    config = {key: value for key, value in _sdxl_config().items() if key not in left_out}
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, num_head_channels=16, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    _fill(network.requires_grad_(False).eval())
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


def _wan_config(model_type="t2v", in_dim=16):
    return {
        "image_model": "wan2.1",
        "model_type": model_type,
        "patch_size": (1, 2, 2),
        "dim": 48,
        "out_dim": 16,
        "in_dim": in_dim,
        "num_heads": 2,
        "ffn_dim": 32,
        "freq_dim": 32,
        "text_dim": 24,
        "num_layers": 1,
        "qk_norm": True,
        "cross_attn_norm": True,
    }


def _sdxl_config():
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [0, 1],
        "transformer_depth_output": [0, 0, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": 32,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "use_temporal_attention": False,
        "legacy": False,
    }


def _patcher(name, config, state_dict=None):
    """A ModelPatcher over the model that a class of comfy.supported_models builds."""
    import comfy.model_patcher
    import comfy.supported_models

    made = getattr(comfy.supported_models, name)(config | {"dtype": torch.float32})
    made.unet_config.update(config)  # a class sets some of the sizes itself
    if "num_head_channels" in made.unet_config:
        made.unet_config["num_head_channels"] = 16  # the base class puts 64 there
    cpu = torch.device("cpu")
    model = made.get_model(state_dict or {}, device=cpu)
    _fill(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


@torch.no_grad()
def _fill(network):
    """Random weights that keep activations of order 1: matrices by their fan-in, scales near 1, the rest small."""
    generator = torch.Generator().manual_seed(WEIGHTS_SEED)
    for name, weight in (*network.named_parameters(), *network.named_buffers()):
        if isinstance(weight, torch.nn.Parameter) or "pos_embed" in name:
            values = torch.randn(weight.shape, generator=generator)
            if weight.dim() < 2:
                weight.copy_(0.1 * values + (1.0 if name.endswith("weight") else 0.0))
            else:
                weight.copy_(values * (0.3 if weight.dim() == 3 else weight[0].numel() ** -0.5))

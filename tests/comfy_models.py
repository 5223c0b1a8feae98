"""Tiny models of real ComfyUI classes with random weights, made in memory in milliseconds."""

from dataclasses import dataclass

import torch

WEIGHTS_SEED = 11
CONTEXT = 24
SIZES = {
    48: "hidden_size dim vid_dim features model_dim model_channels global_conddim hidden_size_x hidden_size_y "
    "cross_attention_dim audio_cross_attention_dim time_embed_hidden_size",
    32: "ffn_dim freq_dim ff_dim ffn_hidden_size intermediate_size",
    CONTEXT: "attention_head_dim audio_attention_head_dim head_dim time_embed_dim text_dim text_embed_dim "
    "text_states_dim text_states_dim_t5 text_emb_dim text_feat_dim text_in_dim in_text_dim in_text_dim2 t5_feat_dim "
    "txt_in_dim txt_embed_dim txtdim context_in_dim cap_feat_dim caption_channels cond_seq_dim crossattn_emb_channels "
    "instruction_feat_dim joint_attention_dim llm_features_dim enc_hidden_dim",
    16: "multiple_of",
    2: "num_heads num_attention_heads heads kvheads n_heads n_kv_heads num_kv_heads txtheads txtkvheads num_groups "
    "pixel_num_groups audio_num_attention_heads connector_num_attention_heads",
    1: "depth depth_single_blocks num_layers n_layers n_refiner_layers num_refiner_layers token_refiner_num_layers "
    "num_double_stream_layers connector_num_layers num_blocks num_text_blocks num_visual_blocks layers txtlayers "
    "patch_depth pixel_depth num_single_layers num_activated_experts",
    (8, 8, 8): "axes_dims_rope axes_dim_rope rope_axes_dim",
}
"""How small each size is, by the names that networks have for it."""
_SIZE_OF = {name: size for size, names in SIZES.items() for name in names.split()}


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


def net(kind, names="", **own):
    """The configuration of a tiny network: its image_model, the names of sizes that SIZES gives, and its own values."""
    return ({"image_model": kind} if kind else {}) | {name: _SIZE_OF[name] for name in names.split()} | own


def unet(channels=4, context=CONTEXT, adm=None, **own):
    """A UNet of two sizes."""
    config = {"image_size": 32, "in_channels": channels, "out_channels": 4, "model_channels": 32}
    config |= {"num_res_blocks": [1, 1], "channel_mult": [1, 2], "context_dim": context, "adm_in_channels": adm}
    config |= {"transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1], "transformer_depth_middle": 1}
    config |= {"use_spatial_transformer": True, "use_linear_in_transformer": True}
    config |= {"use_temporal_attention": False, "legacy": False}
    return config | ({} if adm is None else {"num_classes": "sequential"}) | own


def wan(kind="t2v", **own):
    """Wan of one block."""
    return net("wan2.1", "dim ffn_dim freq_dim text_dim num_heads num_layers", model_type=kind, **own)


def sd3(table, pooled):
    """SD3 with a position table of so many patches a side, 2 cells each."""
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": 64}}
    config = {"in_channels": 16, "patch_size": 2, "depth": 1, "input_size": None, "adm_in_channels": pooled}
    config |= {"context_embedder_config": embedder, "pos_embed_scaling_factor": None}
    return config | {"num_patches": table**2, "pos_embed_max_size": table}


def pixart(kind, **own):
    """PixArt of one block; kind is pixart_alpha or pixart_sigma."""
    config = {"input_size": 64, "model_max_length": 16, "mlp_ratio": 2.0, "pe_interpolation": 1}
    config["micro_condition"] = kind == "pixart_alpha"
    return net(kind, "hidden_size num_heads depth caption_channels", **config | own)


def qwen():
    """Qwen-Image of one block."""
    names = "num_attention_heads attention_head_dim num_layers joint_attention_dim axes_dims_rope"
    return net("qwen_image", names, in_channels=64)


def ltxv():
    """LTXV of one block."""
    return net("ltxv", "cross_attention_dim attention_head_dim num_attention_heads caption_channels num_layers")


_WAN21 = {"patch_size": (1, 2, 2), "in_dim": 16, "out_dim": 16, "qk_norm": True, "cross_attn_norm": True}


def tiny_wan():
    """Wan2.1 text-to-video, 16 channels with time; ComfyUI gives it shift 8."""
    return TinyModel(patcher_of("WAN21_T2V", wan(**_WAN21)), channels=16, context=CONTEXT, video=True)


def tiny_wan_image():
    """Wan2.1 image-to-video: a mask of 4 channels and an image latent are concatenated."""
    config = wan("i2v", **_WAN21 | {"in_dim": 36})
    return TinyModel(patcher_of("WAN21_I2V", config), channels=16, context=CONTEXT, video=True)


def tiny_wan22_image():
    """Wan2.2 A14B image-to-video, which ComfyUI finds to be text-to-video with 36 input channels."""
    config = wan(**_WAN21 | {"in_dim": 36})
    return TinyModel(patcher_of("WAN21_T2V", config), channels=16, context=CONTEXT, video=True)


def tiny_wan22():
    """Wan2.2 5B, latents of 48 channels; its class derives from Wan2.1's."""
    config = wan(**_WAN21 | {"in_dim": 48, "out_dim": 48})
    return TinyModel(patcher_of("WAN22_T2V", config), channels=48, context=CONTEXT, video=True)


def tiny_sd3(table=16):
    """SD3 (flow, shift 3) with a position table of so many patches a side, 2 cells each."""
    return TinyModel(patcher_of("SD3", sd3(table, pooled=40)), channels=16, context=CONTEXT, pooled=40)


def tiny_sdxl():
    """SDXL with eps prediction, scaled linear betas."""
    return TinyModel(patcher_of("SDXL", unet(context=32, adm=2816)), channels=4, context=32, pooled=1280)


def tiny_sdxl_v():
    """SDXL with v prediction."""
    patcher = patcher_of("SDXL", unet(context=32, adm=2816), state_dict={"v_pred": torch.tensor([])})
    return TinyModel(patcher, channels=4, context=32, pooled=1280)


def tiny_pixart():
    """PixArt Sigma, linear betas, eps prediction of 4 of its 8 output channels."""
    sizes = {"hidden_size": 32, "patch_size": 2, "input_size": 128, "pe_interpolation": 2, "model_max_length": 300}
    return TinyModel(patcher_of("PixArtSigma", pixart("pixart_sigma") | sizes), channels=4, context=CONTEXT)


def tiny_qwen():
    """Qwen-Image: images in Wan2.1's latents, which have a time axis, with reference latents as tokens of their own."""
    return TinyModel(patcher_of("QwenImage", qwen()), channels=16, context=CONTEXT, video=True)


def tiny_ltxv():
    """LTXV: latents of 32 px a cell, with guides as frames behind the video's own."""
    return TinyModel(patcher_of("LTXV", ltxv()), channels=128, context=CONTEXT, video=True)


def tiny_controlnet():
    """A ControlNet for `tiny_sdxl`, its own object on every call."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    left_out = ("out_channels", "transformer_depth_output", "use_temporal_attention")
    config = {key: value for key, value in unet(context=32, adm=2816).items() if key not in left_out}
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, num_head_channels=16, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    _fill(network.requires_grad_(False).eval())
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


def patcher_of(name, config, state_dict=None):
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


def tiny_wan_vae():
    """The autoencoder of Wan2.1, 8 px a cell and 4 frames, with few channels."""
    import comfy.ldm.wan.vae
    import comfy.sd

    network = comfy.ldm.wan.vae.WanVAE(dim=4, z_dim=16, temperal_downsample=[False, True, True])
    _fill(network)
    return comfy.sd.VAE(sd=network.state_dict())


def second_of(name):
    """The TinyModel of a name, such as "wan", with other weights."""
    model = globals()[f"tiny_{name}"]()
    _fill(model.patcher.model.diffusion_model, seed=WEIGHTS_SEED + 1)
    return model


@torch.no_grad()
def _fill(network, seed=WEIGHTS_SEED):
    """Random weights that keep activations of order 1: matrices by their fan-in, scales near 1, the rest small."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in (*network.named_parameters(), *network.named_buffers()):
        if isinstance(weight, torch.nn.Parameter) or "pos_embed" in name or "rope.inv_freq" in name:
            values = torch.randn(weight.shape, generator=generator)
            if weight.dim() < 2:
                weight.copy_(0.1 * values + (1.0 if name.endswith("weight") else 0.0))
            else:
                weight.copy_(values * (0.3 if weight.dim() == 3 else weight[0].numel() ** -0.5))

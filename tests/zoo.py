"""Every class of ComfyUI's supported models that makes images or videos, as a tiny random network in a 2+2 plan.

Run as a program (python tests/zoo.py) it writes the table of docs/models.md. `meet` is what one row is made of.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from comfyui_checkout import find_comfyui

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table begins: made by tests/zoo.py -->", "<!-- table ends -->"
SEED = 5
CONTEXT = 24


@dataclass(frozen=True)
class Animal:
    """How to make a tiny model of a class, a prompt for it, and an empty latent as core's node makes it.

    px is the side of the result. frames is the number of a video's frames, 0 for an image. extra gives more entries of
    the prompt. refused is a part of the message where RMD does not take the model, unusable where core fails at so
    small a network.
    """

    config: dict
    context: int = CONTEXT
    pooled: int = 0
    tokens: int = 5
    px: int = 128
    frames: int = 0
    extra: dict = field(default_factory=dict)
    state: dict = field(default_factory=dict)
    refused: str = ""


def unet(channels=4, context=CONTEXT, adm=None, **others):
    """A UNet of two sizes."""
    config = {
        "image_size": 32,
        "in_channels": channels,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [0, 1],
        "transformer_depth_output": [0, 0, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": context,
        "adm_in_channels": adm,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "use_temporal_attention": False,
        "legacy": False,
    }
    return config | ({} if adm is None else {"num_classes": "sequential"}) | others


def wan(kind="t2v", **others):
    config = {
        "image_model": "wan2.1",
        "model_type": kind,
        "dim": 48,
        "ffn_dim": 32,
        "freq_dim": 32,
        "text_dim": CONTEXT,
        "num_heads": 2,
        "num_layers": 1,
    }
    return config | others


def flux(**others):
    config = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": CONTEXT,
        "context_in_dim": CONTEXT,
        "hidden_size": 48,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [8, 8, 8],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": False,
        "txt_ids_dims": [],
    }
    return config | others


def chroma(**others):
    own = {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 48}
    config = flux(**own, hidden_dim=32, n_layers=1, vec_in_dim=None, **others)
    del config["guidance_embed"]
    return config


def hunyuan(**others):
    config = {
        "image_model": "hunyuan_video",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": None,
        "context_in_dim": CONTEXT,
        "hidden_size": 48,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [8, 8, 8],
        "theta": 256,
        "patch_size": [1, 2, 2],
        "qkv_bias": True,
        "guidance_embed": False,
        "byt5": False,
        "meanflow": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
        "meanflow_sum": False,
    }
    return config | others


def lumina(**others):
    config = {
        "image_model": "lumina2",
        "patch_size": 2,
        "in_channels": 16,
        "dim": 48,
        "cap_feat_dim": CONTEXT,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "qk_norm": True,
        "n_heads": 2,
        "n_kv_heads": 2,
        "axes_dims": [8, 8, 8],
        "axes_lens": [300, 512, 512],
        "multiple_of": 16,
        "ffn_dim_multiplier": 1.0,
    }
    return config | others


Z_IMAGE = {"dim": 256, "axes_dims": [32, 48, 48], "z_image_modulation": True, "time_scale": 1000.0}


def cosmos(**others):
    config = {
        "image_model": "cosmos_predict2",
        "max_img_h": 240,
        "max_img_w": 240,
        "max_frames": 128,
        "concat_padding_mask": True,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": 48,
        "num_blocks": 1,
        "num_heads": 2,
        "crossattn_emb_channels": CONTEXT,
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True,
        "use_adaln_lora": True,
        "adaln_lora_dim": 8,
        "rope_enable_fps_modulation": False,
    }
    return {name: value for name, value in (config | others).items() if value is not None}


def pixart(kind):
    config = {
        "image_model": kind,
        "hidden_size": 48,
        "num_heads": 2,
        "depth": 1,
        "input_size": 64,
        "caption_channels": CONTEXT,
        "model_max_length": 16,
        "mlp_ratio": 2.0,
        "pe_interpolation": 1,
        "micro_condition": kind == "pixart_alpha",
    }
    return config


def heads(**others):
    """The sizes that many transformers name alike."""
    return {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 1} | others


MT5 = {name: torch.ones(1, 5) for name in ("attention_mask", "attention_mask_mt5xl")}
MT5["conditioning_mt5xl"] = torch.ones(1, 5, CONTEXT)


def cogvideo(channels):
    return Animal(
        heads(image_model="cogvideox", in_channels=channels, text_embed_dim=CONTEXT), refused="V_PREDICTION_DDPM"
    )


def audio_video(config):
    return Animal(config, frames=5, refused="several tensors")


SDXL = {"config": unet(adm=2816), "pooled": 1280}
SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 1,
    "input_size": None,
    "adm_in_channels": CONTEXT,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": 64}},
    "num_patches": 32**2,
    "pos_embed_max_size": 32,
    "pos_embed_scaling_factor": None,
}
VIDEO = {"frames": 9, "px": 128}

ZOO = {
    "SD15": Animal(unet()),
    "SD20": Animal(unet()),
    "SD21UnclipL": Animal(unet(adm=1536)),
    "SD21UnclipH": Animal(unet(adm=2048)),
    "SD15_instructpix2pix": Animal(unet(8)),
    "LotusD": Animal(unet(adm=4), refused="IMG_TO_IMG"),
    "SDXL": Animal(**SDXL),
    "SSD1B": Animal(**SDXL),
    "Segmind_Vega": Animal(**SDXL),
    "KOALA_700M": Animal(**SDXL),
    "KOALA_1B": Animal(**SDXL),
    "SDXLRefiner": Animal(unet(adm=2560), pooled=1280),
    "SDXL_instructpix2pix": Animal(unet(8, adm=2816), pooled=1280),
    "SVD_img2vid": Animal(unet(8, adm=768), refused="ModelSamplingContinuousEDM"),
    "SV3D_u": Animal(unet(8, adm=256), refused="ModelSamplingContinuousEDM"),
    "SV3D_p": Animal(unet(8, adm=1280), refused="ModelSamplingContinuousEDM"),
    "Stable_Zero123": Animal(
        unet(8, context=768),
        context=768,
        state={"cc_projection.weight": torch.zeros(768, 772), "cc_projection.bias": torch.zeros(768)},
    ),
    "SD_X4Upscaler": Animal(
        unet(
            7,
            num_classes=1000,
            num_res_blocks=[1] * 4,
            channel_mult=[1] * 4,
            transformer_depth=[0, 0, 0, 1],
            transformer_depth_output=[0, 0, 0, 0, 0, 0, 1, 1],
        ),
        px=256,
    ),
    "Stable_Cascade_C": Animal(
        {"stable_cascade_stage": "c"}
        | {
            "c_hidden": [64, 64],
            "nhead": [2, 2],
            "blocks": [[1, 1], [1, 1]],
            "c_cond": 64,
            "c_clip_text": CONTEXT,
            "c_clip_text_pooled": CONTEXT,
            "c_clip_img": CONTEXT,
        },
        refused="StableCascadeSampling",
    ),
    "Stable_Cascade_B": Animal(
        {"stable_cascade_stage": "b"}
        | {
            "c_hidden": [32, 32, 64, 64],
            "nhead": [-1, -1, 2, 2],
            "blocks": [[1, 1, 1, 1], [1, 1, 1, 1]],
            "c_cond": 64,
            "c_clip": CONTEXT,
        },
        refused="StableCascadeSampling",
    ),
    "SD3": Animal(SD3, pooled=CONTEXT),
    "AuraFlow": Animal(
        {
            "cond_seq_dim": CONTEXT,
            "dim": 48,
            "n_layers": 2,
            "n_double_layers": 1,
            "n_heads": 2,
            "global_conddim": 48,
            "max_seq": 1024,
        }
    ),
    "PixArtAlpha": Animal(pixart("pixart_alpha"), px=576),
    "PixArtSigma": Animal(pixart("pixart_sigma"), px=576),
    "HunyuanDiT": Animal(
        heads(
            image_model="hydit",
            hidden_size=64,
            depth=2,
            num_heads=2,
            text_states_dim=CONTEXT,
            text_states_dim_t5=CONTEXT,
            text_len=5,
            text_len_t5=5,
            mlp_ratio=2.0,
        ),
        pooled=1024,
        extra=MT5,
    ),
    "HunyuanDiT1": Animal(
        heads(
            image_model="hydit1",
            hidden_size=64,
            depth=2,
            num_heads=2,
            text_states_dim=CONTEXT,
            text_states_dim_t5=CONTEXT,
            text_len=5,
            text_len_t5=5,
            mlp_ratio=2.0,
            size_cond=True,
            use_style_cond=True,
        ),
        pooled=1024,
        extra=MT5,
    ),
    "Flux": Animal(flux(guidance_embed=True), pooled=CONTEXT),
    "FluxInpaint": Animal(flux(guidance_embed=True, in_channels=96), pooled=CONTEXT),
    "FluxSchnell": Animal(flux(), pooled=CONTEXT),
    "LongCatImage": Animal(flux(vec_in_dim=None, txt_ids_dims=[1, 2])),
    "Flux2": Animal(
        flux(
            image_model="flux2",
            in_channels=128,
            out_channels=128,
            vec_in_dim=None,
            patch_size=1,
            axes_dim=[6, 6, 6, 6],
            guidance_embed=True,
            txt_ids_dims=[3],
            global_modulation=True,
            mlp_silu_act=True,
            qkv_bias=False,
            ops_bias=False,
            default_ref_method="index",
        )
    ),
    "Chroma": Animal(chroma()),
    "ChromaRadiance": Animal(
        chroma()
        | {
            "image_model": "chroma_radiance",
            "in_channels": 3,
            "out_channels": 3,
            "patch_size": 16,
            "nerf_hidden_size": 8,
            "nerf_mlp_ratio": 2,
            "nerf_depth": 1,
            "nerf_max_freqs": 4,
            "nerf_tile_size": 0,
            "nerf_final_head_type": "conv",
            "nerf_embedder_dtype": torch.float32,
            "use_x0": False,
            "use_sequential_txt_ids": False,
        },
        px=128,
    ),
    "GenmoMochi": Animal(
        {
            "image_model": "mochi_preview",
            "depth": 2,
            "patch_size": 2,
            "num_heads": 2,
            "hidden_size_x": 48,
            "hidden_size_y": 48,
            "mlp_ratio_x": 256.0,
            "mlp_ratio_y": 2.0,
            "learn_sigma": False,
            "in_channels": 12,
            "qk_norm": True,
            "qkv_bias": False,
            "out_bias": True,
            "posenc_preserve_area": True,
            "timestep_scale": 1000.0,
            "use_t5": True,
            "t5_feat_dim": CONTEXT,
            "t5_token_length": 5,
        },
        extra={"attention_mask": torch.ones(1, 5, dtype=torch.int64)},
        **VIDEO,
    ),
    "LTXV": Animal(
        {
            "image_model": "ltxv",
            "cross_attention_dim": 48,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "caption_channels": CONTEXT,
            "num_layers": 1,
        },
        frames=17,
        extra={"attention_mask": torch.ones(1, 5)},
    ),
    "LTXAV": Animal(
        {
            "image_model": "ltxav",
            "cross_attention_dim": 48,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "audio_cross_attention_dim": 48,
            "audio_attention_head_dim": 24,
            "audio_num_attention_heads": 2,
            "caption_channels": CONTEXT,
            "num_layers": 1,
            "connector_attention_head_dim": 12,
            "connector_num_attention_heads": 2,
            "connector_num_layers": 1,
        },
        context=2 * CONTEXT,
        extra={"attention_mask": torch.ones(1, 5)},
        frames=17,
    ),
    "MiniMaxH3": audio_video(
        {
            "image_model": "minimax_h3",
            "hidden_size": 48,
            "num_layers": 1,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "ffn_hidden_size": 32,
            "text_dim": CONTEXT,
            "time_embed_hidden_size": 48,
            "time_embed_dim": 24,
        }
    ),
    "HunyuanVideo": Animal(hunyuan(vec_in_dim=CONTEXT, guidance_embed=True), pooled=CONTEXT, **VIDEO),
    "HunyuanVideoI2V": Animal(hunyuan(vec_in_dim=CONTEXT, in_channels=33), pooled=CONTEXT, **VIDEO),
    "HunyuanVideoSkyreelsI2V": Animal(hunyuan(vec_in_dim=CONTEXT, in_channels=32), pooled=CONTEXT, **VIDEO),
    "HunyuanVideo15": Animal(
        hunyuan(
            in_channels=65,
            out_channels=32,
            vision_in_dim=CONTEXT,
            meanflow_sum=True,
            use_cond_type_embedding=True,
            byt5=True,
            patch_size=[1, 1, 1],
        ),
        extra={"pooled_output": None},
        **VIDEO,
    ),
    "HunyuanVideo15_SR_Distilled": Animal(
        hunyuan(
            in_channels=98,
            out_channels=32,
            vision_in_dim=CONTEXT,
            meanflow_sum=True,
            use_cond_type_embedding=True,
            byt5=True,
            patch_size=[1, 1, 1],
        ),
        extra={"pooled_output": None},
        **VIDEO,
    ),
    "HunyuanImage21": Animal(
        hunyuan(in_channels=64, out_channels=64, patch_size=[1, 1], axes_dim=[12, 12], byt5=True), px=512
    ),
    "HunyuanImage21Refiner": Animal(
        hunyuan(in_channels=128, out_channels=64, patch_size=[1, 1, 1], byt5=True), **VIDEO
    ),
    "CosmosT2V": Animal(
        cosmos(image_model="cosmos", patch_spatial=2, rope_enable_fps_modulation=None),
        refused="ModelSamplingContinuousEDM",
        **VIDEO,
    ),
    "CosmosI2V": Animal(
        cosmos(image_model="cosmos", in_channels=17, rope_enable_fps_modulation=None),
        refused="ModelSamplingContinuousEDM",
        **VIDEO,
    ),
    "CosmosT2IPredict2": Animal(cosmos(), refused="COSMOS_RFLOW"),
    "CosmosI2VPredict2": Animal(cosmos(in_channels=17), refused="COSMOS_RFLOW", **VIDEO),
    "Anima": Animal(cosmos(image_model="anima")),
    "Lumina2": Animal(lumina()),
    "ZImage": Animal(lumina(**Z_IMAGE)),
    "ZImagePixelSpace": Animal(
        lumina(
            image_model="zimage_pixel",
            in_channels=3,
            patch_size=16,
            decoder_hidden_size=16,
            decoder_num_res_blocks=1,
            decoder_max_freqs=4,
            decoder_in_channels=768,
            **Z_IMAGE,
        ),
        px=128,
    ),
    "PixelDiTT2I": Animal(
        {
            "image_model": "pixeldit_t2i",
            "num_groups": 2,
            "hidden_size": 48,
            "pixel_hidden_size": 16,
            "pixel_attn_hidden_size": 32,
            "pixel_num_groups": 2,
            "patch_depth": 1,
            "pixel_depth": 1,
            "txt_embed_dim": CONTEXT,
            "txt_max_length": 8,
        },
        px=128,
    ),
    "WAN21_T2V": Animal(wan(), **VIDEO),
    "WAN21_CausalAR_T2V": Animal(wan(), **VIDEO),
    "WAN21_I2V": Animal(wan("i2v", in_dim=36), **VIDEO),
    "WAN21_FunControl2V": Animal(wan("i2v", in_dim=48), **VIDEO),
    "WAN21_Camera": Animal(wan("camera", in_dim=32), **VIDEO),
    "WAN22_Camera": Animal(wan("camera_2.2", in_dim=36), **VIDEO),
    "WAN21_Vace": Animal(wan("vace", vace_in_dim=96, vace_layers=1), **VIDEO),
    "WAN21_HuMo": Animal(wan("humo", in_dim=36), **VIDEO),
    "WAN22_S2V": Animal(wan("s2v", audio_dim=16, audio_inject_layers=[0]), **VIDEO),
    "WAN22_Animate": Animal(wan("animate", in_dim=36, motion_encoder_dim=16), **VIDEO),
    "WAN_Animate2": Animal(wan("animate2", in_dim=36), **VIDEO),
    "WAN22_T2V": Animal(wan(in_dim=48, out_dim=48), **VIDEO),
    "WAN21_FlowRVS": Animal(wan("flow_rvs"), refused="IMG_TO_IMG_FLOW", **VIDEO),
    "WAN21_SCAIL": Animal(wan("scail"), **VIDEO),
    "WAN21_SCAIL2": Animal(wan("scail2"), **VIDEO),
    "WAN22_WanDancer": Animal(
        wan(
            "wandancer",
            in_dim=36,
            audio_inject_layers=[0],
            music_dim=16,
            music_heads=2,
            music_feature_dim=35,
            music_latent_dim=16,
        ),
        **VIDEO,
    ),
    "HiDream": Animal(
        heads(
            image_model="hidream",
            axes_dims_rope=[8, 8, 8],
            caption_channels=[CONTEXT, CONTEXT],
            max_resolution=[128, 128],
            in_channels=16,
            out_channels=16,
            llama_layers=[0, 0],
            num_routed_experts=2,
            num_activated_experts=1,
            num_single_layers=1,
            patch_size=2,
            text_emb_dim=CONTEXT,
        ),
        pooled=CONTEXT,
        extra={"conditioning_llama3": torch.ones(1, 1, 5, CONTEXT)},
    ),
    "HiDreamO1": Animal(
        {
            "image_model": "hidream_o1",
            "text_config_overrides": {
                "hidden_size": 64,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
            },
            "vision_config_overrides": {"hidden_size": 32, "depth": 1, "intermediate_size": 32, "num_heads": 2},
        },
        extra={"text_input_ids": torch.ones(1, 5, dtype=torch.int64)},
    ),
    "ACEStep": Animal(
        {
            "audio_model": "ace",
            "num_layers": 1,
            "inner_dim": 48,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "text_embedding_dim": CONTEXT,
            "speaker_embedding_dim": 8,
            "lyric_encoder_vocab_size": 8,
            "lyric_hidden_size": 16,
            "ssl_latent_dims": [8, 8],
        },
        refused="without height and width",
    ),
    "SeedVR2": Animal(
        {
            "image_model": "seedvr2",
            "vid_dim": 48,
            "heads": 2,
            "head_dim": 24,
            "num_layers": 2,
            "mm_layers": 2,
            "norm_eps": 1e-5,
            "rope_type": "rope3d",
            "rope_dim": 12,
            "mlp_type": "normal",
            "txt_in_dim": CONTEXT,
        },
        extra={"condition": torch.ones(1, 17, 3, 16, 16)},
        **VIDEO,
    ),
    "Omnigen2": Animal(
        {
            "image_model": "omnigen2",
            "hidden_size": 48,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 2,
            "multiple_of": 16,
            "axes_dim_rope": (8, 8, 8),
            "text_feat_dim": CONTEXT,
        },
        extra={"attention_mask": torch.ones(1, 5, dtype=torch.int64)},
    ),
    "Boogu": Animal(
        {
            "image_model": "boogu",
            "hidden_size": 48,
            "num_layers": 1,
            "num_double_stream_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 2,
            "multiple_of": 16,
            "axes_dim_rope": (8, 8, 8),
            "instruction_feat_dim": CONTEXT,
        },
        extra={"attention_mask": torch.ones(1, 5, dtype=torch.int64)},
    ),
    "MageFlow": Animal(heads(image_model="mage_flow", joint_attention_dim=CONTEXT, axes_dims_rope=(8, 8, 8))),
    "QwenImage": Animal(
        heads(image_model="qwen_image", in_channels=64, joint_attention_dim=CONTEXT, axes_dims_rope=(8, 8, 8))
    ),
    "JoyImage": Animal(
        {
            "image_model": "joyimage",
            "hidden_size": 48,
            "num_attention_heads": 2,
            "text_dim": CONTEXT,
            "num_layers": 1,
            "rope_dim_list": [8, 8, 8],
            "theta": 10000,
        }
    ),
    "Ideogram4": Animal(
        heads(
            image_model="ideogram4",
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=CONTEXT,
            mrope_section=[4, 4, 4],
        )
    ),
    "Krea2": Animal(
        {
            "image_model": "krea2",
            "features": 48,
            "tdim": 16,
            "txtdim": CONTEXT,
            "heads": 2,
            "kvheads": 2,
            "layers": 1,
            "txtlayers": 1,
            "txtheads": 2,
            "txtkvheads": 2,
        }
    ),
    "Lens": Animal(
        heads(
            image_model="lens",
            enc_hidden_dim=CONTEXT,
            axes_dims_rope=(8, 8, 8),
            multi_layer_encoder_feature=False,
            selected_layer_index=(0,),
        )
    ),
    "Kandinsky5": Animal(
        {
            "image_model": "kandinsky5",
            "in_text_dim": CONTEXT,
            "in_text_dim2": CONTEXT,
            "time_dim": 16,
            "model_dim": 48,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 1,
            "axes_dims": (8, 8, 8),
        },
        pooled=CONTEXT,
        **VIDEO,
    ),
    "Kandinsky5Image": Animal(
        {
            "image_model": "kandinsky5",
            "in_text_dim": CONTEXT,
            "in_text_dim2": CONTEXT,
            "time_dim": 16,
            "model_dim": 48,
            "ff_dim": 32,
            "visual_embed_dim": 64,
            "num_text_blocks": 1,
            "num_visual_blocks": 1,
            "axes_dims": (8, 8, 8),
        },
        pooled=CONTEXT,
    ),
    "ErnieImage": Animal(
        {
            "image_model": "ernie",
            "hidden_size": 48,
            "num_attention_heads": 2,
            "num_layers": 1,
            "ffn_hidden_size": 32,
            "text_in_dim": CONTEXT,
            "rope_axes_dim": (8, 8, 8),
        }
    ),
    "CogVideoX_T2V": cogvideo(16),
    "CogVideoX_I2V": cogvideo(32),
    "CogVideoX_Inpaint": cogvideo(48),
}


@dataclass(frozen=True)
class Row:
    """What became of one class: its line of the table."""

    name: str
    noise: str = ""
    shift: str = ""
    latents: str = ""
    sizes: str = ""
    result: str = ""


def tiny_model(name):
    """The TinyModel of a class of comfy.supported_models."""
    from comfy_models import TinyModel, _patcher

    animal = ZOO[name]
    patcher = _patcher(name, dict(animal.config), dict(animal.state))
    channels = patcher.get_model_object("latent_format").latent_channels
    return TinyModel(patcher, channels, animal.context, animal.pooled, video=bool(animal.frames))


def empty_latent(name):
    """The empty LATENT that core's node for images or for videos gives."""
    animal = ZOO[name]
    if animal.frames:
        from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo

        return EmptyHunyuanLatentVideo.execute(animal.px, animal.px, animal.frames).args[0]
    import nodes as comfy_nodes

    return comfy_nodes.EmptyLatentImage().generate(animal.px, animal.px)[0]


def meet(name, nodes):
    """Plan and sample one class through the nodes, with every assertion; gives its Row.

    A 2+2 plan: the sizes and sigmas that the network gets are the plan's, the result has the shape of core's. A plan of
    one size with euler: bit for bit core's SamplerCustomAdvanced. One that is refused: the message.
    """
    from cascade_rig import Recorder

    animal, model = ZOO[name], tiny_model(name)
    bridge, errors = nodes.pack.nodes.bridge, nodes.pack.rmd_core.errors
    try:
        view = bridge.model.ModelView.of(model.patcher)
        empty = bridge.latents.final_latent(model.patcher, empty_latent(name))
    except errors.RMDError as error:
        assert animal.refused and animal.refused in str(error), error
        return Row(name, result=f"refused: {error}")
    assert not animal.refused, f"{name} was to be refused"
    size = tuple(empty["samples"].shape[-2:])
    positive = model.conditioning(1, tokens=animal.tokens, **animal.extra)
    plan, whole = (
        bridge.plans.sampling_plan(view, size, {"source": "steps per size", "split": split, "scale": 0.5})
        for split in ("2+2", "2")
    )
    recorder = Recorder()
    out = nodes.sample(model, plan, patcher=recorder.watch(model.patcher), positive=positive, latent=empty)["samples"]
    assert torch.isfinite(out).all()
    steps = plan.stage_plan.steps
    assert recorder.sizes == [step.size for step in steps]
    for step, call in zip(steps, recorder.calls, strict=True):
        level = plan.stage_plan.curve.comfy_sigma(step.sigma)
        assert abs(call.sigma - level) <= 1e-6 * level
    assert out.shape == _at_one_size(nodes, model, whole, positive, empty).shape
    return _row(name, view, plan, empty["samples"])


def _at_one_size(nodes, model, plan, positive, empty):
    """What core and the nodes give alike."""
    import comfy.samplers

    sampler = comfy.samplers.sampler_object("euler")
    guider = nodes.guider(model, positive=positive)
    ours = nodes.advanced(model, plan, sampler=sampler, guider=guider, latent=empty)[0]["samples"]
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    sigmas = nodes("RMD_StageSigmas", plan=plan, stage=1)[0]
    core = nodes.by_core(noise, guider, sampler, sigmas, empty)[0]["samples"]
    assert torch.equal(ours, core)
    return core


def _row(name, view, plan, samples):
    curve = plan.stage_plan.curve
    flow = curve.kind == "flow"
    stages = plan.stage_plan.stages
    return Row(
        name,
        noise=view.kind.table,
        shift=" to ".join(f"{curve.shift * stage.ratio:.3g}" for stage in stages) if flow else "",
        latents=f"{view.kind.latents}, {'x'.join(map(str, samples.shape[1:]))}, {view.cell_px} px a cell",
        sizes=" to ".join(f"{stage.height}x{stage.width}" for stage in stages),
        result="2+2 runs; one size is core's, bit for bit",
    )


def load_nodes():
    """The nodes of this checkout in a ComfyUI of this process, with its folders in a temporary one."""
    import tempfile

    sys.path.insert(0, str(find_comfyui()))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.base_directory = tempfile.mkdtemp()
    import cascade_rig
    import comfy_pack

    pack = comfy_pack.import_pack()
    return cascade_rig.Nodes(pack, comfy_pack.node_classes(pack))


def table(rows):
    """The rows in Markdown."""
    head = "| class | noise | shift, small to final | latents | cells of the two sizes | result |\n" + "|---" * 6 + "|"
    cells = ([f"`{row.name}`", row.noise, row.shift, row.latents, row.sizes, row.result] for row in rows)
    return "\n".join([head, *(f"| {' | '.join(line)} |" for line in cells)])


def main():
    if find_comfyui() is None:
        raise SystemExit("no ComfyUI found (COMFYUI_PATH, ~/comfy/ComfyUI): the models are core's")
    nodes, rows, names = load_nodes(), [], sys.argv[1:] or list(ZOO)
    for name in names:
        started = time.perf_counter()
        try:
            rows.append(meet(name, nodes))
        except Exception as error:
            if not sys.argv[1:]:
                print(f"{name}: {type(error).__name__} {error}"[:500], flush=True)
                continue
            raise
        print(f"{name}: {rows[-1].result} ({time.perf_counter() - started:.2f} s)", flush=True)
    if not sys.argv[1:]:
        import comfy.supported_models

        others = sorted(kind.__name__ for kind in comfy.supported_models.models if kind.__name__ not in ZOO)
        print(f"not in the zoo, for audio, 3D, detection or not written yet: {', '.join(others)}")
    if not sys.argv[1:] and len(rows) == len(ZOO):
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

"""Every class of ComfyUI's supported models that makes images or videos, as a tiny random network in a 2+2 plan.

Run as a program (python tests/zoo.py) it writes the tables of docs/use/models.md. `meet` tries one class.
"""

import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from comfy_models import CONTEXT, TinyModel, ltxv, net, patcher_of, pixart, qwen, sd3, unet, wan
from comfyui_checkout import find_comfyui

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "use" / "models.md"
BEGIN, END = "<!-- table begins: made by tests/zoo.py -->", "<!-- table ends -->"
SEED = 5


@dataclass(frozen=True)
class Animal:
    """How to make a tiny model of a class, a prompt for it, and an empty latent as core's node makes it.

    px is the side of the result. frames is the number of a video's frames, 0 for an image, and sound the shape of one
    that the latent node does not make itself. extra gives more entries of
    the prompt. refused is a part of the message where RMD does not take the model, unusable where core fails at so
    small a network.
    """

    config: dict
    context: int = CONTEXT
    pooled: int = 0
    tokens: int = 5
    px: int = 128
    frames: int = 0
    sound: tuple = ()
    extra: dict = field(default_factory=dict)
    state: dict = field(default_factory=dict)
    refused: str = ""


def flux(kind="flux", names="", **own):
    names += " context_in_dim hidden_size num_heads depth depth_single_blocks"
    config = {"in_channels": 16, "out_channels": 16, "vec_in_dim": CONTEXT, "mlp_ratio": 2.0, "axes_dim": [8, 8, 8]}
    config |= {"theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": False, "txt_ids_dims": []}
    return net(kind, names, **config | own)


def chroma(kind="chroma", channels=64, **own):
    config = flux(kind, "n_layers", in_dim=64, out_dim=48, hidden_dim=32, vec_in_dim=None)
    del config["guidance_embed"]
    return config | {"in_channels": channels, "out_channels": channels} | own


NERF = {"nerf_hidden_size": 8, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 0}
NERF |= {"nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32}
NERF |= {"use_x0": False, "use_sequential_txt_ids": False}


def hunyuan(channels=16, out=16, patch=(1, 2, 2), **own):
    config = flux("hunyuan_video", in_channels=channels, out_channels=out, patch_size=list(patch), theta=256)
    config |= {"byt5": False, "meanflow": False, "use_cond_type_embedding": False}
    config |= {"vec_in_dim": None, "vision_in_dim": None, "meanflow_sum": False}
    del config["txt_ids_dims"]
    return config | own


def hunyuan15(channels):
    known = {"vision_in_dim": CONTEXT, "meanflow_sum": True, "use_cond_type_embedding": True, "byt5": True}
    return Animal(hunyuan(channels, 32, (1, 1, 1), **known), extra={"pooled_output": None}, **VIDEO)


def lumina(kind="lumina2", **own):
    config = {"patch_size": 2, "in_channels": 16, "qk_norm": True, "ffn_dim_multiplier": 1.0}
    config |= {"axes_dims": [8, 8, 8], "axes_lens": [300, 512, 512]}
    return net(kind, "dim cap_feat_dim n_layers n_refiner_layers n_heads n_kv_heads multiple_of", **config | own)


Z_IMAGE = {"dim": 256, "axes_dims": [32, 48, 48], "z_image_modulation": True, "time_scale": 1000.0}
Z_PIXELS = {"decoder_hidden_size": 16, "decoder_num_res_blocks": 1, "decoder_max_freqs": 4, "decoder_in_channels": 768}


def cosmos(kind, channels=16, **own):
    config = {"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "concat_padding_mask": True}
    config |= {"in_channels": channels, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1}
    config |= {"pos_emb_cls": "rope3d", "pos_emb_learnable": True, "use_adaln_lora": True, "adaln_lora_dim": 8}
    return net(kind, "model_channels num_blocks num_heads crossattn_emb_channels", **config | own)


def predict2(kind="cosmos_predict2", channels=16):
    return cosmos(kind, channels, rope_enable_fps_modulation=False)


def cascade(stage, hidden, heads, blocks, **own):
    config = {"stable_cascade_stage": stage, "c_hidden": hidden, "nhead": heads, "blocks": [blocks, blocks]}
    return Animal(config | {"c_cond": 64} | own, refused="StableCascadeSampling")


def hydit(kind, **own):
    names = "num_attention_heads attention_head_dim num_layers num_heads text_states_dim text_states_dim_t5"
    config = net(kind, names, hidden_size=64, depth=2, text_len=5, text_len_t5=5, mlp_ratio=2.0, **own)
    mt5 = {name: torch.ones(1, 5) for name in ("attention_mask", "attention_mask_mt5xl")}
    return Animal(config, pooled=1024, extra=mt5 | {"conditioning_mt5xl": torch.ones(1, 5, CONTEXT)})


def omnigen(kind, names):
    names += " hidden_size num_layers num_refiner_layers num_attention_heads num_kv_heads multiple_of axes_dim_rope"
    return Animal(net(kind, names), extra={"attention_mask": torch.ones(1, 5, dtype=torch.int64)})


def kandinsky(**own):
    names = "in_text_dim in_text_dim2 model_dim ff_dim num_text_blocks num_visual_blocks"
    return net("kandinsky5", names, time_dim=16, axes_dims=(8, 8, 8), **own)


def cogvideo(channels):
    return Animal(net("cogvideox", f"{HEADS} text_embed_dim", in_channels=channels), **VIDEO)


HEADS = "num_attention_heads attention_head_dim num_layers"
SDXL = {"config": unet(adm=2816), "pooled": 1280}
EDM = {"refused": "ModelSamplingContinuousEDM"}
VIDEO = {"frames": 9, "px": 128}
X4_SIZES = {"num_res_blocks": [1] * 4, "channel_mult": [1] * 4}
X4_SIZES |= {"transformer_depth": [0, 0, 0, 1], "transformer_depth_output": [0] * 6 + [1, 1]}
PROJECTION = {"cc_projection.weight": torch.zeros(768, 772), "cc_projection.bias": torch.zeros(768)}
FLUX2 = {"in_channels": 128, "out_channels": 128, "vec_in_dim": None, "patch_size": 1, "axes_dim": [6, 6, 6, 6]}
FLUX2 |= {"guidance_embed": True, "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True}
FLUX2 |= {"qkv_bias": False, "ops_bias": False, "default_ref_method": "index"}
MOCHI = {"depth": 2, "patch_size": 2, "mlp_ratio_x": 256.0, "mlp_ratio_y": 2.0, "in_channels": 12, "qk_norm": True}
MOCHI |= {"learn_sigma": False, "qkv_bias": False, "out_bias": True, "posenc_preserve_area": True}
MOCHI |= {"timestep_scale": 1000.0, "use_t5": True, "t5_token_length": 5}
LTXAV = (
    "cross_attention_dim audio_cross_attention_dim audio_attention_head_dim audio_num_attention_heads "
    "caption_channels connector_num_attention_heads connector_num_layers"
)
MINIMAX = "hidden_size token_refiner_num_layers ffn_hidden_size text_dim time_embed_hidden_size time_embed_dim"
DANCER = {"music_dim": 16, "music_heads": 2, "music_feature_dim": 35, "music_latent_dim": 16}
HIDREAM = {"axes_dims_rope": [8, 8, 8], "caption_channels": [CONTEXT, CONTEXT], "max_resolution": [128, 128]}
HIDREAM |= {"in_channels": 16, "out_channels": 16, "llama_layers": [0, 0], "num_routed_experts": 2, "patch_size": 2}
O1_TEXT = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1}
O1_TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 2}
O1_EYES = {"hidden_size": 32, "depth": 1, "intermediate_size": 32, "num_heads": 2}
ACE = {"audio_model": "ace", "num_layers": 1, "inner_dim": 48, "attention_head_dim": 24, "num_attention_heads": 2}
ACE |= {"text_embedding_dim": CONTEXT, "speaker_embedding_dim": 8, "lyric_encoder_vocab_size": 8}
ACE |= {"lyric_hidden_size": 16, "ssl_latent_dims": [8, 8]}
SEEDVR = {"num_layers": 2, "mm_layers": 2, "norm_eps": 1e-5, "rope_type": "rope3d", "rope_dim": 12}
SEEDVR |= {"mlp_type": "normal"}
PIXELDIT = {"pixel_hidden_size": 16, "pixel_attn_hidden_size": 32, "txt_max_length": 8}
AURA = {"n_layers": 2, "n_double_layers": 1, "max_seq": 1024}
LENS = {"multi_layer_encoder_feature": False, "selected_layer_index": (0,)}

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
    "SVD_img2vid": Animal(unet(8, adm=768), **EDM),
    "SV3D_u": Animal(unet(8, adm=256), **EDM),
    "SV3D_p": Animal(unet(8, adm=1280), **EDM),
    "Stable_Zero123": Animal(unet(8, context=768), context=768, state=PROJECTION),
    "SD_X4Upscaler": Animal(unet(7, num_classes=1000, **X4_SIZES), px=256),
    "Stable_Cascade_C": cascade(
        "c", [64, 64], [2, 2], [1, 1], **dict.fromkeys(("c_clip_text", "c_clip_text_pooled", "c_clip_img"), CONTEXT)
    ),
    "Stable_Cascade_B": cascade("b", [32, 32, 64, 64], [-1, -1, 2, 2], [1, 1, 1, 1], c_clip=CONTEXT),
    "SD3": Animal(sd3(32, pooled=CONTEXT), pooled=CONTEXT),
    "AuraFlow": Animal(net("", "cond_seq_dim dim n_heads global_conddim", **AURA)),
    "PixArtAlpha": Animal(pixart("pixart_alpha"), px=576),
    "PixArtSigma": Animal(pixart("pixart_sigma"), px=576),
    "HunyuanDiT": hydit("hydit"),
    "HunyuanDiT1": hydit("hydit1", size_cond=True, use_style_cond=True),
    "Flux": Animal(flux(guidance_embed=True), pooled=CONTEXT),
    "FluxInpaint": Animal(flux(guidance_embed=True, in_channels=96), pooled=CONTEXT),
    "FluxSchnell": Animal(flux(), pooled=CONTEXT),
    "LongCatImage": Animal(flux(vec_in_dim=None, txt_ids_dims=[1, 2])),
    "Flux2": Animal(flux("flux2", **FLUX2)),
    "Chroma": Animal(chroma()),
    "ChromaRadiance": Animal(chroma("chroma_radiance", 3, patch_size=16, **NERF)),
    "GenmoMochi": Animal(
        net("mochi_preview", "num_heads hidden_size_x hidden_size_y t5_feat_dim", **MOCHI),
        extra={"attention_mask": torch.ones(1, 5, dtype=torch.int64)},
        **VIDEO,
    ),
    "LTXV": Animal(ltxv(), frames=17, extra={"attention_mask": torch.ones(1, 5)}),
    "LTXAV": Animal(
        net("ltxav", f"{HEADS} {LTXAV}", connector_attention_head_dim=12),
        context=2 * CONTEXT,
        extra={"attention_mask": torch.ones(1, 5)},
        frames=17,
        sound=(8, 6, 16),
    ),
    "MiniMaxH3": Animal(net("minimax_h3", f"{HEADS} {MINIMAX}", rope_inv_freq_len=4), frames=5),
    "HunyuanVideo": Animal(hunyuan(vec_in_dim=CONTEXT, guidance_embed=True), pooled=CONTEXT, **VIDEO),
    "HunyuanVideoI2V": Animal(hunyuan(33, vec_in_dim=CONTEXT), pooled=CONTEXT, **VIDEO),
    "HunyuanVideoSkyreelsI2V": Animal(hunyuan(32, vec_in_dim=CONTEXT), pooled=CONTEXT, **VIDEO),
    "HunyuanVideo15": hunyuan15(65),
    "HunyuanVideo15_SR_Distilled": hunyuan15(98),
    "HunyuanImage21": Animal(hunyuan(64, 64, (1, 1), axes_dim=[12, 12], byt5=True), px=512),
    "HunyuanImage21Refiner": Animal(hunyuan(128, 64, (1, 1, 1), byt5=True), **VIDEO),
    "CosmosT2V": Animal(cosmos("cosmos"), **EDM, **VIDEO),
    "CosmosI2V": Animal(cosmos("cosmos", 17), **EDM, **VIDEO),
    "CosmosT2IPredict2": Animal(predict2()),
    "CosmosI2VPredict2": Animal(predict2(channels=17), **VIDEO),
    "Anima": Animal(predict2("anima")),
    "Lumina2": Animal(lumina()),
    "ZImage": Animal(lumina(**Z_IMAGE)),
    "ZImagePixelSpace": Animal(lumina("zimage_pixel", **Z_IMAGE | Z_PIXELS | {"in_channels": 3, "patch_size": 16})),
    "PixelDiTT2I": Animal(
        net("pixeldit_t2i", "num_groups hidden_size pixel_num_groups patch_depth pixel_depth txt_embed_dim", **PIXELDIT)
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
    "WAN22_WanDancer": Animal(wan("wandancer", in_dim=36, audio_inject_layers=[0], **DANCER), **VIDEO),
    "HiDream": Animal(
        net("hidream", f"{HEADS} num_single_layers num_activated_experts text_emb_dim", **HIDREAM),
        pooled=CONTEXT,
        extra={"conditioning_llama3": torch.ones(1, 1, 5, CONTEXT)},
    ),
    "HiDreamO1": Animal(
        net("hidream_o1", text_config_overrides=O1_TEXT, vision_config_overrides=O1_EYES),
        extra={"text_input_ids": torch.ones(1, 5, dtype=torch.int64)},
    ),
    "ACEStep": Animal(ACE, refused="without height and width"),
    "SeedVR2": Animal(
        net("seedvr2", "vid_dim heads head_dim txt_in_dim", **SEEDVR),
        extra={"condition": torch.ones(1, 17, 3, 16, 16)},
        **VIDEO,
    ),
    "Omnigen2": omnigen("omnigen2", "text_feat_dim"),
    "Boogu": omnigen("boogu", "num_double_stream_layers instruction_feat_dim"),
    "MageFlow": Animal(net("mage_flow", f"{HEADS} joint_attention_dim axes_dims_rope")),
    "QwenImage": Animal(qwen()),
    "JoyImage": Animal(
        net("joyimage", "hidden_size num_attention_heads num_layers text_dim", rope_dim_list=[8, 8, 8], theta=10000)
    ),
    "Ideogram4": Animal(
        net("ideogram4", f"{HEADS} intermediate_size llm_features_dim", adaln_dim=16, mrope_section=[4, 4, 4])
    ),
    "Krea2": Animal(net("krea2", "features txtdim heads kvheads layers txtlayers txtheads txtkvheads", tdim=16)),
    "Lens": Animal(net("lens", f"{HEADS} enc_hidden_dim axes_dims_rope", **LENS)),
    "Kandinsky5": Animal(kandinsky(), pooled=CONTEXT, **VIDEO),
    "Kandinsky5Image": Animal(kandinsky(visual_embed_dim=64), pooled=CONTEXT),
    "ErnieImage": Animal(
        net("ernie", "hidden_size num_attention_heads num_layers ffn_hidden_size text_in_dim rope_axes_dim")
    ),
    "CogVideoX_T2V": cogvideo(16),
    "CogVideoX_I2V": cogvideo(32),
    "CogVideoX_Inpaint": cogvideo(48),
}


@dataclass(frozen=True)
class Row:
    """What became of one class: its noise and the flow shift at both sizes, or why RMD does not take it."""

    name: str
    noise: str = ""
    shift: str = ""
    refused: str = ""


def tiny_model(name):
    """The TinyModel of a class of comfy.supported_models."""
    animal = ZOO[name]
    patcher = patcher_of(name, dict(animal.config), dict(animal.state))
    channels = patcher.get_model_object("latent_format").latent_channels
    return TinyModel(patcher, channels, animal.context, animal.pooled, video=bool(animal.frames))


def empty_latent(name):
    """The empty LATENT that core's node for images or for videos gives."""
    animal = ZOO[name]
    if animal.sound:
        from comfy_extras.nodes_lt import EmptyLTXVLatentVideo, LTXVConcatAVLatent

        (video,) = EmptyLTXVLatentVideo.execute(animal.px, animal.px, animal.frames).args
        return LTXVConcatAVLatent.execute(video, {"samples": torch.zeros(1, *animal.sound)}).args[0]
    if animal.frames:
        from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo

        return EmptyHunyuanLatentVideo.execute(animal.px, animal.px, animal.frames).args[0]
    import nodes as comfy_nodes

    return comfy_nodes.EmptyLatentImage().generate(animal.px, animal.px)[0]


def streams(samples):
    """The tensors in LATENT samples."""
    return samples.unbind() if samples.is_nested else [samples]


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
        return Row(name, refused=str(error))
    assert not animal.refused, f"{name} was to be refused"
    size = tuple(empty["samples"].shape[-2:])
    positive = model.conditioning(1, tokens=animal.tokens, **animal.extra)
    plan, whole = (
        bridge.plans.sampling_plan(view, size, {"source": "steps per size", "split": split, "scale": 0.5})
        for split in ("2+2", "2")
    )
    recorder = Recorder()
    out = nodes.sample(model, plan, patcher=recorder.watch(model.patcher), positive=positive, latent=empty)["samples"]
    assert all(torch.isfinite(one).all() for one in streams(out))
    steps = plan.stage_plan.steps
    assert recorder.sizes == [step.size for step in steps]
    for step, call in zip(steps, recorder.calls, strict=True):
        level = plan.stage_plan.curve.comfy_sigma(step.sigma)
        assert abs(call.sigma - level) <= 1e-6 * level
    core = _at_one_size(nodes, model, whole, positive, empty)
    assert [one.shape for one in streams(out)] == [one.shape for one in streams(core)]
    return _row(name, view, plan)


def _at_one_size(nodes, model, plan, positive, empty):
    """What core and the nodes give alike."""
    import comfy.samplers

    sampler = comfy.samplers.sampler_object("euler")
    guider = nodes.guider(model, positive=positive)
    ours = nodes.advanced(model, plan, sampler=sampler, guider=guider, latent=empty)[0]["samples"]
    (noise,) = nodes("RMD_Noise", noise_seed=SEED)
    sigmas = nodes("RMD_StageSigmas", plan=plan, stage=1)[0]
    core = nodes.by_core(noise, guider, sampler, sigmas, empty)[0]["samples"]
    assert all(torch.equal(*both) for both in zip(streams(ours), streams(core), strict=True))
    return core


def _row(name, view, plan):
    curve, stages = plan.stage_plan.curve, plan.stage_plan.stages
    shift = " to ".join(f"{curve.shift * stage.ratio:.3g}" for stage in stages) if curve.kind == "flow" else "-"
    return Row(name, noise=view.kind.table, shift=shift)


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
    """Two tables in Markdown: classes that ran, by noise and shift, and those that are refused, by the reason."""
    ran, refused = {}, {}
    for row in rows:
        if row.refused:
            reason = re.split(", for which|;", row.refused)[0].split(" is ", 1)[-1]
            refused.setdefault(reason, []).append(f"`{row.name}`")
        else:
            ran.setdefault((row.noise, row.shift), []).append(f"`{row.name}`")
    lines = ["| noise | shift, first to final size | classes |", "|---" * 3 + "|"]
    lines += [f"| {' | '.join(about)} | {', '.join(names)} |" for about, names in sorted(ran.items(), key=_by_noise)]
    lines += [
        "",
        f"These {sum(map(len, refused.values()))} are refused:",
        "",
        "| noise or latents | classes |",
        "|---|---|",
    ]
    lines += [f"| {reason} | {', '.join(names)} |" for reason, names in refused.items()]
    return "\n".join([f"These {sum(map(len, ran.values()))} run:", "", *lines])


def _by_noise(item):
    (noise, shift), _ = item
    return noise, float(shift.split(" ")[0]) if shift != "-" else 0.0


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
        print(f"{name}: {rows[-1].refused or 'runs'} ({time.perf_counter() - started:.2f} s)", flush=True)
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

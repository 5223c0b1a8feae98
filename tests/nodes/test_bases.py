"""The table of base models: names as users have them, and structures as ComfyUI detects them in files of true size."""

import pytest
import torch

WAN_SIZES = {
    "Wan2.1 1.3B text-to-video": {"dim": 1536, "ffn_dim": 8960, "num_layers": 30, "in_dim": 16},
    "Wan2.1 14B text-to-video": {"dim": 5120, "ffn_dim": 13824, "num_layers": 40, "in_dim": 16},
    "Wan2.1 14B image-to-video": {"dim": 5120, "ffn_dim": 13824, "num_layers": 40, "in_dim": 36, "model_type": "i2v"},
}
SD3_SIZES = {
    "Stable Diffusion 3.5 Large": {"depth": 38, "qk_norm": "rms"},
    "Stable Diffusion 3.5 Medium": {"depth": 24, "qk_norm": "rms", "x_block_self_attn_layers": list(range(13))},
    "Stable Diffusion 3 Medium": {"depth": 24},
}
PIXART_SIZES = {"PixArt-alpha XL 1024": True, "PixArt-Sigma XL 1024": False}


@pytest.fixture
def bases(pack):
    return pack.nodes.bridge.student


def detected_structure(comfy, bases, network):
    """The Structure of what ComfyUI makes of a network's tensor names and shapes; the weights are never there."""
    import comfy.model_detection
    import comfy.model_patcher

    config, meta = comfy.model_detection.model_config_from_unet(network.state_dict(), ""), torch.device("meta")
    model = config.get_model({}, device=meta)
    return bases.structure_of(comfy.model_patcher.ModelPatcher(model, load_device=meta, offload_device=meta))


def entry(bases, title):
    (found,) = [base for base in bases.BASES if base.title == title]
    return found


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B", "Wan2.1 1.3B text-to-video"),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan2.1 1.3B text-to-video"),
        ("wan2.1_t2v_1.3B_fp16.safetensors", "Wan2.1 1.3B text-to-video"),
        ("Wan2_1-T2V-1_3B_bf16.safetensors", "Wan2.1 1.3B text-to-video"),
        ("Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan2.1 14B text-to-video"),
        ("sub/wan2.1_t2v_14B_fp8_scaled.safetensors", "Wan2.1 14B text-to-video"),
        ("wan2.1_i2v_720p_14B_fp16.safetensors", "Wan2.1 14B image-to-video"),
        ("wan2.2_t2v_low_noise_14B_fp8_scaled", "Wan2.2 A14B text-to-video"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "SDXL base 1.0"),
        ("sd_xl_base_1.0_0.9vae.safetensors", "SDXL base 1.0"),
        ("sd_xl_turbo_1.0_fp16.safetensors", "SDXL Turbo"),
        ("stabilityai/stable-diffusion-3-medium", "Stable Diffusion 3 Medium"),
        ("sd3_medium_incl_clips.safetensors", "Stable Diffusion 3 Medium"),
        ("stabilityai/stable-diffusion-3.5-medium", "Stable Diffusion 3.5 Medium"),
        ("sd3.5_large_fp8_scaled.safetensors", "Stable Diffusion 3.5 Large"),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "Stable Diffusion 3.5 Large Turbo"),
        ("PixArt-alpha/PixArt-XL-2-1024-MS", "PixArt-alpha XL 1024"),
        ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "PixArt-Sigma XL 1024"),
        ("C:\\models\\rmd_tiny_wan_teacher.safetensors", "the demo's rmd_tiny_wan_teacher"),
    ],
)
def test_names_of_known_bases(bases, name, title):
    assert bases.known_base(name).title == title


@pytest.mark.parametrize("name", ["me/My-Model-Diffusers", "my_model.safetensors", "a\\b\\My.Model.gguf", " mymodel "])
def test_ways_to_write_one_name(bases, name):
    assert bases.plain_name(name) == "mymodel"


@pytest.mark.parametrize("name", ["", "rmd_tiny_wan_student", "my_wan_1.3B", "juggernautXL_v9", "flux1-dev", "wan2.1"])
def test_names_of_no_known_base(bases, name):
    assert bases.known_base(name) is None


@pytest.mark.parametrize(
    ("architecture", "network"),
    [
        ("wan2.1", "WAN21"),
        ("wan2.1/lora", "WAN21"),
        ("stable-diffusion-xl-v1-base", "SDXL"),
        ("stable-diffusion-v3-medium", "SD3"),
        ("stable-diffusion-3.5-large", "SD3"),
        ("PixArt-Sigma", "PixArt"),
    ],
)
def test_families_are_classes_of_comfyui(comfy, bases, architecture, network):
    import comfy.model_base

    family = bases.family_of(architecture)
    assert family.network == network and hasattr(comfy.model_base, network)
    assert bases.family_of("stable-diffusion-v1") is None


@pytest.mark.parametrize("title", WAN_SIZES)
def test_structure_of_wan(comfy, bases, title):
    from comfy.ldm.wan.model import WanModel

    sizes = {"model_type": "t2v"} | WAN_SIZES[title]
    network = WanModel(**sizes, num_heads=sizes["dim"] // 128, **on_meta(comfy))
    assert detected_structure(comfy, bases, network) == entry(bases, title).structure


@pytest.mark.parametrize("title", SD3_SIZES)
def test_structure_of_sd3(comfy, bases, title):
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    sizes = SD3_SIZES[title]
    context = {"in_features": 4096, "out_features": 64 * sizes["depth"]}
    network = MMDiT(
        **sizes,
        input_size=None,
        in_channels=16,
        adm_in_channels=2048,
        num_patches=36864,
        pos_embed_max_size=192,
        context_embedder_config={"target": "torch.nn.Linear", "params": context},
        **on_meta(comfy),
    )
    assert detected_structure(comfy, bases, network) == entry(bases, title).structure


@pytest.mark.parametrize("title", PIXART_SIZES)
def test_structure_of_pixart(comfy, bases, title):
    from comfy.ldm.pixart.pixartms import PixArtMS

    network = PixArtMS(
        hidden_size=1152, depth=28, num_heads=16, input_size=128, micro_condition=PIXART_SIZES[title], **on_meta(comfy)
    )
    assert detected_structure(comfy, bases, network) == entry(bases, title).structure


def test_structure_of_sdxl(comfy, bases):
    import comfy.supported_models

    config = comfy.supported_models.SDXL.unet_config
    read = f"SDXL of width {config['model_channels']}, depth {sum(config['transformer_depth'])}"
    assert entry(bases, "SDXL base 1.0").structure == read


def on_meta(comfy):
    import comfy.ops

    return {"device": torch.device("meta"), "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}

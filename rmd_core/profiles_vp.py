"""Profiles of few-step models with a beta table: SDXL and PixArt."""

from __future__ import annotations

from .few_step import EXACT_AT_SWITCH, FRESH_AT_SWITCH, FewStepProfile
from .logsnr import VPCurve

_SDXL = VPCurve.scaled_linear(0.00085, 0.012)
_PIXART = VPCurve.linear(1e-4, 0.02)

_FOUR = _SDXL.grid_at((999, 749, 499, 249))
_EIGHT = _SDXL.grid_at((999, 874, 749, 624, 499, 374, 249, 124))

_DMD2 = (
    "https://github.com/tianweiy/DMD2/blob/8d8fa55633/README.md - SDXL, 4 steps: LCM scheduler at timesteps 999, 749, "
    "499, 249, guidance_scale 0 (no guidance, ComfyUI's CFG 1); the LoRA at scale 1.0",
)
_LIGHTNING = (
    "https://huggingface.co/ByteDance/SDXL-Lightning - Euler with trailing timesteps, guidance_scale 0 (no guidance, "
    "ComfyUI's CFG 1), LoRA fused at its default scale 1; in ComfyUI the Euler sampler with the sgm_uniform scheduler",
)
_HYPER = (
    "https://huggingface.co/ByteDance/Hyper-SD - N-step LoRA fused at its default scale 1, DDIM with trailing "
    "timesteps, guidance_scale 0 (no guidance, ComfyUI's CFG 1)",
)
_TRAILING = (
    "https://github.com/huggingface/diffusers/blob/main/src/diffusers/schedulers/scheduling_euler_discrete.py - "
    "trailing is round(1000 k / K) - 1: 999, 749, 499, 249 for 4 steps",
)
_SGM_UNIFORM = (
    "ComfyUI's sgm_uniform gives 999, 749.25, 499.5, 249.75 for 4 steps and likewise for 8; these are the publisher's",
)
_ANY_SDXL = ("the LoRA goes on an SDXL base such as sd_xl_base_1.0.safetensors",)

VP_PROFILES = (
    FewStepProfile(
        key="sdxl-dmd2-lora",
        title="SDXL DMD2, 4 steps (LoRA)",
        family="SDXL",
        folder="loras",
        files=("dmd2_sdxl_4step_lora_fp16.safetensors",),
        lora_strength=1.0,
        curve=_SDXL,
        sigmas=_FOUR,
        split=(2, 2),
        eta=0.0,
        boundary=FRESH_AT_SWITCH,
        sources=_DMD2,
        notes=(*_ANY_SDXL, "its authors may want the LoRA weaker on community models, without saying how much"),
    ),
    FewStepProfile(
        key="sdxl-dmd2-unet",
        title="SDXL DMD2, 4 steps (diffusion model)",
        family="SDXL",
        folder="diffusion_models",
        files=("dmd2_sdxl_4step_unet_fp16.bin",),
        curve=_SDXL,
        sigmas=_FOUR,
        split=(2, 2),
        eta=0.0,
        boundary=FRESH_AT_SWITCH,
        sources=_DMD2,
        notes=("the UNet alone: text encoders and VAE come from an SDXL checkpoint",),
    ),
    FewStepProfile(
        key="sdxl-lightning-4-checkpoint",
        title="SDXL-Lightning, 4 steps (checkpoint)",
        family="SDXL",
        folder="checkpoints",
        files=("sdxl_lightning_4step.safetensors",),
        curve=_SDXL,
        sigmas=_FOUR,
        split=(2, 2),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=_LIGHTNING + _TRAILING,
        notes=_SGM_UNIFORM,
    ),
    FewStepProfile(
        key="sdxl-lightning-4-lora",
        title="SDXL-Lightning, 4 steps (LoRA)",
        family="SDXL",
        folder="loras",
        files=("sdxl_lightning_4step_lora.safetensors",),
        lora_strength=1.0,
        curve=_SDXL,
        sigmas=_FOUR,
        split=(2, 2),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=_LIGHTNING + _TRAILING,
        notes=_ANY_SDXL + _SGM_UNIFORM,
    ),
    FewStepProfile(
        key="sdxl-lightning-8-lora",
        title="SDXL-Lightning, 8 steps (LoRA)",
        family="SDXL",
        folder="loras",
        files=("sdxl_lightning_8step_lora.safetensors",),
        lora_strength=1.0,
        curve=_SDXL,
        sigmas=_EIGHT,
        split=(3, 5),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=_LIGHTNING + _TRAILING,
        notes=_ANY_SDXL + _SGM_UNIFORM,
    ),
    FewStepProfile(
        key="sdxl-hyper-4-lora",
        title="Hyper-SDXL, 4 steps (LoRA)",
        family="SDXL",
        folder="loras",
        files=("Hyper-SDXL-4steps-lora.safetensors",),
        lora_strength=1.0,
        curve=_SDXL,
        sigmas=_FOUR,
        split=(2, 2),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=_HYPER + _TRAILING,
        notes=_ANY_SDXL,
    ),
    FewStepProfile(
        key="sdxl-hyper-8-lora",
        title="Hyper-SDXL, 8 steps (LoRA)",
        family="SDXL",
        folder="loras",
        files=("Hyper-SDXL-8steps-lora.safetensors",),
        lora_strength=1.0,
        curve=_SDXL,
        sigmas=_EIGHT,
        split=(3, 5),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=_HYPER + _TRAILING,
        notes=(
            *_ANY_SDXL,
            "not for Hyper-SDXL-8steps-CFG-lora.safetensors, which its publisher samples with CFG 5 to 8",
        ),
    ),
    FewStepProfile(
        key="sdxl-lcm-lora",
        title="SDXL LCM, 4 steps (LoRA)",
        family="SDXL",
        folder="loras",
        files=("lcm_lora_sdxl.safetensors",),
        lora_strength=1.0,
        curve=_SDXL,
        sigmas=_SDXL.grid_at((999, 759, 499, 259)),
        split=(2, 2),
        eta=0.0,
        boundary=FRESH_AT_SWITCH,
        sources=(
            "https://huggingface.co/docs/diffusers/main/en/using-diffusers/inference_with_lcm - lcm-lora-sdxl with "
            "the LCM scheduler: 4 steps, guidance_scale 1.0, scale 1.0",
            "https://github.com/huggingface/diffusers/blob/main/src/diffusers/schedulers/scheduling_lcm.py - of 50 "
            "training timesteps 19, 39 .. 999, 4 steps take 999, 759, 499, 259",
            "https://github.com/comfyanonymous/ComfyUI_examples/blob/f9431bb000/lcm/README.md - the file's name in "
            "models/loras, strength 1.0",
        ),
        notes=(
            *_ANY_SDXL,
            "its download is called pytorch_lora_weights.safetensors",
            "leave out ModelSamplingDiscrete (lcm): it replaces the table of 1000 levels by one of 50",
        ),
    ),
    FewStepProfile(
        key="pixart-lcm",
        title="PixArt-alpha LCM, 4 steps (diffusion model)",
        family="PixArt",
        folder="diffusion_models",
        files=("PixArt-LCM-XL-2-1024-MS.safetensors",),
        curve=_PIXART,
        sigmas=_PIXART.grid_at((999, 759, 519, 279)),
        split=(2, 2),
        eta=0.0,
        boundary=FRESH_AT_SWITCH,
        sources=(
            "https://github.com/PixArt-alpha/PixArt-alpha/blob/cac2fd3b45/asset/docs/pixart_lcm.md - "
            "PixArt-LCM-XL-2-1024-MS: 4 steps, guidance_scale 0 (no guidance, ComfyUI's CFG 1)",
            "https://github.com/PixArt-alpha/PixArt-alpha/blob/cac2fd3b45/diffusion/lcm_scheduler.py - of 50 training "
            "timesteps 19, 39 .. 999, 4 steps take 999, 759, 519, 279, with fresh noise between them",
            "https://huggingface.co/PixArt-alpha/PixArt-LCM-XL-2-1024-MS/tree/main/transformer - the one model file",
        ),
        notes=(
            "its download is transformer/diffusion_pytorch_model.safetensors; save it under the name above",
            "newer LCM schedulers take 999, 759, 499, 259 of the same 50",
        ),
    ),
)

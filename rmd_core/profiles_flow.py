"""Profiles of few-step rectified-flow models: SD3, Wan2.1, FLUX.1, Z-Image and Qwen-Image."""

from __future__ import annotations

from .few_step import EXACT_AT_SWITCH, FRESH_AT_SWITCH, FewStepProfile
from .logsnr import FlowCurve


def _sgm_uniform(curve: FlowCurve, steps: int) -> tuple[float, ...]:
    """ComfyUI's `sgm_uniform` scheduler: u falls evenly from 1 towards the cleanest level of the table, left out."""
    cleanest = curve.table_sigma(0.0)
    return tuple(curve.table_sigma(1000.0 * (1.0 - (1.0 - cleanest) * k / steps) - 1.0) for k in range(steps))


def _flow_dpm(curve: FlowCurve, steps: int) -> tuple[float, ...]:
    """The levels of diffusers' DPMSolverMultistepScheduler with use_flow_sigmas: u = 0.999 k / K, k = K .. 1."""
    return tuple(curve.table_sigma(999.0 * k / steps - 1.0) for k in range(steps, 0, -1))


_FLOW1, _FLOW3, _FLOW5, _FLOW6, _FLOW8 = (FlowCurve(shift) for shift in (1.0, 3.0, 5.0, 6.0, 8.0))

_TDM_SAMPLER = "its authors use a second-order DPM-Solver at these levels, here each step is Euler's"
_QWEN = (
    "https://github.com/ModelTC/Qwen-Image-Lightning/blob/25d1e9935b/generate_with_diffusers.py - "
    "shift 3 in distillation, no terminal shift, Euler, 8 steps by default, CFG 1.0",
    "https://github.com/ModelTC/Qwen-Image-Lightning/blob/25d1e9935b/README.md - 4-step and 8-step LoRA, cfg 1.0",
    "https://github.com/ModelTC/Qwen-Image-Lightning/blob/25d1e9935b/workflows/qwen-image-4steps.json - in ComfyUI: "
    "strength 1, shift 3, Euler, simple",
)

FLOW_PROFILES = (
    FewStepProfile(
        key="sd35-large-turbo",
        title="SD3.5 Large Turbo, 4 steps (checkpoint)",
        family="SD3",
        folder="checkpoints",
        files=("sd3.5_large_turbo.safetensors",),
        curve=_FLOW3,
        sigmas=_sgm_uniform(_FLOW3, 4),
        split=(2, 2),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=(
            "https://github.com/Stability-AI/sd3.5/blob/fbf8f483f9/sd3_infer.py - sd3.5_large_turbo: shift 3.0, "
            "cfg 1.0, 4 steps, Euler",
            "https://github.com/comfyanonymous/ComfyUI_examples/blob/f9431bb000/sd3/README.md - in models/checkpoints, "
            "the SD3.5 example (Euler, sgm_uniform) with 4 steps and cfg 1.2",
        ),
        notes=(
            "the levels are those of the ComfyUI example; the publisher's code has 1, 0.858, 0.602, 0.009 instead, "
            "whose last step does next to nothing",
            "CFG is the publisher's; the ComfyUI example has 1.2",
        ),
    ),
    FewStepProfile(
        key="sd35-tdm-lora",
        title="SD3.5 Medium TDM, 4 steps (LoRA)",
        family="SD3",
        folder="loras",
        files=("tdm_sd3-5_lora.safetensors",),
        lora_strength=2.0,
        curve=_FLOW3,
        sigmas=_flow_dpm(_FLOW3, 4),
        split=(2, 2),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=(
            "https://github.com/Luo-Yihong/TDM-R1/blob/1ee7d9f227/scripts/train_tdmr1_pub.py - tdm_sd3-5_lora.ckpt "
            "read into a LoRA of rank 32 and alpha 64 (a scale of 2); flow DPM-Solver with flow_shift 3",
            "https://github.com/Luo-Yihong/TDM-R1/blob/397c77fe0f/config/tdmr1_clean.py - stable-diffusion-3.5-medium, "
            "4 steps, guidance_scale 1",
            "https://huggingface.co/Luo-Yihong/TDM_sd3-5_lora - the release",
        ),
        notes=(
            "the release, tdm_sd3-5_lora.ckpt, is a list of tensors without names, which ComfyUI cannot load: convert "
            "it to a named LoRA first and save it under the name above",
            "strength 2.0 is for a converted file without alpha entries; with them (64) it is 1.0",
            _TDM_SAMPLER,
        ),
    ),
    FewStepProfile(
        key="sd3-tdm-lora",
        title="SD3 Medium TDM, 4 steps (LoRA)",
        family="SD3",
        folder="loras",
        files=("tdm_sd3_lora.safetensors",),
        lora_strength=0.125,
        curve=_FLOW6,
        sigmas=_flow_dpm(_FLOW6, 4),
        split=(2, 2),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=(
            "https://github.com/Luo-Yihong/TDM/blob/81b019f915/README.md - SD3 Medium with TDM_sd3_lora: scale 0.125 "
            "(marked IMPORTANT), flow DPM-Solver with flow_shift 6 (1 to 6 can be used), 4 steps, guidance_scale 1",
        ),
        notes=("save the LoRA file of Luo-Yihong/TDM_sd3_lora under the name above", _TDM_SAMPLER),
    ),
    FewStepProfile(
        key="wan21-lightx2v-lora",
        title="Wan2.1 T2V 14B lightx2v StepDistill CfgDistill, 4 steps (LoRA)",
        family="WAN21",
        folder="loras",
        files=(
            "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank64.safetensors",
            "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors",
        ),
        lora_strength=1.0,
        curve=_FLOW5,
        sigmas=_FLOW5.grid(4),
        split=(2, 2),
        eta=0.0,
        boundary=FRESH_AT_SWITCH,
        sources=(
            "https://github.com/ModelTC/LightX2V/blob/0591c35e7b/docs/EN/source/method_tutorials/step_distill.md - "
            "denoising_step_list 1000, 750, 500, 250, sample_shift 5, no CFG, LoRA strength 1.0, LCM scheduler",
            "https://github.com/ModelTC/LightX2V/blob/0591c35e7b/lightx2v/models/schedulers/wan/step_distill/"
            "scheduler.py - the list is taken before the shift, so sigma is 1, 0.9375, 0.8333, 0.625; fresh noise at "
            "every step",
            "https://github.com/deepbeepmeep/Wan2GP/blob/0b89ba6f1c/docs/LORAS.md - the rank-32 file: guidance 1, "
            "shift 5, multiplier 1",
        ),
        notes=(
            "the LoRA goes on Wan2.1 T2V 14B",
            "with CFG the video may become completely blurred, says its publisher",
        ),
    ),
    FewStepProfile(
        key="wan21-causvid-lora",
        title="Wan2.1 T2V 14B CausVid, 9 steps (LoRA)",
        family="WAN21",
        folder="loras",
        files=("Wan21_CausVid_14B_T2V_lora_rank32_v1_5_no_first_block.safetensors",),
        lora_strength=1.0,
        curve=_FLOW8,
        sigmas=_FLOW8.grid_at((999, 934, 862, 756, 603, 410, 250, 140, 74)),
        split=(3, 6),
        eta=0.0,
        boundary=FRESH_AT_SWITCH,
        sources=(
            "https://github.com/ModelTC/LightX2V/blob/0591c35e7b/configs/causvid/wan_t2v_causvid.json - the 14B model: "
            "denoising_step_list 999, 934, 862, 756, 603, 410, 250, 140, 74, no CFG, sample_shift 8",
            "https://github.com/kijai/ComfyUI-WanVideoWrapper/blob/23d3636cc7/wanvideo/schedulers/__init__.py - "
            "flowmatch_causvid for 14B: the same list, and sigma is its thousandth without a shift",
            "https://github.com/tianweiy/CausVid/blob/ca21150391/causvid/models/wan/bidirectional_inference.py - fresh "
            "noise at every step",
            "https://huggingface.co/Kijai/WanVideo_comfy - the LoRA is an extraction from CausVid 14B; v1.5 leaves out "
            "the first block, which fixes the flashing at full strength",
            "https://github.com/deepbeepmeep/Wan2GP/blob/0b89ba6f1c/docs/LORAS.md - CausVid: guidance 1; 0.8 to 1.0 at "
            "4 steps, 0.5 to 0.7 at 8, 0.3 at 12",
        ),
        notes=(
            "the LoRA goes on Wan2.1 T2V 14B",
            "the shift is not used: the levels are given outright",
            "Wan2GP's guide runs such a LoRA weaker: 0.5 to 0.7 at 8 steps, 0.3 at 12",
        ),
    ),
    FewStepProfile(
        key="flux1-schnell",
        title="FLUX.1 schnell, 4 steps (diffusion model)",
        family="Flux",
        folder="diffusion_models",
        files=("flux1-schnell.safetensors",),
        curve=_FLOW1,
        sigmas=_FLOW1.grid(4),
        split=(1, 3),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=(
            "https://github.com/black-forest-labs/flux/blob/802fb47139/src/flux/cli.py - flux-schnell: 4 steps and no "
            "shift",
            "https://github.com/black-forest-labs/flux/blob/802fb47139/src/flux/sampling.py - timesteps fall evenly "
            "from 1 to 0, Euler",
            "https://github.com/comfyanonymous/ComfyUI_examples/blob/f9431bb000/flux/README.md - flux1-schnell."
            "safetensors in models/unet (now diffusion_models); its example has Euler, simple, 4 steps, no CFG",
        ),
        notes=("one step before the switch: without a shift the second level has logSNR -2.2 already",),
    ),
    FewStepProfile(
        key="z-image-turbo",
        title="Z-Image-Turbo, 8 steps (diffusion model)",
        family="Lumina2",
        folder="diffusion_models",
        files=("z_image_turbo_bf16.safetensors",),
        curve=_FLOW3,
        sigmas=_FLOW3.grid(8),
        split=(4, 4),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=(
            "https://github.com/Tongyi-MAI/Z-Image/blob/c7ec13578c/inference.py - 8 steps, guidance_scale 0 (no "
            "guidance, ComfyUI's CFG 1)",
            "https://github.com/Tongyi-MAI/Z-Image/blob/c7ec13578c/src/config/model.py - shift 3.0, not dynamic",
            "https://github.com/Tongyi-MAI/Z-Image/blob/c7ec13578c/src/zimage/pipeline.py - levels down to sigma_min "
            "0, so u is 8/8, 7/8 .. 1/8, Euler",
            "https://github.com/comfyanonymous/ComfyUI_examples/blob/f9431bb000/z_image/README.md - the file's name in "
            "models/diffusion_models; its example has Euler, simple, cfg 1",
        ),
    ),
    FewStepProfile(
        key="qwen-image-lightning-4-lora",
        title="Qwen-Image-Lightning, 4 steps (LoRA)",
        family="QwenImage",
        folder="loras",
        files=("Qwen-Image-Lightning-4steps-V1.0.safetensors", "Qwen-Image-Lightning-4steps-V2.0.safetensors"),
        lora_strength=1.0,
        curve=_FLOW3,
        sigmas=_FLOW3.grid(4),
        split=(2, 2),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=_QWEN,
        notes=("the LoRA goes on Qwen-Image, which shares its latent format with Wan2.1",),
    ),
    FewStepProfile(
        key="qwen-image-lightning-8-lora",
        title="Qwen-Image-Lightning, 8 steps (LoRA)",
        family="QwenImage",
        folder="loras",
        files=("Qwen-Image-Lightning-8steps-V1.1.safetensors", "Qwen-Image-Lightning-8steps-V2.0.safetensors"),
        lora_strength=1.0,
        curve=_FLOW3,
        sigmas=_FLOW3.grid(8),
        split=(4, 4),
        eta=1.0,
        boundary=EXACT_AT_SWITCH,
        sources=_QWEN,
        notes=("the LoRA goes on Qwen-Image, which shares its latent format with Wan2.1",),
    ),
)

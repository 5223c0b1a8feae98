"""How a few-step model that people already own is to be sampled, as one value.
Profiles of few-step rectified-flow models: SD3, Wan2.1, FLUX.1, Z-Image and Qwen-Image.
Profiles of few-step models with a beta table: SDXL and PixArt.
Profiles of few-step models that people already own, by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from .boundary import Boundary
from .errors import RMDError
from .plan import StagePlan, plan_from_split, split_counts
from .schedule import FlowCurve, NoiseCurve, NoMap, ResolutionMap, Size, VPCurve

NOT_DISTILLED = "not distilled for the cascade"
"""What must be said wherever a profile is offered: its model never saw a change of size in training."""


@dataclass(frozen=True, kw_only=True)
class FewStepProfile:
    """The levels, guidance and noise rules of a published few-step model, with where they were found.

    family is ComfyUI's class name of the model; folder the one under `models` where `files` go, each file a
    choice that samples alike. lora_strength is None for a whole model. sigmas are levels in (0, 1] as this package
    names them, noisiest first; split is their division over two sizes. eta is the share of predicted noise inside a
    stage, boundary the rule at a change of size, cfg the guidance (1 is without). sources are "URL - what it says".
    Source: docs/profiles.md, profiles.
    """

    key: str
    title: str
    family: str
    folder: str
    files: tuple[str, ...]
    lora_strength: float | None = None
    curve: NoiseCurve
    sigmas: tuple[float, ...]
    split: tuple[int, int]
    mapping: ResolutionMap = NoMap()
    eta: float
    boundary: Boundary
    cfg: float = 1.0
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Whether the files are a whole "model" or a "lora" for one."""
        return "model" if self.lora_strength is None else "lora"

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the network is told at each level."""
        return tuple(round(self.curve.timestep(sigma), 6) for sigma in self.sigmas)

    def split_over(self, stages: int) -> tuple[int, ...]:
        """The profile's own split over a number of sizes: the last keeps its steps, the earlier ones share the rest.

        Where the rest cannot be shared evenly, the smaller sizes take more. Raises RMDError for no size, or for more
        than there are steps.
        """
        before = stages - 1
        if not 0 <= before <= self.split[0]:
            raise RMDError(
                f"{self.title} cannot share its steps {self.split[0]}+{self.split[1]} over {stages} sizes; "
                f"use 1 to {self.split[0] + 1} sizes, or give a split of its {len(self.sigmas)} steps"
            )
        if before == 0:
            return (sum(self.split),)
        each, more = divmod(self.split[0], before)
        return (*(each + 1 if place < more else each for place in range(before)), self.split[1])

    def plan(self, sizes: Sequence[Size], split: str | Sequence[int] | None = None) -> StagePlan:
        """The stage plan over latent sizes (height, width), smallest first; the split is `split_over` unless given.

        Raises RMDError for a split that is not of the profile's number of steps, and as `plan_from_split` does.
        """
        counts = self.split_over(len(sizes)) if split is None else split_counts(split)
        if sum(counts) != len(self.sigmas):
            raise RMDError(
                f"the split {'+'.join(map(str, counts))} has {sum(counts)} steps but {self.title} "
                f"has {len(self.sigmas)}; give parts that sum to {len(self.sigmas)}"
            )
        return plan_from_split(self.curve, counts, sizes=sizes, mapping=self.mapping, steps=self.sigmas)


# The two rules at a change of size. A model whose sampler draws fresh noise at every step (LCM and DMD kinds) expects
# just that at the change too. A model for an Euler sampler expects its predicted noise back: `exact` gives it back and
# stays white at the larger size; eta_switch 0, 0.5 and 1 lie close together for a network that was not trained for the
# cascade, on one tiny backbone (docs/quality.md). Interpolated noise (`mix`) is not white and was worse for it.
FRESH_AT_SWITCH = Boundary("bicubic", "fresh", 0.0)
EXACT_AT_SWITCH = Boundary("bicubic", "exact", 0.5)


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


PROFILES = MappingProxyType({one.key: one for one in (*VP_PROFILES, *FLOW_PROFILES)})
"""Every profile, by key; none was distilled for the cascade. Source: docs/profiles.md, profiles."""


def profile(key: str) -> FewStepProfile:
    """The profile of a key; raises RMDError for an unknown one."""
    if key not in PROFILES:
        raise RMDError(f"few-step profile {key!r} is unknown; use one of {', '.join(PROFILES)}")
    return PROFILES[key]

"""What is checked before a cascade starts: model, guidance, samplers and levels. Each failure is one RMDError."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from ...rmd_core.errors import RMDError
from ...rmd_core.plan import Stage
from .model_view import ModelView
from .overrides import StageSettings
from .sampling_plan import SamplingPlan

# Samplers whose callback shows, at each step, the very state that the network received and what it made of it, so that
# the predicted noise can be read off (tests/test_nodes_samplers.py measures each). To ComfyUI, ddim is euler.
RECOVERABLE = frozenset(
    """
    rmd ddim ddpm dpm_2 dpm_2_ancestral dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun
    dpmpp_2m_sde_heun_gpu dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_3m_sde dpmpp_3m_sde_gpu dpmpp_sde
    dpmpp_sde_gpu er_sde euler euler_ancestral euler_ancestral_cfg_pp euler_cfg_pp exp_heun_2_x0 exp_heun_2_x0_sde
    gradient_estimation gradient_estimation_cfg_pp heun heunpp2 lcm lms res_multistep res_multistep_ancestral
    res_multistep_ancestral_cfg_pp res_multistep_cfg_pp sa_solver seeds_2 seeds_3
    """.split()
)

# Samplers that choose their own steps or run other ones than the plan's.
OWN_STEPS = ("dpm_adaptive", "dpm_fast")


# Models whose network takes a pooled prompt; core fails inside it when there is none.
POOLED = ("SDXL", "SD3")

PURE_NOISE = 1e-5
"""A stage that starts within this share of sigma_max is scaled by ComfyUI as pure noise."""


def check_cascade(plan: SamplingPlan, settings: tuple[StageSettings, ...]) -> None:
    """Raise RMDError for a cascade that would fail or go wrong without saying so; each stage by its own model."""
    views: dict[int, ModelView] = {}  # one guider mostly serves all stages
    for stage, setting in zip(plan.stages.stages, settings):
        model = setting.guider.model_patcher
        if id(model) not in views:
            views[id(model)] = ModelView.of(model)
        check_model(plan, views[id(model)], stage)
        check_levels(plan, stage, float(model.get_model_object("model_sampling").sigma_max))
        check_guidance(setting.guider, setting.sampler)
        following = settings[stage.index + 1] if stage.index + 1 < len(settings) else None
        check_sampler(setting.sampler, recover=following is not None and following.boundary.uses_prediction)


def check_model(plan: SamplingPlan, view: ModelView, stage: Stage) -> None:
    """Raise RMDError for a model that the plan was not made for, or a stage of a size that it cannot take."""
    if view.kind != plan.kind:
        raise RMDError(f"the plan was made for {plan.kind}, the model is {view.kind}; make the plan with this model")
    view.check_sizes([stage.size])


def check_guidance(guider: Any, sampler: Any) -> None:
    """Raise RMDError for a guider that is a cascade itself, guides away from nothing, or lacks a pooled prompt."""
    if getattr(guider, "is_rmd_cascade", False):
        raise RMDError("this guider is an RMD Guider and runs a cascade already; connect the guider inside it")
    conds, scale = getattr(guider, "original_conds", {}), getattr(guider, "cfg", 1.0)
    if not isinstance(scale, Real) or not math.isfinite(scale):
        raise RMDError(f"cfg is {scale!r:.40}; use a number, 1.0 for students")
    if "positive" in conds and "negative" not in conds:
        check_no_negative(scale)
        name = sampler_name(sampler)
        if name.endswith("_cfg_pp"):
            raise RMDError(f"the sampler {name} steps along the negative, which is missing; connect one or use euler")
    network = guider.model_patcher.model
    if type(network).__name__.startswith(POOLED):
        for entry in (entry for entries in conds.values() for entry in entries):
            if entry.get("pooled_output") is None and "unclip_conditioning" not in entry:
                raise RMDError(
                    f"{type(network).__name__} needs prompts with a pooled output, and one came without; "
                    "encode them with the model's own text encoders"
                )


def check_no_negative(cfg: float) -> None:
    """Raise RMDError for guidance without anything to guide away from."""
    if not math.isclose(cfg, 1.0):
        raise RMDError(f"cfg is {cfg!r} but there is no negative conditioning; set cfg to 1.0 or connect a negative")


def check_levels(plan: SamplingPlan, stage: Stage, sigma_max: float) -> None:
    """Raise RMDError for a first level beyond the model's noise, or a later stage that starts at pure noise.

    ComfyUI scales a start at its sigma_max as pure noise, so a stage with a picture must start below it.
    """
    first = plan.sigmas(stage)[0]
    if first > sigma_max * (1.0 + PURE_NOISE):
        raise RMDError(
            f"stage {stage.index + 1} starts at sigma {first:.6g}, above this model's sigma_max {sigma_max:.6g}; "
            "use levels of this model"
        )
    if stage.index and first >= sigma_max * (1.0 - PURE_NOISE):
        raise RMDError(
            f"stage {stage.index + 1} would start at sigma {first:.6g}, which ComfyUI takes for pure noise "
            f"(sigma_max {sigma_max:.6g}); run one more step before the change of size, or use a smaller size ratio"
        )


def check_sampler(sampler: Any, *, recover: bool) -> None:
    """Raise RMDError for a sampler with steps of its own, or one whose predicted noise is needed and not shown."""
    name = sampler_name(sampler)
    if name in OWN_STEPS:
        raise RMDError(f"the sampler {name} chooses its own steps; use one that keeps the plan's, such as euler")
    if not recover:
        return
    advice = "or let a boundary use no predicted noise (switch_noise fresh in RMD Stage Override)"
    if name not in RECOVERABLE:
        raise RMDError(
            f"the noise predicted by the sampler {name} cannot be recovered at the switch; "
            f"use rmd, euler, heun, lcm, dpmpp_2m or another that docs/nodes.md lists, {advice}"
        )
    if getattr(sampler, "extra_options", {}).get("s_churn", 0.0) > 0.0:
        raise RMDError(f"the sampler {name} churns its noise, so it cannot be recovered; set s_churn to 0, {advice}")


def sampler_name(sampler: Any) -> str:
    """The name of a SAMPLER as ComfyUI lists it, as far as it tells."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", None) or type(sampler).__name__
    known = {"sample_unipc": "uni_pc", "sample_unipc_bh2": "uni_pc_bh2"}
    return known.get(name, name.removeprefix("sample_").removesuffix("_function"))

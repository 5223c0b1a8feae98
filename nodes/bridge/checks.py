"""What is checked before a cascade starts: model, guidance, samplers and levels. Each failure is one RMDError."""

from __future__ import annotations

from typing import Any

from ...rmd_core.errors import RMDError
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


def check_cascade(plan: SamplingPlan, settings: tuple[StageSettings, ...]) -> None:
    """Raise RMDError for a cascade that would fail or go wrong without saying so."""
    for stage, setting in zip(plan.stages.stages, settings):
        check_model(plan, setting.guider.model_patcher)
        check_guidance(setting.guider)
        check_levels(plan, setting.guider.model_patcher)
        following = settings[stage.index + 1] if stage.index + 1 < len(settings) else None
        check_sampler(setting.sampler, recover=following is not None and following.boundary.uses_prediction)


def check_model(plan: SamplingPlan, model: Any) -> None:
    """Raise RMDError for a model that the plan was not made for, or a size that it cannot take."""
    view = ModelView.of(model)
    if view.kind != plan.kind:
        raise RMDError(f"the plan was made for {plan.kind}, the model is {view.kind}; make the plan with this model")
    view.check_sizes([(stage.height, stage.width) for stage in plan.stages.stages])


def check_guidance(guider: Any) -> None:
    """Raise RMDError for a guider that is a cascade itself, or guides away from nothing."""
    if getattr(guider, "is_rmd_cascade", False):
        raise RMDError("this guider is an RMD Guider and runs a cascade already; connect the guider inside it")
    conds = getattr(guider, "original_conds", {})
    scale = getattr(guider, "cfg", 1.0)
    if "positive" in conds and "negative" not in conds and scale != 1.0:
        raise RMDError(no_negative(scale))


def no_negative(cfg: float) -> str:
    """The message for guidance without anything to guide away from."""
    return f"cfg is {cfg:g} but there is no negative conditioning; set cfg to 1.0 or connect a negative"


def check_levels(plan: SamplingPlan, model: Any) -> None:
    """Raise RMDError for a first level beyond the model's noise, or a later stage that starts at pure noise.

    ComfyUI scales a start at its sigma_max as pure noise, so a stage with a picture must start below it.
    """
    most = float(model.get_model_object("model_sampling").sigma_max)
    for stage in plan.stages.stages:
        first = plan.sigmas(stage)[0]
        if first > most * (1.0 + 1e-5):
            raise RMDError(
                f"stage {stage.index + 1} starts at sigma {first:.6g}, above this model's sigma_max {most:.6g}; "
                "use levels of this model"
            )
        if stage.index and first >= most * (1.0 - 1e-5):
            raise RMDError(
                f"stage {stage.index + 1} starts at sigma {first:.6g}, this model's pure noise, where nothing is left "
                "of the stage before; switch at a later step, or use sizes that are closer together"
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

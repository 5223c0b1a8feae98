"""What one stage does otherwise than the rest of its cascade.
What is checked before a cascade starts: model, guidance, samplers and levels. Each failure is one RMDError.
NOISE objects and seeds that remember which cascade and which stage they belong to.
The sampler function of RMD: one call a step, predicted and fresh noise mixed by eta in between.
The stage runner of ComfyUI: one `guider.sample` a stage, so that everything ComfyUI does happens in each.
A whole cascade with ComfyUI's objects: the one function behind every RMD sampler node.
A cascade in the form of a GUIDER, for core's sampler nodes."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from tqdm.auto import tqdm, trange

from ...rmd_core.boundary import Boundary, check_eta, step_noise
from ...rmd_core.cascade import StageEnd, StageJob, run_cascade
from ...rmd_core.errors import RMDError, one_line
from ...rmd_core.noise import FreshNoise, SeededNoise
from ...rmd_core.plan import Stage
from .conditioning import StageView
from .latents import SourcePicture, final_latent, finished
from .model import ModelView, NoiseForm
from .plans import SamplingPlan, check_levels


@dataclass(frozen=True, kw_only=True)
class StageOverride:
    """Settings of one stage (0 is the first); None means as in the rest of the cascade.

    boundary is the rule by which the stage is entered, so the first stage has none.
    """

    stage: int
    guider: Any | None = None
    sampler: Any | None = None
    boundary: Boundary | None = None

    def __post_init__(self) -> None:
        if self.stage == 0 and self.boundary is not None:
            raise RMDError("stage 1 is not entered over a boundary; set the boundary of stage 2 or later")


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What a stage is sampled with: `boundary` is None for the first stage."""

    guider: Any
    sampler: Any
    boundary: Boundary | None


def stage_settings(
    plan: SamplingPlan, guider: Any, *, sampler: Any, later_guider: Any | None, overrides: Sequence[StageOverride]
) -> tuple[StageSettings, ...]:
    """The settings of every stage; an override wins over `later_guider`, which is for all stages but the first.

    Raises RMDError for an override of a stage that the plan does not have, or two of the same stage.
    """
    count = len(plan.stages.stages)
    chosen: dict[int, StageOverride] = {}
    for override in overrides:
        if override.stage >= count:
            raise RMDError(
                f"an override is for stage {override.stage + 1}, but the plan {plan.stages.split} runs {count} "
                f"stage{'s' if count > 1 else ''}; set its stage to at most {count}"
            )
        if override.stage in chosen:
            raise RMDError(f"two overrides are for stage {override.stage + 1}; put their settings into one")
        chosen[override.stage] = override
    settings = []
    for stage in range(count):
        own = chosen.get(stage, StageOverride(stage=stage))
        usual_guider = later_guider if stage and later_guider is not None else guider
        settings.append(
            StageSettings(
                guider=usual_guider if own.guider is None else own.guider,
                sampler=sampler if own.sampler is None else own.sampler,
                boundary=None if stage == 0 else own.boundary or plan.boundary,
            )
        )
    return tuple(settings)


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


class StageSeed(int):
    """A seed that is a plain number to ComfyUI and tells our own sampler where the stage's noise comes from.

    ComfyUI hands a sampler the seed of its NOISE as it is, so a hand-built graph draws the numbers of `RMD Sampler`.
    `cascade` is the seed of the whole cascade, `items` the batch items it draws for (None: 0, 1, ...).
    """

    cascade: int
    stage: int
    items: tuple[int, ...] | None

    def __new__(cls, cascade: int, stage: int, items: tuple[int, ...] | None = None) -> StageSeed:
        seed = super().__new__(cls, SeededNoise(cascade).seed(stage, "sampler"))
        seed.cascade, seed.stage, seed.items = cascade, stage, items
        return seed

    @classmethod
    def of(cls, seed: int) -> StageSeed:
        """A seed as it came: our own with its memory, any other number as the seed of a cascade's first stage."""
        return seed if isinstance(seed, cls) else cls(int(seed), 0)

    @property
    def source(self) -> SeededNoise:
        """The noise of the cascade."""
        return SeededNoise(self.cascade, self.items)

    @property
    def fresh(self) -> FreshNoise:
        """The noise of this stage."""
        return self.source.of_stage(self.stage)

    def next_stage(self) -> StageSeed:
        """The seed of the stage after this one."""
        return StageSeed(self.cascade, self.stage + 1, self.items)

    def __reduce__(self) -> tuple[Any, ...]:
        return StageSeed, (self.cascade, self.stage, self.items)


def batch_items(latent: dict[str, Any]) -> tuple[int, ...] | None:
    """The batch items a LATENT names (`batch_index`), or None for 0, 1, ..."""
    items = latent.get("batch_index")
    return None if items is None else tuple(int(item) for item in items)


class StartNoise:
    """NOISE of the first stage of a cascade, equal to what `RMD Sampler` starts from with the same seed."""

    def __init__(self, cascade: int) -> None:
        self.seed = StageSeed(cascade, 0)

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        """Noise for a LATENT, float32 on the CPU; a core sampler reads `seed` after this, with the LATENT's items."""
        self.seed = StageSeed(self.seed.cascade, 0, batch_items(latent))
        return self.seed.fresh("start", tuple(latent["samples"].shape))


class SwitchNoise:
    """NOISE of a later stage: what came over the boundary, ready made for one LATENT."""

    def __init__(self, white: torch.Tensor, seed: StageSeed) -> None:
        self._white = white
        self.seed = seed

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        """The noise; RMDError for a LATENT of another shape than the one it was made with."""
        came, made = tuple(latent["samples"].shape), tuple(self._white.shape)
        if came != made:
            raise RMDError(
                f"the noise of RMD Stage Upscale is for a latent of shape {made}, this one has {came}; "
                "connect the LATENT of the same RMD Stage Upscale"
            )
        return self._white


def rmd_step_sampler(eta: float) -> comfy.samplers.KSAMPLER:
    """A SAMPLER with the eta rule: 0 re-noises with fresh noise (as LCM), 1 with the predicted (as Euler).

    For flow, eps and v models. Raises RMDError for eta outside [0, 1]. Source: docs/method.md, the sampler.
    """
    return comfy.samplers.KSAMPLER(sample_rmd, {"eta": check_eta(eta)})


def sample_rmd(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    *,
    eta: float,
) -> torch.Tensor:
    """Run the sigmas from the state x `(B, C, [T,] H, W)`, in the form of ComfyUI's sampler functions.

    A last sigma above 0 is reached with the predicted noise alone, whatever eta is: what follows is a change of size,
    which must find x0 and eps again. Fresh noise comes from the seed by step, item by item, so that no item of a batch
    depends on another.
    """
    extra_args = extra_args or {}
    form = NoiseForm.of(model.inner_model.model_patcher)
    seed = StageSeed.of(extra_args.get("seed") or 0)
    batch = x.new_ones([x.shape[0]])
    last = len(sigmas) - 2
    for index in trange(len(sigmas) - 1, disable=disable):
        comfy.model_management.throw_exception_if_processing_interrupted()
        sigma, following = sigmas[index], sigmas[index + 1]
        x0 = model(x, sigma * batch, **extra_args)
        if callback is not None:
            callback({"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})
        if following == 0:
            x = x0
            continue
        share = 1.0 if index == last else eta
        fresh = seed.fresh(f"step-{index}", tuple(x.shape)) if share < 1.0 else None
        eps = x if share == 0.0 else form.eps(x, x0, sigma)  # at 0 nothing of it is used
        x = form.state(x0, step_noise(eps, share, fresh), following)
    return x


Callback = Callable[[int, torch.Tensor, torch.Tensor, int], None]
"""ComfyUI's sampler callback: (step, x0, x, total steps)."""

MISFIT = re.compile(
    "shapes cannot be multiplied|must match the size|must match except in|size mismatch|is invalid for input of size|"
    "to have [0-9]+ channels|same number of dimensions|Kernel size can't be greater|"
    "Expected more than 1 value per channel"
)
"""PyTorch's words for tensors of which one does not fit the other."""


class ComfyStageRunner:
    """Samples one stage after the other with ComfyUI's guiders and samplers.

    `callback` hears of every step once, numbered over all stages. After the last stage `output` is what its guider gave
    out, in ComfyUI's latent space.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        settings: tuple[StageSettings, ...],
        *,
        source: SourcePicture,
        seed: StageSeed,
        callback: Callback,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._source = source
        self._seed = seed
        self._callback = callback
        self.output: torch.Tensor | None = None

    def __call__(self, job: StageJob) -> StageEnd:
        """Run a stage: ComfyUI mixes the picture so far with the noise, its callback shows x0 and x of each step."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        stage, settings = job.stage, self._settings[job.stage.index]
        sigmas = torch.tensor(self._plan.sigmas(stage), dtype=torch.float32)
        form = NoiseForm.of(settings.guider.model_patcher)
        if job.x0 is None:
            picture, white = self._source.at(stage.size), job.white
        else:
            picture, white = self._source.start(job.x0, job.white, form=form, sigma=sigmas[0].to(job.x0))
        last = _LastStep(form, sigmas, job.steps[0].index, len(self._plan.stages.steps))
        guider = self._view(job).guider(settings.guider)
        try:
            self.output = guider.sample(
                white,
                picture,
                settings.sampler,
                sigmas,
                denoise_mask=self._source.mask,
                callback=last.hearing(self._callback),
                disable_pbar=True,
                seed=StageSeed(self._seed.cascade, stage.index, self._seed.items),
            )
        except (RuntimeError, ValueError) as error:
            if isinstance(error, RMDError) or not MISFIT.search(str(error)):
                raise  # such as out of memory, which ComfyUI knows how to meet
            raise RMDError(
                f"the network of stage {stage.index + 1} cannot take what it was given ({one_line(error, 200)}); "
                "encode the prompts with the model's own text encoders, and make pictures beside them for this model"
            ) from error
        return last.end(stage.index + 1)

    def _view(self, job: StageJob) -> StageView:
        plan, video = self._plan, job.white.ndim == 5
        return StageView(job.stage.size, plan.stages.final_hw, plan.cell_px, plan.size_conditioning, video=video)


class _LastStep:
    """Listens to a stage's steps and keeps the last one: its clean estimate, and the noise predicted beside it."""

    def __init__(self, form: NoiseForm, sigmas: torch.Tensor, offset: int, total: int) -> None:
        self._form = form
        self._sigmas = sigmas
        self._offset = offset
        self._total = total
        self._x0: torch.Tensor | None = None
        self._eps: torch.Tensor | None = None

    def hearing(self, callback: Callback) -> Callback:
        """The callback of this stage, which tells `callback` about the whole cascade."""

        def listen(step: int, x0: torch.Tensor, x: torch.Tensor, _steps: int) -> None:
            if step == len(self._sigmas) - 2:
                self._x0 = x0
                self._eps = self._form.eps(x, x0, self._sigmas[step].to(x))
            callback(self._offset + step, x0, x, self._total)
            comfy.model_management.throw_exception_if_processing_interrupted()

        return listen

    def end(self, stage: int) -> StageEnd:
        """What the stage (counted from 1) hands on; RMDError if there is none, or it holds what is no number."""
        if self._x0 is None:
            raise RMDError(
                f"the guider or sampler of stage {stage} told nothing of its last step, so there is no picture to hand "
                "on; use RMD Step Sampler or euler, with a guider of ComfyUI's"
            )
        if not torch.isfinite(self._x0).all():
            raise RMDError(
                f"the network of stage {stage} gave values that are not finite (nan or inf); check the weights and the "
                "strength of LoRAs, and try a wider weight_dtype"
            )
        return StageEnd(self._x0, self._eps)


logger = logging.getLogger(__name__)


class CascadeOutput(NamedTuple):
    """What a cascade gives: the result as the last stage's guider gave it, and the clean estimate of every stage.

    Both are samples in ComfyUI's latent space; `source` is the LATENT they were sampled into, in the model's form.
    """

    samples: torch.Tensor
    stages: tuple[torch.Tensor, ...]
    source: dict[str, Any]

    def latent(self) -> dict[str, Any]:
        """The result as a LATENT, with all else that the source carries."""
        return {**self.source, "samples": finished(self.samples)}

    def stage_latents(self) -> list[dict[str, Any]]:
        """The estimates as LATENTs, without the source's noise mask, which is of the final size."""
        kept = {key: value for key, value in self.source.items() if key != "noise_mask"}
        return [{**kept, "samples": finished(x0)} for x0 in self.stages]


def sample_cascade(
    plan: SamplingPlan,
    latent: dict[str, Any],
    *,
    guider: Any,
    sampler: Any,
    seed: int,
    later_guider: Any | None = None,
    overrides: Sequence[StageOverride] = (),
    callback: Callback | None = None,
) -> CascadeOutput:
    """Sample a plan into a LATENT of the final size, with one `guider.sample` a stage.

    Noise comes from the seed by stage, purpose and batch item (`batch_index`). Raises RMDError for whatever
    `checks.check_cascade` refuses and for a latent of another size than the plan's, before anything runs.
    """
    settings = stage_settings(plan, guider, sampler=sampler, later_guider=later_guider, overrides=overrides)
    check_cascade(plan, settings)
    latent = final_latent(guider.model_patcher, latent)
    samples = latent["samples"]
    _check_size(plan, tuple(samples.shape[-2:]))
    seed = StageSeed.of(seed)
    if seed.items is None:
        seed = StageSeed(seed.cascade, 0, batch_items(latent))
    source = SourcePicture(latent, guider.model_patcher)
    _warn(plan, settings, source)
    if later_guider is not None and len(settings) == 1:
        logger.warning("the plan runs one stage, so later_guider is not used")
    with tqdm(total=len(plan.stages.steps), disable=not comfy.utils.PROGRESS_BAR_ENABLED) as bar:

        def on_step(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
            bar.update()
            if callback is not None:
                callback(step, x0, x, total)

        runner = ComfyStageRunner(plan, settings, source=source, seed=seed, callback=on_step)
        result = run_cascade(
            plan.stages,
            runner,
            shape=tuple(samples.shape[:-2]),
            noise=seed.source,
            boundary=[setting.boundary for setting in settings[1:]],
        )
    to_latent = guider.model_patcher.model.process_latent_out
    return CascadeOutput(runner.output, tuple(to_latent(x0) for x0 in result.stage_x0), latent)


def _check_size(plan: SamplingPlan, came: tuple[int, int]) -> None:
    if came != plan.stages.final_hw:
        height, width = plan.final_px
        raise RMDError(
            f"the latent is {came[1] * plan.cell_px}x{came[0] * plan.cell_px} px, "
            f"but the plan ends at {width}x{height} px; connect the same latent to RMD Schedule, "
            "or give both the same width and height"
        )


def _warn(plan: SamplingPlan, settings: tuple[StageSettings, ...], source: SourcePicture) -> None:
    """Say what is allowed and seldom meant."""
    for setting in settings:
        scale = getattr(setting.guider, "cfg", plan.cfg)
        if abs(scale - plan.cfg) > 1e-6:
            logger.warning("cfg is %g, the plan is made for %g (%s)", scale, plan.cfg, plan.origin)
        eta = getattr(setting.sampler, "extra_options", {}).get("eta", plan.eta)
        if sampler_name(setting.sampler) == "rmd" and abs(eta - plan.eta) > 1e-6:
            logger.warning("eta is %g, the plan is made for %g; connect the plan to RMD Step Sampler", eta, plan.eta)
    from_noise = plan.stages.curve.is_pure_noise(plan.stages.steps[0].sigma)
    if not source.empty and source.mask is None and from_noise:
        logger.warning(
            "the latent holds a picture, but the plan starts from pure noise and will not show it; "
            "lower denoise in RMD Schedule to start from the picture"
        )
    if source.empty and not from_noise:
        logger.warning("the plan starts from a picture, but the latent is empty; encode one, or set denoise to 1")


class CascadeGuider:
    """Runs a whole plan when it is sampled, in place of the one size that a core node asks for.

    Noise comes from the seed, and levels from the plan: the noise and the sigmas handed to `sample` are not used.
    """

    is_rmd_cascade = True

    def __init__(
        self, guider: Any, plan: SamplingPlan, *, later_guider: Any | None, overrides: Sequence[StageOverride]
    ) -> None:
        self._guider = guider
        self._plan = plan
        self._later_guider = later_guider
        self._overrides = tuple(overrides)
        self.model_patcher = guider.model_patcher

    def sample(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: torch.Tensor | None = None,
        callback: Callback | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Sample the plan into `latent_image`, as core's guiders are called; gives LATENT samples."""
        latent = {"samples": latent_image}
        if denoise_mask is not None:
            latent["noise_mask"] = denoise_mask
        result = sample_cascade(
            self._plan,
            latent,
            guider=self._guider,
            sampler=sampler,
            seed=seed or 0,
            later_guider=self._later_guider,
            overrides=self._overrides,
            callback=callback,
        )
        return result.samples

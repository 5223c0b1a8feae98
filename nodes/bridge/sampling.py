"""A whole cascade with ComfyUI's objects: `sample_cascade` is the one function behind every RMD sampler node.

Each stage is one `guider.sample`, so that everything ComfyUI does (loading, hooks, conditioning, previews) happens in
each. In this order: the cascade, one stage, what each stage is sampled with, the checks before anything runs, seeds and
NOISE objects, our own sampler, and the cascade as a GUIDER.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from .calls import HandOver, NetworkCall, SecondModel, watched
from .conditioning import StageView, unknown_tensors
from .latents import SourceImage, final_latent, stream_noise, streams, to_output
from .model import ModelView, NoiseForm, references_on_grid, with_video_shift
from .plans import SamplingPlan, check_levels, pixels
from .upsampling import Upsampler, with_upsampler

logger = logging.getLogger(__name__)

Callback = Callable[[int, torch.Tensor, torch.Tensor, int], None]
"""ComfyUI's sampler callback: (step, x0, x, total steps)."""


class Sampled(NamedTuple):
    """The result as the last stage's guider gave it, the same as a LATENT, and the clean estimates of the stages.

    `stages` makes a LATENT of each on first use.
    """

    samples: torch.Tensor
    latent: dict[str, Any]
    stages: Iterator[dict[str, Any]]


def sample_cascade(
    plan: SamplingPlan,
    latent: dict[str, Any],
    *,
    guider: Any,
    sampler: Any,
    seed: int,
    later_guider: Any | None = None,
    overrides: Sequence[StageOverride] = (),
    upsampler: Upsampler | None = None,
    second: SecondModel | None = None,
    callback: Callback | None = None,
) -> Sampled:
    """Sample a plan into a LATENT of the final size, with one `guider.sample` a stage.

    A second model takes over below its sigma, in every stage, whatever its guider. If that is inside a
    stage, each model runs its own `guider.sample`, one after the other. Noise comes from the seed by stage, purpose
    and batch item (`batch_index`). The callback is called once for each step, numbered over all stages. Raises RMDError
    before any step for what `check_cascade` refuses and for a latent of another size than the plan's.
    """
    settings = stage_settings(
        plan, guider, sampler=sampler, later_guider=later_guider, overrides=overrides, upsampler=upsampler
    )
    if second is not None:
        settings = tuple(
            with_second(setting, plan.sigmas(stage)[:-1], second)
            for setting, stage in zip(settings, plan.stage_plan.stages)
        )
    check_cascade(plan, settings)
    model, total = guider.model_patcher, len(plan.stage_plan.steps)
    latent = final_latent(model, latent)
    source = SourceImage(latent, model)
    shape = source.shape
    if shape[-2:] != plan.stage_plan.final_hw:
        raise RMDError(
            f"the latent is {pixels(plan.cell_px, shape[-2:])} px, "
            f"but the plan ends at {pixels(plan.cell_px, plan.stage_plan.final_hw)} px; connect the same latent to "
            "RMD Schedule, or give both the same width and height"
        )
    seed = StageSeed.of(seed)
    items = batch_items(latent)
    if seed.items is None and items is not None:
        seed = StageSeed(seed.cascade, 0, items)
    _warn(plan, settings, source)
    if later_guider is not None and len(settings) == 1:
        logger.warning("the plan runs one stage, so later_guider is not used")
    if second is not None:
        _warn_of_levels(plan, second)
    output = None
    with tqdm(total=total, disable=not comfy.utils.PROGRESS_BAR_ENABLED) as bar:

        def on_step(step: int, x0: torch.Tensor, x: torch.Tensor) -> None:
            bar.update()
            if callback is not None:
                callback(step, x0, x, total)

        rules = [setting.boundary for setting in settings[1:]]

        def run_stage(job: StageJob) -> StageEnd:
            nonlocal output
            stage = job.stage.index
            sound = source.nested and plan.eta > 0.0  # its step is an ordinary one
            recover = stage < len(rules) and (rules[stage].uses_prediction or sound)
            stage_seed = seed if seed.stage == stage else StageSeed(seed.cascade, stage, seed.items)
            output, end = _sample_stage(
                job, plan, settings[stage], source=source, seed=stage_seed, on_step=on_step, recover=recover
            )
            if recover and end.eps is None:
                logger.warning(
                    "the sampler %s of stage %d made no network call at the stage's last level, so there is no "
                    "predicted noise: stage %d starts with fresh noise",
                    sampler_name(settings[stage].sampler),
                    stage + 1,
                    stage + 2,
                )
                rules[stage] = replace(rules[stage], switch_noise="fresh")
            return end

        result = run_cascade(
            plan.stage_plan,
            run_stage,
            shape=shape[:-2],
            noise=seed.source,
            boundary=rules,
        )
    others = {key: value for key, value in latent.items() if key != "noise_mask"}  # the mask is of the final size
    stages = ({**others, "samples": one} for one in source.estimates(result.stage_x0))
    return Sampled(output, {**latent, "samples": to_output(output)}, stages)


def _sample_stage(
    job: StageJob,
    plan: SamplingPlan,
    settings: StageSettings,
    *,
    source: SourceImage,
    seed: StageSeed,
    on_step: Callable[[int, torch.Tensor, torch.Tensor], None],
    recover: bool,
) -> tuple[torch.Tensor, StageEnd]:
    """The output of a stage's guider, and the last step's x0 and, to `recover`, the noise predicted with it.

    ComfyUI mixes the image so far with the noise, its callback shows x0 of each step. The noise follows from the
    input and output of the network at the stage's last level, for every sampler; None without a call there.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    stage, number = job.stage, job.stage.index + 1
    sigmas = torch.tensor(plan.sigmas(stage), dtype=torch.float32)
    form = NoiseForm.of(settings.guider.model_patcher)
    sampler = settings.sampler
    image, noise = source.start(job, form=form, sigma=sigmas[0], eta=plan.eta)
    first, last, done = job.steps[0].index, len(sigmas) - 2, 0
    x0 = eps = None
    calls: deque[NetworkCall] = deque(maxlen=2)  # a sampler may call once more below the last level
    if recover:
        sampler = watched(sampler, calls)

    def run(guider: Any, sampler: Any) -> torch.Tensor:
        shown = done  # a second model's run repeats the steps of the first

        def callback(step: int, step_x0: torch.Tensor, x: torch.Tensor, _steps: int) -> None:
            nonlocal x0, done
            if step == last:
                x0 = step_x0
            if step >= shown:
                on_step(first + step, step_x0, x)
                done = step + 1
            comfy.model_management.throw_exception_if_processing_interrupted()

        on_grid = references_on_grid(guider.model_patcher)
        view = StageView(stage.size, plan.stage_plan.final_hw, plan.cell_px, plan.size_conditioning, on_grid)
        staged = _with_whole_thresholds(view.guider(guider), plan, stage)
        if plan.stage_plan.curve.kind == "flow":
            staged = with_video_shift(staged, plan.stage_plan.curve.shift * stage.ratio)
        try:
            return staged.sample(
                noise,
                image,
                sampler,
                sigmas,
                denoise_mask=source.mask,
                callback=callback,
                disable_pbar=True,
                seed=seed,
            )
        except Exception as error:
            blamed = _blamed_patch(error, guider.model_patcher, stage=number)
            if blamed is None:
                raise
            raise blamed from error

    if settings.second is None:
        output = run(settings.guider, sampler)
    else:
        models = HandOver(settings.second)
        output = run(settings.guider, models.first(sampler))
        if models.stopped:
            output = run(settings.second.guider(settings.guider), models.second(sampler))
    if x0 is None:
        raise RMDError(
            f"the guider or sampler of stage {number} reported no last step, so the next stage has no "
            "image to start from; use RMD Step Sampler or euler, with one of ComfyUI's guiders"
        )
    for call in reversed(calls):
        if call.sigma.max().item() >= sigmas[last].item() * (1.0 - 1e-4):
            x0, eps = call.x0, form.eps(call.x, call.x0, call.sigma.flatten()[0])
            break
    # One pass, where isfinite makes four.
    if not all(math.isfinite(stream.sum(dtype=torch.float32).item()) for stream in streams(x0)):
        raise RMDError(
            f"the network of stage {number} gave values that are not finite (nan or inf); check the weights and the "
            "strength of LoRAs, and try a wider weight_dtype"
        )
    return output, source.end(x0, eps, settings.guider.model_patcher.model)


def _with_whole_thresholds(guider: Any, plan: SamplingPlan, stage: Stage) -> Any:
    """A guider whose denoise mask function, such as DifferentialDiffusion's, sees the levels of the whole plan.

    It makes thresholds out of the first and the last level, and would start them again in each stage.
    """
    options = getattr(guider, "model_options", {})
    function = options.get("denoise_mask_function")
    if function is None or len(plan.stage_plan.stages) == 1:
        return guider
    curve = plan.stage_plan.curve
    levels = (curve.comfy_sigma(curve.with_ratio(base, stage.ratio)) for base in plan.stage_plan.base_sigmas)
    whole = torch.tensor([*levels, 0.0], dtype=torch.float32)

    def by_the_whole_plan(sigma: torch.Tensor, mask: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
        return function(sigma, mask, extra_options={**extra_options, "sigmas": whole.to(sigma.device)})

    changed = copy.copy(guider)
    changed.model_options = {**options, "denoise_mask_function": by_the_whole_plan}
    return changed


def _blamed_patch(error: Exception, model: Any, *, stage: int) -> RMDError | None:
    """The message for an error in the code of a patch of the model, after a change of size; else None."""
    if stage == 1 or isinstance(error, (RMDError, comfy.model_management.OOM_EXCEPTION)):
        return None
    own = os.path.dirname(torch.__file__)
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    frames = [code for code in frames if not code.co_filename.startswith(own)]
    for patch in _functions(model.model_options):
        if patch.__code__ in frames and patch.__code__.co_filename == frames[-1].co_filename:
            return RMDError(
                f"a patch of the model, {patch.__qualname__} of {patch.__module__}, failed at the size of stage "
                f"{stage} ({one_line(error, 200)}); it may keep state of the smaller size: for the later stages patch "
                "a model of their own, and connect its guider to later_guider of RMD Sampler (Advanced)"
            )
    return None


def _functions(value: Any) -> list[Any]:
    """The Python functions in nested dictionaries and lists, methods and callable objects as functions."""
    if isinstance(value, dict):
        return [function for one in value.values() for function in _functions(one)]
    if isinstance(value, (list, tuple)):
        return [function for one in value for function in _functions(one)]
    found = (getattr(value, "__func__", value), getattr(type(value), "__call__", None))  # noqa: B004
    return [function for function in found if hasattr(function, "__code__")]


def _warn(plan: SamplingPlan, settings: tuple[StageSettings, ...], source: SourceImage) -> None:
    """Warn once about each setting that is allowed but rarely intended."""
    for scale in dict.fromkeys(getattr(setting.guider, "cfg", plan.cfg) for setting in settings):
        if abs(scale - plan.cfg) > 1e-6:
            logger.warning("cfg is %g, the plan is made for %g (%s)", scale, plan.cfg, plan.origin)
    samplers = [setting.sampler for setting in settings if sampler_name(setting.sampler) == "rmd"]
    for eta in dict.fromkeys(getattr(sampler, "extra_options", {}).get("eta", plan.eta) for sampler in samplers):
        if abs(eta - plan.eta) > 1e-6:
            logger.warning("eta is %g, the plan is made for %g; connect the plan to RMD Step Sampler", eta, plan.eta)
    smaller = [
        setting for setting, stage in zip(settings, plan.stage_plan.stages) if stage.size != plan.stage_plan.final_hw
    ]
    for name in sorted({name for setting in smaller for name in unknown_tensors(setting.guider)}):
        logger.warning(
            "RMD does not know the conditioning %r: one of the latent's size is averaged to each stage, any other "
            "stays as it is; if that is wrong, connect a later_guider and make each guider's prompts for its size",
            name,
        )
    from_noise = plan.stage_plan.curve.is_pure_noise(plan.stage_plan.steps[0].sigma)
    if not source.empty and source.mask is None and from_noise:
        logger.warning(
            "the latent holds an image, but the plan starts from pure noise and will not show it; "
            "lower denoise in RMD Schedule to start from the image"
        )
    if source.empty and not from_noise:
        logger.warning("the plan starts from an image, but the latent is empty; encode one, or set denoise to 1")


def _warn_of_levels(plan: SamplingPlan, second: SecondModel) -> None:
    """Warn of a second model that makes no step, and of steps that only the mapping gives to the first one."""
    steps, curve = plan.stage_plan.steps, plan.stage_plan.curve
    if not any(second.takes(curve.comfy_sigma(step.sigma)) for step in steps):
        logger.warning("no step runs below sigma %g, so the second model is not used", second.sigma)
    for step in steps:
        base, mapped = plan.given_sigma(step), curve.comfy_sigma(step.sigma)
        if second.takes(base) and not second.takes(mapped):
            logger.warning(
                "step %d is at sigma %.4g: the mapping to %s px lifts it from %.4g past %g, so the first model makes "
                "it; use a plan without mapping, or another second_model_sigma",
                step.index + 1,
                mapped,
                pixels(plan.cell_px, step.size),
                base,
                second.sigma,
            )


@dataclass(frozen=True, kw_only=True)
class StageOverride:
    """Settings of one stage (0 is the first); None means as in the rest of the cascade.

    boundary is the rule of the switch to this stage, so the first stage has none.
    """

    stage: int
    guider: Any | None = None
    sampler: Any | None = None
    boundary: Boundary | None = None

    def __post_init__(self) -> None:
        if self.stage == 0 and self.boundary is not None:
            raise RMDError("stage 1 has no switch before it; set the boundary of stage 2 or later")


def small_overrides(plan: SamplingPlan, guider: Any, prompts: dict[str, Any]) -> tuple[StageOverride, ...]:
    """Overrides that give a guider to all stages below the final size; prompts are what was made for it, by input.

    Raises RMDError where a prompt holds tensors on the latent's grid that were made for another size than a stage's.
    """
    final, on_grid = plan.stage_plan.final_hw, references_on_grid(guider.model_patcher)
    smaller = [stage for stage in plan.stage_plan.stages if stage.size != final]
    for stage in smaller:
        view = StageView(stage.size, final, plan.cell_px, plan.size_conditioning, on_grid)
        for name, conditioning in prompts.items():
            view.check_made_for(conditioning, name)
    if not smaller:
        logger.warning("the plan runs one size, so small_positive and small_negative are not used")
    return tuple(StageOverride(stage=stage.index, guider=guider) for stage in smaller)


class StageSettings(NamedTuple):
    """What a stage is sampled with; `boundary` is None for the first stage.

    `second` takes over from the guider's model inside the stage; None where one model does the whole stage.
    """

    guider: Any
    sampler: Any
    boundary: Boundary | None
    second: SecondModel | None = None


def stage_settings(
    plan: SamplingPlan,
    guider: Any,
    *,
    sampler: Any,
    later_guider: Any | None,
    overrides: Sequence[StageOverride],
    upsampler: Upsampler | None = None,
) -> tuple[StageSettings, ...]:
    """The settings of every stage; an override wins over `later_guider`, which is for all stages but the first.

    The `upsampler` takes the place of the plan's; a boundary of an override keeps its own.

    Where the size stays as it is, such as to change the model, the step is an ordinary one with the plan's eta. Raises
    RMDError for an override of a stage that the plan does not have, or two of the same stage.
    """
    stages = plan.stage_plan.stages
    count = len(stages)
    later = guider if later_guider is None else later_guider
    rule = plan.boundary
    if stages[0].size != stages[-1].size:
        rule = with_upsampler(rule, upsampler, guider.model_patcher, student=plan.student)
    rules = [rule.between(low.size, high.size, eta=plan.eta) for low, high in zip(stages, stages[1:])]
    settings = [StageSettings(guider, sampler, None), *(StageSettings(later, sampler, rule) for rule in rules)]
    taken = set()
    for override in overrides:
        stage = override.stage
        if stage >= count:
            raise RMDError(
                f"an override is for stage {stage + 1}, but the plan {plan.stage_plan.split} runs {count} "
                f"stage{'s' if count > 1 else ''}; set its stage to at most {count}"
            )
        if stage in taken:
            raise RMDError(f"two overrides are for stage {stage + 1}; put their settings into one")
        taken.add(stage)
        own = {name: getattr(override, name) for name in ("guider", "sampler", "boundary")}
        settings[stage] = settings[stage]._replace(**{name: one for name, one in own.items() if one is not None})
    return tuple(settings)


def with_second(settings: StageSettings, levels: Sequence[float], second: SecondModel) -> StageSettings:
    """A stage's settings with a second model, by the stage's own levels: for none of it, for the end, or for all."""
    if not second.takes(levels[-1]):
        return settings
    if second.takes(levels[0]):
        return settings._replace(guider=second.guider(settings.guider))
    return settings._replace(second=second)


# Samplers that choose their own steps or run other ones than the plan's.
OWN_STEPS = ("dpm_adaptive", "dpm_fast")


def check_cascade(plan: SamplingPlan, settings: tuple[StageSettings, ...]) -> None:
    """Raise RMDError for a cascade that would fail, or silently go wrong; each stage is checked with its own model."""
    views: dict[int, ModelView] = {}  # one guider mostly serves all stages
    for stage, setting in zip(plan.stage_plan.stages, settings):
        second = () if setting.second is None else (setting.second.model,)
        for model in (setting.guider.model_patcher, *second):
            if id(model) not in views:
                views[id(model)] = ModelView.of(model)
            view = views[id(model)]
            if view.kind != plan.kind:
                raise RMDError(
                    f"the plan was made for {plan.kind}, the model is {view.kind}; make the plan with this model"
                )
            view.check_size(stage.size)
            check_levels(plan, stage, float(model.get_model_object("model_sampling").sigma_max))
        before = settings[stage.index - 1]
        if not stage.index or setting.guider is not before.guider or setting.sampler is not before.sampler:
            check_guidance(setting.guider, setting.sampler)
            check_sampler(setting.sampler)
        if setting.second is not None:
            check_hand_over(setting.sampler, stage.index)


def check_guidance(guider: Any, sampler: Any) -> None:
    """Raise RMDError for a guider that is itself a cascade, or lacks its negative or a pooled prompt."""
    if isinstance(guider, CascadeGuider):
        raise RMDError("this guider is an RMD Guider and runs a cascade already; connect the guider inside it")
    conds, scale = getattr(guider, "original_conds", {}), getattr(guider, "cfg", 1.0)
    if not isinstance(scale, Real) or not math.isfinite(scale):
        raise RMDError(f"cfg is {scale!r:.40}; use a number, 1.0 for students")
    if "positive" in conds and "negative" not in conds:
        if not math.isclose(scale, 1.0):
            raise RMDError(
                f"cfg is {scale!r} but there is no negative conditioning; set cfg to 1.0 or connect a negative"
            )
        name = sampler_name(sampler)
        if name.endswith("_cfg_pp"):
            raise RMDError(f"the sampler {name} needs a negative, which is missing; connect one or use euler")
    network = guider.model_patcher.model
    entries = [entry for entries in conds.values() for entry in entries if "unclip_conditioning" not in entry]
    absent, empty = any("pooled_output" not in entry for entry in entries), False
    if any(entry.get("pooled_output") is None for entry in entries):
        empty = any(network.model_config.unet_config.get(name) for name in POOLED_WIDTHS)
    if (absent or empty) and _asks_for_pooled(network):
        raise RMDError(
            f"{type(network).__name__} needs prompts with a pooled output, and one has none; "
            "encode them with the model's own text encoders"
        )


# How configurations of networks name the width of the pooled prompt; one without it takes None.
POOLED_WIDTHS = ("adm_in_channels", "vec_in_dim", "text_emb_dim", "in_text_dim2")


def _asks_for_pooled(network: Any) -> bool:
    """Whether ComfyUI's class of a model fails for a prompt without a pooled part, found by giving it none."""
    try:
        network.encode_adm(device="cpu", noise=None)
    except KeyError as error:
        return error.args == ("pooled_output",)
    except Exception:  # it lacks something else, which ComfyUI gives it
        return False
    return False


def check_sampler(sampler: Any) -> None:
    """Raise RMDError for a sampler that chooses its own steps."""
    name = sampler_name(sampler)
    if name in OWN_STEPS:
        raise RMDError(f"the sampler {name} chooses its own steps; use one that keeps the plan's, such as euler")


def check_hand_over(sampler: Any, stage: int) -> None:
    """Raise RMDError for a sampler that cannot change to a second model inside a stage (0 is the first)."""
    name = sampler_name(sampler)
    if getattr(sampler, "sampler_function", None) is None or name.endswith("_cfg_pp"):
        raise RMDError(
            f"the second model takes over inside stage {stage + 1}, where the sampler {name} cannot change the model; "
            "use RMD Step Sampler or euler, or set second_model_sigma between two stages"
        )


def sampler_name(sampler: Any) -> str:
    """The name of a SAMPLER as ComfyUI lists it, as far as it is known."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", None) or type(sampler).__name__
    known = {"sample_unipc": "uni_pc", "sample_unipc_bh2": "uni_pc_bh2"}
    return known.get(name, name.removeprefix("sample_").removesuffix("_function"))


class StageSeed(int):
    """A seed that is a plain number to ComfyUI and the address of the stage's noise to our own sampler.

    ComfyUI hands a sampler the seed of its NOISE as it is, so a hand-built graph samples the noise of `RMD Sampler`.
    `cascade` is the seed of the whole cascade, `items` the batch items it is for (None: 0, 1, ...).
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
        """A seed of a NOISE: our own with its address, any other number as the seed of a cascade's first stage."""
        return seed if isinstance(seed, cls) else cls(int(seed), 0)

    @property
    def source(self) -> SeededNoise:
        """The noise of the cascade."""
        return SeededNoise(self.cascade, self.items)

    @property
    def fresh(self) -> FreshNoise:
        """The noise of this stage."""
        return self.source.of_stage(self.stage)

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
        noises = stream_noise(self.seed.fresh, "start", [stream.shape for stream in streams(latent["samples"])])
        return type(latent["samples"])(noises) if latent["samples"].is_nested else noises[0]


class SwitchNoise:
    """NOISE of a later stage: the result of a switch, made for one LATENT."""

    def __init__(self, noise: torch.Tensor, seed: StageSeed) -> None:
        self._noise = noise
        self.seed = seed

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        """The noise; RMDError for a LATENT of another shape than the one it was made with."""
        given, made = tuple(latent["samples"].shape), tuple(self._noise.shape)
        if given != made:
            raise RMDError(
                f"the noise of RMD Stage Upscale is for a latent of shape {made}, this one has {given}; "
                "connect the LATENT of the same RMD Stage Upscale"
            )
        return self._noise


def rmd_step_sampler(eta: float) -> comfy.samplers.KSAMPLER:
    """A SAMPLER with the eta rule: 0 re-noises with fresh noise (as LCM), 1 with the predicted (as Euler).

    For flow, eps and v models. Raises RMDError for eta outside [0, 1]. Source: docs/method/method.md, the sampler.
    """
    return comfy.samplers.KSAMPLER(sample_rmd, {"eta": check_eta(eta)})


@torch.no_grad()
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

    A step to a last sigma above 0 uses only predicted noise, for every eta: a change of size follows
    and must recover x0 and eps. Fresh noise comes from the seed by step, item by item, so that no item of a batch
    depends on another.
    """
    extra_args = extra_args or {}
    form = NoiseForm.of(model.inner_model.model_patcher)
    seed = StageSeed.of(extra_args.get("seed") or 0)
    batch = x.new_ones([x.shape[0]])
    last, levels = len(sigmas) - 2, sigmas.tolist()
    # Of several streams core packs the state into one tensor (B, 1, cells).
    shapes = getattr(getattr(model.inner_model, "inner_model", None), "latent_shapes", None) or ()
    shapes = shapes if len(shapes) > 1 else (x.shape,)
    for index in trange(len(sigmas) - 1, disable=disable):
        comfy.model_management.throw_exception_if_processing_interrupted()
        sigma, following = sigmas[index], sigmas[index + 1]
        x0 = model(x, sigma * batch, **extra_args)
        if callback is not None:
            callback({"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})
        if levels[index + 1] == 0.0:
            x = x0
            continue
        share = 1.0 if index == last else eta
        fresh = None
        if share < 1.0:
            noises = stream_noise(seed.fresh, f"step-{index}", shapes)
            fresh = comfy.utils.pack_latents(noises)[0] if len(noises) > 1 else noises[0]
        eps = x if share == 0.0 else form.eps(x, x0, sigma)  # at 0 nothing of it is used
        x = form.state(x0, step_noise(eps, share, fresh), following)
    return x


class CascadeGuider:
    """A GUIDER that runs a whole plan when it is sampled, in place of the one size that a core node asks for.

    Noise comes from the seed, and levels from the plan: the noise handed to `sample` is not used, and the sigmas must
    be `sigmas`, the levels of all stages and 0.
    """

    def __init__(
        self,
        guider: Any,
        plan: SamplingPlan,
        *,
        later_guider: Any | None,
        overrides: Sequence[StageOverride],
        upsampler: Upsampler | None = None,
        second: SecondModel | None = None,
    ) -> None:
        self.model_patcher = guider.model_patcher
        self._plan = plan
        levels = [sigma for stage in plan.stage_plan.stages for sigma in plan.sigmas(stage)[:-1]]
        self.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float32)
        self._inputs = {"guider": guider, "later_guider": later_guider, "upsampler": upsampler}
        self._inputs["overrides"] = tuple(overrides)
        self._inputs["second"] = second

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
        """Sample the plan into `latent_image`, as core's guiders are called; gives LATENT samples.

        Raises RMDError for sigmas of another plan.
        """
        given = sigmas.to("cpu", torch.float32)
        if given.shape != self.sigmas.shape or not torch.allclose(given, self.sigmas, rtol=1e-4):
            raise RMDError(
                f"the sigmas of this sampler node are not those of the plan {self._plan.stage_plan.split}; connect the "
                "sigmas output of RMD Guider to it"
            )
        latent = {"samples": latent_image}
        if denoise_mask is not None:
            latent["noise_mask"] = denoise_mask
        return sample_cascade(
            self._plan, latent, sampler=sampler, seed=seed or 0, callback=callback, **self._inputs
        ).samples

"""A whole cascade with ComfyUI's objects: the one function behind every RMD sampler node."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import comfy.utils
import torch
from tqdm.auto import tqdm

from ...rmd_core.cascade import run_cascade
from ...rmd_core.errors import RMDError
from .checks import check_cascade, sampler_name
from .latents import final_latent, finished
from .overrides import StageOverride, StageSettings, stage_settings
from .sampling_plan import SamplingPlan
from .source_picture import SourcePicture
from .stage_noise import StageSeed, batch_items
from .stage_runner import Callback, ComfyStageRunner

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

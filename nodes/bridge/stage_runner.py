"""The stage runner of ComfyUI: one `guider.sample` a stage, so that everything ComfyUI does happens in each."""

from __future__ import annotations

import re
from collections.abc import Callable

import comfy.model_management
import torch

from ...rmd_core.cascade import StageEnd, StageJob
from ...rmd_core.errors import RMDError, one_line
from .noise_form import NoiseForm
from .overrides import StageSettings
from .sampling_plan import SamplingPlan
from .source_picture import SourcePicture
from .stage_conditioning import StageView
from .stage_noise import StageSeed

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

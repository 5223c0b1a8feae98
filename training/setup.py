"""Everything a run needs before its first update, loaded and checked; all bad input is found here."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import get_int_from_env

from rmd_core.errors import RMDError
from rmd_core.intervals import StageDraw, TimestepIntervals
from rmd_core.plan import StagePlan

from .backbones import Backbone, make_backbone
from .config import Config
from .draws import Draws
from .plans import build_intervals, build_plan
from .prompt_cache import NULL_PROMPT, PromptCache
from .prompts import PromptOrder, read_prompts

# Where accelerate looks for the number of processes; asked here, before they wait for each other.
_PROCESS_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Setup:
    """A checked configuration with its plan, prompts and teacher."""

    config: Config
    backbone: Backbone
    plan: StagePlan
    intervals: TimestepIntervals
    cache: PromptCache
    prompts: tuple
    validation_prompts: tuple
    teacher: torch.nn.Module
    vae: torch.nn.Module | None

    def embed(self, prompts):
        """The conditioning of prompts, on the CPU."""
        return self.backbone.conditioning(self.cache, prompts)

    def copies(self):
        """Student and fake score, both starting from the teacher's weights, trainable."""
        return tuple(copy.deepcopy(self.teacher).requires_grad_(True) for _ in range(2))

    def draws(self):
        """All draws of the run."""
        train = self.config.train
        return Draws(
            stage_draw=StageDraw(self.plan, train.warmup_updates),
            intervals=self.intervals,
            order=PromptOrder(self.prompts, train.seed),
            seed=train.seed,
            batch=train.batch * train.accumulation,
        )


def prepare(config):
    """Load and check everything a resolved configuration names. Raises RMDError for the first thing that is wrong."""
    processes = get_int_from_env(_PROCESS_COUNTS, 1)
    if processes > 1:
        raise RMDError(f"training runs in one process, {processes} were started; start one")
    backbone = make_backbone(config.backbone.name, shift=config.backbone.shift)
    plan = build_plan(config, backbone)
    intervals = build_intervals(config, plan)
    cache = PromptCache(config.prompts.cache, encoder=config.prompts.encoder)
    prompts = read_prompts(config.prompts.file) if config.prompts.file else cache.texts
    if not prompts:
        raise RMDError(f"{config.prompts.cache} holds no prompt but the null prompt; add prompts to the cache")
    validation = config.output.validation_prompts or prompts
    cache.require((*prompts, *validation, NULL_PROMPT))
    teacher = backbone.load(Path(config.backbone.base), dtype=torch.float32).requires_grad_(False)
    backbone.check_cache(teacher, cache)
    backbone.check_sizes(teacher, config.plan.sizes)
    vae = backbone.load_vae(config.backbone.vae) if config.backbone.vae else None
    chosen = tuple(validation[i % len(validation)] for i in range(config.output.pictures))
    return Setup(config, backbone, plan, intervals, cache, tuple(prompts), chosen, teacher, vae)

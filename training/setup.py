"""Everything a run needs before its first update, loaded and checked; all bad input is found here."""

import logging
from dataclasses import dataclass

import torch

from rmd_core.errors import RMDError
from rmd_core.intervals import StageSampler, TimestepIntervals
from rmd_core.plan import StagePlan
from rmd_core.prompt_cache import NULL_PROMPT, PromptCache

from .backbones import Backbone, make_backbone
from .backbones.base import refuse_other_family, warn_of_another_shift
from .config import Config
from .draws import Draws, PromptOrder
from .hub import local_path
from .memory import Memory, tell_memory
from .plans import build_intervals, build_plan, check_libraries, check_lora_names, check_rank, check_spread
from .prompts import read_prompts
from .quantised import is_quantised
from .record import check_trackers

log = logging.getLogger(__name__)


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
    memory: Memory
    teacher: torch.nn.Module
    vae: torch.nn.Module | None

    def embed(self, prompts):
        """The conditioning of prompts, on the CPU."""
        return self.backbone.conditioning(self.cache, prompts)

    def draws(self, processes=1):
        """All draws of the run, each for the samples of all processes together."""
        train = self.config.train
        return Draws(
            stage_draw=StageSampler(self.plan, train.warmup_updates),
            intervals=self.intervals,
            order=PromptOrder(self.prompts, train.seed),
            seed=train.seed,
            batch=train.batch * train.accumulation * processes,
        )


def outline_run(config):
    """(backbone, plan, intervals, outline of the teacher): what is checked in no time, without prompts or weights."""
    check_trackers(config.output.trackers)
    check_libraries(config)
    backbone = make_backbone(config.backbone.name, shift=config.backbone.shift)
    plan = build_plan(config, backbone)
    intervals = build_intervals(config, plan)
    outline = backbone.outline(local_path(config.backbone.base))
    backbone.check_sizes(outline, config.plan.sizes)
    if config.model.mode == "adapters":
        check_rank(config.model, backbone, outline)
    return backbone, plan, intervals, outline


def loaded_in(config):
    """The type of the teacher's weights; what is to be quantised is loaded in that of the calls."""
    if config.model.mode == "three networks":  # copies are trained in float32, which the teacher beside them shares
        return torch.float32
    kind = config.model.base_dtype
    return getattr(torch, config.train.precision if is_quantised(kind) else kind)


def prepare(config, *, spread=1, planned=None, memory=None):
    """Load and check everything a resolved configuration names. Raises RMDError for the first thing that is wrong.

    ``spread``: the number of processes that networks will be sharded over. ``planned``: what stands for a prompt cache
    that is not there yet (a PlannedCache); such a Setup can be reported, not trained. ``memory``: the Memory of this
    run where it was logged already.
    """
    if spread > 1:
        check_spread(config)
    if config.unused():
        log.warning("warning: %s: not used by model.mode %s", ", ".join(config.unused()), config.model.mode)
    backbone, plan, intervals, outline = outline_run(config)
    warn_of_another_shift(backbone, local_path(config.backbone.base))
    if config.model.mode == "adapters" and not config.output.merge:
        check_lora_names(config.model, backbone, outline)
    cache = planned or PromptCache(config.prompts.cache, encoder=config.prompts.encoder)
    prompts = read_prompts(config.prompts.file) if config.prompts.file else cache.texts
    if not prompts:
        raise RMDError(f"{config.prompts.cache} holds no prompt but the null prompt; add prompts to the cache")
    validation = config.output.validation_prompts or prompts
    if planned is None:
        cache.require((*prompts, *validation, NULL_PROMPT))
        refuse_other_family(backbone, cache)
        backbone.check_cache(outline, cache)
    if memory is None:
        memory = tell_memory(config, backbone, outline, spread=spread)
    teacher = backbone.load(local_path(config.backbone.base), dtype=loaded_in(config)).requires_grad_(False)
    vae = backbone.load_vae(local_path(config.backbone.vae)) if config.backbone.vae else None
    chosen = tuple(validation[i % len(validation)] for i in range(config.output.pictures))
    return Setup(config, backbone, plan, intervals, cache, tuple(prompts), chosen, memory, teacher, vae)

"""Everything a run needs before its first update, loaded and checked; all bad input is found here."""

import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rmd_core.errors import RMDError
from rmd_core.intervals import StageSampler, TimestepIntervals
from rmd_core.plan import StagePlan
from rmd_core.prompt_cache import NULL_PROMPT, PromptCache
from rmd_core.upsampler import LatentUpsampler

from .backbones import Backbone, make_backbone
from .backbones.base import refuse_distilled, refuse_other_family, warn_of_another_shift
from .batches import BatchSampler, PromptOrder
from .config import Config
from .hub import local_path
from .lora import Lora, adapted_layers
from .memory import Memory, log_memory
from .parallel import check_sharding
from .plans import build_intervals, build_plan, load_upsampler
from .prompts import read_prompts
from .quantised import bitsandbytes_for, is_quantised
from .record import check_trackers
from .speed import set_attention
from .start import read_start

log = logging.getLogger(__name__)

STRONG = 4.0  # alpha / rank above which an adapter's steps are known to be large


class Outline(NamedTuple):
    """What is known of a run without its prompts and weights; ``network``: the teacher on the meta device."""

    config: Config
    backbone: Backbone
    plan: StagePlan
    intervals: TimestepIntervals
    network: torch.nn.Module
    memory: Memory


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
    start: torch.nn.Module | Lora | None = None  # what the student starts from, if not the teacher
    upsampler: LatentUpsampler | None = None  # of method.upsampler, where it is a file

    def embed(self, prompts):
        """The conditioning of prompts, on the CPU."""
        return self.backbone.conditioning(self.cache, prompts)

    def learned(self, device):
        """The trained network of ``method.upsampler``, on a device; None for a fixed one such as nearest."""
        return None if self.upsampler is None else self.upsampler.to(device)

    def sampler(self, processes=1):
        """The BatchSampler of the run, whose micro-batches are those of all processes together."""
        train = self.config.train
        return BatchSampler(
            stages=StageSampler(self.plan, train.warmup_updates),
            intervals=self.intervals,
            order=PromptOrder(self.prompts, train.seed),
            seed=train.seed,
            size=train.batch * processes,
            parts=train.accumulation,
        )


def outline_run(config, *, shards=1):
    """The Outline of a resolved configuration, whose memory is logged. Raises RMDError for the first thing wrong.

    ``shards``: the number of processes that networks will be sharded over.
    """
    if shards > 1:
        check_sharding(config)
    if config.unused():
        log.warning("warning: %s: not used by model.mode %s", ", ".join(config.unused()), config.model.mode)
    check_trackers(config.output.trackers)
    check_libraries(config)
    backbone = make_backbone(config.backbone.name, shift=config.backbone.shift)
    plan = build_plan(config, backbone)
    intervals = build_intervals(config, plan)
    base = local_path(config.backbone.base)
    refuse_distilled(base)
    network = backbone.outline(base)
    if backbone.experts and (config.model.mode != "adapters" or shards > 1):
        raise RMDError(
            f"{backbone.name} is two networks: only adapters are trained, and each process needs the whole base; "
            "set model.mode=adapters and launch without FSDP"
        )
    backbone.check_sizes(network, config.plan.sizes)
    if config.train.attention is not None:
        set_attention(network, config.train.attention)
    if config.model.mode == "adapters":
        check_rank(config.model, backbone, network)
        if not config.output.merge:
            check_lora_names(config.model, backbone, network)
    warn_of_another_shift(backbone, base)
    memory = log_memory(config, backbone, network, shards=shards)
    return Outline(config, backbone, plan, intervals, network, memory)


def check_libraries(config):
    """Raise RMDError where the configuration needs bitsandbytes and it is not there."""
    if is_quantised(config.model.base_dtype):
        bitsandbytes_for(f"model.base_dtype: {config.model.base_dtype}")
    if config.optimiser.kind == "adamw8bit":
        bitsandbytes_for("optimiser.kind: adamw8bit")


def check_rank(settings, backbone, outline):
    """Raise RMDError for a rank above the width of a layer it is for, and warn of an alpha far above the rank.

    ``settings``: the configuration's model section. Raises RMDError as ``adapted_layers``, too.
    """
    layers = adapted_layers(outline, settings.targets or backbone.adapter_targets)
    widths = {name: min(layer.weight.shape[0], layer.weight[0].numel()) for name, layer in layers.items()}
    narrow = min(widths, key=widths.get)
    if settings.rank > widths[narrow]:
        raise RMDError(
            f"model.rank is {settings.rank}, but an adapter of '{narrow}' has a rank of at most {widths[narrow]}; "
            "lower model.rank, or leave that layer out of model.targets"
        )
    if settings.alpha > STRONG * settings.rank:
        log.warning(
            "warning: model.alpha %g at model.rank %d multiplies each adapter step by %.3g; alpha is usually "
            "1 to 2 times the rank",
            *(settings.alpha, settings.rank, settings.alpha / settings.rank),
        )


def check_lora_names(settings, backbone, outline):
    """Raise RMDError for a layer with an adapter that no LoRA file of ComfyUI's can contain.

    ``settings``: as above. Only its own targets are looked at; the backbones' are known to fit.
    """
    for name in adapted_layers(outline, settings.targets or ()):
        try:
            backbone.native_layer(outline, name)
        except RMDError as error:
            raise RMDError(f"model.targets: {error}, or set output.merge=true") from None


def loaded_in(config):
    """The type of the teacher's weights; weights to quantise are loaded in the type of the calls."""
    if config.model.mode == "three networks":  # copies are trained in float32, which the teacher beside them shares
        return torch.float32
    kind = config.model.base_dtype
    return getattr(torch, config.train.precision if is_quantised(kind) else kind)


def prepare(outline, *, planned=None, loads=True):
    """Load and check prompts and weights of an outlined run. Raises RMDError for the first thing that is wrong.

    ``loads``: whether this process loads networks; where it gets its shards from another one, they are on the meta
    device.

    ``planned``: replaces a prompt cache: a LiveCache, or a PlannedCache, which has no embeddings, so
    that such a Setup is reported, not trained.
    """
    config, backbone = outline.config, outline.backbone
    cache = planned or PromptCache(config.prompts.cache, encoder=config.prompts.encoder)
    prompts = read_prompts(config.prompts.file) if config.prompts.file else cache.texts
    if not prompts:
        raise RMDError(f"{config.prompts.cache} contains only the null prompt; add prompts to the cache")
    validation = config.output.validation_prompts or prompts
    upsampler = load_upsampler(config.method, backbone)
    if hasattr(cache, "require"):
        cache.require((*prompts, *validation, NULL_PROMPT))
        refuse_other_family(backbone, cache)
        backbone.check_cache(outline.network, cache)
    load = backbone.load if loads else lambda path, *, dtype: backbone.outline(path)
    teacher = load(local_path(config.backbone.base), dtype=loaded_in(config)).requires_grad_(False)
    start = None
    if config.model.init_from is not None:
        start = read_start(config.model, backbone, teacher, load=load)
        if isinstance(start, Lora) and start.changes and config.output.lora_names == "diffusers":
            if not config.output.merge:
                raise RMDError(
                    f"model.init_from: '{next(iter(start.changes))}' is changed in full, which the names of diffusers "
                    "cannot say; set output.lora_names to comfyui or kohya, or set output.merge=true"
                )
    vae = backbone.load_vae(local_path(config.backbone.vae)) if config.backbone.vae else None
    return Setup(
        config=config,
        backbone=backbone,
        plan=outline.plan,
        intervals=outline.intervals,
        cache=cache,
        prompts=tuple(prompts),
        validation_prompts=tuple(validation[i % len(validation)] for i in range(config.output.images)),
        memory=outline.memory,
        teacher=teacher,
        start=start,
        vae=vae,
        upsampler=upsampler,
    )

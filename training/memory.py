"""The memory of a run, told before anything is loaded."""

import logging
import os
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from rmd_core.losses import fake_score_loss

from .estimate import Guidance, estimate_x0_eps
from .live_memory import FusedAttention, LiveMemory
from .networks import adapt

log = logging.getLogger(__name__)

GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device, by what they are for; ``activations`` is an estimate, the others are counted.

    ``casts``: copies of weights in the precision of the calls, as long as a gradient needs them. ``size``: latent
    height and width of the final size, where the most is held.
    """

    trained: int  # number of values of one trained network or adapter
    weights: dict  # by dtype
    gradients: int  # of one network: the other's are dropped before
    optimiser: int
    average: int
    casts: int
    activations: int
    size: tuple

    @property
    def total(self):
        """All parts together: at most so much, as gradients and activations do not peak at once."""
        rest = (self.gradients, self.optimiser, self.average, self.casts, self.activations)
        return sum(self.weights.values()) + sum(rest)

    def rows(self):
        """(what, bytes) pairs, those that are zero left out."""
        height, width = self.size
        rows = [(f"weights in {dtype}", count) for dtype, count in self.weights.items()]
        rows += [
            ("gradients in float32", self.gradients),
            ("optimiser in float32", self.optimiser),
            ("weight average in float32", self.average),
            ("weights cast to bfloat16 for a call", self.casts),
            (f"activations at {height}x{width}, estimated", self.activations),
        ]
        return [(what, count) for what, count in rows if count]

    def line(self):
        """The estimate in one line."""
        return ", ".join(f"{what} {gib(count)}" for what, count in self.rows()) + f": together {gib(self.total)}"


def gib(count):
    """Bytes in words."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def estimate_memory(config, backbone, outline, *, size, tokens, spread=1):
    """The MemoryEstimate of a resolved configuration, for each process.

    ``outline``: the network on the meta device. ``size``: the final latent height and width. ``tokens``: the length of
    a prompt. ``spread``: the number of processes that networks are spread over. Not in it: the autoencoder of
    validation, the device's own library, fragmentation, and the block of a spread network that is brought together.
    """
    whole = config.model.mode == "three networks"
    views, trained = _networks(config, backbone, outline)
    numel = sum(p.numel() for p in trained)
    base = sum(p.numel() for p in outline.parameters())
    base_dtype = "float32" if whole else config.model.base_dtype
    weights = {base_dtype: base * _BYTES[base_dtype] * (3 if whole else 1) // spread}
    held = numel // spread if whole else numel  # adapters are not spread
    if not whole:
        weights["float32"] = weights.get("float32", 0) + 2 * 4 * numel
    casts = 0
    if config.train.precision == "bfloat16":
        not_yet = (0 if whole else numel) + (base if base_dtype == "float32" else 0)
        casts = 2 * not_yet * (2 if _holds_both(config) else 1)
    return MemoryEstimate(
        trained=numel,
        weights=weights,
        gradients=4 * held,
        optimiser=2 * (2 * 4 * held + 4 * len(trained)),  # two moments, and a step count for each tensor
        average=0 if config.train.ema is None else 4 * held,
        casts=casts,
        activations=_activations(config, backbone, views, trained, size, tokens),
        size=size,
    )


def advice(config, available, estimated):
    """Overrides that make a run fit into ``available`` bytes: ``(overrides, estimate with all of them)``.

    ``estimated(config)`` is its MemoryEstimate. Those that change the training least come first. It may still not fit.
    """
    overrides, estimate = [], estimated(config)
    for section, wanted in _savings(config):
        if estimate.total <= available:
            break
        part = getattr(config, section)
        new = {key: value for key, value in wanted.items() if getattr(part, key) != value}
        changed = config.model_copy(update={section: part.model_copy(update=new)}).resolved()
        better = estimated(changed)
        if better.total < estimate.total:
            overrides += [f"{section}.{key}={str(value).lower()}" for key, value in new.items()]
            config, estimate = changed, better
    return overrides, estimate


def _savings(config):
    train = config.train
    base = {} if config.model.mode == "three networks" else {"base_dtype": "bfloat16"}
    return (
        ("train", {"precision": "bfloat16"}),
        ("model", base),
        ("backbone", {"gradient_checkpointing": True}),
        ("train", {"batch": 1, "accumulation": train.batch * train.accumulation}),
        ("train", {"share_forward": False}),
        ("model", {"mode": "adapters", "base_dtype": "bfloat16"}),
    )


def tell_memory(config, estimated, available, device):
    """The estimate of a configuration, said in the log, with advice where ``available`` bytes are too few for it."""
    estimate = estimated(config)
    log.info("memory: %s, of %s on %s", estimate.line(), gib(available), device)
    if estimate.total > available:
        overrides, better = advice(config, available, estimated)
        way = f"--set {' --set '.join(overrides)} needs {gib(better.total)}" if overrides else "take a smaller plan"
        if overrides and better.total > available:
            way += ", still too much: take a smaller plan or a larger device"
        log.warning("warning: this run will not fit into the memory of %s; %s", device, way)
    return estimate


def device_memory(device):
    """(bytes, name) of the device that ``train.device`` means: what is free on a GPU, all of the main memory else."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the CPU"


def _networks(config, backbone, outline):
    """(fake score and teacher on the meta device, in the precision of their calls; the parameters one role trains)."""
    calls_in = config.train.precision
    if config.model.mode == "adapters" and calls_in == "float32":
        calls_in = config.model.base_dtype
    with torch.device("meta"):
        network = type(outline).from_config(outline.config).eval()
        torch.nn.Module.to(network, getattr(torch, calls_in))
        if config.model.mode == "three networks":
            views, trained = (network, network), network.requires_grad_(True).parameters()
        else:
            adapted = adapt(network, backbone, config.model)
            views, trained = (adapted.seen_with("fake"), adapted.seen_with(None)), adapted.adapters["fake"].parameters()
    if config.backbone.gradient_checkpointing:
        network.enable_gradient_checkpointing(_recomputed)
    return views, list(trained)


def _recomputed(module, *inputs):
    def run(*again):
        with FusedAttention():  # the recomputation is part of the backward pass
            return module(*again)

    return checkpoint(run, *inputs, use_reentrant=False)


def _activations(config, backbone, views, trained, size, tokens):
    """The most bytes that one update holds beyond weights and gradients, by one pass of each kind without data."""
    batch, curve = config.train.batch, backbone.curve
    fake, teacher = views
    blank = backbone.blank_conditioning(teacher, tokens, "meta")
    conditioning = {name: row.expand(batch, *row.shape[1:]) for name, row in blank.items()}
    sigma = torch.full((batch,), 0.5, dtype=torch.float64)
    levels = {"alpha": curve.alpha(sigma), "sigma": sigma}
    state = torch.empty(*backbone.latent_shape(batch, config.plan.frames), *size, device="meta")

    def x0_of(network, guidance=None):
        return estimate_x0_eps(backbone, network, state, sigma, conditioning, curve=curve, guidance=guidance)[0]

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(_drop)
    with FusedAttention(), LiveMemory() as both_ways:
        x0 = x0_of(fake)
        held = both_ways.live
        fake_score_loss(x0, state, **levels, weighting=config.loss.fake_weighting).backward()
        del x0
    with torch.no_grad(), FusedAttention(), LiveMemory() as one_way:
        x0_of(teacher, None if config.loss.cfg == 1.0 else Guidance(config.loss.cfg, conditioning))
    # The student's pass waits while the fake score trains, or else while the teacher is asked.
    return held + max(one_way.peak, both_ways.peak if _holds_both(config) else 0, both_ways.peak - held)


def _drop(parameter):
    parameter.grad = None


def _holds_both(config):
    return config.train.share_forward and config.train.accumulation == 1

"""The memory of a run, told before anything is loaded."""

import logging
import os
from dataclasses import dataclass

import torch

from rmd_core.errors import RMDError

from .activations import dry_networks, holds_both, measure_activations
from .optim import optimiser_bytes, state_sizes
from .quantised import has_bitsandbytes, is_quantised, quantised_layers
from .waiting import page_locked

log = logging.getLogger(__name__)

GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device, by what they are for; ``activations`` is an estimate, the others are counted.

    ``casts``: copies of weights in the precision of the calls, as long as a gradient needs them. ``size``: latent
    height and width of the final size, where the most is held. ``tokens``: length of a prompt. ``waiting``: bytes in
    main memory, of what is not on the device all the time, page-locked tensors in the powers of two that PyTorch takes
    for them on CUDA; of an optimiser whose states come for a step alone, ``optimiser`` is what they need beyond the
    activations that are gone by then.
    """

    trained: int  # number of values of one trained network or adapter
    weights: dict  # by dtype
    gradients: int  # of one network: the other's are dropped before
    optimiser: int
    average: int
    casts: int
    activations: int
    waiting: int
    size: tuple
    tokens: int

    @property
    def total(self):
        """All parts on the device together: at most so much, as gradients and activations do not peak at once."""
        rest = (self.gradients, self.optimiser, self.average, self.casts, self.activations)
        return sum(self.weights.values()) + sum(rest)

    def rows(self):
        """(what, bytes) pairs of what is on the device, those that are zero left out."""
        height, width = self.size
        rows = [(f"weights in {dtype}", count) for dtype, count in self.weights.items()]
        rows += [
            ("gradients in float32", self.gradients),
            ("optimiser", self.optimiser),
            ("weight average in float32", self.average),
            ("weights cast to bfloat16 for a call", self.casts),
            (f"activations at {height}x{width}, estimated", self.activations),
        ]
        return [(what, count) for what, count in rows if count]

    def line(self):
        """The estimate in one line."""
        away = f", and {gib(self.waiting)} wait in main memory" if self.waiting else ""
        return ", ".join(f"{what} {gib(count)}" for what, count in self.rows()) + f": together {gib(self.total)}{away}"


def gib(count):
    """Bytes in words."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def estimate_memory(config, backbone, outline, *, size, tokens, spread=1):
    """The MemoryEstimate of a resolved configuration, for each process.

    ``outline``: the network on the meta device. ``size``: the final latent height and width. ``tokens``: the length of
    a prompt. ``spread``: the number of processes that networks are spread over. Not in it: the autoencoder of
    validation, the device's own library, fragmentation, and the block of a spread network that is brought together.
    """
    whole, waits = config.model.mode == "three networks", config.train.offload == "waiting"
    networks = dry_networks(config, backbone, outline)
    numel = sum(p.numel() for p in networks.trained)
    base = sum(p.numel() for p in outline.parameters())
    weights = _weights(config, networks, numel, base, spread)
    held = numel // spread if whole else numel  # adapters are not spread
    casts = 0
    if config.train.precision == "bfloat16":
        in_float32 = whole or config.model.base_dtype == "float32"
        casts = 2 * ((0 if whole else numel) + (base if in_float32 else 0)) * (2 if holds_both(config) else 1)
    activations = measure_activations(config, backbone, networks, size=size, tokens=tokens)
    states = 2 * optimiser_bytes(networks.trained, config.optimiser.kind) // (spread if whole else 1)
    average = 0 if config.train.ema is None else 4 * held
    waiting = activations.parked
    if waits:  # of three networks two are there at once, and the average is made in main memory
        waiting += _waiting(networks, outline, config) + (average if whole else 0)
        states, average = max(0, states // 2 + activations.waiting - activations.peak), 0 if whole else average
    return MemoryEstimate(
        trained=numel,
        weights=weights,
        gradients=4 * held,
        optimiser=states,
        average=average,
        casts=casts,
        activations=activations.peak,
        waiting=waiting,
        size=size,
        tokens=tokens,
    )


def _waiting(networks, outline, config):
    """Bytes of page-locked memory for both optimisers' states and, of three networks, for their weights."""
    states = sum(map(page_locked, state_sizes(networks.trained, config.optimiser.kind)))
    if config.model.mode == "adapters":
        return 2 * states
    sizes = [4 * p.numel() for p in outline.parameters()] + [buffer.nbytes for buffer in outline.buffers()]
    return 2 * states + 3 * sum(map(page_locked, sizes))


def _weights(config, networks, numel, base, spread):
    """Bytes of weights on the device by dtype, ``numel`` of an adapter and ``base`` of the network."""
    kind = config.model.base_dtype
    if config.model.mode == "three networks":
        return {"float32": 4 * base * (2 if config.train.offload == "waiting" else 3) // spread}
    if is_quantised(kind):
        layers = quantised_layers(networks.teacher)
        rest = base - sum(layer.in_features * layer.out_features for layer in layers)
        weights = {kind: sum(layer.weight.nbytes + layer.scales.nbytes for layer in layers)}
        weights[config.train.precision] = rest * _BYTES[config.train.precision]
    else:
        weights = {kind: base * _BYTES[kind] // spread}
    return weights | {"float32": weights.get("float32", 0) + 2 * 4 * numel}


def advice(config, available, estimated):
    """Overrides that make a run fit into ``available`` bytes: ``(overrides, estimate with all of them)``.

    ``estimated(config)`` is its MemoryEstimate. Those that change the training least come first. It may still not fit.
    """
    overrides, estimate = {}, estimated(config)
    for section, wanted in _savings(config):
        if estimate.total <= available:
            break
        part = getattr(config, section)
        new = {key: value for key, value in wanted.items() if getattr(part, key) != value}
        changed = config.model_copy(update={section: part.model_copy(update=new)}).resolved()
        try:
            better = estimated(changed)
        except RMDError:  # not for networks that are spread
            continue
        if better.total < estimate.total:
            overrides |= {f"{section}.{key}": str(value).lower() for key, value in new.items()}
            config, estimate = changed, better
    return [f"{key}={value}" for key, value in overrides.items()], estimate


def _savings(config):
    train, adapters = config.train, config.model.mode == "adapters"
    quantised = adapters and has_bitsandbytes()
    return (
        ("train", {"precision": "bfloat16"}),
        ("model", {"base_dtype": "bfloat16"} if adapters and not is_quantised(config.model.base_dtype) else {}),
        ("backbone", {} if config.backbone.gradient_checkpointing else {"gradient_checkpointing": True}),
        ("train", {"guidance_calls": "apart"}),
        ("backbone", {"gradient_checkpointing": "offload"}),
        ("train", {"offload": "waiting"}),
        ("train", {"batch": 1, "accumulation": train.batch * train.accumulation}),
        ("train", {"share_forward": False}),
        ("model", {"base_dtype": "int8"} if quantised and not is_quantised(config.model.base_dtype) else {}),
        ("optimiser", {"kind": "adamw8bit"} if has_bitsandbytes() else {}),
        ("model", {"base_dtype": "nf4"} if quantised else {}),
        ("model", {} if adapters else {"mode": "adapters", "base_dtype": "bfloat16"}),
    )


def tell_memory(config, estimated, available, device):
    """The estimate of a configuration, said in the log, with advice where ``available`` bytes are too few for it."""
    estimate = estimated(config)
    log.info("memory: %s, of %s on %s", estimate.line(), gib(available), device)
    if estimate.waiting > main_memory():
        log.warning(
            "warning: %s wait in main memory by this configuration, which has %s; undo train.offload or "
            "backbone.gradient_checkpointing: offload",
            *(gib(estimate.waiting), gib(main_memory())),
        )
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
    return main_memory(), "the CPU"


def main_memory():
    """The bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

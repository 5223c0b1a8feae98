"""What a run costs, counted before anything is loaded: forwards an update, and the memory that can be counted exactly.

Weights, gradients, optimiser states and the weight average are counted to the byte from the network's outline.
Activations, and the bfloat16 copies of float32 weights that autocast makes, come on top: they are not predicted here.
"""

import contextlib
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

from rmd_core.errors import RMDError

from .lora import adapted_layers
from .networks import state_sizes
from .offload import page_locked
from .parallel import check_sharding
from .quantised import BLOCK, has_bitsandbytes, is_quantised, packed_bytes, quantisable_layers

log = logging.getLogger(__name__)

GIB = 2**30
GRADIENT = 3.0  # forward and backward, in forwards
CHECKPOINTED = 4.0  # the same with activations computed twice
_BYTES = {"float32": 4, "bfloat16": 2}
_CONTAINER_LIMITS = (  # of cgroup v2 and v1, as a container sees its own
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True)
class UpdateCost:
    """Forwards at the final size, for one sample of one update."""

    trajectory: float
    student: float
    fake: float
    score_queries: float  # teacher and fake score, queried for the student's loss

    @property
    def total(self):
        """All parts together."""
        return self.trajectory + self.student + self.fake + self.score_queries


def update_cost(plan, relative_cost, *, cfg, fake_steps=1, shared=True, accumulation=1, checkpointing=False):
    """The mean cost of an update after the warm-up; ``relative_cost(height, width)`` is 1 at the final size.

    With ``accumulation`` above 1 the phases share trajectories, but not forwards.
    Source: docs/method/method.md, cost of one update.
    """
    gradient = CHECKPOINTED if checkpointing else GRADIENT
    before, reached, forward = 0.0, [], []
    for stage in plan.stages:
        cost = relative_cost(stage.height, stage.width)
        steps = len(stage.sigmas)
        reached.append(sum(before + cost * i for i in range(steps)) / steps)
        forward.append(cost)
        before += cost * steps
    to_step, at_step = sum(reached) / len(reached), sum(forward) / len(forward)
    own_trajectory = fake_steps - 1 if shared else fake_steps  # fake phases that share none with the student's phase
    own_forward = own_trajectory if accumulation == 1 else fake_steps
    return UpdateCost(
        trajectory=to_step * (own_trajectory + 1),
        student=at_step * (own_forward + gradient),
        fake=gradient * fake_steps,
        score_queries=(2.0 if cfg != 1.0 else 1.0) + 1.0,
    )


def forward_costs(backbone, network, plan, *, frames, tokens):
    """(FLOP of a forward of one sample at the final size, the ``relative_cost`` function of ``update_cost``)."""
    final = backbone.flops(network, *plan.final_hw, frames, tokens)

    @cache
    def relative_cost(height, width):
        return backbone.flops(network, height, width, frames, tokens) / final

    return final, relative_cost


@dataclass(frozen=True)
class Memory:
    """Bytes on the device at an optimiser's step, without activations: the least that a run needs.

    ``waiting``: bytes in system memory of what is not on the device all the time (``train.offload``), page-locked
    tensors in the powers of two that PyTorch takes for them on CUDA.
    """

    trained: int  # number of values of one trained network or adapter
    weights: dict  # by dtype
    gradients: int  # of one network: the other's are dropped before
    optimiser: int
    average: int
    waiting: int

    @property
    def total(self):
        """All parts on the device together."""
        return sum(count for _, count in self.rows())

    def rows(self):
        """(what, bytes) pairs of what is on the device, those that are zero left out."""
        rows = [
            *((f"weights in {dtype}", count) for dtype, count in self.weights.items()),
            ("gradients in float32", self.gradients),
            ("optimiser", self.optimiser),
            ("weight average in float32", self.average),
        ]
        return [(what, count) for what, count in rows if count]

    def line(self):
        """All of it in one line."""
        parts = ", ".join(f"{what} {gib(count)}" for what, count in self.rows())
        waiting = f", and {gib(self.waiting)} wait in system memory" if self.waiting else ""
        return f"{parts}: together {gib(self.total)}{waiting}; activations come on top"


def gib(count):
    """Bytes in words."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def count_memory(config, backbone, outline, *, shards=1):
    """The Memory of a resolved configuration, for each process.

    ``outline``: the network on the meta device. ``shards``: the number of processes that networks are sharded over.
    Raises RMDError for adapters on layers that cannot have one.
    """
    whole, waits = config.model.mode == "three networks", config.train.offload == "waiting"
    there = outline.get_submodule(backbone.experts[0]) if waits and backbone.experts else outline
    if whole:
        trained = [p.numel() for p in outline.parameters()]
    else:
        layers = adapted_layers(outline, config.model.targets or backbone.adapter_targets).values()
        rank = config.model.rank
        trained = [count for w in (x.weight for x in layers) for count in (rank * w[0].numel(), rank * w.shape[0])]
    numel = sum(trained)
    share = shards if whole else 1  # adapters are whole in every process
    states = state_sizes(trained, config.optimiser.kind)
    tables = 2 * 4 * 256 if config.optimiser.kind == "adamw8bit" else 0
    optimiser = 2 * (tables + sum(states)) // share
    average = 0 if config.train.ema is None else 4 * numel // share
    weights, waiting = _weights(config, backbone, there, numel, shards), 0
    if waits:
        optimiser //= 2
        waiting = 2 * sum(map(page_locked, states))
        if backbone.experts:
            tensors = [count for _, count in _base_tensors(config, backbone, there)]
            tensors += [buffer.nbytes for buffer in there.buffers()]
            waiting += len(backbone.experts) * sum(map(page_locked, tensors))
        if whole:  # the student waits for its own step while a shared forward has a graph; the average is made away
            weights = {"float32": 4 * numel * (2 if shares_graph(config) else 1)}
            tensors = [4 * count for count in trained] + [buffer.nbytes for buffer in outline.buffers()]
            waiting += 3 * sum(map(page_locked, tensors)) + average
            average = 0
    return Memory(numel, weights, 4 * numel // share, optimiser, average, waiting)


def shares_graph(config):
    """Whether the student's forward, with its graph, is there while the fake score trains."""
    return config.train.share_forward and config.train.accumulation == 1


def _base_tensors(config, backbone, outline):
    """(dtype, bytes) of each weight of a frozen base; a quantised one is two tensors."""
    kind, plain, packed = config.model.base_dtype, config.model.base_dtype, {}
    if is_quantised(kind):
        plain, targets = config.train.precision, config.model.targets or backbone.adapter_targets
        packed = {f"{name}.weight": layer.weight.numel() for name, layer in quantisable_layers(outline, targets)}
    found = []
    for count in packed.values():
        scales = 4 * -(-count // BLOCK)
        found += [(kind, scales), (kind, packed_bytes(count, kind) - scales)]
    return found + [(plain, _BYTES[plain] * p.numel()) for name, p in outline.named_parameters() if name not in packed]


def _weights(config, backbone, outline, numel, shards):
    """Bytes of weights by dtype where nothing waits; ``numel``: values of a trained network or adapter."""
    if config.model.mode == "three networks":
        return {"float32": 3 * 4 * numel // shards}
    weights = {}
    for dtype, count in _base_tensors(config, backbone, outline):
        weights[dtype] = weights.get(dtype, 0) + count
    weights = {dtype: count // shards for dtype, count in weights.items()}
    return weights | {"float32": weights.get("float32", 0) + 2 * 4 * numel}


def advice(config, available, backbone, outline, *, shards=1):
    """Overrides that make what is counted fit into ``available`` bytes: ``(overrides, Memory with all of them)``.

    Those that change the training least come first. It may still not fit. Other arguments as ``count_memory``.
    """
    overrides, memory = {}, count_memory(config, backbone, outline, shards=shards)
    for section, values in _savings(config):
        if memory.total <= available:
            break
        part = getattr(config, section)
        new = {key: value for key, value in values.items() if getattr(part, key) != value}
        changed = config.model_copy(update={section: part.model_copy(update=new)}).resolved()
        try:
            if shards > 1:
                check_sharding(changed)
        except RMDError:
            continue
        smaller = count_memory(changed, backbone, outline, shards=shards)
        if smaller.total < memory.total:
            overrides |= {f"{section}.{key}": value for key, value in new.items()}
            config, memory = changed, smaller
    return [f"{key}={value}" for key, value in overrides.items()], memory


def _savings(config):
    adapters, packed = config.model.mode == "adapters", is_quantised(config.model.base_dtype)
    if adapters and not packed:
        yield "model", {"base_dtype": "bfloat16"}
    yield "train", {"offload": "waiting"}
    if adapters and has_bitsandbytes() and not packed:
        yield "model", {"base_dtype": "int8"}
    if has_bitsandbytes():
        yield "optimiser", {"kind": "adamw8bit"}
    if adapters and has_bitsandbytes():
        yield "model", {"base_dtype": "nf4"}
    if not adapters:
        yield "model", {"mode": "adapters", "base_dtype": "bfloat16"}


def log_memory(config, backbone, outline, *, shards=1):
    """Log the Memory of a configuration, with advice where the device has too little for it; returns it.

    Arguments and errors as ``count_memory``.
    """
    available, device = device_memory(config.train.device)
    memory = count_memory(config, backbone, outline, shards=shards)
    log.info("memory: %s; there is %s on %s", memory.line(), gib(available), device)
    if memory.waiting > system_memory():
        log.warning(
            "warning: this configuration keeps %s in system memory, which has %s; turn off train.offload",
            *(gib(memory.waiting), gib(system_memory())),
        )
    if memory.total > available:
        overrides, better = advice(config, available, backbone, outline, shards=shards)
        way = f"--set {' --set '.join(overrides)} needs {gib(better.total)}" if overrides else "use a smaller model"
        if overrides and better.total > available:
            way += ", still too much: use a larger device"
        log.warning("warning: this run will not fit into the memory of %s, even without activations; %s", device, way)
    return memory


def device_memory(device):
    """(bytes, name) of the device that ``train.device`` means: what is free on a GPU, all of the system memory else."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    return system_memory(), "the CPU"


def system_memory():
    """The bytes of system memory (RAM), or of what this process's container (cgroup) may take of it."""
    limits = [psutil.virtual_memory().total]
    for path in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is no such file, or "max" is in it
            limits.append(int(path.read_text(encoding="ascii")))
    return min(limits)


def cost_of_run(setup):
    """(UpdateCost of a run's configuration, FLOP of a forward at the final size, FLOP of sampling an image)."""
    config, train = setup.config, setup.config.train
    frames, tokens = config.plan.frames, setup.cache.tokens
    final, relative = forward_costs(setup.backbone, setup.teacher, setup.plan, frames=frames, tokens=tokens)
    cost = update_cost(
        setup.plan,
        relative,
        cfg=config.loss.cfg,
        fake_steps=train.fake_steps,
        shared=train.share_forward,
        accumulation=train.accumulation,
        checkpointing=config.backbone.gradient_checkpointing,
    )
    return cost, final, final * sum(setup.plan.step_costs(relative))


def dry_run_report(setup, *, processes=1):
    """The plan, the parameter counts, the expected cost of an update and the memory, as text."""
    config, backbone, teacher, memory = setup.config, setup.backbone, setup.teacher, setup.memory
    height, width = setup.plan.final_hw
    train = config.train
    ours, final, sampling = cost_of_run(setup)
    factors = [train.batch, train.accumulation, *([processes] if processes > 1 else [])]
    batch = train.batch * train.accumulation * processes
    flops = ours.total * final * batch
    count = sum(parameter.numel() for parameter in teacher.parameters())
    if config.model.mode == "three networks":
        parameters = f"{count:,} each for the student, the fake score and the frozen teacher"
    else:
        parameters = f"{count:,} in the frozen base, {memory.trained:,} in each of the two adapters"
    available, device = device_memory(train.device)
    rows = [*memory.rows(), ("together; activations come on top", memory.total), (f"there is on {device}", available)]
    if memory.waiting:
        rows.append(("waits in system memory", memory.waiting))
    titles = ["memory", *[""] * (len(rows) - 1)]
    return "\n".join(
        [
            setup.plan.table(),
            *(f"note: {note}" for note in (*(note.text() for note in setup.plan.notes), *setup.intervals.notes)),
            "",
            f"backbone    {backbone.name}, {config.backbone.base}",
            f"parameters  {parameters}",
            f"prompts     {len(setup.prompts):,}, encoder {setup.cache.encoder}",
            f"batch       {' x '.join(map(str, factors))} = {batch} samples an update",
            f"updates     {train.updates}, of which {train.fake_only_updates} train the fake score alone "
            f"and {train.warmup_updates} sample every stage but the last",
            f"cost        {ours.total:.2f} forwards at {height}x{width} a sample and update: trajectory "
            f"{ours.trajectory:.2f}, student {ours.student:.2f}, fake score {ours.fake:.2f}, "
            f"teacher and fake score for the student {ours.score_queries:.2f}",
            f"            {final / 1e9:.3g} GFLOP a forward, {flops / 1e12:.3g} TFLOP an update",
            f"sampling    {sampling / final:.2f} forwards an image",
            *(f"{title:<11} {gib(count):>10}  {what}" for title, (what, count) in zip(titles, rows)),
        ]
    )

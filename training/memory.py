"""What one update costs, in forwards of the network at the final size.
How much memory a computation holds at most: counted while it runs, on tensors with or without data.
How a network is called on a device, on tensors without data: fused attention, and autocast as PyTorch has it.
The activations of an update: one pass of each kind through the networks, on tensors without data.
The memory of a run, told before anything is loaded.
The report of ``--dry-run``: the plan, the parameters, the cost of an update and the memory."""

import contextlib
import logging
import math
import os
import weakref
from collections import Counter
from dataclasses import dataclass
from functools import cache

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rmd_core.errors import RMDError
from rmd_core.losses import fake_score_loss

from .networks import adapt, adapted_layers, optimiser_bytes, state_sizes
from .objective import Guidance, estimate_x0_eps
from .offload import Recomputing, page_locked
from .quantised import has_bitsandbytes, is_quantised, quantise, quantised_layers

GRADIENT = 3.0  # forward and backward, in forwards
CHECKPOINTED = 4.0  # the same with activations computed twice


@dataclass(frozen=True)
class UpdateCost:
    """Forwards at the final size, for one sample of one update."""

    trajectory: float
    student: float
    fake: float
    judges: float  # teacher and fake score, queried for the student's loss

    @property
    def total(self):
        """All parts together."""
        return self.trajectory + self.student + self.fake + self.judges


def update_cost(plan, relative_cost, *, cfg, fake_steps=1, shared=True, accumulation=1, checkpointing=False):
    """The mean cost of an update after the warm-up; ``relative_cost(height, width)`` is 1 at the final size.

    With ``accumulation`` above 1 the phases share trajectories, but not forwards (docs/training.md).
    """
    per_stage = [[relative_cost(stage.height, stage.width)] * len(stage.sigmas) for stage in plan.stages]
    gradient = CHECKPOINTED if checkpointing else GRADIENT
    before, reached, forward = 0.0, [], []
    for costs in per_stage:
        reached.append(sum(before + sum(costs[:i]) for i in range(len(costs))) / len(costs))
        forward.append(costs[0])
        before += sum(costs)
    to_step, at_step = sum(reached) / len(reached), sum(forward) / len(forward)
    own_trajectory = fake_steps - 1 if shared else fake_steps  # fake phases that share none with the student's phase
    own_forward = own_trajectory if accumulation == 1 else fake_steps
    return UpdateCost(
        trajectory=to_step * (own_trajectory + 1),
        student=at_step * (own_forward + gradient),
        fake=gradient * fake_steps,
        judges=(2.0 if cfg != 1.0 else 1.0) + 1.0,
    )


def plain_cost(plan, relative_cost, *, cfg, fake_steps=1, checkpointing=False):
    """The same for the plain loop: the whole cascade every time, and a student forward in each phase."""
    per_stage = [relative_cost(stage.height, stage.width) for stage in plan.stages]
    gradient = CHECKPOINTED if checkpointing else GRADIENT
    at_step = sum(per_stage) / len(per_stage)
    return UpdateCost(
        trajectory=plan.cost(relative_cost) * fake_steps,
        student=at_step * (fake_steps + gradient),
        fake=gradient * fake_steps,
        judges=(2.0 if cfg != 1.0 else 1.0) + 1.0,
    )


class LiveMemory(TorchDispatchMode):
    """Within the block, ``live`` and ``peak`` count the bytes of tensors that were made there.

    Views count once with what they look at. What existed before the block does not count. Where it runs on tensors
    without data, the bytes are those that it would take with data.
    """

    def __init__(self):
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes = {}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        before = {_key(tensor) for tensor in _tensors((arguments, named))}
        result = function(*arguments, **(named or {}))
        for tensor in _tensors(result):
            if _key(tensor) not in before:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage):
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key):
        self.live -= self._sizes.pop(key, 0)


class FusedAttention(TorchFunctionMode):
    """Within the block attention has the memory of a fused kernel, which never holds the table of all pairs.

    Without data PyTorch would take the plain formula. For tensors without data only; a backward pass leaves the block.
    """

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*arguments, **(named or {}))
        return function(*arguments, **(named or {}))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(context, query, key, value):
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, result, sums)
        return result

    @staticmethod
    def backward(context, gradient):
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


def _attention(query, key, value, *_, **__):
    return _Fused.apply(query, key, value)


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _key(tensor):
    return tensor.untyped_storage()._cdata


_F = torch.nn.functional
_IN_BFLOAT16 = {
    *(_F.linear, _F.conv1d, _F.conv2d, _F.conv3d, _F.scaled_dot_product_attention),
    *(torch.matmul, torch.bmm, torch.baddbmm, torch.Tensor.matmul, torch.Tensor.__matmul__),
}
_IN_FLOAT32_ON_CUDA = {_F.layer_norm, _F.group_norm, _F.rms_norm, _F.softmax, torch.softmax, torch.Tensor.softmax}


class DryAutocast(TorchFunctionMode):
    """Within the block calls cast their tensors as under autocast to bfloat16, which tensors without data lack.

    ``on_cuda``: norms and softmax give float32, as autocast for CUDA has it and the one for the CPU has not. Source:
    PyTorch's autocast op reference; other operations of that list are of no weight in the networks here.
    """

    def __init__(self, *, on_cuda):
        super().__init__()
        self._float32 = _IN_FLOAT32_ON_CUDA if on_cuda else set()

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = named or {}
        if function in _IN_BFLOAT16:
            arguments, named = _cast(arguments, named, torch.bfloat16)
        elif function in self._float32:
            arguments, named = _cast(arguments, named, torch.float32)
        return function(*arguments, **named)


class DryCalls:
    """The modes in which a resolved configuration calls its networks."""

    def __init__(self, config):
        self.autocast = config.train.precision == "bfloat16"
        self._on_cuda = config.train.device != "cpu"

    @contextlib.contextmanager
    def entered(self):
        """A block in which calls take the memory that they have in the run."""
        with FusedAttention(), DryAutocast(on_cuda=self._on_cuda) if self.autocast else contextlib.nullcontext():
            yield

    def wrap(self, block):
        """The block as it is called, for a recomputation: the backward pass leaves ``entered``."""

        def call(*inputs):
            with self.entered():
                return block(*inputs)

        return call


def _cast(arguments, named, dtype):
    return [_as(value, dtype) for value in arguments], {name: _as(value, dtype) for name, value in named.items()}


def _as(value, dtype):
    wanted = isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return value.to(dtype) if wanted else value


@dataclass(frozen=True)
class DryNetworks:
    """Fake score and teacher on the meta device, in the precision of their calls, and one role's parameters."""

    fake: object
    teacher: object
    trained: list
    recomputing: Recomputing
    calls: DryCalls


@dataclass(frozen=True)
class Activations:
    """Bytes on the device beyond weights and gradients; ``parked``: most bytes of main memory for block inputs.

    ``peak``: the most that an update holds. ``waiting``: what the student's pass holds while the fake score trains.
    """

    peak: int
    waiting: int
    parked: int


def dry_networks(config, backbone, outline):
    """The DryNetworks of a resolved configuration."""
    calls, whole = DryCalls(config), config.model.mode == "three networks"
    calls_in = config.train.precision
    if not whole and calls_in == "float32" and not is_quantised(config.model.base_dtype):
        calls_in = config.model.base_dtype
    recomputing = Recomputing(config.backbone.gradient_checkpointing, calls.wrap)
    with torch.device("meta"):
        network = type(outline).from_config(outline.config).eval()
        torch.nn.Module.to(network, getattr(torch, calls_in))
        if config.backbone.gradient_checkpointing:
            network.enable_gradient_checkpointing(recomputing)
        if whole:
            return DryNetworks(network, network, list(network.requires_grad_(True).parameters()), recomputing, calls)
        if is_quantised(config.model.base_dtype):
            quantise(network, config.model.base_dtype, targets=adapted_layers(config.model, backbone), device="meta")
        adapted = adapt(network, backbone, config.model)
        trained = list(adapted.adapters["fake"].parameters())
        if calls.autocast:  # by which adapters are cast
            adapted.leave_casts_to_autocast()
            for parameter in trained:
                parameter.data = parameter.data.to(torch.bfloat16)
    return DryNetworks(adapted.seen_with("fake"), adapted.seen_with(None), trained, recomputing, calls)


def measure_activations(config, backbone, networks, *, size, tokens):
    """The Activations of an update at the latent ``size`` (height, width), with prompts of ``tokens``."""
    batch, curve = config.train.batch, backbone.curve
    blank = backbone.blank_conditioning(networks.teacher, tokens, "meta")
    conditioning = {name: row.expand(batch, *row.shape[1:]) for name, row in blank.items()}
    sigma = torch.full((batch,), 0.5, dtype=torch.float64)
    levels = {"alpha": curve.alpha(sigma), "sigma": sigma}
    state = torch.empty(*backbone.latent_shape(batch, config.plan.frames), *size, device="meta")

    def x0_of(network, guidance=None):
        return estimate_x0_eps(backbone, network, state, sigma, conditioning, curve=curve, guidance=guidance)[0]

    hooks = [parameter.register_post_accumulate_grad_hook(_drop) for parameter in networks.trained]
    with networks.calls.entered(), LiveMemory() as both_ways:
        x0 = x0_of(networks.fake)
        held = both_ways.live
        fake_score_loss(x0, state, **levels, weighting=config.loss.fake_weighting).backward()
        del x0
    for hook in hooks:
        hook.remove()
    guidance = Guidance(config.loss.cfg, conditioning, config.train.guidance_calls)
    with torch.no_grad(), networks.calls.entered(), LiveMemory() as one_way:
        x0_of(networks.teacher, None if config.loss.cfg == 1.0 else guidance)
    # The student's pass waits while the fake score trains, or else while the teacher is asked.
    waiting, passes = (held, 2) if holds_both(config) else (0, 1)
    peak = max(held + one_way.peak, waiting + both_ways.peak)
    shares = [math.prod(smaller) / math.prod(size) for smaller in config.plan.sizes]
    return Activations(peak, waiting, _page_locked_inputs(networks.recomputing.parked, shares) * passes)


def holds_both(config):
    """Whether the student's activations are held while the fake score trains."""
    return config.train.share_forward and config.train.accumulation == 1


def _page_locked_inputs(parked, shares):
    """The most bytes for ``parked`` inputs and for them at every stage, whose tensors are ``shares`` as large.

    What a stage is done with is kept for others of the same rounded size alone. Inputs that are as large at every
    stage (text, times) are small, and counted as if they were not.
    """
    most = Counter()
    for share in shares:
        asked = Counter()
        for count, number in parked.items():
            asked[page_locked(math.ceil(count * share))] += number
        most |= asked
    return sum(count * number for count, number in most.items())


def _drop(parameter):
    parameter.grad = None


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


def dry_run_report(setup, *, processes=1):
    """The plan, the parameter counts and the expected cost of an update, as text."""
    config, backbone, teacher = setup.config, setup.backbone, setup.teacher
    height, width = setup.plan.final_hw
    frames, tokens = config.plan.frames, setup.cache.tokens
    final = backbone.flops(teacher, height, width, frames, tokens)

    @cache
    def relative(h, w):
        return backbone.flops(teacher, h, w, frames, tokens) / final

    count = backbone.parameters(teacher)
    common = {"cfg": config.loss.cfg, "fake_steps": config.train.fake_steps}
    common["checkpointing"] = config.backbone.gradient_checkpointing
    sharing = {"shared": config.train.share_forward, "accumulation": config.train.accumulation}
    ours = update_cost(setup.plan, relative, **sharing, **common)
    plain = plain_cost(setup.plan, relative, **common)
    batch = config.train.batch * config.train.accumulation * processes
    factors = [config.train.batch, config.train.accumulation, *([processes] if processes > 1 else [])]
    flops = ours.total * final * batch
    return "\n".join(
        [
            setup.plan.table(),
            *(f"note: {note}" for note in (*(note.text() for note in setup.plan.notes), *setup.intervals.notes)),
            "",
            f"backbone    {backbone.name}, {config.backbone.base}",
            f"parameters  {_parameters(setup, count)}",
            f"prompts     {len(setup.prompts):,}, encoder {setup.cache.encoder}",
            f"batch       {' x '.join(map(str, factors))} = {batch} samples an update",
            f"updates     {config.train.updates}, of which {config.train.fake_only_updates} train the fake score alone "
            f"and {config.train.warmup_updates} draw every stage but the last",
            f"cost        {ours.total:.2f} forwards at {height}x{width} a sample and update: trajectory "
            f"{ours.trajectory:.2f}, student {ours.student:.2f}, fake score {ours.fake:.2f}, "
            f"teacher and fake score for the student {ours.judges:.2f}",
            f"            ({plain.total:.2f} with whole trajectories and separate student forwards)",
            f"            {final / 1e9:.3g} GFLOP a forward, {flops / 1e12:.3g} TFLOP an update",
            f"sampling    {setup.plan.cost(relative):.2f} forwards a picture",
            *_memory(setup),
        ]
    )


def _parameters(setup, count):
    if setup.config.model.mode == "three networks":
        return f"{count:,} each for the student, the fake score and the frozen teacher"
    return f"{count:,} in the frozen base, {setup.memory.trained:,} in each of the two adapters"


def _memory(setup):
    available, device = device_memory(setup.config.train.device)
    rows = [*setup.memory.rows(), ("together", setup.memory.total)]
    titles = ["memory", *[""] * (len(rows) - 1)]
    lines = [f"{title:<11} {gib(count):>10}  {what}" for title, (what, count) in zip(titles, rows)]
    lines.append(f"            {gib(available):>10}  there is on {device}")
    if setup.memory.waiting:
        lines.append(f"            {gib(setup.memory.waiting):>10}  waits in main memory")
    return lines

"""Student, fake score and teacher of a run, as three full networks or as adapters on one frozen base.

With their optimisers (AdamW, plain or with moments in 8 bits) and the student's weight average; all of it can be saved
as plain tensors, sharded over processes, or wait in system memory until it is needed.
"""

import contextlib
import copy
import math
from abc import ABC, abstractmethod

import torch

from rmd_core.errors import RMDError

from .backbones.files import build, without_weights
from .export import export_lora, export_student
from .hub import local_path
from .lora import AdaptedNetwork
from .offload import NetworkOffloader, OffloadedOptimiser, Recomputing
from .parallel import copy_into, gather_full, local, materialise, same_shapes, shard, shard_like, split_sequences
from .quantised import bitsandbytes_for, is_quantised, quantise
from .speed import speed_up

ROLES = ("student", "fake")
_TABLES = ("qmap1", "qmap2")  # of the 8-bit moments: the same 256 values for all


def make_networks(setup, processes):
    """The Networks of the configured mode, on this process's device. They take over ``setup.teacher``."""
    kind = AdapterNetworks if setup.config.model.mode == "adapters" else ThreeNetworks
    return kind(setup, processes)


class Networks(ABC):
    """Student, fake score and teacher with their optimisers and, where asked for, the student's weight average.

    ``student``, ``fake``, ``teacher``: what a backbone predicts with. ``trained``: for the student and the fake score,
    an object with the ``parameters``, ``named_parameters`` and ``state_dict`` of what is trained.
    """

    def __init__(self, setup, processes):
        self.setup = setup
        self.config = setup.config
        self.processes = processes
        self.waits = self.config.train.offload == "waiting"  # in system memory, what is not needed
        self.offloader = None  # of networks that wait
        self.trained, calls = self._make(setup.teacher)
        if processes.one_loads:
            for source in (setup.teacher, setup.start):
                if isinstance(source, torch.nn.Module):
                    source.to("meta")  # the networks are others, and a setup keeps these
        self.student, self.fake, self.teacher = (calls[name] for name in ("student", "fake", "teacher"))
        settings, ema = self.config.optimiser, self.config.train.ema
        rates = {"student": settings.student_lr, "fake": settings.fake_lr}
        self.optimisers = {
            role: make_optimiser(self.trained[role], lr=rates[role], settings=settings) for role in ROLES
        }
        self.average = None if ema is None else WeightAverage(self.trained["student"], ema)
        self._states = None
        if self.waits:
            self._states = {role: OffloadedOptimiser(self.optimisers[role], processes.device) for role in ROLES}

    @abstractmethod
    def _make(self, teacher):
        """(``trained``, the three networks by name), made of the loaded teacher, which may be taken over."""

    def _prepared(self, network):
        """A network, made ready for calls that are fast and, where asked for, divide their sequences."""
        network = speed_up(network, self.config.train)
        return split_sequences(network, self.processes, self.setup.backbone, self.config.plan)

    def _received(self, source, device):
        """A loaded network on ``device``: the same one where each process loads its own, else as process 0 has it."""
        if not self.processes.one_loads:
            return source.to(device)
        network = materialise(self._like(source), device)
        self.processes.fill(network.state_dict(), source.state_dict())
        return network.requires_grad_(False)

    def _like(self, network):
        """A network like one that process 0 has loaded, without weights, in the same types; to be filled later."""
        types = self.processes.gather({name: tensor.dtype for name, tensor in _all_tensors(network)})[0]
        empty = without_weights(type(network), network.config)
        for name, tensor in _all_tensors(empty):
            tensor.data = tensor.data.to(types[name])
        return empty.eval()

    @abstractmethod
    def export(self, path, *, update):
        """Write the student as a file that ComfyUI loads, as it is now. Raises RMDError."""

    def set_rates(self, update):
        """Give both optimisers their rates for an update, counted from 1; returns ``{"lr_student": rate, ...}``."""
        settings, train = self.config.optimiser, self.config.train
        rates = {}
        for role, rate in {"student": settings.student_lr, "fake": settings.fake_lr}.items():
            own = update - train.fake_only_updates if role == "student" else update
            rates[f"lr_{role}"] = rate * rate_factor(settings, own, update, train.updates)
            for group in self.optimisers[role].param_groups:
                group["lr"] = rates[f"lr_{role}"]
        return rates

    def step(self, role):
        """Step and clear the optimiser of a role."""
        self._rest()
        with self._states[role].on_device() if self._states else contextlib.nullcontext():
            self.optimisers[role].step()
        self.skip(role)

    def skip(self, role):
        """Clear the gradients of a role without a step."""
        self.optimisers[role].zero_grad()
        if self.offloader is not None:
            self.offloader.stepped(role)

    def _rest(self):
        """Let networks that nothing needs wait in system memory."""
        if self.offloader is not None:
            self.offloader.clear()

    @contextlib.contextmanager
    def averaged(self):
        """Within the block the student has its averaged weights, if there is an average; gives the student."""
        if self.average is None:
            yield self.student
        else:
            self._rest()
            with self.average.applied_to(self.trained["student"]):
                yield self.student

    def update_ema(self):
        """To be called after each step of the student: takes its weights into the average."""
        if self.average is not None:
            self._rest()
            self.average.update(self.trained["student"])

    def state(self):
        """What a checkpoint is made of, as it is now: ``{part: {name: tensor}}``."""
        parts = {role: self.trained[role].state_dict() for role in ROLES}
        parts |= {f"{role}_optimiser": optimiser_tensors(self.optimisers[role]) for role in ROLES}
        return parts if self.average is None else parts | {"average": self.average.tensors}

    def load(self, checkpoint):
        """Continue from a Checkpoint. Raises RMDError for one of other networks."""
        self._rest()
        for role in ROLES:
            weights = self.trained[role].state_dict()
            if not same_shapes(checkpoint.parts[role], weights):
                raise RMDError(
                    f"{checkpoint.path}: its {role} does not fit the teacher {self.config.backbone.base}; "
                    "delete that folder to resume from the checkpoint before"
                )
            for name, tensor in weights.items():
                copy_into(tensor, checkpoint.parts[role][name])
            load_optimiser_tensors(self.optimisers[role], checkpoint.parts[f"{role}_optimiser"], checkpoint.path)
            if self._states:
                self._states[role].pin()
        if self.average is not None:
            self.average.load(checkpoint.parts["average"], checkpoint.path)


class ThreeNetworks(Networks):
    """Three networks of one architecture; all weights of student and fake score are trained."""

    def _make(self, teacher):
        self._kind = type(teacher)
        start = self.setup.start or teacher
        fake = start if self.config.model.init_fake == "student" else teacher
        sources = {"student": start, "fake": fake, "teacher": teacher}
        networks = self._sharded(sources) if self.processes.sharded else self._whole_networks(sources)
        trained = {role: networks[role] for role in ROLES}
        # The teacher stays float32 and runs under the same autocast: at equal weights F and R must agree.
        calls = {name: self.processes.autocast(network) for name, network in networks.items()}
        if self.waits:
            self.offloader = NetworkOffloader(networks, self.processes.device, frozen=("teacher",))
            calls = {name: self.offloader.hooked(name, networks[name], call) for name, call in calls.items()}
        return trained, calls

    def _whole_networks(self, sources):
        """The networks whole; copies are made on the device, so that system memory has each source once."""
        device = "cpu" if self.waits else self.processes.device
        received = {source: self._received(source, device) for source in dict.fromkeys(sources.values())}
        networks = {"teacher": received[sources["teacher"]]}
        for role in ROLES:
            network = received[sources[role]]
            taken = any(network is other for other in networks.values())
            networks[role] = copy.deepcopy(network) if taken else network
        for role in ROLES:
            self._train(networks[role])
        return {role: self._prepared(network) for role, network in networks.items()}

    def _sharded(self, sources):
        """The networks sharded: process 0 has loaded the sources, the others get their shards of it."""
        networks, travel = {}, torch.bfloat16 if self.config.train.precision == "bfloat16" else None
        for role, source in sources.items():
            network = self._prepared(self._like(source))
            if role in ROLES:
                self._train(network)
            networks[role] = materialise(shard(network, self.processes, travel=travel), self.processes.device)
            self.processes.fill(networks[role].state_dict(), source.state_dict())
        return networks

    def _train(self, network):
        network.requires_grad_(True)
        setting = self.config.backbone.gradient_checkpointing
        if setting:
            network.enable_gradient_checkpointing(Recomputing(setting))

    def export(self, path, *, update):
        student = self.trained["student"]
        if self.processes.sharded:
            student = self._gathered(student)
        if self.processes.main:
            export_student(self.setup, student, path, update=update)

    def _gathered(self, network):
        """A network that is sharded, whole on the CPU of process 0; to be asked for by all processes together."""
        weights = {}
        for name, tensor in network.state_dict().items():
            tensor = gather_full(tensor)
            if self.processes.main:
                weights[name] = tensor.cpu()
        if not self.processes.main:
            return None
        return build(self._kind, network.config, weights)


class AdapterNetworks(Networks):
    """The memory of one model and two adapters; only the adapters are trained."""

    def _make(self, teacher):
        device, sharded = self.processes.device, self.processes.sharded
        backbone, settings, train = self.setup.backbone, self.config.model, self.config.train
        checkpointing = self.config.backbone.gradient_checkpointing
        if is_quantised(settings.base_dtype):
            targets = settings.targets or backbone.adapter_targets
            quantise(teacher, settings.base_dtype, targets=targets, device=device)
        experts = backbone.experts if self.waits else ()  # of which one at a time is on the device
        network = self._like(teacher) if sharded else self._received(teacher, "cpu" if experts else device)
        self.base = adapt(network, backbone, settings, seed=train.seed, start=self.setup.start)
        if checkpointing:
            self.base.enable_gradient_checkpointing(checkpointing)
        if train.precision == "bfloat16":
            self.base.leave_casts_to_autocast()
        self._prepared(self.base.network)
        trained = self.base.adapters
        own = [parameter for adapter in trained.values() for parameter in adapter.parameters()]
        for parameter in own if sharded or experts else ():
            parameter.data = parameter.data.to(device)
        if experts:
            parts = {name: network.get_submodule(name) for name in experts}
            network.wait(NetworkOffloader(parts, device, frozen=experts, stay=own))
        if sharded:  # the base alone; adapters are small, and whole in every process
            materialise(shard(self.base.network, self.processes, whole=own), device)
            self.processes.fill(self.base.base_state(), teacher.state_dict())
        call = self.processes.autocast(self.base.network)
        adapters = {"student": "student", "fake": "fake", "teacher": None}
        return trained, {name: self.base.with_adapter(adapter, call) for name, adapter in adapters.items()}

    def export(self, path, *, update):
        main, quantised = self.processes.main, is_quantised(self.config.model.base_dtype)
        if not self.config.output.merge:
            if main:
                export_lora(self.setup, self.base.network, self.base.lora("student"), path, update=update)
        elif main or not quantised:  # a quantised base is never spread, so no process waits for this one
            plain = None
            if quantised:  # the base as it was before, read again
                plain = self.setup.backbone.load(local_path(self.config.backbone.base), dtype=torch.float32)
            merged = self.base.merged("student", dtype=getattr(torch, self.config.output.dtype), base=plain)
            if main:
                export_student(self.setup, merged, path, update=update)


def _all_tensors(network):
    """(name, tensor) pairs of a network's parameters and buffers, also of those that no state dict has."""
    return *network.named_parameters(), *network.named_buffers()


def adapt(network, backbone, settings, *, seed=0, start=None):
    """An AdaptedNetwork with the adapters of student and fake score, by the configuration's model section.

    ``start``: the Lora that the student, and the fake score where the settings say so, begin with.
    """
    targets = settings.targets or backbone.adapter_targets
    started = ROLES if settings.init_fake == "student" else ("student",)
    scale = {"rank": settings.rank, "alpha": settings.alpha}
    return AdaptedNetwork(network, ROLES, **scale, targets=targets, seed=seed, start=start, started=started)


class WeightAverage:
    """The average ``decay * average + (1 - decay) * weights`` in float32, starting from the current weights."""

    def __init__(self, network, decay):
        self.decay = decay
        self.tensors = {name: p.detach().to(torch.float32, copy=True) for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network):
        """Move the average towards the network's weights by ``1 - decay``, in place."""
        weights = [local(p.detach()).float() for p in network.parameters()]
        torch._foreach_lerp_([local(tensor) for tensor in self.tensors.values()], weights, 1 - self.decay)

    def load(self, tensors, source):
        """Continue from a saved average. Raises RMDError, naming ``source``, if it is that of another network."""
        if not same_shapes(tensors, self.tensors):
            raise RMDError(f"{source}: its weight average belongs to another network; start in a new output folder")
        for name, tensor in self.tensors.items():
            copy_into(tensor, tensors[name])

    @contextlib.contextmanager
    def applied_to(self, network):
        """Within the block the network has the averaged weights, and ``tensors`` its own."""
        swapped = []
        try:
            for name, parameter in network.named_parameters():
                pair = local(parameter.detach()), local(self.tensors[name])
                _swap(*pair)
                swapped.append(pair)
            yield network
        finally:
            for pair in swapped:
                _swap(*pair)


def _swap(first, second):
    """Exchange the values of two float32 tensors."""
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)


def make_optimiser(network, *, lr, settings):
    """The optimiser of a network's trainable parameters, by the configuration's optimiser section.

    Raises RMDError if 8-bit moments are set and bitsandbytes is missing.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    common = {"lr": lr, "betas": settings.betas, "weight_decay": settings.weight_decay, "eps": settings.eps}
    if settings.kind == "adamw8bit":
        return bitsandbytes_for("optimiser.kind: adamw8bit").optim.AdamW8bit(parameters, **common)
    return torch.optim.AdamW(parameters, **common, fused=True)


def rate_factor(settings, own, update, updates):
    """The share of a learning rate at an update of ``updates``, which is number ``own`` of the network's; all from 1.

    It rises to 1 over ``lr_warmup`` own updates; times the decay, which starts at 1 and would be 0 after the last one.
    """
    warm = min(1.0, max(own, 0) / settings.lr_warmup) if settings.lr_warmup else 1.0
    left = 1 - min(1.0, (update - 1) / updates)
    decay = {"none": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[settings.lr_decay]
    return warm * decay


def state_sizes(numels, kind):
    """The bytes of each tensor in the state of an optimiser of this ``kind``, for tensors of so many values.

    Without the two tables of 8-bit moments, which all share.
    """
    if kind == "adamw":
        return [count for numel in numels for count in (4 * numel, 4 * numel, 4)]  # two moments, a step count
    sizes = []
    for numel in numels:  # bitsandbytes keeps moments with fewer than 4096 values in float32
        sizes += 2 * ([4 * numel] if numel < 4096 else [numel, 4 * -(-numel // 256)])
    return sizes


def optimiser_tensors(optimiser):
    """The state of an optimiser as ``{"<parameter number>.<entry>": tensor}``, without its hyper-parameters."""
    return {
        f"{number}.{entry}": torch.as_tensor(value)
        for number, parameter in enumerate(_parameters(optimiser))
        for entry, value in optimiser.state.get(parameter, {}).items()
        if entry not in _TABLES
    }


def load_optimiser_tensors(optimiser, tensors, source):
    """Put a state made by ``optimiser_tensors`` back. Raises RMDError, naming ``source``, if it does not fit."""
    parameters = _parameters(optimiser)
    in_8_bits = hasattr(optimiser, "init_state")
    if in_8_bits and tensors:  # the state is made here, empty
        for number, parameter in enumerate(parameters):
            optimiser.init_state(optimiser.param_groups[0], parameter, 0, number)
        shapes = {name: tensor.shape for name, tensor in optimiser_tensors(optimiser).items()}
    else:
        kinds = ("exp_avg", "exp_avg_sq", "step")
        shapes = {f"{n}.{kind}": () if kind == "step" else p.shape for n, p in enumerate(parameters) for kind in kinds}
    # A parameter on which no output depends, such as the text's in a last block, never got a state.
    numbers = {name.partition(".")[0] for name in tensors}
    shapes = {name: shape for name, shape in shapes.items() if name.partition(".")[0] in numbers}
    if tensors and (tensors.keys() != shapes.keys() or any(tensors[n].shape != s for n, s in shapes.items())):
        raise RMDError(f"{source}: its optimiser state belongs to another network; start in a new output folder")
    state = {}
    for name, value in tensors.items():
        number, _, entry = name.partition(".")
        parameter = parameters[int(number)]
        if in_8_bits:
            entries = optimiser.state[parameter]
            entries[entry] = int(value) if entry == "step" else entries[entry].copy_(value)
        else:
            state.setdefault(int(number), {})[entry] = shard_like(parameter, value)
    if not in_8_bits:
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _parameters(optimiser):
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]

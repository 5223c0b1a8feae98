"""An exponential average of the student's weights.
AdamW, plain or with moments in 8 bits, with its state as plain tensors for safetensors files.
What loop, validation and checkpoints ask of the three networks, whatever they are made of.
Full fine-tuning: student and fake score are whole copies of the teacher.
One frozen base: it is the teacher, and with either of two LoRA adapters on it the student or the fake score.
Student, fake score and teacher of a run, as full networks or as adapters on one frozen base."""

import contextlib
import copy
from abc import ABC, abstractmethod

import torch
from accelerate import init_empty_weights

from rmd_core.errors import RMDError

from .export import export_lora, export_student
from .hub import located
from .lora import AdaptedNetwork
from .offload import ParkedOptimiser, Recomputing, Residence
from .parallel import fits, full, like, local, put, shard
from .quantised import bitsandbytes_for, is_quantised, quantise


class WeightAverage:
    """The average ``decay * average + (1 - decay) * weights`` in float32, starting from the weights at hand."""

    def __init__(self, network, decay):
        self.decay = decay
        self.tensors = {name: p.detach().to(torch.float32, copy=True) for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network):
        """Take in the network's present weights."""
        weights = [local(p.detach()).float() for p in network.parameters()]
        torch._foreach_lerp_([local(tensor) for tensor in self.tensors.values()], weights, 1 - self.decay)

    def load(self, tensors, source):
        """Continue from a saved average. Raises RMDError, naming ``source``, if it is that of another network."""
        if not fits(tensors, self.tensors):
            raise RMDError(f"{source}: its weight average belongs to another network; start in a new output folder")
        for name, tensor in self.tensors.items():
            put(tensor, tensors[name])

    @contextlib.contextmanager
    def applied_to(self, network):
        """Within the block the network has the averaged weights."""
        parameters = dict(network.named_parameters())
        own = {name: p.detach().clone() for name, p in parameters.items()}
        self._copy(self.tensors, parameters)
        try:
            yield network
        finally:
            self._copy(own, parameters)

    @staticmethod
    @torch.no_grad()
    def _copy(source, parameters):
        for name, parameter in parameters.items():
            local(parameter).copy_(local(source[name]))


_TABLES = ("qmap1", "qmap2")  # of the 8-bit moments: the same 256 values for all


def make_optimiser(network, *, lr, settings):
    """The optimiser of a network's trainable parameters, by the configuration's optimiser section.

    Raises RMDError where 8-bit moments are asked for and bitsandbytes is not there.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    common = {"lr": lr, "betas": settings.betas, "weight_decay": settings.weight_decay, "eps": settings.eps}
    if settings.kind == "adamw8bit":
        return bitsandbytes_for("optimiser.kind: adamw8bit").optim.AdamW8bit(parameters, **common)
    return torch.optim.AdamW(parameters, **common, fused=True)


def optimiser_bytes(parameters, kind):
    """The bytes of the state of an optimiser of this ``kind`` over parameters, shapes given on any device."""
    tables = 2 * 4 * 256 if kind == "adamw8bit" else 0
    return tables + sum(state_sizes(parameters, kind))


def state_sizes(parameters, kind):
    """The bytes of each tensor of such a state, without the tables that all parameters share."""
    if kind == "adamw":
        return [count for p in parameters for count in (4 * p.numel(), 4 * p.numel(), 4)]  # two moments, a step count
    return [count for p in parameters for count in 2 * _moment_in_8_bits(p.numel())]


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
    wanted = _shapes_8bit(optimiser, parameters) if in_8_bits and tensors else _shapes(parameters)
    if tensors and (tensors.keys() != wanted.keys() or any(tensors[n].shape != s for n, s in wanted.items())):
        raise RMDError(f"{source}: its optimiser state belongs to another network; start in a new output folder")
    if in_8_bits:
        for name, value in tensors.items():
            number, _, entry = name.partition(".")
            entries = optimiser.state[parameters[int(number)]]
            entries[entry] = int(value) if entry == "step" else entries[entry].copy_(value)
        return
    state = {}
    for name, value in tensors.items():
        number, _, entry = name.partition(".")
        state.setdefault(int(number), {})[entry] = like(parameters[int(number)], value)
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _parameters(optimiser):
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _shapes(parameters):
    wanted = {}
    for number, parameter in enumerate(parameters):
        wanted |= {f"{number}.exp_avg": parameter.shape, f"{number}.exp_avg_sq": parameter.shape, f"{number}.step": ()}
    return wanted


def _shapes_8bit(optimiser, parameters):
    """The same for moments in 8 bits, whose state is made here, empty."""
    for number, parameter in enumerate(parameters):
        optimiser.init_state(optimiser.param_groups[0], parameter, 0, number)
    return {name: tensor.shape for name, tensor in optimiser_tensors(optimiser).items()}


def _moment_in_8_bits(numel):
    """Bytes of a moment and its scales; bitsandbytes keeps those with fewer than 4096 values in float32."""
    return (4 * numel,) if numel < 4096 else (numel, 4 * -(-numel // 256))


TRAINED = ("student", "fake")


class Networks(ABC):
    """Student, fake score and teacher with their optimisers and, where asked for, the student's weight average.

    ``student``, ``fake``, ``teacher``: what a backbone predicts with. ``trained``: for the student and the fake score,
    an object with the ``parameters``, ``named_parameters``, ``state_dict`` and ``load_state_dict`` of what is trained.
    """

    student: object
    fake: object
    teacher: object
    trained: dict

    def __init__(self, setup, processes):
        self.setup = setup
        self.config = setup.config
        self.processes = processes
        self.accelerator = accelerator = processes.accelerator
        self._place(setup.teacher)
        settings, ema = self.config.optimiser, self.config.train.ema
        rates = {"student": settings.student_lr, "fake": settings.fake_lr}
        self.optimisers = {
            role: accelerator.prepare_optimizer(make_optimiser(self.trained[role], lr=rates[role], settings=settings))
            for role in TRAINED
        }
        self.average = None if ema is None else WeightAverage(self.trained["student"], ema)
        self._states = None
        if self.waits:
            device = processes.device
            self._states = {role: ParkedOptimiser(self.optimisers[role].optimizer, device) for role in TRAINED}

    @property
    def waits(self):
        """Whether what is not needed waits in main memory."""
        return self.config.train.offload == "waiting"

    def step(self, role):
        """Step and clear the optimiser of a role."""
        optimiser = self.optimisers[role]
        self._rest()
        with self._states[role].here() if self._states else contextlib.nullcontext():
            optimiser.step()
        optimiser.zero_grad()
        self._stepped(role)

    def _rest(self):  # noqa: B027 - there may be nothing that waits
        """Let networks that nothing needs wait in main memory."""

    def _stepped(self, role):  # noqa: B027
        """What is to be done when the gradients of a role are used up."""

    @abstractmethod
    def _place(self, teacher):
        """Make the three networks of the loaded teacher on the device; it may be taken over."""

    @abstractmethod
    def export(self, path, *, update):
        """Write the student as a file that ComfyUI loads, as it is now. Raises RMDError."""

    @contextlib.contextmanager
    def averaged(self):
        """Within the block the student has its averaged weights, if there is an average; gives the student."""
        if self.average is None:
            yield self.student
        else:
            self._rest()
            with self.average.applied_to(self.trained["student"]):
                yield self.student

    def student_moved(self):
        """To be called after each step of the student: takes its weights into the average."""
        if self.average is not None:
            self._rest()
            self.average.update(self.trained["student"])

    def parts(self):
        """What a checkpoint is made of, as it is now: ``{part: {name: tensor}}``."""
        parts = {role: self.trained[role].state_dict() for role in TRAINED}
        parts |= {f"{role}_optimiser": optimiser_tensors(self.optimisers[role].optimizer) for role in TRAINED}
        return parts if self.average is None else parts | {"average": self.average.tensors}

    def load(self, checkpoint):
        """Continue from a Checkpoint. Raises RMDError for one of other networks."""
        self._rest()
        for role in TRAINED:
            weights = self.trained[role].state_dict()
            if not fits(checkpoint.parts[role], weights):
                raise RMDError(
                    f"{checkpoint.path}: its {role} does not fit the teacher {self.config.backbone.base}; "
                    "delete that folder to resume from the checkpoint before"
                )
            for name, tensor in weights.items():
                put(tensor, checkpoint.parts[role][name])
            optimiser = self.optimisers[role].optimizer
            load_optimiser_tensors(optimiser, checkpoint.parts[f"{role}_optimiser"], checkpoint.path)
            if self._states:
                self._states[role].settle()
        if self.average is not None:
            self.average.load(checkpoint.parts["average"], checkpoint.path)


class ThreeNetworks(Networks):
    """Three networks of one architecture; all weights of student and fake score are trained."""

    def _place(self, teacher):
        accelerator = self.accelerator
        self._kind = type(teacher)
        self.trained = {role: self._made(copy.deepcopy(teacher).requires_grad_(True)) for role in TRAINED}
        networks = self.trained | {"teacher": self._on_device(teacher)}
        # The teacher stays float32 and runs under the same autocast: at equal weights F and R must agree. Nothing is
        # wrapped: Processes averages the gradients, once in an update.
        calls = {
            name: accelerator.prepare_model(network, evaluation_mode=True, device_placement=not self.waits)
            for name, network in networks.items()
        }
        if self.waits:
            self._residence = Residence(networks, self.processes.device, frozen=("teacher",))
            calls = {name: self._residence.seen(name, networks[name], call) for name, call in calls.items()}
        self.student, self.fake, self.teacher = (calls[name] for name in ("student", "fake", "teacher"))

    def _made(self, network):
        setting = self.config.backbone.gradient_checkpointing
        if setting:
            network.enable_gradient_checkpointing(Recomputing(setting))
        return self._on_device(network)

    def _on_device(self, network):
        if self.processes.sharded:
            return shard(network, self.processes)
        return network if self.waits else network.to(self.processes.device)

    def _rest(self):
        if self.waits:
            self._residence.clear()

    def _stepped(self, role):
        if self.waits:
            self._residence.stepped(role)

    def _whole(self, network):
        """A network that is spread, whole on the CPU of process 0; to be asked for by all processes together."""
        weights = {}
        for name, tensor in network.state_dict().items():
            tensor = full(tensor)
            if self.processes.main:
                weights[name] = tensor.cpu()
        if not self.processes.main:
            return None
        with init_empty_weights(include_buffers=False):
            plain = self._kind.from_config(network.config)
        plain.load_state_dict(weights, strict=True, assign=True)
        return plain

    def export(self, path, *, update):
        student = self.trained["student"]
        if self.processes.sharded:
            student = self._whole(student)
        if self.processes.main:
            export_student(self.setup, student, path, update=update)


class AdapterNetworks(Networks):
    """The memory of one model and two adapters; only the adapters are trained."""

    def _place(self, teacher):
        device, spread = self.processes.device, self.processes.sharded
        backbone, settings, recomputed = self.setup.backbone, self.config.model, self.config.backbone
        if is_quantised(settings.base_dtype):
            quantise(teacher, settings.base_dtype, targets=adapted_layers(settings, backbone), device=device)
        self.base = adapt(teacher if spread else teacher.to(device), backbone, settings).start(self.config.train.seed)
        if recomputed.gradient_checkpointing:
            self.base.enable_gradient_checkpointing(recomputed.gradient_checkpointing)
        if self.config.train.precision == "bfloat16":
            self.base.leave_casts_to_autocast()
        self.trained = self.base.adapters
        if spread:  # the base alone; adapters are small, and whole in every process
            own = [parameter for adapter in self.trained.values() for parameter in adapter.parameters()]
            for parameter in own:
                parameter.data = parameter.data.to(device)
            shard(self.base.network, self.processes, whole=own)
        call = self.accelerator.prepare_model(self.base.network, evaluation_mode=True)  # autocast; nothing is wrapped
        self.student, self.fake = (self.base.seen_with(role, call) for role in TRAINED)
        self.teacher = self.base.seen_with(None, call)

    def export(self, path, *, update):
        if self.config.output.merge:
            if is_quantised(self.config.model.base_dtype) and not self.processes.main:
                return  # such a base is never spread, so no process waits for this one
            plain = self._plain() if self.processes.main else None
            merged = self.base.merged("student", dtype=getattr(torch, self.config.output.dtype), base=plain)
            if self.processes.main:
                export_student(self.setup, merged, path, update=update)
        elif self.processes.main:
            export_lora(self.setup, self.base.network, self.base.factors("student"), path, update=update)

    def _plain(self):
        """The base as it was before it was quantised, read again; None where it was not."""
        if not is_quantised(self.config.model.base_dtype):
            return None
        return self.setup.backbone.load(located(self.config.backbone.base), dtype=torch.float32)


def adapt(network, backbone, settings):
    """An AdaptedNetwork with the adapters of student and fake score, by the configuration's model section."""
    targets = adapted_layers(settings, backbone)
    return AdaptedNetwork(network, TRAINED, rank=settings.rank, alpha=settings.alpha, targets=targets)


def adapted_layers(settings, backbone):
    """The endings of the names of the layers that get an adapter, by the configuration's model section."""
    return settings.targets or backbone.adapter_targets


MODES = {"adapters": AdapterNetworks, "three networks": ThreeNetworks}

__all__ = ["Networks", "adapt", "adapted_layers", "make_networks"]


def make_networks(setup, processes):
    """The Networks of the configured mode, on this process's device. They take over ``setup.teacher``."""
    return MODES[setup.config.model.mode](setup, processes)

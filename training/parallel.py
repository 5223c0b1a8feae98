"""The processes of a run, started by torchrun or ``accelerate launch``, and tensors sharded over them.

accelerate finds the launch, the device and the process group, and puts autocast around networks. Gradients are averaged
and networks sharded (PyTorch's ``fully_shard``, FSDP2) by the code here.
"""

import contextlib
import math
import warnings
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, get_int_from_env, is_torch_version, parse_flag_from_env
from torch import distributed

from rmd_core.errors import RMDError, one_line

from .quantised import is_quantised

END = object()  # of a generator
TIMEOUT = timedelta(minutes=30)  # how long processes wait for one that does not answer
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_BUCKET = 2**24  # gradients that are averaged in one exchange, in numbers


class ProcessLost(RMDError):
    """Another process of the run ended, or does not answer."""


class Processes:
    """This process among the ``count`` of the run: it has ``rank`` 0 to count - 1, and its own device.

    Process 0 (``main``) alone writes files, and with ``one_loads`` reads weights. All of them run the same code in the
    same order; code that can fail in only one runs within ``raise_together``. ``sharded``: the launcher asks for
    sharded networks.
    Raises RMDError where the processes do not find each other.
    """

    def __init__(self, config):
        train = config.train
        self.replicas, self.context = train.replicas, train.context_parallel
        _check_launch(train)
        try:
            self.accelerator = Accelerator(
                cpu=train.device == "cpu",
                mixed_precision="bf16" if train.precision == "bfloat16" else "no",
                kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
            )
        except (RuntimeError, ValueError) as error:  # torch.distributed has no narrower ones
            if announced() == 1:
                raise
            raise RMDError(f"the processes of this run did not find each other ({one_line(error)})") from None
        self.count = self.accelerator.num_processes
        self.rank = self.accelerator.process_index
        self.device = self.accelerator.device
        self.main = self.rank == 0
        # What processes agree on goes over the CPU, whatever carries their gradients.
        self._control = distributed.new_group(backend="gloo", timeout=TIMEOUT) if self.count > 1 else None
        self.sharded = _sharded()
        if self.sharded and not is_torch_version(">=", "2.7"):
            raise RMDError(f"sharded networks need PyTorch 2.7, this is {torch.__version__}; launch without FSDP")
        self.one_loads = self.count > 1 and not is_quantised(config.model.base_dtype)  # else each packs its own weights
        if self.count != announced():
            raise RMDError(
                f"{announced()} processes were started, but there is no GPU for each that PyTorch can use here; "
                "use --set train.device=cpu, or start one process"
            )

    def autocast(self, network):
        """The network, its calls under autocast where ``train.precision`` asks for it, with outputs in float32."""
        # An "evaluation model" is not wrapped for DDP or FSDP: gradients are averaged once in an update, below.
        return self.accelerator.prepare_model(network, evaluation_mode=True, device_placement=False)

    def close(self):
        """Leave the process group and reset accelerate's state, so that another run can start in this process."""
        if self.count > 1:
            self.accelerator.state.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)

    @property
    def shards(self):
        """The number of processes that a network is sharded over, 1 where networks are whole."""
        return self.count // self.replicas if self.sharded else 1

    @property
    def shares(self):
        """The number of processes that have samples of their own."""
        return self.count // self.context

    def rows(self, total):
        """The samples of an update, from and to, that are this process's: an equal share of ``total``."""
        share, own = total // self.shares, self.rank // self.context
        return own * share, (own + 1) * share

    @contextlib.contextmanager
    def raise_together(self):
        """All leave the block together: an RMDError of one is raised in all."""
        problem = None
        try:
            yield
        except RMDError as error:
            if self.count == 1 or isinstance(error, ProcessLost):
                raise
            problem = error
        shared = self.agree(None if problem is None else str(problem))
        if shared is not None:
            raise RMDError(shared) from problem

    def first_alone(self, steps, *, each_machine=False):
        """Process 0 goes through ``steps``, a generator, while the others wait; a step may take up to TIMEOUT.

        ``each_machine``: the first process of each machine goes through its own.
        """
        over = not (self.accelerator.is_local_main_process if each_machine else self.main)
        while True:
            with self.raise_together():
                over = over or next(steps, END) is END
            if all(self.gather(over)):
                return

    def gather(self, value):
        """The values of all processes, of any simple type, as a list in the order of the processes."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        self._exchange(distributed.all_gather_object, values, value, group=self._control)
        return values

    def agree(self, value):
        """The first value of any process that is not None, such as a problem in words; None if there is none."""
        return next((found for found in self.gather(value) if found is not None), None)

    def check_same(self, config):
        """Raise RMDError in all processes if their configurations differ, except keys without effect on weights."""
        digests = self.gather((config.digest(), self.replicas, self.context))
        for rank, digest in enumerate(digests):
            if digest != digests[0]:
                raise RMDError(
                    f"process {rank + 1} of {self.count} has a different configuration from process 1; "
                    "give all of them the same file and the same --set"
                )

    @torch.no_grad()
    def fill(self, targets, weights):
        """Give tensors by name, sharded or not, the values of process 0's ``weights``, one after the other.

        All processes call it together; the ``weights`` of the others are not looked at. One tensor at a time is whole.
        """
        for name, target in targets.items():
            if self.main:
                whole = weights[name].to(target.device)
            else:
                whole = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            self._exchange(distributed.broadcast, whole, src=0, group=self._control if whole.is_cpu else None)
            copy_into(target, whole)

    @torch.no_grad()
    def average_gradients(self, parameters, *, experts=False):
        """Replace gradients by their mean over the samples; those of sharded parameters have it over the processes.

        Processes that divide a sequence have parts of one gradient, so it is their sum and not their mean. ``experts``:
        none of a process's samples may have asked one of the network's parts, whose gradients count as zeros there.
        """
        if self.count == 1:
            return
        if experts:
            anywhere = map(any, zip(*self.gather([p.grad is not None for p in parameters])))
            for parameter, has in zip(parameters, anywhere):
                if has and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        if self.context > 1:
            torch._foreach_mul_([local(p.grad) for p in parameters if p.grad is not None], self.context)
        gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p.grad)]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            self._exchange(distributed.all_reduce, flat)
            flat /= self.count
            for gradient, mean in zip(bucket, flat.split([gradient.numel() for gradient in bucket])):
                gradient.copy_(mean.view_as(gradient))

    def as_process_lost(self, error):
        """The ProcessLost that a RuntimeError amounts to, or None where it is another failure."""
        known = isinstance(error, torch.distributed.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
        if self.count == 1 or not known:
            return None
        return ProcessLost(
            f"process {self.rank + 1} of {self.count}: another process of this run is gone or does not answer "
            f"({one_line(error, 120)}); see what it printed, then continue from the last checkpoint with --resume"
        )

    def _exchange(self, call, *arguments, **named):
        try:
            call(*arguments, **named)
        except RuntimeError as error:
            lost = self.as_process_lost(error)
            if lost is None:
                raise
            raise lost from None


def announced():
    """The number of processes that the launcher has announced, 1 without a launcher."""
    return get_int_from_env(_COUNTS, 1)


def _sharded():
    """Whether the launcher asks for sharded networks."""
    return announced() > 1 and parse_flag_from_env("ACCELERATE_USE_FSDP")


def _check_launch(train):
    for key in ("replicas", "context_parallel"):
        if announced() % getattr(train, key):
            raise RMDError(
                f"train.{key} is {getattr(train, key)}, by which {announced()} processes cannot be divided; change one"
            )
    if train.replicas > 1 and not _sharded():
        raise RMDError("train.replicas is for networks that are sharded; launch with FSDP, or leave it out")
    if announced() > 1 and get_int_from_env(_RANKS, -1) < 0:
        raise RMDError(
            f"{announced()} processes are set in the environment (WORLD_SIZE), but the rank of this one is not; "
            "start with torchrun or accelerate launch, or unset WORLD_SIZE"
        )


def _buckets(gradients):
    bucket, size = [], 0
    for gradient in gradients:
        if bucket and (size + gradient.numel() > _BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket


def check_sharding(config):
    """Raise RMDError for what networks that are sharded over processes (FSDP2) do not allow for."""
    whole = config.model.mode == "three networks"
    refused = {
        f"model.base_dtype: {config.model.base_dtype}": is_quantised(config.model.base_dtype),
        "optimiser.kind: adamw8bit with three networks": whole and config.optimiser.kind == "adamw8bit",
        "train.offload: waiting with three networks": whole and config.train.offload == "waiting",
        "train.channels_last": config.train.channels_last,
    }
    for setting, chosen in refused.items():
        if chosen:
            raise RMDError(f"{setting} does not work with networks sharded over processes; launch without FSDP")


def shard(network, processes, *, whole=(), travel=None):
    """Shard a network's parameters over the processes, each along its first axis; returns the network.

    A block (one of ``_no_split_modules``) is all-gathered for its own call and always freed afterwards, so that no call
    sees weights from before a step. Parameters in ``whole`` are not sharded. ``travel``: the type in which the
    weights of blocks are all-gathered; their gradients are added in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # not there in older PyTorch, see Processes

    # Ours are never changed in place, which is what fully_shard warns of at each output that is a view.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    shape, names = (processes.shards,), ("shards",)
    if processes.replicas > 1:
        shape, names = (processes.replicas, *shape), ("replicas", *names)
    mesh = init_device_mesh(processes.device.type, shape, mesh_dim_names=names)
    settings = {"mesh": mesh, "reshard_after_forward": True, "ignored_params": set(whole)}
    # Inputs are not cast: a timestep in bfloat16 would be another one. Autocast chooses the type of each operation.
    policy = MixedPrecisionPolicy(param_dtype=travel, reduce_dtype=travel and torch.float32, cast_forward_inputs=False)
    blocks = network._no_split_modules or ()
    for module in reversed(list(network.modules())):  # inner before outer
        if type(module).__name__ in blocks and module is not network:
            fully_shard(module, mp_policy=policy, **settings)
    return fully_shard(network, **settings)


def split_sequences(network, processes, backbone, plan):
    """Let groups of ``processes.context`` processes divide each sequence, by diffusers' Ulysses; returns the network.

    Within attention they divide the heads. ``plan``: the configuration's section, with the sizes of latents. Raises
    RMDError for a backbone that does not offer it, and for heads or tokens that do not divide. Source: DeepSpeed
    Ulysses, arXiv 2309.14509.
    """
    count, config = processes.context, network.config
    if count == 1:
        return network
    if not backbone.sequence_plan or getattr(network, "_cp_plan", None) is None:
        raise RMDError(f"train.context_parallel: {backbone.name} has no sequences that processes can divide; use 1")
    patch = math.prod(config.patch_size)
    divided = [plan.frames * height * width // patch for height, width in plan.sizes] + [config.num_attention_heads]
    if any(number % count for number in divided):
        raise RMDError(
            f"train.context_parallel is {count}, but it must divide the network's {divided[-1]} heads and the "
            f"stages' {', '.join(map(str, divided[:-1]))} tokens; give a divisor of all of them"
        )
    from diffusers import ContextParallelConfig, ParallelConfig
    from diffusers.hooks.context_parallel import apply_context_parallel
    from torch.distributed.device_mesh import init_device_mesh

    names = ("samples", "ring", "ulysses")
    mesh = init_device_mesh(processes.device.type, (processes.shares, 1, count), mesh_dim_names=names)
    context = ContextParallelConfig(ulysses_degree=count, mesh=mesh["ring", "ulysses"])
    parallel = ParallelConfig(context_parallel_config=context)
    parallel.setup(processes.rank, processes.count, processes.device, mesh=context.mesh)
    # What ModelMixin.enable_parallelism does, which needs a GPU to count devices.
    for module in network.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = parallel
    apply_context_parallel(network, context, {name: network._cp_plan[name] for name in backbone.sequence_plan})
    return network


def materialise(network, device):
    """Give a network's tensors on the meta device room on ``device``, and move the others there; returns the network.

    It may be sharded. The values of the former are uninitialised.
    """
    return network._apply(
        lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
    )


def is_sharded(tensor):
    """Whether a tensor is a DTensor, whose module takes a second to import where none is made."""
    return hasattr(tensor, "full_tensor")


def local(tensor):
    """This process's shard of a tensor; all of it, where it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def gather_full(tensor):
    """The whole of a tensor, to be asked for by all processes together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def copy_into(target, whole):
    """Copy the values of a whole tensor into one that may be sharded."""
    if not is_sharded(target):
        target.copy_(whole)
        return
    mesh = target.device_mesh
    shards = mesh.ndim - 1  # the axis of the mesh; another one before it is that of replicas
    parts = whole.chunk(mesh.size(shards), dim=0)
    if mesh.get_local_rank(shards) < len(parts):
        target.to_local().copy_(parts[mesh.get_local_rank(shards)])


def same_shapes(tensors, targets):
    """Whether two mappings have tensors of the same names and shapes."""
    return tensors.keys() == targets.keys() and all(tensors[n].shape == t.shape for n, t in targets.items())


def shard_like(target, whole):
    """The values of a whole tensor, sharded and in memory as ``target`` is where the shapes agree."""
    if target.shape != whole.shape:
        return whole
    sharded = torch.zeros_like(target)
    copy_into(sharded, whole)
    return sharded

"""Less on the device: activations that are recomputed, and what waits in system memory (RAM) until it is needed.

Blocks recompute their activations in the backward pass, their inputs kept on the device or in system memory. Networks
and optimiser states wait in system memory, page-locked for a GPU, and are moved to the device while they are needed.
"""

import contextlib

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


def ran_out_of_memory(error):
    """Whether an exception says that a device, or the system memory, had no room."""
    # The first: PyTorch's allocator on the CPU, in a plain RuntimeError. The second: CUDA's, for page-locked memory.
    says = any(words in str(error) for words in ("tried to allocate", "out of memory"))
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (isinstance(error, RuntimeError) and says)


class Recomputing:
    """What a network calls its blocks through: ``recomputing(block, *inputs)``.

    ``setting``: ``backbone.gradient_checkpointing``, true or ``offload``, by which the inputs of blocks wait in system
    memory. ``wrap(block)``: what to call in a block's place, the second time too; asked for when the block is called.
    """

    def __init__(self, setting, wrap=None):
        self._offload = setting == "offload"
        self._wrap = wrap

    def __call__(self, block, *inputs):
        call = self._wrap(block) if self._wrap else block
        # What is saved inside the block goes to the recomputation's own hooks; these see its inputs alone.
        with saved_tensors_hooks(self.to_cpu, self.to_device) if self._offload else contextlib.nullcontext():
            return checkpoint(call, *inputs, use_reentrant=False)

    @staticmethod
    def to_cpu(tensor):
        """(device, copy in system memory) of a tensor; on the CPU the tensor itself."""
        if tensor.device.type == "cpu":
            return tensor.device, tensor
        waiting = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return tensor.device, waiting.copy_(tensor)

    @staticmethod
    def to_device(stored):
        """The tensor of ``to_cpu`` on its device again."""
        device, tensor = stored
        return tensor.to(device, non_blocking=True)


class OffloadedTensors:
    """Tensors that are kept in system memory; only their ``data`` moves, so optimisers and networks keep knowing them.

    ``changes``: whether values that changed on the device are copied back.
    """

    def __init__(self, tensors, device, *, changes=True):
        self._tensors = list(tensors)
        self._device = torch.device(device)
        self._changes = changes
        self._on_cpu = None  # the data in system memory of tensors that are on the device

    def pin(self):
        """Move the tensors to system memory, page-locked where the device is a GPU."""
        for tensor in self._tensors if self._device.type != "cpu" else ():
            copy = torch.empty_like(tensor.data, device="cpu", pin_memory=self._device.type == "cuda")
            tensor.data = copy.copy_(tensor.data)

    @torch.no_grad()
    def to_device(self):
        """Move the tensors to the device, where they are not there already."""
        if self._on_cpu is None:
            self._on_cpu = [tensor.data for tensor in self._tensors]
            for tensor, data in zip(self._tensors, self._on_cpu):
                tensor.data = torch.empty_like(data, device=self._device).copy_(data, non_blocking=True)

    @torch.no_grad()
    def to_cpu(self):
        """Move the tensors back to system memory."""
        for tensor, data in zip(self._tensors, self._on_cpu or ()):
            tensor.data = data.copy_(tensor.data) if self._changes else data
        self._on_cpu = None


class OffloadedOptimiser:
    """An optimiser's states, which are on the device for its step alone."""

    def __init__(self, optimiser, device):
        self._optimiser = optimiser
        self._device = device

    @contextlib.contextmanager
    def on_device(self):
        """A block in which the states are on the device."""
        before = self._tensors()
        states = OffloadedTensors(before, self._device)
        states.to_device()
        yield
        states.to_cpu()
        known = {id(tensor) for tensor in before}
        OffloadedTensors([tensor for tensor in self._tensors() if id(tensor) not in known], self._device).pin()

    def pin(self):
        """Move states that were made or loaded elsewhere to system memory."""
        OffloadedTensors(self._tensors(), self._device).pin()

    def _tensors(self):
        return [
            value
            for entries in self._optimiser.state.values()
            for name, value in entries.items()
            if isinstance(value, torch.Tensor) and not name.startswith("qmap")  # one small table for all
        ]


class NetworkOffloader:
    """Keeps those of several networks on the device that something still needs, the others in system memory.

    A network is moved to the device when it is called, and back when another one is called; one whose call is to have a
    gradient stays until its optimiser has stepped. ``networks``: by name; ``frozen``: the names of those never changed;
    ``stay``: parameters that stay where they are, such as those of adapters.
    """

    def __init__(self, networks, device, *, frozen=(), stay=()):
        self._tensors, stay = {}, set(map(id, stay))
        for name, network in networks.items():
            tensors = (p for p in (*network.parameters(), *network.buffers()) if id(p) not in stay)
            self._tensors[name] = OffloadedTensors(tensors, device, changes=name not in frozen)
        for tensors in self._tensors.values():
            tensors.pin()
        self._needed = set()

    def hooked(self, name, network, call):
        """The network, moved to the device when it is called by ``call``."""
        return HookedNetwork(network, call, lambda: self.called(name))

    def called(self, name):
        """Move a network that is about to be called to the device."""
        self.swap_to(name)
        if torch.is_grad_enabled():
            self._needed.add(name)

    def swap_to(self, name):
        """Move one network to the device, and what nothing needs to system memory."""
        self.clear(but=name)
        self._tensors[name].to_device()

    def stepped(self, name):
        """Say that the optimiser of a network has stepped: its gradients are used, so it may leave the device."""
        self._needed.discard(name)

    def clear(self, but=None):
        """Move networks to system memory, except ``but`` and those whose gradients are still needed."""
        for name, tensors in self._tensors.items():
            if name != but and name not in self._needed:
                tensors.to_cpu()


class HookedNetwork:
    """A network with something to do before each call; everything but the call is the network's own.

    ``call``: what to call in the network's place, such as the same network under autocast.
    """

    def __init__(self, network, call, before):
        self._network, self._call, self._before = network, call, before

    def __call__(self, *arguments, **named):
        self._before()
        return self._call(*arguments, **named)

    def __getattr__(self, name):
        return getattr(self._network, name)


def page_locked(count):
    """The bytes that a tensor of ``count`` bytes takes of page-locked memory: PyTorch rounds up to a power of two."""
    return 1 << (count - 1).bit_length() if count else 0

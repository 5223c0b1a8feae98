"""Less on the device: activations that are recomputed, and what waits in system memory (RAM) until it is needed.

Blocks recompute their activations in the backward pass, their inputs kept on the device or in system memory. Networks
and optimiser states wait in system memory, page-locked for a GPU, and come to the device while something needs them.
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
        with saved_tensors_hooks(self.wait, self.come) if self._offload else contextlib.nullcontext():
            return checkpoint(call, *inputs, use_reentrant=False)

    @staticmethod
    def wait(tensor):
        """(device, copy in system memory) of a tensor; on the CPU the tensor itself."""
        if tensor.device.type == "cpu":
            return tensor.device, tensor
        waiting = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return tensor.device, waiting.copy_(tensor)

    @staticmethod
    def come(waiting):
        """The tensor of ``wait`` on its device again."""
        device, tensor = waiting
        return tensor.to(device, non_blocking=True)


class Parked:
    """Tensors whose home is system memory; only their ``data`` moves, so optimisers and networks keep knowing them.

    ``changes``: whether what they hold on the device is to be taken home again.
    """

    def __init__(self, tensors, device, *, changes=True):
        self._tensors = list(tensors)
        self._device = torch.device(device)
        self._changes = changes
        self._homes = None

    def settle(self):
        """Bring home what has been made elsewhere, into page-locked memory where the device is a GPU."""
        for tensor in self._tensors if self._device.type != "cpu" else ():
            home = torch.empty_like(tensor.data, device="cpu", pin_memory=self._device.type == "cuda")
            tensor.data = home.copy_(tensor.data)

    @torch.no_grad()
    def come(self):
        """Be on the device."""
        if self._homes is None:
            self._homes = [tensor.data for tensor in self._tensors]
            for tensor, home in zip(self._tensors, self._homes):
                tensor.data = torch.empty_like(home, device=self._device).copy_(home, non_blocking=True)

    @torch.no_grad()
    def leave(self):
        """Be at home again."""
        for tensor, home in zip(self._tensors, self._homes or ()):
            tensor.data = home.copy_(tensor.data) if self._changes else home
        self._homes = None


class ParkedOptimiser:
    """An optimiser's states, which are on the device for its step alone."""

    def __init__(self, optimiser, device):
        self._optimiser = optimiser
        self._device = device

    @contextlib.contextmanager
    def here(self):
        """A block in which the states are on the device."""
        before = self._tensors()
        states = Parked(before, self._device)
        states.come()
        yield
        states.leave()
        known = {id(tensor) for tensor in before}
        Parked([tensor for tensor in self._tensors() if id(tensor) not in known], self._device).settle()

    def settle(self):
        """Bring home what has been made or loaded elsewhere."""
        Parked(self._tensors(), self._device).settle()

    def _tensors(self):
        return [
            value
            for entries in self._optimiser.state.values()
            for name, value in entries.items()
            if isinstance(value, torch.Tensor) and not name.startswith("qmap")  # one small table for all
        ]


class Residence:
    """Decides which of several networks are on the device; only those that something still needs stay.

    A network comes when it is called. It leaves when another one is called, except that one whose call is to have a
    gradient stays until its optimiser has stepped. ``networks``: by name; ``frozen``: the names of those never changed.
    """

    def __init__(self, networks, device, *, frozen=()):
        self._parked = {
            name: Parked((*network.parameters(), *network.buffers()), device, changes=name not in frozen)
            for name, network in networks.items()
        }
        for parked in self._parked.values():
            parked.settle()
        self._needed = set()

    def seen(self, name, network, call):
        """The network, coming when it is called by ``call``; everything else is the network's own."""
        return Seen(network, call, lambda: self.called(name))

    def called(self, name):
        """Bring a network that is about to be called."""
        self.clear(but=name)
        self._parked[name].come()
        if torch.is_grad_enabled():
            self._needed.add(name)

    def stepped(self, name):
        """Tell that no gradient of a network is to come any more."""
        self._needed.discard(name)

    def clear(self, but=None):
        """Send home what nothing needs, apart from one."""
        for name, parked in self._parked.items():
            if name != but and name not in self._needed:
                parked.leave()


class Seen:
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

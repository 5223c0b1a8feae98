"""What an exception of PyTorch's says.
Blocks whose activations are recomputed in the backward pass, their inputs kept on the device or in main memory.
Networks and optimiser states that wait in main memory, and come to the device while they are needed."""

import contextlib
from collections import Counter

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


def ran_out_of_memory(error):
    """Whether an exception says that a device, or the main memory, had no room."""
    # The first: PyTorch's allocator on the CPU, in a plain RuntimeError. The second: CUDA's, for page-locked memory.
    told = any(words in str(error) for words in ("tried to allocate", "out of memory"))
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (isinstance(error, RuntimeError) and told)


class Recomputing:
    """What a network calls its blocks through: ``recomputing(block, *inputs)``.

    ``setting``: ``backbone.gradient_checkpointing``, true or ``offload``, by which the inputs of blocks wait in main
    memory. ``wrap(block)``: what to call in a block's place, the second time too; asked for when the block is called.
    ``parked``: how many inputs of how many bytes went to main memory so far.
    """

    def __init__(self, setting, wrap=None):
        self._away = setting == "offload"
        self._wrap = wrap
        self.parked = Counter()

    def __call__(self, block, *inputs):
        call = self._wrap(block) if self._wrap else block
        # What is saved inside the block goes to the recomputation's own hooks; these see its inputs alone.
        with saved_tensors_hooks(self._park, _fetch) if self._away else contextlib.nullcontext():
            return checkpoint(call, *inputs, use_reentrant=False)

    def _park(self, tensor):
        self.parked[tensor.nbytes] += 1
        if tensor.is_meta:  # of a tensor without data only the shape has to wait
            return tensor.device, tensor.new_empty(0), tensor.shape
        if tensor.device.type == "cpu":
            return tensor.device, tensor, tensor.shape
        waiting = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return tensor.device, waiting.copy_(tensor), tensor.shape


def _fetch(parked):
    device, waiting, shape = parked
    return waiting.new_empty(shape) if device.type == "meta" else waiting.to(device, non_blocking=True)


class Parked:
    """Tensors whose home is main memory. ``slots``: (read, write) pairs of functions, one for each tensor's place.

    ``changes``: whether what they hold on the device is to be taken home again.
    """

    def __init__(self, slots, device, *, changes=True):
        self._slots = list(slots)
        self._device = device
        self._changes = changes
        self._homes = None

    def settle(self):
        """Bring home what has been made elsewhere, into page-locked memory where the device is a GPU."""
        for read, write in self._slots:
            write(_home(read(), self._device))

    @torch.no_grad()
    def come(self):
        """Be on the device."""
        if self._homes is None:
            self._homes = [read() for read, _ in self._slots]
            for (_, write), home in zip(self._slots, self._homes):
                write(torch.empty_like(home, device=self._device).copy_(home, non_blocking=True))

    @torch.no_grad()
    def leave(self):
        """Be at home again."""
        if self._homes is None:
            return
        for (read, write), home in zip(self._slots, self._homes):
            write(home.copy_(read()) if self._changes else home)
        self._homes = None


class Residence:
    """Decides which of several networks are on the device; only those that something still needs stay.

    A network comes when it is called. It leaves when another one is called, except that one whose call is to have a
    gradient stays until its optimiser has stepped. ``networks``: by name; ``frozen``: the names of those never changed.
    """

    def __init__(self, networks, device, *, frozen=()):
        self._parked = {
            name: Parked(_tensors_of(network), device, changes=name not in frozen) for name, network in networks.items()
        }
        for parked in self._parked.values():
            parked.settle()
        self._needed = set()

    def seen(self, name, network, call):
        """The network, coming when it is called by ``call``; everything else is the network's own."""
        return _Resident(self, name, network, call)

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


class ParkedOptimiser:
    """An optimiser's states, which are on the device for its step alone."""

    def __init__(self, optimiser, device):
        self._optimiser = optimiser
        self._device = device

    @contextlib.contextmanager
    def here(self):
        """A block in which the states are on the device."""
        before = self._slots()
        states = Parked(before, self._device)
        states.come()
        yield
        states.leave()
        known = {place for place, _ in before}
        Parked([slot for slot in self._slots() if slot[0] not in known], self._device).settle()

    def settle(self):
        """Bring home what has been made or loaded elsewhere."""
        Parked(self._slots(), self._device).settle()

    def _slots(self):
        return [
            (_Entry(entries, name), _Entry(entries, name).put)
            for entries in self._optimiser.state.values()
            for name, value in entries.items()
            if isinstance(value, torch.Tensor) and not name.startswith("qmap")  # one small table for all
        ]


class _Entry:
    """The place of a tensor in a dictionary."""

    def __init__(self, entries, name):
        self._entries, self._name = entries, name

    def __call__(self):
        return self._entries[self._name]

    def put(self, tensor):
        self._entries[self._name] = tensor

    def __eq__(self, other):
        return self._entries is other._entries and self._name == other._name

    def __hash__(self):
        return hash((id(self._entries), self._name))


class _Resident:
    def __init__(self, residence, name, network, call):
        self._residence, self._name, self._network, self._call = residence, name, network, call

    def __call__(self, *arguments, **named):
        self._residence.called(self._name)
        return self._call(*arguments, **named)

    def __getattr__(self, name):
        return getattr(self._network, name)


def _tensors_of(network):
    """Slots of a network's parameters and buffers; the parameters stay the objects that an optimiser knows."""
    for tensor in (*network.parameters(), *network.buffers()):
        yield (lambda tensor=tensor: tensor.data), (lambda value, tensor=tensor: setattr(tensor, "data", value))


def page_locked(count):
    """The bytes that a tensor of ``count`` bytes takes of page-locked memory: PyTorch rounds up to a power of two."""
    return 1 << (count - 1).bit_length() if count else 0


def _home(tensor, device):
    if torch.device(device).type == "cpu":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=torch.device(device).type == "cuda").copy_(tensor)

"""What single processes of a run do in the tests of several, and how much memory they take meanwhile."""

import os
import signal
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.config import load_config
from training.distill import StopSignals
from training.networks import make_networks
from training.parallel import Processes, gather_full, local, shard
from training.setup import outline_run, prepare
from training.speed import speed_up
from training.trainer import Trainer
from training_world import tiny_wan


class AllocationPeak(TorchDispatchMode):
    """Within the block ``most`` is the most bytes that were alive at once, of all that was made there but on meta."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        found = function(*arguments, **(named or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self._count(local(tensor).untyped_storage())
        return found

    def _count(self, storage):
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size):
        self.now -= size


def configured(world, *overrides):
    """(configuration, Processes) of this process."""
    config = load_config(world / "config.yaml", overrides).resolved()
    return config, Processes(config)


def start_sharded(world, *overrides):
    """(the most bytes at once, {network: whole state dict}) of networks as a run makes them."""
    config, processes = configured(world, *overrides)
    with AllocationPeak() as peak:
        setup = prepare(outline_run(config, shards=processes.shards), loads=processes.main or not processes.one_loads)
        assert processes.main or all(tensor.is_meta for tensor in setup.teacher.state_dict().values())
        networks = make_networks(setup, processes)
    assert all(tensor.is_meta for tensor in setup.teacher.state_dict().values())
    if config.model.mode == "adapters":
        states = {"teacher": networks.base.base_state()}
    else:
        states = {role: getattr(networks, role).state_dict() for role in ("student", "fake", "teacher")}
    whole = {role: {name: gather_full(tensor) for name, tensor in state.items()} for role, state in states.items()}
    processes.close()
    return peak.most, whole


def travelling(world, *overrides):
    """The types of weights in a phase: as kept, in the calls of blocks and outside, and of gradients."""
    config, processes = configured(world, *overrides)
    setup = prepare(outline_run(config, shards=processes.shards), loads=processes.main or not processes.one_loads)
    trainer = Trainer(setup, processes)
    student = trainer.networks.trained["student"]
    found = {"kept": set(), "in blocks": set(), "outside": set(), "gradients": set()}
    block = student.blocks[0]
    block.attn1.register_forward_pre_hook(lambda module, _: found["in blocks"].add(str(module.to_q.weight.dtype)))
    student.proj_out.register_forward_pre_hook(lambda module, _: found["outside"].add(str(module.weight.dtype)))
    student.blocks[0].attn1.to_q.weight.register_post_accumulate_grad_hook(
        lambda weight: found["gradients"].add(str(weight.grad.dtype))
    )
    found["steps"] = trainer.update(1)["norm_student"]
    found["kept"] = {str(tensor.dtype) for tensor in student.state_dict().values()}
    found["gradients"] |= {
        str(state["exp_avg"].dtype) for state in trainer.networks.optimisers["student"].state.values()
    }
    processes.close()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in found.items()}


def compiled_gradients(world):
    """Gradients of one call of a plain network, and of a sharded one with compiled blocks, all whole."""
    config, processes = configured(world, "train.compile=eager")
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 16, 1, 4, 4, generator=generator), torch.randn(1, 4, 16, generator=generator)
    found = []
    for network in (tiny_wan(), shard(speed_up(tiny_wan(), config.train), processes)):
        network(x, torch.tensor([300.0]), text, return_dict=False)[0].square().mean().backward()
        found.append({name: gather_full(p.grad) for name, p in network.named_parameters() if p.grad is not None})
    processes.close()
    return found


def signalled(world, place):
    """(exit code, updates) of a run whose second process gets SIGTERM at its first ``place`` after two updates."""
    config, processes = configured(world, "train.updates=5")
    trainer = Trainer(prepare(outline_run(config)), processes)
    trainer.folder.mkdir(exist_ok=True)
    owner = processes if place == "agree" else trainer
    call = getattr(owner, place)

    def interrupted(*arguments):
        if trainer.done == 2 and processes.rank == 1:
            setattr(owner, place, call)
            os.kill(os.getpid(), signal.SIGTERM)
        return call(*arguments)

    setattr(owner, place, interrupted)
    with StopSignals(launcher=True) as signals:
        code = trainer.run(signals)
    processes.close()
    return code, trainer.done

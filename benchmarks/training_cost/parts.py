"""Where the time of an update goes: forwards without and with a graph, backwards, optimisers, and all the rest."""

import contextlib
import time

import torch

PARTS = ("forward", "graph", "backward", "optimiser", "rest")


class Parts:
    """Within the block of ``watching`` the parts of a trainer's updates are timed, by waiting for the device each time.

    ``seconds``: by the names of PARTS but ``rest``. The time of a process, so that other programs count little; on an
    accelerator the time that passes.
    """

    def __init__(self, device):
        self.seconds = dict.fromkeys(PARTS[:-1], 0.0)
        on_cpu = device.type == "cpu"
        self._now = time.process_time if on_cpu else time.perf_counter
        self._wait = (lambda: None) if on_cpu else torch.get_device_module(device).synchronize

    def now(self):
        """A time, after all that was queued on the device."""
        self._wait()
        return self._now()

    def during(self, part, work, *arguments, **named):
        """What ``work`` gives, its time noted."""
        began = self.now()
        try:
            return work(*arguments, **named)
        finally:
            self.seconds[part] += self.now() - began

    @contextlib.contextmanager
    def watching(self, trainer):
        """Within the block the trainer's networks, backward passes and optimisers are timed."""
        phases, networks = trainer.phases, trainer.networks
        before = {name: getattr(phases, name) for name in ("student", "fake", "teacher", "backward")}
        for name in ("student", "fake", "teacher"):
            setattr(phases, name, _Watched(before[name], self))
        phases.backward = lambda loss: self.during("backward", before["backward"], loss)
        began, hooks = {}, []
        for optimiser in networks.optimisers.values():
            own = optimiser.optimizer
            hooks.append(own.register_step_pre_hook(lambda own, *_: began.update({own: self.now()})))
            hooks.append(own.register_step_post_hook(lambda own, *_: self._stepped(began.pop(own))))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            for name, value in before.items():
                setattr(phases, name, value)

    def _stepped(self, began):
        self.seconds["optimiser"] += self.now() - began


class _Watched:
    """A network whose calls are timed; everything else is its own."""

    def __init__(self, network, parts):
        self._network, self._parts = network, parts

    def __call__(self, *arguments, **named):
        part = "graph" if torch.is_grad_enabled() else "forward"
        return self._parts.during(part, self._network, *arguments, **named)

    def __getattr__(self, name):
        return getattr(self._network, name)


def parts_of(updates, way, block):
    """Milliseconds of an update, made one way, by part; what is not in a network or an optimiser is the rest."""
    parts = Parts(updates.trainer.device)
    with parts.watching(updates.trainer):
        began = parts.now()
        updates.run(way, block)
        whole = parts.now() - began
    found = parts.seconds | {"rest": whole - sum(parts.seconds.values())}
    return {part: 1000 * seconds / len(block) for part, seconds in found.items()}

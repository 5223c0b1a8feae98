"""Time and memory as the device itself tells them, and a network whose calls are timed."""

import time

import torch
from torch.nn import Module


class DeviceClock:
    """Marks in the work of a device and the seconds between two of them; on the CPU, of the process's CPU time."""

    def __init__(self, device):
        self.device = torch.device(device)
        self._module = None if self.device.type == "cpu" else torch.get_device_module(self.device)

    def mark(self):
        """A mark behind the work queued so far; nothing waits for it."""
        if self._module is None:
            return time.process_time()
        event = self._module.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, began, ended):
        """Seconds between two marks; on an accelerator only after ``wait``."""
        return ended - began if self._module is None else began.elapsed_time(ended) / 1000

    def wait(self):
        """Return when the device has done everything queued."""
        if self._module is not None:
            self._module.synchronize()

    def start_peak(self):
        """Let ``peak`` count from here."""
        if self._module is not None:
            self._module.empty_cache()
            self._module.reset_peak_memory_stats()

    def peak(self):
        """The most bytes that tensors held on the device, weights included; None on the CPU."""
        return None if self._module is None else self._module.max_memory_allocated()


class TimedNetwork(Module):
    """A network that marks the clock before and after each of its calls, in ``calls``: (height, width), two marks."""

    def __init__(self, network, clock):
        super().__init__()
        self.network = network
        self.clock = clock
        self.calls = []

    @property
    def config(self):
        return self.network.config

    def forward(self, x, *arguments, **named):
        began = self.clock.mark()
        output = self.network(x, *arguments, **named)
        self.calls.append((tuple(x.shape[-2:]), began, self.clock.mark()))
        return output

"""The most memory that a device holds in a part of a run."""

import torch

from training.memory import LiveMemory


class PeakMemory:
    """Within the block, ``peak`` is the most bytes that tensors held on ``device`` since ``restart``.

    On an accelerator its own count, of everything on it. On the CPU what LiveMemory counts: what was made in the block,
    and what would wait in main memory too.
    """

    def __init__(self, device):
        on_cpu = torch.device(device).type == "cpu"
        self._live = LiveMemory() if on_cpu else None
        self._module = None if on_cpu else torch.get_device_module(device)

    def __enter__(self):
        if self._live is not None:
            self._live.__enter__()
        self.restart()
        return self

    def __exit__(self, *error):
        if self._live is not None:
            self._live.__exit__(*error)

    def restart(self):
        """Let ``peak`` count from here, with what is held now."""
        if self._live is not None:
            self._live.peak = self._live.live
            return
        self._module.empty_cache()
        self._module.reset_peak_memory_stats()

    @property
    def peak(self):
        """Bytes."""
        return self._module.max_memory_allocated() if self._live is None else self._live.peak

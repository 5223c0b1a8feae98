"""Blocks whose activations are recomputed in the backward pass, their inputs kept on the device or in main memory."""

import contextlib
from collections import Counter

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


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

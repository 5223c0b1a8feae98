"""How a network is called on a device, on tensors without data: fused attention, and autocast as PyTorch has it."""

import contextlib

import torch
from torch.overrides import TorchFunctionMode

from .live_memory import FusedAttention

_F = torch.nn.functional
_IN_BFLOAT16 = {
    *(_F.linear, _F.conv1d, _F.conv2d, _F.conv3d, _F.scaled_dot_product_attention),
    *(torch.matmul, torch.bmm, torch.baddbmm, torch.Tensor.matmul, torch.Tensor.__matmul__),
}
_IN_FLOAT32_ON_CUDA = {_F.layer_norm, _F.group_norm, _F.rms_norm, _F.softmax, torch.softmax, torch.Tensor.softmax}


class DryAutocast(TorchFunctionMode):
    """Within the block calls cast their tensors as under autocast to bfloat16, which tensors without data lack.

    ``on_cuda``: norms and softmax give float32, as autocast for CUDA has it and the one for the CPU has not. Source:
    PyTorch's autocast op reference; other operations of that list are of no weight in the networks here.
    """

    def __init__(self, *, on_cuda):
        super().__init__()
        self._float32 = _IN_FLOAT32_ON_CUDA if on_cuda else set()

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = named or {}
        if function in _IN_BFLOAT16:
            arguments, named = _cast(arguments, named, torch.bfloat16)
        elif function in self._float32:
            arguments, named = _cast(arguments, named, torch.float32)
        return function(*arguments, **named)


class DryCalls:
    """The modes in which a resolved configuration calls its networks."""

    def __init__(self, config):
        self.autocast = config.train.precision == "bfloat16"
        self._on_cuda = config.train.device != "cpu"

    @contextlib.contextmanager
    def entered(self):
        """A block in which calls take the memory that they have in the run."""
        with FusedAttention(), DryAutocast(on_cuda=self._on_cuda) if self.autocast else contextlib.nullcontext():
            yield

    def wrap(self, block):
        """The block as it is called, for a recomputation: the backward pass leaves ``entered``."""

        def call(*inputs):
            with self.entered():
                return block(*inputs)

        return call


def _cast(arguments, named, dtype):
    return [_as(value, dtype) for value in arguments], {name: _as(value, dtype) for name, value in named.items()}


def _as(value, dtype):
    wanted = isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return value.to(dtype) if wanted else value

"""Frozen linear layers whose weights are kept in 8 or 4 bits, and dequantised for each call.

Only weights are quantised: a layer's call is exactly that of a plain layer with the dequantised weights, forward and
backward, in the type that the weights had before. The numbers are packed by bitsandbytes, on the CPU as on a GPU.
"""

import functools
import importlib.util

import torch

from rmd_core.errors import RMDError, one_line

BLOCK = 64  # values that share a scale, in float32
BITS = {"int8": 8, "nf4": 4}


def is_quantised(base_dtype):
    """Whether a ``model.base_dtype`` is a quantised one."""
    return base_dtype in BITS


def has_bitsandbytes():
    """Whether bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def bitsandbytes_for(setting):
    """The module bitsandbytes. Raises RMDError, naming the ``setting`` that needs it, where it cannot be imported."""
    if not has_bitsandbytes():
        raise RMDError(f"{setting} needs bitsandbytes, which is not installed: pip install 'bitsandbytes>=0.50'")
    try:
        import bitsandbytes
    except (ImportError, OSError, RuntimeError) as error:
        raise RMDError(
            f"{setting} needs bitsandbytes, which cannot be imported ({one_line(error, 200)}); install it again"
        ) from None
    return bitsandbytes


class QuantisedLinear(torch.nn.Linear):
    """A frozen linear layer that replaces ``linear``, its weights packed on ``device``; a bias is unchanged.

    ``kind``: ``int8``, 255 equal steps between the extremes of 64 neighbours, or ``nf4``, the 16 levels of QLoRA's
    NormalFloat (arXiv 2305.14314).
    """

    def __init__(self, linear, kind, device):
        torch.nn.Module.__init__(self)  # no weight of its own
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind, self.dtype = kind, linear.weight.dtype
        packed, scales = _pack(linear.weight.detach().to(device), kind)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", scales)
        self.bias = linear.bias if linear.bias is None else _frozen(linear.bias, device)

    def dequantised(self, dtype):
        """The weights that calls in ``dtype`` see."""
        return _unpack(self.weight, self.scales, self.kind, (self.out_features, self.in_features), dtype)

    def forward(self, x):
        """The layer's output, in the type that the weights had."""
        return _Call.apply(x.to(self.dtype), self)

    def extra_repr(self):
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"


def quantise(network, kind, *, targets, device):
    """Replace the large linear layers of a network by quantised ones, one by one; returns the network.

    Those are the attentions' and feed-forwards' in its blocks, and the adapters' ``targets`` (endings of names). What
    computes norms, embeddings or the output stays. Each layer's weights go to ``device`` and are packed there, so the
    whole network need not be on it. Raises RMDError where bitsandbytes is not there.
    """
    bitsandbytes_for(f"model.base_dtype: {kind}")
    for name, layer in quantisable_layers(network, targets):
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, QuantisedLinear(layer, kind, device))
    return network


def quantisable_layers(network, targets):
    """(name, layer) pairs of the layers that ``quantise`` replaces."""
    blocks = tuple(
        f"{name}." for name, module in network.named_modules() if type(module).__name__.endswith("TransformerBlock")
    )
    endings = tuple(f".{target}" for target in targets)
    return [
        (name, layer)
        for name, layer in network.named_modules()
        if type(layer) is torch.nn.Linear
        and (name.startswith(blocks) and ".norm" not in name or f".{name}".endswith(endings))
    ]


def packed_bytes(numel, kind):
    """The bytes of so many quantised weights, with their scales."""
    return -(-numel * BITS[kind] // 8) + 4 * -(-numel // BLOCK)


def _frozen(tensor, device):
    return torch.nn.Parameter(tensor.detach().to(device), requires_grad=False)


def _pack(weight, kind):
    """(packed, scales) of a weight, one after the other as bitsandbytes lays them."""
    from bitsandbytes import functional

    if kind == "nf4":
        packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    else:
        packed, state = functional.quantize_blockwise(weight, code=_steps(weight.device), blocksize=BLOCK)
    return packed, state.absmax


def _unpack(packed, scales, kind, shape, dtype):
    from bitsandbytes import functional

    state = {"absmax": scales, "shape": torch.Size(shape), "dtype": dtype, "blocksize": BLOCK}
    if kind == "nf4":
        return functional.dequantize_4bit(packed, functional.QuantState(**state, quant_type="nf4"))
    return functional.dequantize_blockwise(packed, functional.QuantState(**state, code=_steps(packed.device)))


@functools.cache
def _steps(device):
    """The 256 values of an 8-bit code in equal steps from -1 to 1; zero is there twice."""
    half = torch.arange(128, dtype=torch.float32, device=device) / 127
    return torch.cat((-half.flip(0), half))


class _Call(torch.autograd.Function):
    """The linear layer; what waits for its backward pass is the packed weights alone."""

    @staticmethod
    def forward(context, x, layer):
        context.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return torch.nn.functional.linear(x, layer.dequantised(x.dtype), bias)

    @staticmethod
    def backward(context, gradient):
        return gradient @ context.layer.dequantised(gradient.dtype), None

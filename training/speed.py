"""Settings of the ``train`` section that make the calls of networks faster; weights change by rounding alone.

None of them belongs to the fingerprint of a run, so they may change when it is resumed.
"""

import time

import torch

from rmd_core.errors import RMDError, one_line

from .backbones.files import quiet

RECOMPILES = 64  # of one block: roles, with and without gradients, at the sizes of all stages


def set_backends(train):
    """Set this process's switches of PyTorch's CUDA kernels by the configuration's train section."""
    if train.tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = train.cudnn_benchmark


def speed_up(network, train):
    """Prepare a network for faster calls by the configuration's train section; returns the network.

    Before it is sharded, and not before it is copied. Raises RMDError for an attention that is not there.
    """
    if train.channels_last:
        network.to(memory_format=torch.channels_last)
    if train.attention is not None:
        set_attention(network, train.attention)
    if train.compile is not None:
        torch._dynamo.config.cache_size_limit = RECOMPILES
        for block in transformer_blocks(network):
            block.compile(backend=train.compile)
    return network


def matmul_tflops(device, dtype, *, size=8192, repeats=10):
    """The TFLOP a second of a square matrix product in ``dtype``: the peak that the speed of a run is compared with.

    Measured, as a list of devices would go out of date.
    """
    x = torch.ones(size, size, device=device, dtype=dtype)
    out = torch.empty_like(x)
    seconds = []
    for _ in range(2):  # the first one warms up
        _wait(device)
        began = time.perf_counter()
        for _ in range(repeats):
            torch.mm(x, x, out=out)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 * repeats / seconds[-1] / 1e12


def _wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def transformer_blocks(network):
    """The transformer blocks of a network, by what diffusers calls their classes."""
    return [module for module in network.modules() if type(module).__name__.endswith("TransformerBlock")]


def set_attention(network, name):
    """Let a network's attentions call diffusers' backend ``name``. Raises RMDError where that is not possible."""
    try:
        with quiet():
            network.set_attention_backend(name)
    except AttributeError:
        raise RMDError("train.attention: this diffusers has no attention backends; pip install -U diffusers") from None
    except (ImportError, RuntimeError, ValueError) as error:
        raise RMDError(f"train.attention: {name}: {one_line(error, 300)}") from None
    processors = [getattr(module, "processor", None) for module in network.modules()]
    if not any(getattr(processor, "_attention_backend", None) == name for processor in processors):
        raise RMDError(
            f"train.attention: {type(network).__name__} of this diffusers always calls PyTorch's own attention; leave "
            "train.attention out"
        )

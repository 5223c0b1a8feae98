"""Networks and autoencoders of a configuration with random weights, on a device and in a precision."""

import torch
from accelerate import init_empty_weights
from torch.nn import Parameter

COMPILED_SHAPES = 64  # kept beside each other; PyTorch's own 8 are fewer than sizes times kinds of block


def random_network(kind, config, *, device, dtype, seed=0):
    """A frozen network with random weights of order one, as a checkpoint of it is loaded in ``dtype``.

    What diffusers keeps in float32 stays in float32. The global generators are left alone.
    """
    with init_empty_weights(include_buffers=False):
        network = kind(**config)
    generator = torch.Generator(device).manual_seed(seed)
    kept = set(getattr(kind, "_keep_in_fp32_modules", None) or ())
    for name, outline in list(network.named_parameters()):
        path = name.split(".")
        values = torch.empty(outline.shape, device=device, dtype=torch.float32 if kept & set(path) else dtype)
        if outline.ndim > 1:
            values.normal_(0, outline[0].numel() ** -0.5, generator=generator)
        else:
            values.fill_(1.0 if path[-1] == "weight" else 0.0)
        owner = network.get_submodule(".".join(path[:-1]))
        setattr(owner, path[-1], Parameter(values, requires_grad=False))
    return network.to(device).eval()


def compile_in_place(network):
    """Compile a network for fixed shapes: a stack of blocks block by block, any other as a whole with CUDA graphs."""
    torch._dynamo.config.recompile_limit = COMPILED_SHAPES
    blocks = getattr(network, "blocks", None) or getattr(network, "transformer_blocks", None)
    if blocks is None:
        network.compile(dynamic=False, mode="reduce-overhead")
        return
    for block in blocks:
        block.compile(dynamic=False)


def random_conditioning(backbone, network, *, tokens, batch, device, seed):
    """Conditioning of a batch: random embeddings, nothing masked."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, blank in backbone.blank_conditioning(network, tokens, "cpu").items():
        shape = (batch, *blank.shape[1:])
        values = torch.ones(shape) if name == "mask" else torch.randn(shape, generator=generator)
        found[name] = values.to(device)
    return found

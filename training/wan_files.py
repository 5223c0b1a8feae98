"""Load and save Wan2.1 text-to-video transformers as single files in native key names."""

import json
import math
import re

import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel

from rmd_core.errors import RMDError, one_line
from rmd_core.header import read_header, save_safetensors

from .tensor_files import cast_weight, finite_weights, read_tensors
from .wan_keys import WRAPPER_PREFIX, native_name, to_diffusers, to_native

_NEEDED = {  # and the number of their axes
    "patch_embedding.weight": 5,
    "head.modulation": 3,
    "head.head.weight": 2,
    "text_embedding.0.weight": 2,
    "time_embedding.0.weight": 2,
    "blocks.0.ffn.0.weight": 2,
}


def load_wan_transformer(path, *, dtype=torch.float32):
    """The ``WanTransformer3DModel`` in a native-key safetensors file, in ``dtype`` on the CPU, in eval mode.

    The sizes come from the tensor shapes; what shapes cannot tell (the number of heads) comes from the metadata entry
    ``config`` = ``{"transformer": {...}}`` that ComfyUI reads too, else heads are 128 wide.
    Raises RMDError for a missing, pickled, truncated or foreign file, and for weights of integers or not finite.
    """
    tensors, metadata = read_tensors(path)
    tensors = {name.removeprefix(WRAPPER_PREFIX): tensor for name, tensor in tensors.items()}
    with init_empty_weights(include_buffers=False):
        model = _made(tensors, metadata, path)
    _check(model, tensors, path)
    model.load_state_dict(to_diffusers(finite_weights(tensors, path, dtype=dtype)), strict=True, assign=True)
    return model.eval().requires_grad_(True)


def outline_wan_transformer(path):
    """The transformer of a native-key file on the meta device, from the file's header. Raises RMDError as above."""
    header = read_header(path)
    with torch.device("meta"):
        tensors = {n.removeprefix(WRAPPER_PREFIX): torch.empty(entry.shape) for n, entry in header.tensors.items()}
        model = _made(tensors, dict(header.metadata), path)
    return model.eval()


def native_wan_state_dict(model):
    """The parameters of a ``WanTransformer3DModel`` under native names (the tensors are shared, not copied)."""
    return to_native(model.state_dict())


def native_wan_metadata(model):
    """The ``config`` metadata entry by which ComfyUI detects a Wan model of unusual sizes."""
    sizes = {
        "num_heads": model.config.num_attention_heads,
        "text_dim": model.config.text_dim,
        "freq_dim": model.config.freq_dim,
    }
    return {"config": json.dumps({"transformer": sizes}, sort_keys=True)}


def save_wan_transformer(model, path, *, dtype=torch.float16, metadata=None):
    """Write a transformer as one native-key safetensors file that ComfyUI's diffusion model loader detects.

    ``metadata``: further string entries, such as the recipe. Raises RMDError when the file cannot be written, or when a
    weight is not finite, in the network or in ``dtype``.
    """
    tensors = {name: cast_weight(name, tensor, dtype, path) for name, tensor in native_wan_state_dict(model).items()}
    save_safetensors(path, tensors, {**native_wan_metadata(model), **(metadata or {})})


def wan_config(tensors, metadata, *, path):
    """Constructor arguments of ``WanTransformer3DModel`` for native ``tensors``. Raises RMDError naming ``path``."""
    missing = [name for name in _NEEDED if name not in tensors]
    if missing:
        raise RMDError(
            f"{path} is no Wan2.1 transformer in native key names: it has no '{missing[0]}'; "
            "give a file as it lies in ComfyUI's models/diffusion_models"
        )
    shape = {name: tuple(tensors[name].shape) for name in _NEEDED}
    for name, axes in _NEEDED.items():
        if len(shape[name]) != axes or 0 in shape[name]:
            raise RMDError(f"{path}: '{name}' has shape {shape[name]}; {axes} axes, none of them empty, are expected")
    told = _told(metadata, path)
    dim, in_channels, *patch = shape["patch_embedding.weight"]
    heads = told.get("num_heads", max(1, dim // 128))
    if type(heads) is not int or heads < 1 or dim % heads or (dim // heads) % 2:
        raise RMDError(
            f"{path}: a width of {dim} cannot be divided among {heads!r} heads of even width (metadata 'config')"
        )
    eps = told.get("eps", 1e-6)
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise RMDError(f"{path}: eps is {eps!r}; a number between 0 and 1 is expected (metadata 'config')")
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": in_channels,
        "out_channels": shape["head.head.weight"][0] // math.prod(patch),
        "text_dim": shape["text_embedding.0.weight"][1],
        "freq_dim": shape["time_embedding.0.weight"][1],
        "ffn_dim": shape["blocks.0.ffn.0.weight"][0],
        "num_layers": _layers(tensors, path),
        "cross_attn_norm": "blocks.0.norm3.weight" in tensors,
        "qk_norm": "rms_norm_across_heads",
        "eps": float(eps),
    }


def _made(tensors, metadata, path):
    config = wan_config(tensors, metadata, path=path)
    try:
        return WanTransformer3DModel(**config)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise RMDError(f"{path}: no Wan2.1 transformer has the sizes of its tensors ({one_line(error)})") from None


def _layers(tensors, path):
    numbers = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    absent = [i for i in range(len(numbers)) if str(i) not in numbers]
    if absent:
        raise RMDError(f"{path} has {len(numbers)} blocks, but no block {absent[0]}; it is damaged, use another one")
    return len(numbers)


def _told(metadata, path):
    try:
        told = json.loads(metadata.get("config", "{}")).get("transformer", {})
        return dict(told)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise RMDError(f"{path}: its metadata entry 'config' is no JSON object with a 'transformer' object") from None


def _check(model, tensors, path):
    """Every key there once, none else, every shape right."""
    wanted = {native_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, foreign = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing:
        raise RMDError(
            f"{path} lacks {len(missing)} of the {len(wanted)} tensors of its Wan2.1 transformer, first '{missing[0]}'"
        )
    if foreign:
        raise RMDError(
            f"{path} has {len(foreign)} tensors that a Wan2.1 text-to-video transformer does not have, "
            f"first {foreign[0][:80]!r}; use a text-to-video file"
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise RMDError(f"{path}: '{name}' has shape {tuple(tensors[name].shape)}, expected {shape}")

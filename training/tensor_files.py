"""Read safetensors files whole or tensor by tensor, with one-line errors."""

import torch
from safetensors import SafetensorError, safe_open

from rmd_core.errors import RMDError, one_line
from rmd_core.header import read_header


def open_tensors(path):
    """A lazy reader of a safetensors file: ``keys``, ``get_tensor``, ``get_slice``, ``metadata``.

    Raises RMDError for a missing, pickled, truncated or otherwise damaged file.
    """
    read_header(path)
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise RMDError(
            f"{path}: not a safetensors file that can be read ({one_line(error)}); copy or download it again"
        ) from None


def read_tensors(path):
    """All tensors of a safetensors file, on the CPU, and its metadata: ``(tensors, metadata)``. Raises RMDError."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def finite_weights(tensors, path, *, dtype):
    """The weights in ``dtype``. Raises RMDError, naming ``path``, for integers or a value that is not finite."""
    weights = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise RMDError(
                f"{path}: '{name}' holds {str(tensor.dtype).removeprefix('torch.')} values, weights are "
                "floating-point numbers; use the file that was not quantised"
            )
        weights[name] = tensor.to(dtype)
        if not torch.isfinite(weights[name]).all():
            raise RMDError(f"{path}: '{name}' holds values that are not finite; the file is damaged, use another one")
    return weights


def cast_weight(name, tensor, dtype, path):
    """A network's weight in the ``dtype`` of a file. Raises RMDError, naming the file, if it is then not finite."""
    cast = tensor.to(dtype)
    if torch.isfinite(cast).all():
        return cast
    if torch.isfinite(tensor).all():
        kind = str(dtype).removeprefix("torch.")
        advice = f"'{name}' does not fit into {kind}; set output.dtype to bfloat16 or float32"
    else:
        advice = f"'{name}' holds values that are not finite; lower the learning rates (optimiser.*)"
    raise RMDError(f"{path} was not written: {advice}")

"""LoRA files as ComfyUI's LoRA loader reads them."""

import torch

from rmd_core.header import save_safetensors

from .tensor_files import finite_cast


def save_lora(path, factors, *, dtype, metadata):
    """Write ``{key: Factors}`` as ``key.lora_A.weight``, ``key.lora_B.weight`` and ``key.alpha``.

    The alpha, always written and in float32, makes strength 1.0 the strength of training. Raises RMDError when the file
    cannot be written, or when a weight is not finite, in training or in ``dtype``.
    """
    tensors = {}
    for key, value in factors.items():
        tensors[f"{key}.lora_A.weight"] = value.down
        tensors[f"{key}.lora_B.weight"] = value.up
    tensors = {name: finite_cast(name, tensor, dtype, path) for name, tensor in tensors.items()}
    alphas = {f"{key}.alpha": torch.tensor(value.alpha, dtype=torch.float32) for key, value in factors.items()}
    save_safetensors(path, tensors | alphas, metadata)

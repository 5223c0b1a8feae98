"""Which weight files of a folder in Diffusers format are read: safetensors alone, the plain ones before fp16 ones."""

import json
import re

from rmd_core.errors import RMDError
from rmd_core.header import read_header

NETWORK_STEM = "diffusion_pytorch_model"  # what diffusers calls the weights of networks and autoencoders
ENCODER_STEM = "model"  # what transformers calls those of text encoders
VARIANTS = (None, "fp16")
PLAIN = ("F32", "F16", "BF16", "F64")
"""Kinds of numbers that weights are read in, by their safetensors names."""

FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")  # of paths that name one file


def weight_files(names, stem):
    """The weight files and indices among ``names`` that are read; empty where there are none in safetensors."""
    for variant in VARIANTS:
        dot = "" if variant is None else rf"\.{variant}"
        parts = rf"{stem}{dot}(-\d+-of-\d+)?\.safetensors|{stem}-\d+-of-\d+{dot}\.safetensors"
        index = rf"{stem}\.safetensors\.index{dot}\.json"
        found = [name for name in names if re.fullmatch(f"{parts}|{index}", name)]
        if found:
            return found
    return []


def weights_variant(folder, stem):
    """The variant of the weights in a folder that is read: None, or ``fp16`` where there is nothing else.

    Raises RMDError for a folder without safetensors weights, and one that lacks some that its index names.
    """
    for variant in VARIANTS:
        dotted = "" if variant is None else f".{variant}"
        if (folder / f"{stem}{dotted}.safetensors").is_file():
            return variant
        index = folder / f"{stem}.safetensors.index{dotted}.json"
        if index.is_file():
            refuse_absent(index)
            return variant
    raise RMDError(f"{folder} holds no {stem}.safetensors; only safetensors are read, download or convert them")


def refuse_absent(index):
    """Raise RMDError for an index of weights that is damaged, or names files that are not there."""
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise RMDError(f"{index} is damaged; download it again") from None
    absent = sorted(name for name in named if not (index.parent / str(name)).is_file())
    if absent:
        raise RMDError(
            f"{index.parent} lacks {len(absent)} of the files that its index names, first {absent[0]}; download them"
        )


def refuse_packed(folder, stem):
    """Raise RMDError for weights that are no plain floating-point numbers, which would be read as if they were."""
    files = weight_files(sorted(path.name for path in folder.iterdir()), stem)
    for path in (folder / name for name in files if name.endswith(".safetensors")):
        for name, entry in read_header(path).tensors.items():
            if entry.dtype not in PLAIN and not name.endswith("position_ids"):  # CLIP's, which are counted, not learnt
                raise RMDError(f"{path}: '{name}' is {entry.dtype}; give weights in {', '.join(PLAIN)}, not quantised")

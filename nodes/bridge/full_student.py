"""A full student as ComfyUI loads it, and whether the file held the whole network."""

from __future__ import annotations

from typing import Any

import comfy.sd
import torch

from ...rmd_core.errors import RMDError
from ...rmd_core.header import read_header
from .readable_files import readable
from .student_checks import Findings

WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""The model options of each weight dtype, as ComfyUI's own loader of diffusion models offers them."""

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
PLAIN = {"F64", "F32", "F16", "BF16"}


def load_full(path: str, *, weight_dtype: str, student: str) -> tuple[Any, Findings]:
    """The MODEL in a file of diffusion_models.

    Raises RMDError for an unknown weight_dtype, and for a file that ComfyUI does not recognise or cannot read, or that
    lacks weights of the network it is.
    """
    if weight_dtype not in WEIGHT_DTYPES:
        raise RMDError(f"weight_dtype is {weight_dtype!r:.80}; use one of {', '.join(WEIGHT_DTYPES)}")
    with readable(student):
        try:
            model = comfy.sd.load_diffusion_model(path, model_options=dict(WEIGHT_DTYPES[weight_dtype]))
        except RuntimeError as error:
            if "Could not detect model type" in str(error):
                raise RMDError(
                    f"{student}: ComfyUI recognises no diffusion model in this file; if it is a LoRA, choose LoRA, "
                    "else update ComfyUI"
                ) from None
            if "Error(s) in loading state_dict" in str(error):
                raise RMDError(
                    f"{student}: its tensors do not have the shapes of one network; it is damaged, copy it again or "
                    "export it again"
                ) from error
            raise
    return model, _check_whole(path, model, student)


def _check_whole(path: str, model: Any, student: str) -> Findings:
    """Compare names only: ComfyUI fills a weight that the file lacks with whatever was in memory, and goes on."""
    tensors = read_header(path).tensors
    stored = {_without_prefix(name) for name in tensors}
    network = model.model.diffusion_model
    wanted = {name for name, _ in network.named_parameters()}
    lacking = sorted(wanted - stored)
    if not lacking:
        return Findings(checked=(f"all {len(wanted)} weights of the network are in the file",))
    foreign = stored - network.state_dict().keys()
    packed = {entry.dtype for entry in tensors.values()} - PLAIN
    if packed or _renamed(lacking, foreign) or (foreign and 2 * len(lacking) > len(wanted)):
        return Findings(unchecked=("whether the file holds every weight: its names are not those of the network",))
    raise RMDError(
        f"{student} lacks {len(lacking)} of the {len(wanted)} weights of its network, first {lacking[0]!r}; "
        "it is damaged, copy it again or export it again"
    )


def _renamed(lacking: list[str], foreign: set[str]) -> bool:
    """Whether every weight that is lacking has something of another name in its layer, as packed formats have."""
    layers = {name.rpartition(".")[0] for name in foreign} | {name.rsplit(".", 2)[0] for name in foreign}
    return all(name.rpartition(".")[0] in layers for name in lacking)


def _without_prefix(name: str) -> str:
    return next((name[len(prefix) :] for prefix in PREFIXES if name.startswith(prefix)), name)

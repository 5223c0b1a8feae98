"""The full-size networks on the meta device: real architectures without data, to compare keys and shapes."""

from functools import cache

from benchmarks.models import ARCHITECTURES, outline
from training.backbones import make_backbone

DETECTED = {  # the class that ComfyUI should detect
    "SDXL": "SDXL",
    "PixArt alpha": "PixArtAlpha",
    "PixArt Sigma": "PixArtSigma",
    "SD3.5 Medium": "SD3",
    "SD3.5 Large": "SD3",
    "Wan2.1 1.3B": "WAN21_T2V",
    "Wan2.1 14B": "WAN21_T2V",
    "Wan2.2 A14B": "WAN21_T2V",
    "Wan2.2 5B": "WAN22_T2V",
    "Z-Image": "ZImage",
    "Qwen-Image": "QwenImage",
    "FLUX.2 klein 4B": "Flux2",
    "FLUX.2 klein 9B": "Flux2",
}
STUDENTS = tuple(DETECTED)


@cache
def meta_teacher(name):
    """A full-size teacher on the meta device."""
    _, kind, config = ARCHITECTURES[name]
    return outline(kind, config)


def meta_student(name):
    """A file's part of a full-size student: backbone, network on the meta device, class that ComfyUI should detect."""
    backbone, network = make_backbone(ARCHITECTURES[name][0]), meta_teacher(name)
    return backbone, network.get_submodule(backbone.experts[0]) if backbone.experts else network, DETECTED[name]

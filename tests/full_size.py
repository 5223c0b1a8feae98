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
    "Wan2.2 5B": "WAN22_T2V",
    "Z-Image": "ZImage",
    "Qwen-Image": "QwenImage",
    "FLUX.2 klein 4B": "Flux2",
    "FLUX.2 klein 9B": "Flux2",
}
STUDENTS = tuple(DETECTED)


@cache
def meta_student(name):
    """A full-size student: its backbone, its network on the meta device, and the class ComfyUI should detect."""
    backbone, kind, config = ARCHITECTURES[name]
    return make_backbone(backbone), outline(kind, config), DETECTED[name]

"""The model families that can be distilled, by their names in a configuration; each is imported when asked for."""

from importlib import import_module

from rmd_core.errors import RMDError

from .base import Backbone

BACKBONES = {  # name: module, class, and how the ModelSpec architectures of its students begin
    "wan": ("wan", "WanBackbone", "wan2.1"),
    "wan22_a14b": ("experts", "Wan22A14BBackbone", "wan2.2-a14b"),
    "wan22_5b": ("wan", "Wan22Backbone", "wan2.2-5b"),
    "sdxl": ("sdxl", "SDXLBackbone", "stable-diffusion-xl"),
    "pixart_alpha": ("pixart", "PixArtAlphaBackbone", "pixart-alpha"),
    "pixart_sigma": ("pixart", "PixArtSigmaBackbone", "pixart-ms-sigma"),
    "sd3": ("sd3", "SD3Backbone", "stable-diffusion-v3"),
    "qwen_image": ("qwen_image", "QwenImageBackbone", "qwen-image"),
    "z_image": ("z_image", "ZImageBackbone", "z-image"),
    "flux2_klein": ("flux2", "Flux2KleinBackbone", "Flux.2-klein"),
}

__all__ = ["BACKBONES", "Backbone", "backbone_of", "make_backbone"]


def make_backbone(name, *, shift=None):
    """The backbone of that name; ``shift`` is a flow teacher's shift, None for the backbone's own.

    Raises RMDError, listing the allowed names, for any other name, and for a shift where there is no flow.
    """
    if name not in BACKBONES:
        raise RMDError(f"the backbone '{name}' is not known; choose one of: {', '.join(BACKBONES)}")
    module, kind, _ = BACKBONES[name]
    return getattr(import_module(f".{module}", __name__), kind)(shift=shift)


def backbone_of(recipe):
    """The backbone of a student, by its Recipe. Raises RMDError for an architecture that is not in the trainer."""
    for name, (_, _, start) in BACKBONES.items():
        if recipe.architecture.startswith(start):
            backbone = make_backbone(name, shift=getattr(recipe.curve, "shift", None))
            if recipe.expert_sigma is not None:
                backbone.boundary = recipe.expert_sigma
            return backbone
    raise RMDError(
        f"the architecture '{recipe.architecture}' is not known; choose a student of one of: {', '.join(BACKBONES)}"
    )

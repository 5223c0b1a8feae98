"""The models that can be distilled, by the name a configuration gives them."""

from rmd_core.errors import RMDError

from .base import Backbone
from .pixart import PixArtAlphaBackbone, PixArtSigmaBackbone
from .sd3 import SD3Backbone
from .sdxl import SDXLBackbone
from .wan import WanBackbone

BACKBONES = {
    kind.name: kind for kind in (WanBackbone, SDXLBackbone, PixArtAlphaBackbone, PixArtSigmaBackbone, SD3Backbone)
}

__all__ = ["BACKBONES", "Backbone", "make_backbone"]


def make_backbone(name, *, shift=None):
    """The backbone of that name; ``shift`` is a flow teacher's shift, None for the backbone's own.

    Raises RMDError, listing the allowed names, for any other name, and for a shift where there is no flow.
    """
    if name not in BACKBONES:
        raise RMDError(f"the backbone '{name}' is not known; choose one of: {', '.join(BACKBONES)}")
    return BACKBONES[name](shift=shift)

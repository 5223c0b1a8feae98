"""The models that can be distilled, by the name a configuration gives them."""

from rmd_core.errors import RMDError

from .base import Backbone
from .wan import WanBackbone

BACKBONES = {"wan": WanBackbone}

__all__ = ["BACKBONES", "Backbone", "make_backbone"]


def make_backbone(name, *, shift=None):
    """The backbone of that name; ``shift`` is the teacher's flow shift, None for the backbone's own.

    Raises RMDError, listing the allowed names, for any other name.
    """
    if name not in BACKBONES:
        raise RMDError(f"the backbone '{name}' is not known; choose one of: {', '.join(BACKBONES)}")
    return BACKBONES[name](shift=shift)

"""Arithmetic of one network call and of one decoding, counted by PyTorch on tensors without data."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from training.backbones import Backbone, make_backbone

from .ways import size_name


def count_flops(model):
    """{"sizes": {size: floating-point operations of one call for one sample}, "decode": those of one decoding}."""
    backbone = make_backbone(model.backbone)
    kind, config = model.network
    with torch.device("meta"):
        network = kind(**config)
    arguments = (model.frames, model.tokens)
    # The base class counts; Wan's own is a formula, which a test holds against this count.
    sizes = {size_name(size): Backbone.flops(backbone, network, *size, *arguments) for size in model.sizes}
    return {"sizes": sizes, "decode": decoding_flops(backbone, model)}


def decoding_flops(backbone, model):
    """Floating-point operations of decoding one sample at the final size."""
    kind, config = model.vae
    with torch.device("meta"):
        vae = kind(**config)
        latent = torch.empty(*backbone.latent_shape(1, model.frames), *model.high)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.decode(latent)
    return counter.get_total_flops()

"""One network call as the pair (x0, eps), guided or not: the one place where trainer and sampler ask a network."""

from dataclasses import dataclass

import torch

from rmd_core.prediction import guide, to_x0_eps

from .backbones.base import join


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: its scale, and the null prompt's conditioning for the whole batch."""

    scale: float
    null: dict


def estimate_x0_eps(backbone, network, x, sigma_B, conditioning, *, curve, guidance=None):
    """The network's (x0, eps) for states ``x`` at the levels ``sigma_B``, shape (B,), float64.

    With ``guidance``, conditional and null rows go through the network in one call. Guiding x0 and eps is the same as
    guiding the output, which both are affine in. Source: docs/method.md, predictions.
    """
    if guidance is not None:
        x, sigma_B = torch.cat((x, x)), torch.cat((sigma_B, sigma_B))
        conditioning = join(conditioning, guidance.null)
    output = backbone.predict(network, x, sigma_B, conditioning)
    pair = to_x0_eps(output, x, alpha=curve.alpha(sigma_B), sigma=sigma_B, prediction=backbone.prediction)
    return pair if guidance is None else tuple(guide(*part.chunk(2), guidance.scale) for part in pair)

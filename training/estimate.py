"""One network call as the pair (x0, eps), guided or not: the one place where trainer and sampler ask a network."""

from dataclasses import dataclass

import torch

from rmd_core.prediction import guide, to_x0_eps

from .backbones.base import join


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: its scale, and the null prompt's conditioning for the whole batch.

    ``calls``: ``together``, conditional and null rows in one call, or ``apart``, in one after the other.
    """

    scale: float
    null: dict
    calls: str = "together"


def estimate_x0_eps(backbone, network, x, sigma_B, conditioning, *, curve, guidance=None):
    """The network's (x0, eps) for states ``x`` at the levels ``sigma_B``, shape (B,), float64.

    With ``guidance`` the network is asked for conditional and null rows. Guiding x0 and eps is the same as guiding the
    output, which both are affine in. Source: docs/method.md, predictions.
    """
    if guidance is not None and guidance.calls == "apart":
        rows = (conditioning, guidance.null)
        asked = [estimate_x0_eps(backbone, network, x, sigma_B, row, curve=curve) for row in rows]
        return tuple(guide(*pair, guidance.scale) for pair in zip(*asked))
    if guidance is not None:
        x, sigma_B = torch.cat((x, x)), torch.cat((sigma_B, sigma_B))
        conditioning = join(conditioning, guidance.null)
    output = backbone.predict(network, x, sigma_B, conditioning)
    pair = to_x0_eps(output, x, alpha=curve.alpha(sigma_B), sigma=sigma_B, prediction=backbone.prediction)
    return pair if guidance is None else tuple(guide(*part.chunk(2), guidance.scale) for part in pair)

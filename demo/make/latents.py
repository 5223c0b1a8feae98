"""A pool of encoded pictures to train the teacher on, at every size of the demo world."""

import torch

from ..world.catalogue import TEACHER_STYLES
from ..world.drawings import Drawings, draw_jitter

SIDES = (128, 96, 64)  # px; latents are 16, 12 and 8 cells wide


@torch.no_grad()
def latent_pool(encode, jitters, generator):
    """Latents of every drawing and background of the teacher's styles, each with ``jitters`` jitters.

    encode: pictures (B, 3, S, S) in -1..1 to latents (B, 16, S/8, S/8) in the teacher's space.
    Returns {side: (N, 16, side/8, side/8)}, index (N,), background (N,).
    """
    drawings = Drawings(TEACHER_STYLES)
    index, background = torch.meshgrid(
        torch.arange(len(drawings)), torch.arange(len(drawings.backgrounds)), indexing="ij"
    )
    index, background = index.reshape(-1).repeat(jitters), background.reshape(-1).repeat(jitters)
    jitter = draw_jitter(len(index), generator, held_out=False)
    pool = {}
    for side in SIDES:
        parts = []
        for rows in torch.arange(len(index)).split(32):
            parts.append(encode(drawings.render(index[rows], background[rows], jitter[rows], side=side)))
        pool[side] = torch.cat(parts)
    return pool, index, background

"""Train the judge on drawings of four styles, plain and through the autoencoder.

OMP_NUM_THREADS=1 python -m demo.make.judge --cpu-minutes 3
"""

import argparse
import json
import time

import torch
from torch.nn import functional as F

from rmd_core.files import save_safetensors
from training.backbones.wan import WanBackbone

from .. import files
from ..judge import Judge
from ..world import CONCEPTS, HELD_OUT_STYLES, SEEN_STYLES, Drawings
from .vae import encode_images

POOL = 4096  # images, a quarter of them through the autoencoder
RATE = 3e-3


def labels(drawings, index, background):
    """Label numbers of a batch, as the judge's heads count them."""
    concepts = torch.tensor([list(CONCEPTS).index(c) for c in drawings.concepts])
    styles = torch.tensor([SEEN_STYLES.index(s) if s in SEEN_STYLES else -1 for s in drawings.styles])
    return {"concept": concepts[index], "style": styles[index], "background": background}


@torch.no_grad()
def through(vae, images):
    """Images after the autoencoder, in -1..1."""
    return WanBackbone().decode(vae, encode_images(vae, images).unsqueeze(2))[:, :, 0] * 2 - 1


@torch.no_grad()
def accuracy(judge, drawings, vae=None):
    """Shares of held-out jitters that are named right, by kind of label."""
    images, index, background = drawings.sample(288, torch.Generator().manual_seed(9), side=128, held_out=True)
    if vae is not None:
        images = torch.cat([through(vae, part) for part in images.split(32)])
    answers, truth = judge.eval()(images), labels(drawings, index, background)
    return {kind: round((answers[kind].argmax(1) == truth[kind]).float().mean().item(), 3) for kind in answers}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu-minutes", type=float, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(21)
    drawings, vae, judge = Drawings(SEEN_STYLES), WanBackbone().load_vae(files.VAE), Judge()
    images, index, background = drawings.sample(POOL, generator, side=128)
    images[::4] = torch.cat([through(vae, part) for part in images[::4].split(32)])
    truth = labels(drawings, index, background)
    optimiser = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=0.02)
    began, step = time.process_time(), 0
    while (share := (time.process_time() - began) / (60 * args.cpu_minutes)) < 1:
        judge.train()
        optimiser.param_groups[0]["lr"] = RATE * (1 - share)
        rows = torch.randint(POOL, (48,), generator=generator)
        answers = judge(images[rows])
        loss = sum(F.cross_entropy(answers[kind], truth[kind][rows], label_smoothing=0.05) for kind in answers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
    save_safetensors(files.JUDGE, {key: value for key, value in judge.state_dict().items() if "tracked" not in key})
    print(
        json.dumps(
            dict(
                steps=step,
                loss=round(loss.item(), 4),
                held_out_jitters=accuracy(judge, drawings),
                held_out_jitters_through_autoencoder=accuracy(judge, drawings, vae),
                held_out_drawings=accuracy(judge, Drawings(HELD_OUT_STYLES)),
            ),
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

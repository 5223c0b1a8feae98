"""Train the classifier on drawings of four styles, plain and through the autoencoder.

OMP_NUM_THREADS=1 python -m demo.make.classifier --minutes 6
python -m demo.make.classifier --device cuda --batch 256 --minutes 1
"""

import argparse
import json
import time

import torch
from torch.nn import functional as F

from rmd_core.files import save_safetensors
from training.backbones.wan import WanBackbone

from .. import files
from ..classifier import Classifier
from ..world import CONCEPTS, HELD_OUT_STYLES, SEEN_STYLES, Drawings
from .vae import encode_images

POOL = 8192  # images, a quarter of them through the autoencoder
RATE = 3e-3


def labels(drawings, index, background):
    """Label numbers of a batch, as the classifier's heads count them."""
    concepts = torch.tensor([list(CONCEPTS).index(c) for c in drawings.concepts])
    styles = torch.tensor([SEEN_STYLES.index(s) if s in SEEN_STYLES else -1 for s in drawings.styles])
    return {"concept": concepts[index], "style": styles[index], "background": background}


@torch.no_grad()
def through(vae, images):
    """Images after the autoencoder, in -1..1."""
    images = images.to(next(vae.parameters()).device)
    return WanBackbone().decode(vae, encode_images(vae, images).unsqueeze(2))[:, :, 0] * 2 - 1


@torch.no_grad()
def accuracy(classifier, drawings, vae=None):
    """Shares of held-out jitters that are named right, by kind of label."""
    images, index, background = drawings.sample(288, torch.Generator().manual_seed(9), side=128, held_out=True)
    if vae is not None:
        images = torch.cat([through(vae, part) for part in images.split(32)])
    answers = classifier.cpu().eval()(images.cpu())
    truth = labels(drawings, index, background)
    return {kind: round((answers[kind].argmax(1) == truth[kind]).float().mean().item(), 3) for kind in answers}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=6, help="of CPU time, or on the GPU")
    parser.add_argument("--batch", type=int, default=48)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(21)
    drawings, vae = Drawings(SEEN_STYLES).to(args.device), WanBackbone().load_vae(files.VAE).to(args.device)
    classifier = Classifier().to(args.device)
    parts = [drawings.sample(256, generator, side=128) for _ in range(POOL // 256)]
    images, index, background = map(torch.cat, zip(*parts))
    images[::4] = torch.cat([through(vae, part) for part in images[::4].split(32)])
    truth = {kind: each.to(args.device) for kind, each in labels(drawings, index, background).items()}
    optimiser = torch.optim.AdamW(classifier.parameters(), RATE, weight_decay=0.02)
    clock = time.process_time if args.device == "cpu" else time.monotonic
    began, step = clock(), 0
    while (share := (clock() - began) / (60 * args.minutes)) < 1:
        classifier.train()
        optimiser.param_groups[0]["lr"] = RATE * (1 - share)
        rows = torch.randint(POOL, (args.batch,), generator=generator).to(args.device)
        answers = classifier(images[rows])
        loss = sum(F.cross_entropy(answers[kind], truth[kind][rows], label_smoothing=0.05) for kind in answers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
    weights = {key: value.cpu() for key, value in classifier.state_dict().items() if "tracked" not in key}
    save_safetensors(files.CLASSIFIER, weights)
    vae = vae.cpu()
    print(
        json.dumps(
            dict(
                steps=step,
                loss=round(loss.item(), 4),
                held_out_jitters=accuracy(classifier, drawings),
                held_out_jitters_through_autoencoder=accuracy(classifier, drawings, vae),
                held_out_drawings=accuracy(classifier, Drawings(HELD_OUT_STYLES)),
            ),
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

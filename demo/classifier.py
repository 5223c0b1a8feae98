"""A small classifier of the demo world whose features and labels score images, and the real images to compare with."""

from dataclasses import dataclass

import torch
from torch.nn import BatchNorm2d, Conv2d, Linear, Module, ReLU, Sequential

from rmd_core.files import read_tensors
from training.backbones.wan import WanBackbone

from . import files
from .make import vae as frames
from .world import BACKGROUNDS, CONCEPTS, SEEN_STYLES, TEACHER_STYLES, Drawings, sample_jitter

WIDTHS = (16, 32, 64, 64, 64)
HEADS = {"concept": len(CONCEPTS), "style": len(SEEN_STYLES), "background": len(BACKGROUNDS)}


class Classifier(Module):
    """Strided convolutions to 64 pooled features, then one linear head for each kind of label."""

    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for width in WIDTHS:
            layers += [Conv2d(before, width, 3, stride=2, padding=1), BatchNorm2d(width), ReLU()]
            before = width
        self.body = Sequential(*layers)
        self.heads = torch.nn.ModuleDict({name: Linear(before, count) for name, count in HEADS.items()})

    def features(self, images):
        """Features (B, 64) of images (B, 3, 128, 128) in -1..1."""
        return self.body(images).mean((2, 3))

    def forward(self, images):
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Prediction:
    """The features (B, 64) of a batch in float64, and log-probabilities (B, names) of each kind of label."""

    features: torch.Tensor
    log_probabilities: dict

    @property
    def labels(self):
        """The most probable label numbers (B,) of each kind."""
        return {name: rows.argmax(1) for name, rows in self.log_probabilities.items()}


def load_classifier(path=files.CLASSIFIER):
    """The shipped classifier in eval mode."""
    classifier = Classifier()
    classifier.load_state_dict({key: value.float() for key, value in read_tensors(path)[0].items()}, strict=False)
    return classifier.eval()


@torch.no_grad()
def classify(classifier, images):
    """The Prediction on images (B, 3, 128, 128) in -1..1."""
    features = torch.cat([classifier.features(part) for part in images.split(64)])
    log_probabilities = {name: head(features).log_softmax(1) for name, head in classifier.heads.items()}
    return Prediction(features.double(), log_probabilities)


def frame_vae(path=files.VAE):
    """The shipped autoencoder for single frames, several times faster than as it is."""
    vae = WanBackbone().load_vae(path)
    frames.flatten_convolutions(vae)
    return vae


@torch.no_grad()
def decode_frames(vae, latents):
    """Images (B, 3, S, S) in -1..1 on the CPU, of latents (B, C, 1, h, w), by a ``frame_vae``."""
    parts = frames.denormalise(vae, latents[:, :, 0]).split(24)
    return torch.cat([frames.decode(vae, part).clamp(-1, 1).cpu() for part in parts])


@torch.no_grad()
def real_images(vae, prompts, seed):
    """Images (B, 3, 128, 128) in -1..1 of full prompts with held-out jitters, through a ``frame_vae``."""
    drawings = Drawings(TEACHER_STYLES).to(next(vae.parameters()).device)
    names = list(zip(drawings.styles, drawings.concepts))
    words = [text.split() for text in prompts]
    index = torch.tensor([names.index((style, concept)) for concept, style, _ in words])
    background = torch.tensor([drawings.backgrounds.index(b.removeprefix("on-")) for _, _, b in words])
    jitter = sample_jitter(len(words), torch.Generator().manual_seed(seed), held_out=True)
    parts = []
    for rows in torch.arange(len(words)).split(24):
        plain = drawings.render(index[rows], background[rows], jitter[rows], side=128)
        parts.append(frames.decode(vae, frames.encode(vae, plain)).clamp(-1, 1).cpu())
    return torch.cat(parts)


def frechet_distance(a_ND, b_ND):
    """Frechet distance of two sets of features (N, D), each as a Gaussian; 0 for equal sets (Heusel et al. 2017)."""
    a, b = a_ND.double(), b_ND.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # trace of the root of cov_a cov_b, by the symmetric form root(cov_a) cov_b root(cov_a)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()

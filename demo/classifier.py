"""A small classifier of the demo world whose features and labels score images."""

from dataclasses import dataclass

import torch
from torch.nn import BatchNorm2d, Conv2d, Linear, Module, ReLU, Sequential

from rmd_core.files import read_tensors

from . import files
from .world import BACKGROUNDS, CONCEPTS, SEEN_STYLES

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

"""Score pictures of the demo world against real ones: distances, what the judge names right, and diversity."""

import torch

from benchmarks.judge import judge_pictures, load_judge
from benchmarks.picture_metrics import diversity, frechet_distance, kernel_distance, sliced_wasserstein
from demo import files
from demo.make.vae import decode, encode, flatten_convolutions
from demo.sampling import make_latents
from demo.world.catalogue import BACKGROUNDS, CONCEPTS, SEEN_STYLES, TEACHER_STYLES, prompt
from demo.world.drawings import Drawings, draw_jitter
from training.backbones.wan import load_wan_vae
from training.prompts import PromptCache

PROMPTS = [prompt(c, s, b) for s in TEACHER_STYLES for c in CONCEPTS for b in BACKGROUNDS]
REPEATS = 2  # pictures of each prompt in a row
SEED_OF_REFERENCE = 900


class Scorer:
    """The autoencoder, the judge and the reference: as many real pictures, of held-out jitters, as a row has.

    ``repeats``: pictures of each of the ``prompts``.
    """

    def __init__(self, *, repeats=REPEATS, prompts=PROMPTS):
        self.prompts = list(prompts)
        self.repeats = repeats
        self.vae = load_wan_vae(files.VAE)
        flatten_convolutions(self.vae)  # single frames, several times faster
        self.judge = load_judge()
        self.cache = PromptCache(files.PROMPTS)
        self.truth = labels_of(self.prompts * repeats)
        self._drawn = (None, None)
        self.reference = self.real_pictures(SEED_OF_REFERENCE)
        self.verdict = judge_pictures(self.judge, self.reference)

    def real_pictures(self, seed, prompts=None):
        """Pictures (N, 3, 128, 128) in -1..1 of every prompt with held-out jitters, through the autoencoder."""
        prompts = list(prompts or self.prompts)
        if self._drawn[0] != (seed, prompts):  # the last ones are kept: several damages start from the same
            self._drawn = ((seed, prompts), self._draw(seed, prompts))
        return self._drawn[1]

    @torch.no_grad()
    def _draw(self, seed, prompts):
        drawings = Drawings(TEACHER_STYLES)
        names = list(zip(drawings.styles, drawings.concepts))
        words = [text.split() for text in prompts * self.repeats]
        index = torch.tensor([names.index((style, concept)) for concept, style, _ in words])
        background = torch.tensor([drawings.backgrounds.index(b.removeprefix("on-")) for _, _, b in words])
        jitter = draw_jitter(len(words), torch.Generator().manual_seed(seed), held_out=True)
        parts = []
        for rows in torch.arange(len(words)).split(24):
            plain = drawings.render(index[rows], background[rows], jitter[rows], side=128)
            parts.append(decode(self.vae, encode(self.vae, plain)).clamp(-1, 1))
        return torch.cat(parts)

    @torch.no_grad()
    def pictures(self, way, backbone):
        """Pictures (N, 3, 128, 128) in -1..1 of a Way, one noise seed for each repeat."""
        made = [make_latents(way, backbone, self.cache, self.prompts, seed=seed)[0] for seed in range(self.repeats)]
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1)
            for values in (self.vae.config.latents_mean, self.vae.config.latents_std)
        )
        latents = torch.cat(made)[:, :, 0] * std + mean
        return torch.cat([decode(self.vae, part).clamp(-1, 1) for part in latents.split(24)])

    def score(self, pictures):
        """All figures of one set of pictures, in the order of the prompts, as a dict of floats."""
        verdict, truth = judge_pictures(self.judge, pictures), self.truth
        right = {kind: (verdict.labels[kind] == truth[kind]).float() for kind in truth}
        log_p = verdict.log_probabilities["concept"].gather(1, truth["concept"][:, None])
        shares = [right["concept"][truth["concept"] == c].mean().item() for c in truth["concept"].unique()]
        real = diversity(self.verdict.features, truth["concept"])
        return {
            "fd": frechet_distance(verdict.features, self.verdict.features),
            "kid": kernel_distance(verdict.features, self.verdict.features),
            "swd": sliced_wasserstein(pictures, self.reference, 5),
            **{kind: share.mean().item() for kind, share in right.items()},
            "worst_concept": min(shares),
            "doubt": -1000 * log_p.mean().item(),
            "spread": diversity(verdict.features, truth["concept"]) / real,
        }


def labels_of(prompts):
    """The label numbers that the judge should give, by kind."""
    words = [text.split() for text in prompts]
    order = {"concept": list(CONCEPTS), "style": list(SEEN_STYLES), "background": list(BACKGROUNDS)}
    columns = {
        "concept": [w[0] for w in words],
        "style": [w[1] for w in words],
        "background": [w[2].removeprefix("on-") for w in words],
    }
    return {kind: torch.tensor([order[kind].index(name) for name in columns[kind]]) for kind in order}

"""How images of the demo world are scored against real ones, and damaged real images that check the scores."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch.nn import functional as F

from demo import files
from demo.classifier import classify, decode_frames, frame_vae, frechet_distance, load_classifier, real_images
from demo.sampling import make_latents
from demo.world import BACKGROUNDS, CONCEPTS, SEEN_STYLES, TEACHER_STYLES, prompt
from training.prompts import PromptCache

PROMPTS = [prompt(c, s, b) for s in TEACHER_STYLES for c in CONCEPTS for b in BACKGROUNDS]
REPEATS = 2  # images of each prompt in a row
SEED_OF_REFERENCE = 900
RESAMPLES = 200  # for an interval


class Scorer:
    """The autoencoder, the classifier and the reference: as many real images, of held-out jitters, as a row has.

    ``repeats``: images of each of the ``prompts``.
    """

    def __init__(self, *, repeats=REPEATS, prompts=PROMPTS, device="cpu"):
        self.prompts = list(prompts)
        self.repeats = repeats
        self.device = device
        self.vae = frame_vae(files.VAE).to(device)
        self.classifier = load_classifier()
        self.cache = PromptCache(files.PROMPTS)
        self.truth = labels_of(self.prompts * repeats)
        self._last = (None, None)
        self.reference = self.real_images(SEED_OF_REFERENCE)
        self.real = classify(self.classifier, self.reference)

    def real_images(self, seed, prompts=None):
        """Images (N, 3, 128, 128) in -1..1 of every prompt with held-out jitters, through the autoencoder."""
        prompts = list(prompts or self.prompts)
        if self._last[0] != (seed, prompts):  # the last ones are kept: several damages start from the same
            self._last = ((seed, prompts), self._render(seed, prompts))
        return self._last[1]

    def _render(self, seed, prompts):
        return real_images(self.vae, prompts * self.repeats, seed)

    @torch.no_grad()
    def images(self, setup, backbone):
        """Images (N, 3, 128, 128) in -1..1 of a SamplingSetup on the CPU, one noise seed for each repeat."""
        batch = 24 if self.device == "cpu" else 256
        options = {"batch": batch, "device": self.device}
        made = [
            make_latents(setup, backbone, self.cache, self.prompts, seed=seed, **options)[0]
            for seed in range(self.repeats)
        ]
        return decode_frames(self.vae, torch.cat(made))

    def score(self, images):
        """All figures of one set of images, in the order of the prompts, as a dict of floats.

        ``fd_low`` and ``fd_high``: 95 % of the Frechet distances when the images are resampled with replacement.
        """
        prediction, truth = classify(self.classifier, images), self.truth
        right = {kind: (prediction.labels[kind] == truth[kind]).float() for kind in truth}
        log_p = prediction.log_probabilities["concept"].gather(1, truth["concept"][:, None])
        shares = [right["concept"][truth["concept"] == c].mean().item() for c in truth["concept"].unique()]
        real = diversity(self.real.features, truth["concept"])
        low, high = bootstrap_interval(prediction.features, self.real.features, self.repeats)
        return {
            "fd": frechet_distance(prediction.features, self.real.features),
            "fd_low": low,
            "fd_high": high,
            "kid": kernel_distance(prediction.features, self.real.features),
            "swd": sliced_wasserstein(images, self.reference, 5),
            **{kind: share.mean().item() for kind, share in right.items()},
            "worst_concept": min(shares),
            "doubt": -1000 * log_p.mean().item(),
            "spread": diversity(prediction.features, truth["concept"]) / real,
        }


def bootstrap_interval(a_ND, b_ND, repeats):
    """The middle 95 % of the Frechet distances when images are resampled within each prompt.

    Both sets have ``repeats`` images of each prompt, one block of prompts after the other. The interval is around the
    distance itself. Resampling so few loses a part of the variance, which the factor sqrt(k / (k - 1)) gives back (Rao
    and Wu 1988).
    """
    generator = torch.Generator().manual_seed(7)
    prompts = len(a_ND) // repeats
    found = []
    for _ in range(RESAMPLES):
        rows = [torch.arange(len(a_ND)) % prompts + prompts * torch.randint(repeats, (len(a_ND),), generator=generator)
                for _ in range(2)]  # fmt: skip
        found.append(frechet_distance(a_ND[rows[0]], b_ND[rows[1]]))
    values = torch.tensor(found, dtype=torch.float64)
    spread = (repeats / (repeats - 1)) ** 0.5 if repeats > 1 else 1.0
    values = frechet_distance(a_ND, b_ND) + spread * (values - values.mean())
    return values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).clamp(min=0).tolist()


def labels_of(prompts):
    """The label numbers that the classifier should give, by kind."""
    concepts, styles, backgrounds = zip(*(text.split() for text in prompts))
    return {
        "concept": torch.tensor([list(CONCEPTS).index(word) for word in concepts]),
        "style": torch.tensor([SEEN_STYLES.index(word) for word in styles]),
        "background": torch.tensor([list(BACKGROUNDS).index(word.removeprefix("on-")) for word in backgrounds]),
    }


def kernel_distance(a_ND, b_ND):
    """Unbiased squared MMD of two sets of features with the cubic kernel, x1000 (Binkowski et al. 2018)."""
    a, b = a_ND.double(), b_ND.double()
    n, m, width = len(a), len(b), a.shape[1]

    def kernel(x, y):
        return (x @ y.T / width + 1) ** 3

    aa, bb = kernel(a, a), kernel(b, b)
    within_a = (aa.sum() - aa.trace()) / (n * (n - 1))
    within_b = (bb.sum() - bb.trace()) / (m * (m - 1))
    return 1000 * (within_a + within_b - 2 * kernel(a, b).mean()).item()


def patches(images, generator, *, side=7, per_image=16):
    """Random patches (N * per_image, 3 * side * side), each with its mean colour removed."""
    height, width = images.shape[-2:]
    found = []
    for image in images:
        ys = torch.randint(height - side + 1, (per_image,), generator=generator).tolist()
        xs = torch.randint(width - side + 1, (per_image,), generator=generator).tolist()
        found += [image[:, y : y + side, x : x + side] for y, x in zip(ys, xs)]
    stack = torch.stack(found)
    return (stack - stack.mean((2, 3), keepdim=True)).flatten(1)


def sliced_wasserstein(a, b, seed, *, directions=256):
    """Sliced Wasserstein distance of the patches of two equally large sets of images in -1..1, x100."""
    generator = torch.Generator().manual_seed(seed)
    rows_a, rows_b = patches(a, generator), patches(b, generator)
    along = torch.randn(rows_a.shape[1], directions, generator=generator)
    along = along / along.norm(dim=0)
    sorted_a, sorted_b = (rows_a @ along).sort(0).values, (rows_b @ along).sort(0).values
    return 100 * (sorted_a - sorted_b).abs().mean().item()


def diversity(features, concepts):
    """Mean distance of features to the mean of their concept."""
    spread = [(features[concepts == c] - features[concepts == c].mean(0)).norm(dim=1).mean() for c in concepts.unique()]
    return torch.stack(spread).mean().item()


PAIRS = (  # (worse, better, figure); "" is undamaged
    ("blur_3", "", "swd"), ("blur_5", "blur_3", "swd"), ("blur_5", "blur_3", "fd"), ("blur_5", "blur_3", "kid"),
    ("half_size", "", "swd"), ("noise_5", "", "swd"), ("noise_10", "noise_5", "swd"), ("noise_10", "noise_5", "fd"),
    ("noise_10", "noise_5", "kid"), ("one_style", "", "fd"), ("one_style", "", "kid"), ("one_style", "", "spread"),
    ("one_style", "", "style"), ("blocks", "blur_5", "fd"), ("blocks", "blur_5", "concept"), ("grey", "blur_5", "fd"),
    ("grey", "", "concept"), ("wrong_prompts", "", "concept"), ("wrong_prompts", "", "doubt"),
)  # fmt: skip
HIGHER_IS_BETTER = ("concept", "style", "background", "worst_concept", "spread")


@dataclass(frozen=True)
class Damage:
    """One kind of damage: its name in files and in the table, and what it does to images before they are clamped."""

    name: str
    title: str
    change: object

    def apply(self, images):
        """Damage images (N, 3, S, S) in -1..1 that are in the order of the prompts."""
        return self.change(images).clamp(-1, 1)

    def prompts(self, prompts):
        """The prompts whose real images are damaged, in place of the right ones."""
        return [text.replace(" fluent ", " noto ") for text in prompts] if self.name == "one_style" else list(prompts)


def violations(figures):
    """The PAIRS that do not hold for ``{damage name: figures}``; pairs with a missing one are left out."""
    found = []
    for worse, better, name in PAIRS:
        if worse in figures and better in figures:
            gap = figures[worse][name] - figures[better][name]
            if (-gap if name in HIGHER_IS_BETTER else gap) <= 0:
                found.append((worse, better, name))
    return found


def _blur(side):
    return lambda x: F.avg_pool2d(F.pad(x, [side // 2] * 4, mode="reflect"), side, stride=1)


def _half_size(x):
    small = F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)


def _noise(share):
    # of the range, which is 2 wide
    return lambda x: x + 2 * share * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def _blocks(x, side=16):
    blocks = rearrange(x, "b c (y h) (x w) -> b (y x) c h w", h=side, w=side)
    generator = torch.Generator().manual_seed(2)
    orders = [torch.randperm(blocks.shape[1], generator=generator) for _ in x]
    shuffled = torch.stack([image[order] for image, order in zip(blocks, orders)])
    return rearrange(shuffled, "b (y x) c h w -> b c (y h) (x w)", y=x.shape[-2] // side)


DAMAGES = (
    Damage("blur_3", "blurred, 3 x 3", _blur(3)),
    Damage("blur_5", "blurred, 5 x 5", _blur(5)),
    Damage("half_size", "64 px scaled up", _half_size),
    Damage("noise_5", "noise, 5 %", _noise(0.05)),
    Damage("noise_10", "noise, 10 %", _noise(0.10)),
    Damage("blocks", "blocks shuffled", _blocks),
    Damage("grey", "grey", lambda x: x.mean(1, keepdim=True).expand_as(x)),
    Damage("wrong_prompts", "right images, wrong prompts", lambda x: x.roll(len(BACKGROUNDS), 0)),  # the next concept
    Damage("one_style", "one style only", lambda x: x),  # last: it starts from other images
)

"""The ways the demo samples: at one size or in a cascade, with any network, all from the same noise."""

import time
from dataclasses import dataclass

import torch

from rmd_core.boundary import Boundary
from rmd_core.noise import SeededNoise
from rmd_core.plan import StagePlan, plan_from_split
from rmd_core.recipe import read_recipe
from rmd_core.schedule import NoMap
from training.backbones.base import to_device
from training.objective import Guidance
from training.prompts import NULL_PROMPT
from training.sample import sample_latents


@dataclass(frozen=True, kw_only=True)
class SamplingSetup:
    """One way to make images: a network, a plan and its rules; guidance 1 is none."""

    title: str
    network: object
    plan: StagePlan
    boundary: Boundary
    eta: float
    guidance: float = 1.0

    @property
    def calls(self):
        """Network evaluations for one image."""
        return len(self.plan.steps) * (1 if self.guidance == 1.0 else 2)

    @property
    def sides(self):
        """The steps at each image size, such as ``2 x 64 px, 2 x 128 px``."""
        return ", ".join(f"{len(stage.sigmas)} x {8 * stage.height} px" for stage in self.plan.stages)

    @property
    def units(self):
        """Network evaluations in units of one at the final size, a smaller one counted by its share of the cells."""
        cells = [len(stage.sigmas) * stage.height * stage.width for stage in self.plan.stages]
        height, width = self.plan.final_hw
        return sum(cells) / (height * width) * self.calls / len(self.plan.steps)


def single_resolution(curve, steps, size):
    """A plan of one stage at the final size."""
    return plan_from_split(curve, (steps,), sizes=[size], mapping=NoMap(), steps=steps)


def student_setup(title, path, backbone):
    """The SamplingSetup that the recipe of a student's file asks for. Raises RMDError for a file without a recipe."""
    recipe = read_recipe(path)
    return SamplingSetup(
        title=title,
        network=backbone.load(path, dtype=torch.float32),
        plan=recipe.plan(),
        boundary=recipe.boundary(),
        eta=recipe.eta,
        guidance=recipe.cfg,
    )


@torch.no_grad()
def sample_setup(setup, backbone, cache, prompts, noise, *, device="cpu"):
    """Latents (N, C, 1, h, w) of a SamplingSetup, one for each prompt."""
    guidance = None
    if setup.guidance != 1.0:
        null = to_device(backbone.conditioning(cache, [NULL_PROMPT] * len(prompts)), device)
        guidance = Guidance(setup.guidance, null)
    return sample_latents(
        backbone,
        setup.network.to(device),
        setup.plan,
        conditioning=to_device(backbone.conditioning(cache, prompts), device),
        noise=noise,
        boundary=setup.boundary,
        eta=setup.eta,
        guidance=guidance,
        device=device,
    ).x0


def make_latents(setup, backbone, cache, prompts, *, seed, batch=24, timings=1, device="cpu"):
    """Latents (N, C, 1, h, w) for the prompts, and the CPU seconds for one.

    Each batch is sampled ``timings`` times, with the same result, and the shortest time counts.
    """
    latents, spent = [], 0.0
    for start in range(0, len(prompts), batch):
        texts = prompts[start : start + batch]
        noise = SeededNoise(seed, tuple(range(start, start + len(texts))))
        seconds = []
        for _ in range(timings):
            began = time.process_time()
            x0 = sample_setup(setup, backbone, cache, texts, noise, device=device)
            seconds.append(time.process_time() - began)
        latents.append(x0)
        spent += min(seconds)
    return torch.cat(latents), spent / len(prompts)

"""The stages of one sample: what the student expects the picture to be after each step, sizes to scale."""

import torch
from PIL import Image, ImageDraw, ImageFont

from demo.world.catalogue import prompt
from rmd_core.cascade import DenoiserRunner, run_cascade
from rmd_core.noise import SeededNoise
from training.objective import estimate_x0_eps

from .shipped import to_pixels

PROMPTS = (prompt("burger", "noto", "green"), prompt("panda", "fluent", "orange"))
SEED = 3
SCALE, GAP, HEAD, BETWEEN = 2, 12, 46, 40


@torch.no_grad()
def estimates(shipped):
    """(step, 8-bit pictures (N, S, S, 3)) of every step: the clean estimate after it, decoded."""
    backbone, way = shipped.backbone, shipped.student
    conditioning = backbone.conditioning(shipped.cache, PROMPTS)
    found = []

    def denoise(x, step):
        sigma = torch.full((len(x),), step.sigma, dtype=torch.float64)
        return estimate_x0_eps(backbone, way.network, x, sigma, conditioning, curve=way.plan.curve)

    def keep(stage, index, x0):
        found.append((way.plan.steps[index], to_pixels(backbone.decode(shipped.vae, x0))))

    run_cascade(
        way.plan,
        DenoiserRunner(denoise, eta=way.eta),
        shape=backbone.latent_shape(len(PROMPTS), 1),
        noise=SeededNoise(SEED),
        boundary=way.boundary,
        on_step=keep,
    )
    return found


def stages_of_a_sample(shipped):
    """The PIL image: a row for each sample, a column for each step, ``SCALE`` times as large."""
    found = estimates(shipped)
    sides = [SCALE * pictures.shape[1] for _, pictures in found]
    jumps = [BETWEEN if before.stage != after.stage else GAP for (before, _), (after, _) in zip(found, found[1:])]
    lefts = [sum(sides[:i]) + sum(jumps[:i]) for i in range(len(found))]
    tall = max(sides)
    sheet = Image.new("RGB", (lefts[-1] + sides[-1], HEAD + len(PROMPTS) * (tall + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = (ImageFont.load_default(size=size) for size in (17, 15))
    for (step, pictures), side, left in zip(found, sides, lefts):
        draw.text((left, 0), f"step {step.index + 1}", "black", large)
        draw.text((left, 23), f"{pictures.shape[1]} px, sigma {step.sigma:.3f}", "#555555", small)
        for row, picture in enumerate(pictures):
            top = HEAD + row * (tall + GAP) + (tall - side) // 2
            sheet.paste(Image.fromarray(picture).resize((side, side), Image.NEAREST), (left, top))
    for place, ((before, _), (after, _)) in enumerate(zip(found, found[1:])):
        if before.stage != after.stage:
            x = lefts[place + 1] - BETWEEN // 2
            for row in range(len(PROMPTS)):
                y = HEAD + row * (tall + GAP) + tall // 2
                draw.line([(x - 12, y), (x + 8, y)], "black", 2)
                draw.polygon([(x + 13, y), (x + 5, y - 5), (x + 5, y + 5)], "black")
    return sheet

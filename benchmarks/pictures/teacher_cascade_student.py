"""Teacher, cascade without distillation and student side by side, from the same noise."""

import torch
from PIL import Image, ImageDraw, ImageFont

from demo.world.catalogue import prompt
from training.objective import Guidance
from training.prompts import NULL_PROMPT
from training.sample import sample_latents

from .shipped import SharedStart, to_pixels

PROMPTS = tuple(
    prompt(concept, style, background)
    for concept, style, background in (
        ("mushroom", "noto", "blue"),
        ("doughnut", "fluent", "pink"),
        ("burger", "noto", "green"),
        ("panda", "fluent", "orange"),
        ("sunglasses", "noto", "black"),
    )
)
SEED = 7
LABELS, HEAD, GAP = 172, 30, 6


@torch.no_grad()
def sample(shipped, way):
    """8-bit pictures (N, S, S, 3) of a way for the prompts, one noise for all ways."""
    backbone = shipped.backbone
    guidance = None
    if way.guidance != 1.0:
        guidance = Guidance(way.guidance, backbone.conditioning(shipped.cache, [NULL_PROMPT] * len(PROMPTS)))
    noise = SharedStart(SEED, tuple(range(len(PROMPTS))), shipped.student.plan.final_hw)
    latents = sample_latents(
        backbone,
        way.network,
        way.plan,
        conditioning=backbone.conditioning(shipped.cache, PROMPTS),
        noise=noise,
        boundary=way.boundary,
        eta=way.eta,
        guidance=guidance,
    ).x0
    return to_pixels(backbone.decode(shipped.vae, latents))


def teacher_cascade_student(shipped):
    """The PIL image: a row for each way, a column for each prompt."""
    ways = (shipped.teacher, shipped.cascade, shipped.student)
    rows = [sample(shipped, way) for way in ways]
    side = rows[0].shape[1]
    large, small = (ImageFont.load_default(size=size) for size in (17, 15))
    size = (LABELS + len(PROMPTS) * (side + GAP) - GAP, HEAD + len(rows) * (side + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(PROMPTS):
        centre = LABELS + column * (side + GAP) + side / 2
        draw.text((centre, HEAD / 2), text.split()[0], "black", large, anchor="mm")
    for number, (way, pictures) in enumerate(zip(ways, rows)):
        top = HEAD + number * (side + GAP)
        steps = way.sides + (" x 2" if way.guidance != 1.0 else "")
        title = way.title.replace(" without ", "\nwithout ")
        draw.multiline_text((0, top + side / 2), title, "black", large, anchor="ld")
        draw.text((0, top + side / 2 + 6), steps, "#555555", small)
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (LABELS + column * (side + GAP), top))
    return sheet

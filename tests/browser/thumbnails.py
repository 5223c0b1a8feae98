"""Thumbnails of the template browser: what a workflow makes, or the model and the sizes that it is for."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from browser.real_models import TEMPLATES, words_of

SIZE = (480, 360)
DARK, LIGHT, MUTED = (30, 32, 38), (236, 238, 242), (163, 171, 186)
CAPTIONED = {
    "rmd_demo": (("13", "runs anywhere"),),
    "rmd_wired": (("4", "all nodes, and the plan"),),
    "rmd_three_sizes": (("8", "64, 96 and 128 px"),),
    "rmd_hand_built": (("31", "after stage 1"), ("33", "after stage 2")),
    "rmd_few_step_and_rmd": (("23", "full size"), ("33", "cascade"), ("43", "RMD")),
}
"""Which output nodes a thumbnail shows, and what is written under each."""
PLAN = ("rmd_wired", "4")
"""The template and node whose image is a plan: the line above it is too small to read here."""


def picture_thumbnail(name: str, shown: dict[str, Image.Image]) -> Image.Image:
    """The images of a finished run side by side with their captions, on SIZE."""
    entries = CAPTIONED[name]
    canvas = Image.new("RGB", SIZE, DARK)
    draw = ImageDraw.Draw(canvas)
    gap = 16
    room = ((SIZE[0] - gap) // len(entries) - gap, SIZE[1] - 60)
    for place, (node, caption) in enumerate(entries):
        picture = shown[node].convert("RGB")
        if (name, node) == PLAN:
            picture = picture.crop((0, picture.height // 8, *picture.size))
        scale = min(room[0] / picture.width, room[1] / picture.height)
        width, height = round(scale * picture.width), round(scale * picture.height)
        middle = gap + room[0] // 2 + place * (room[0] + gap)
        top = (SIZE[1] - height - 34) // 2
        canvas.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (middle - width // 2, top))
        draw.text((middle, top + height + 22), caption, fill=LIGHT, font=ImageFont.load_default(24), anchor="mm")
    return canvas


def title_thumbnail(name: str) -> Image.Image:
    """The name of a model over a box for each size with its steps, on SIZE."""
    template = TEMPLATES[name]
    canvas = Image.new("RGB", SIZE, DARK)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, SIZE[0], 84), fill=template.colour)
    width = ImageFont.load_default(44).getlength(template.model)
    font = ImageFont.load_default(44 * min(1, 450 / width))
    draw.text((SIZE[0] // 2, 42), template.model, fill=LIGHT, font=font, anchor="mm")
    sizes, gap = template.sizes, 6
    scale = min(190 / max(sizes[-1]), (SIZE[0] - 30 - gap * (len(sizes) - 1)) / sum(wide for wide, _ in sizes))
    free = SIZE[0] - scale * sum(wide for wide, _ in sizes)
    gap = free / (len(sizes) + 1) if len(sizes) < 4 else gap
    left = (free - gap * (len(sizes) - 1)) / 2
    for place, (size, steps) in enumerate(zip(sizes, template.steps)):
        wide, high = (scale * side for side in size)
        middle = left + wide / 2
        draw.rectangle((left, 200 - high / 2, left + wide, 200 + high / 2), fill=template.colour)
        font = ImageFont.load_default(min(54, 0.7 * wide))
        draw.text((middle, 200), str(steps), fill=LIGHT, font=font, anchor="mm")
        if len(sizes) < 4 or place in (0, len(sizes) - 1):
            below = (middle, "mm") if len(sizes) < 4 else (left, "lm") if place == 0 else (left + wide, "rm")
            draw.text((below[0], 328), words_of(size), fill=MUTED, font=ImageFont.load_default(28), anchor=below[1])
        left += wide + gap
    return canvas

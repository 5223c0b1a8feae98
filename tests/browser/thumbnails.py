"""Thumbnails of the template browser: what a workflow makes, or the workflow itself."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

SIZE = (480, 360)
DARK, LIGHT = (30, 32, 38), (225, 225, 225)
CAPTIONED = {
    "rmd_demo": (("8", "128 px"),),
    "rmd_three_sizes": (("8", "64, 96 and 128 px"),),
    "rmd_hand_built": (("31", "after stage 1"), ("33", "after stage 2")),
    "rmd_student_against_teacher": (("8", "student, 4 calls"), ("16", "teacher, 100 calls")),
}
"""Which output nodes a thumbnail shows, and what is written under each."""


def picture_thumbnail(name: str, shown: dict[str, Image.Image]) -> Image.Image:
    """The pictures of a finished run side by side with their captions, on SIZE."""
    entries = CAPTIONED[name]
    canvas = Image.new("RGB", SIZE, DARK)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(18)
    gap = 16
    side = min((SIZE[0] - gap * (len(entries) + 1)) // len(entries), SIZE[1] - 60)
    left = (SIZE[0] - side * len(entries) - gap * (len(entries) - 1)) // 2
    top = (SIZE[1] - side - 34) // 2
    for node, caption in entries:
        picture = shown[node].convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(picture, (left, top))
        draw.text((left + side // 2, top + side + 20), caption, fill=LIGHT, font=font, anchor="mm")
        left += side + gap
    return canvas


def graph_thumbnail(png) -> Image.Image:
    """A rendering of a graph, reduced to fit SIZE."""
    picture = Image.open(png).convert("RGB")
    picture.thumbnail((SIZE[0] - 8, SIZE[1] - 8), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", SIZE, DARK)
    canvas.paste(picture, ((SIZE[0] - picture.width) // 2, (SIZE[1] - picture.height) // 2))
    return canvas

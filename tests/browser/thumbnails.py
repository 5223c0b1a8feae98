"""Thumbnails of the template browser: what a workflow makes, or the workflow itself."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont

SIZE = (480, 360)
DARK, LIGHT, ACCENT = (30, 32, 38), (225, 225, 225), (120, 180, 230)
CAPTIONED = {
    "rmd_demo": (("8", "128 px"),),
    "rmd_three_sizes": (("8", "64, 96 and 128 px"),),
    "rmd_hand_built": (("31", "after stage 1"), ("33", "after stage 2")),
    "rmd_few_step_and_rmd": (("23", "full size"), ("33", "cascade"), ("43", "RMD")),
}
"""Which output nodes a thumbnail shows, and what is written under each."""
TITLES = {
    "sdxl_lightning": ("SDXL-Lightning", "2 steps at 512, 2 at 1024 px"),
    "sdxl_dmd2_lora": ("SDXL + DMD2 LoRA", "2 steps at 512, 2 at 1024 px"),
    "sd35_large_turbo": ("SD3.5 Large Turbo", "2 steps at 512, 2 at 1024 px"),
    "pixart_lcm": ("PixArt-alpha LCM", "2 steps at 512, 2 at 1024 px"),
    "wan21_480p_to_720p": ("Wan2.1 + lightx2v LoRA", "2 steps at 480p, 2 at 720p"),
}
"""What is written above the picture of a graph that needs files of the user's."""


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


def graph_thumbnail(name: str, png: bytes) -> Image.Image:
    """A rendering of a graph under the name of its model and the sizes that it runs at."""
    title, sizes = TITLES[name]
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture = picture.resize((SIZE[0] - 16, picture.height * (SIZE[0] - 16) // picture.width), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", SIZE, DARK)
    draw = ImageDraw.Draw(canvas)
    draw.text((SIZE[0] // 2, 42), title, fill=LIGHT, font=ImageFont.load_default(34), anchor="mm")
    draw.text((SIZE[0] // 2, 86), sizes, fill=ACCENT, font=ImageFont.load_default(22), anchor="mm")
    canvas.paste(picture, (8, 124))
    return canvas

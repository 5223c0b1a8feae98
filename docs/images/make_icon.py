"""Draws icon.png and banner.png, which the registry shows: one disc, coarse where it is begun, smooth where it ends.

python docs/images/make_icon.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parent
ICON, BANNER = (400, 400), (1680, 720)
DARK, BLUE, LIGHT, GREY = (24, 26, 32), (72, 150, 220), (235, 238, 245), (160, 168, 180)
FINER = 4  # drawn this many times larger, then averaged


def disc(side: int, cells: int) -> Image.Image:
    """A shaded disc of side x side pixels, made of cells x cells squares; as many cells as pixels is smooth."""
    large = side * FINER
    image = Image.new("RGB", (large, large), DARK)
    draw = ImageDraw.Draw(image)
    for step in range(large // 2):  # rings, from the rim inwards
        share = step / (large // 2)
        colour = tuple(round(low + (high - low) * share) for low, high in zip(BLUE, LIGHT))
        middle, radius = large / 2 - share * large * 0.12, (1 - share) * large / 2
        draw.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=colour)
    small = image.resize((cells, cells), Image.Resampling.BOX)
    return small.resize((side, side), Image.Resampling.NEAREST)


def cascade(side: int) -> Image.Image:
    """The coarse left of the disc beside the smooth right of it."""
    image = disc(side, side)
    image.paste(disc(side, 8).crop((0, 0, side // 2, side)), (0, 0))
    return image


def icon() -> Image.Image:
    """ICON: the disc alone."""
    image = Image.new("RGB", ICON, DARK)
    side = 352
    image.paste(cascade(side), ((ICON[0] - side) // 2, (ICON[1] - side) // 2))
    return image


def banner() -> Image.Image:
    """BANNER: the disc, the name, and what it is in one line."""
    image = Image.new("RGB", BANNER, DARK)
    side = 480
    image.paste(cascade(side), (120, (BANNER[1] - side) // 2))
    draw = ImageDraw.Draw(image)
    draw.text((700, 300), "RMD", fill=LIGHT, font=ImageFont.load_default(190), anchor="lm")
    line = "low resolution first, full resolution last"
    draw.text((708, 440), line, fill=GREY, font=ImageFont.load_default(50), anchor="lm")
    return image


if __name__ == "__main__":
    icon().save(FOLDER / "icon.png", optimize=True)
    banner().save(FOLDER / "banner.png", optimize=True)

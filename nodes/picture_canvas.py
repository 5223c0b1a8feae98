"""A canvas for small technical pictures: drawn by PIL at a multiple of the size and brought down at the end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]

SCALE = 3


class Canvas:
    """Draws in pixels of the result; colours are `#rrggbb`, text sizes pixels of height."""

    def __init__(self, width: int, height: int, background: str) -> None:
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), background)
        self._draw = ImageDraw.Draw(self._image)

    def box(self, left: float, top: float, right: float, bottom: float, fill: str, *, radius: float = 0.0) -> None:
        """A filled rectangle, with round corners if a radius is given."""
        corners = [left * SCALE, top * SCALE, right * SCALE - 1, bottom * SCALE - 1]
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            self._draw.rounded_rectangle(corners, radius=radius * SCALE, fill=fill)

    def line(self, points: Sequence[Point], colour: str, width: float = 1.0) -> None:
        """A line through points; one that is level or upright lies on whole pixels, so that it is sharp."""
        level, upright = (len({point[axis] for point in points}) == 1 for axis in (1, 0))
        scaled = [(_middle(x) if upright else x * SCALE, _middle(y) if level else y * SCALE) for x, y in points]
        if len(scaled) > 1:
            self._draw.line(scaled, fill=colour, width=round(width * SCALE), joint="curve")

    def dashes(self, start: Point, end: Point, colour: str, width: float = 1.0, *, dash: float = 6.0) -> None:
        """A dashed line from one point to another."""
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        count = max(1, int(length // dash))
        for place in range(0, count, 2):
            shares = (place / count, min(1.0, (place + 1) / count))
            self.line([tuple(a + share * (b - a) for a, b in zip(start, end)) for share in shares], colour, width)

    def dot(self, centre: Point, radius: float, fill: str, *, outline: str, width: float = 1.5) -> None:
        """A filled circle with an outline."""
        x, y, reach = centre[0] * SCALE, centre[1] * SCALE, radius * SCALE
        box = [x - reach, y - reach, x + reach, y + reach]
        self._draw.ellipse(box, fill=fill, outline=outline, width=round(width * SCALE))

    def arrow(self, start: Point, end: Point, colour: str, width: float = 2.0) -> None:
        """A vertical line from one point to another with a head at its end."""
        down = 1.0 if end[1] > start[1] else -1.0
        self.line([start, (end[0], end[1] - 5.0 * down)], colour, width)
        head = [(end[0] - 5.0, end[1] - 8.0 * down), (end[0] + 5.0, end[1] - 8.0 * down), end]
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in head], fill=colour)

    def text(
        self, at: Point, words: str, size: float, colour: str, *, anchor: str = "la", halo: str | None = None
    ) -> None:
        """Words at a point; anchor is PIL's ("la" left top, "mm" the middle), halo a colour around the letters."""
        self._draw.text(
            (at[0] * SCALE, at[1] * SCALE),
            words,
            fill=colour,
            font=_font(size),
            anchor=anchor,
            stroke_width=0 if halo is None else 3 * SCALE // 2,
            stroke_fill=halo,
        )

    def text_width(self, words: str, size: float) -> float:
        """Width of words in pixels."""
        return self._draw.textlength(words, font=_font(size)) / SCALE

    def fitted(self, words: str, size: float, width: float) -> str:
        """The words, cut with an ellipsis where they are wider than `width`."""
        if len(words) <= width and self.text_width(words, size) <= width:
            return words
        words = words[: int(width)]  # a letter is wider than a pixel; measuring again and again takes long
        while words and self.text_width(f"{words}...", size) > width:
            words = words[:-1]
        return f"{words.rstrip(' ,')}..."

    def tensor(self) -> torch.Tensor:
        """The picture as ComfyUI's IMAGE: (1, height, width, 3) float32 in 0..1."""
        small = self._image.reduce(SCALE)
        return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255.0)[None]


def _middle(place: float) -> int:
    """The middle of the pixel of the result in which a place is."""
    return round(place) * SCALE + SCALE // 2


@lru_cache(maxsize=32)
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * SCALE)

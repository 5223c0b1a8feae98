"""Sizes as a user writes them, in pixels and factors, as the latent sizes of a plan."""

from __future__ import annotations

import math
import re

from ..rmd_core.errors import RMDError
from ..rmd_core.mapping import Size
from ..rmd_core.plan import stage_sizes
from .bridge.model_view import ModelView

PIXELS = re.compile(r"([0-9]{1,9})\s*[xX*]\s*([0-9]{1,9})")


def final_cells(view: ModelView, *, width: int, height: int) -> Size:
    """Latent (height, width) of a result in pixels; RMDError, naming the nearest size, unless whole cells fill it."""
    return _cells(view, width, height)


def stage_cells(view: ModelView, final_hw: Size, earlier: str) -> tuple[Size, ...]:
    """Latent sizes of all stages: those in `earlier`, then `final_hw`.

    earlier is a comma list, one entry for each stage before the last: a factor in (0, 1] of the final sides, rounded to
    the model's patches, or width x height in pixels, such as "0.5" or "832x480". Raises RMDError for anything else, for
    pixels that are not whole cells, and for sizes that shrink.
    """
    entries = [entry.strip() for entry in re.split("[,;]", earlier) if entry.strip()]
    sizes = (*(_stage_size(view, final_hw, entry) for entry in entries), final_hw)
    for before, after in zip(sizes, sizes[1:]):
        if after[0] < before[0] or after[1] < before[1]:
            raise RMDError(
                f"the size shrinks from {pixels(view.cell_px, before)} to {pixels(view.cell_px, after)} px; "
                "in earlier_sizes give sizes that grow towards the final one"
            )
    return sizes


def pixels(cell_px: int, size_hw: Size) -> str:
    """A latent size as `width x height` in pixels, without spaces."""
    return f"{size_hw[1] * cell_px}x{size_hw[0] * cell_px}"


def _stage_size(view: ModelView, final_hw: Size, entry: str) -> Size:
    if both := PIXELS.fullmatch(entry):
        return _cells(view, int(both[1]), int(both[2]))
    try:
        factor = float(entry)
    except ValueError:
        factor = math.nan
    if not 0.0 < factor <= 1.0:
        raise RMDError(
            f"{entry!r:.80} in earlier_sizes is no size; for each stage before the last give a factor above 0 and at "
            "most 1, such as 0.5, or width x height in pixels, such as 832x480"
        )
    return stage_sizes(final_hw, (factor, 1.0), multiple=view.multiple)[0]


def _cells(view: ModelView, width: int, height: int) -> Size:
    px = view.cell_px
    if min(width, height) < 1 or width % px or height % px:
        near = "x".join(str(px * max(1, math.floor(side / px + 0.5))) for side in (width, height))
        raise RMDError(
            f"a size of {width}x{height} px is not made of whole latent cells; "
            f"sides are multiples of {px} px here: use {near}"
        )
    return height // px, width // px

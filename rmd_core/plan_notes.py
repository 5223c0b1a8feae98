"""What a user should know about a plan, as values: whoever shows them words sizes in cells or in pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .mapping import Size

NameSize = Callable[[Size], str]
"""Words for a size given as (height, width) in latent cells."""


def in_cells(size: Size) -> str:
    """A size in latent cells, such as "64 x 64"."""
    return f"{size[0]} x {size[1]}"


@dataclass(frozen=True)
class UnusedSize:
    """A size at which no step runs."""

    size: Size

    def text(self, name_size: NameSize = in_cells) -> str:
        """The note as a sentence."""
        return f"no step runs at {name_size(self.size)}"


@dataclass(frozen=True, kw_only=True)
class MovedLevel:
    """A step whose level moved to an entry of the curve's table.

    `step` counts over the plan from 0. `exact` is the timestep of the level that was wanted, None where that lies
    beyond the table; `timestep` is the entry used.
    """

    step: int
    size: Size
    exact: float | None
    timestep: float

    def text(self, name_size: NameSize = in_cells) -> str:
        """The note as a sentence."""
        wanted = "beyond the model's table" if self.exact is None else f"timestep {self.exact:.1f}"
        return (
            f"step {self.step + 1} at {name_size(self.size)}: the exact level is {wanted}; "
            f"timestep {self.timestep:.0f} is used"
        )


PlanNote = UnusedSize | MovedLevel

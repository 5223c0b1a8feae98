"""The record of a run: ``metrics.jsonl``, one JSON object per update."""

import json
import math
from pathlib import Path

from rmd_core.atomic_files import write_atomically
from rmd_core.errors import RMDError

from .files import writing

SATURATED = 3.0  # a latent value beyond three standard deviations of the data


def latent_figures(x0):
    """Mean, standard deviation and share of saturated values of a batch of latents; burnt colours show here first."""
    values = x0.detach().float()
    return {
        "x0_mean": values.mean().item(),
        "x0_std": values.std().item(),
        "x0_saturation": (values.abs() > SATURATED).float().mean().item(),
    }


def combine(figures):
    """Figures of equally large shares of a batch, one dictionary each, as those of the whole batch."""
    mean = {name: sum(part[name] for part in figures) / len(figures) for name in figures[0]}
    if "x0_std" not in mean or len(figures) == 1:
        return mean
    square = sum(part["x0_std"] ** 2 + part["x0_mean"] ** 2 for part in figures) / len(figures)
    return mean | {"x0_std": math.sqrt(max(square - mean["x0_mean"] ** 2, 0.0))}


class MetricsFile:
    """Appends one line per update, flushed at once."""

    def __init__(self, path):
        self.path = Path(path)

    def keep_until(self, update):
        """Drop the lines after ``update``, which a resumed run writes again. Raises RMDError for a damaged file."""
        if not self.path.exists():
            return
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise RMDError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        kept = []
        for number, line in enumerate(lines, start=1):
            reached = _update_of(line)
            if reached is None and number < len(lines):
                raise RMDError(
                    f"{self.path}, line {number}: damaged; mend the line, or move the file away to resume without it"
                )
            if reached is None or reached > update:
                break  # the last line may be cut off by a crash
            kept.append(line)
        write_atomically(self.path, b"".join(kept))

    def append(self, entry):
        """Write one entry. Raises RMDError when the disk is full."""
        with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _update_of(line):
    """The update of one line, or None if it is damaged."""
    try:
        update = json.loads(line)["update"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return update if type(update) is int else None

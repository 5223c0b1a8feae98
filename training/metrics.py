"""The record of a run: ``metrics.jsonl``, one JSON object per update."""

import json
from pathlib import Path

from .files import write_failure, write_text

SATURATED = 3.0  # a latent value beyond three standard deviations of the data


def latent_figures(x0):
    """Mean, standard deviation and share of saturated values of a batch of latents; burnt colours show here first."""
    values = x0.detach().float()
    return {
        "x0_mean": values.mean().item(),
        "x0_std": values.std().item(),
        "x0_saturation": (values.abs() > SATURATED).float().mean().item(),
    }


class MetricsFile:
    """Appends one line per update, flushed at once."""

    def __init__(self, path):
        self.path = Path(path)

    def keep_until(self, update):
        """Drop the lines after ``update``, which a resumed run writes again. Raises RMDError for a damaged file."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                reached = json.loads(line)["update"]
            except (ValueError, TypeError, KeyError):
                break  # a line cut off by a crash; nothing complete follows it
            if reached > update:
                break
            kept.append(line)
        write_text(self.path, "".join(kept))

    def append(self, entry):
        """Write one entry. Raises RMDError when the disk is full."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise write_failure(self.path, error) from None

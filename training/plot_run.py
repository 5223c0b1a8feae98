"""Draw the curves of one or several runs from their ``metrics.jsonl``.

    python -m training.plot_run outputs/demo [outputs/other ...] --out curves.png

Running means over 20 updates: both losses, the three figures by which burnt colours show before the losses do, and the
speed. For each stage the deviation of the clean latents in its first and last 10 updates is printed.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean

from rmd_core.errors import RMDError

WINDOW = 20
PANELS = (
    ("loss_fake", "fake score's loss"),
    ("loss_student", "student's loss"),
    ("x0_std", "deviation of the clean latents"),
    ("x0_saturation", "latents beyond 3 deviations"),
    ("picture_saturation", "pixels at the ends of a channel"),
    ("samples_per_second", "samples a second"),
)


def read_entries(folder):
    """The entries of a run's record. Raises RMDError where there is none, or a damaged one."""
    path = Path(folder) / "metrics.jsonl"
    try:
        return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise RMDError(f"{path}: cannot be read ({error.strerror or error}); name the output folder of a run") from None
    except (ValueError, TypeError):
        raise RMDError(f"{path}: damaged, not one JSON object a line") from None


def read_run(folder):
    """{figure: (updates, values)} of a run's folder; raises RMDError as ``read_entries``."""
    entries = [entry for entry in read_entries(folder) if "update" in entry]
    curves = {name: [(entry["update"], entry[name]) for entry in entries if name in entry] for name, _ in PANELS}
    return {name: tuple(zip(*points)) for name, points in curves.items() if points}


def running_mean(values, window=WINDOW):
    """The mean of each value and of those before it, at most ``window`` in all."""
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]


def deviations(folder, count=10):
    """{stage: (mean ``x0_std`` of its first ``count`` updates, of its last)} of a run; raises as ``read_entries``."""
    stages = {}
    for entry in read_entries(folder):
        if "x0_std" in entry and "stage" in entry:
            stages.setdefault(entry["stage"], []).append(entry["x0_std"])
    return {stage: (fmean(found[:count]), fmean(found[-count:])) for stage, found in sorted(stages.items())}


def draw(runs):
    """A figure with one panel a curve; ``runs``: {label: what ``read_run`` gave}."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(PANELS), 2.8), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for axis, (name, title) in zip(axes, PANELS):
        for number, (label, curves) in enumerate(runs.items()):
            if name in curves:
                updates, values = curves[name]
                # Images are rare enough to be shown as they are.
                shown = values if name == "picture_saturation" else running_mean(values)
                marker = "." if len(values) < 30 else None
                axis.plot(updates, shown, label=label, color=f"C{number}", marker=marker)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("update", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of distill.py")
    parser.add_argument("--out", type=Path, required=True, help="the image to write (png, svg or pdf)")
    given = parser.parse_args(arguments)
    try:
        figure = draw({folder.name: read_run(folder) for folder in given.runs})
        figure.savefig(given.out, dpi=100)
        for folder in given.runs:
            stages = ", ".join(f"stage {n}: {a:.2f} to {b:.2f}" for n, (a, b) in deviations(folder).items())
            print(f"{folder.name}: deviation of the clean latents, {stages or 'not recorded'}")
    except (RMDError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A run in one image: losses by stage, signs of burnt colours, speed, memory, and its validation images over time.

    python training/plot_run.py outputs/demo [outputs/other ...] [--out curves.png]

Thick lines are running means over 20 updates, thin ones the record itself. Several runs share the panels, with a color
each. For each stage the deviation of the clean latents in its first and last 10 updates is printed.
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean

if __name__ == "__main__":  # run as a file: the repository takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmd_core.errors import RMDError

WINDOW = 20
COLUMNS = 4
SHOWN = 5  # validation images of a run
STYLES = ("-", "--", ":", "-.")  # of stages, where colors are for runs


@dataclass(frozen=True)
class Panel:
    """One panel: the figure it shows, or with ``kind`` "each" all whose names begin so, and its title.

    ``kind``: "stages" splits a figure by stage, "sum" adds it up over the updates. ``log``: a logarithmic scale.
    ``changing``: left out where all values stay as they are.
    """

    figure: str
    title: str
    kind: str = "one"
    log: bool = False
    changing: bool = False


PANELS = (
    Panel("loss_fake", "loss of the fake score", "stages", log=True),
    Panel("loss_student", "loss of the student", "stages"),
    Panel("norm_", "gradient norms before clipping", "each", log=True),
    Panel("lr_", "learning rates", "each", changing=True),
    Panel("x0_std", "deviation of the clean latents", "stages"),
    Panel("x0_saturation", "share of latents beyond 3 deviations", "stages"),
    Panel("picture_saturation", "share of pixels at the ends of a channel"),
    Panel("skipped", "steps left out, in all", "sum"),
    Panel("samples_per_second", "samples a second"),
    Panel("tflop_per_second", "TFLOP a second"),
    Panel("peak_share", "TFLOP a second over those of a matrix product"),
    Panel("peak_gib", "most memory in use (GiB)"),
    Panel("seconds", "seconds, of an update and by phase", "each"),
)


def read_entries(folder):
    """The entries of a run's record. Raises RMDError where there is none, or a damaged one."""
    path = Path(folder) / "metrics.jsonl"
    try:
        entries = [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise RMDError(f"{path}: cannot be read ({error.strerror or error}); name the output folder of a run") from None
    except (ValueError, TypeError):
        raise RMDError(f"{path}: damaged; each line must be one JSON object") from None
    return [entry for entry in entries if "update" in entry]


def lines_of(entries, panel):
    """The lines of a panel, ``{label: (updates, values)}``, empty where the record has none."""
    figure = panel.figure
    if panel.kind == "stages":
        return _by_stage(entries, figure)
    names = [figure]
    if panel.kind == "each":
        names = sorted({name for entry in entries for name in entry if name.startswith(figure)})
    found = {}
    for name in names:
        label = name.removeprefix(figure).strip("_").replace("_", " ") or ("update" if len(names) > 1 else "")
        found |= _line(label, [(entry["update"], entry[name]) for entry in entries if name in entry])
    if panel.kind == "sum":
        return {label: (updates, tuple(accumulate(values))) for label, (updates, values) in found.items()}
    if panel.changing and all(len(set(values)) == 1 for _, values in found.values()):
        return {}
    return found


def _by_stage(entries, figure):
    """A figure by stage: as the record splits it, else by the stage of each update."""
    points = {}
    own = re.compile(rf"{figure}_stage_?(\d+)")
    for entry in entries:
        split = {match[1]: value for name, value in entry.items() if (match := own.fullmatch(name))}
        if not split and figure in entry:
            split = {str(entry.get("stage", "")): entry[figure]}
        for stage, value in split.items():
            points.setdefault(stage, []).append((entry["update"], value))
    found = {}
    for stage, values in sorted(points.items()):
        found |= _line(f"stage {stage}" if stage else "all stages", values)
    return found


def _line(label, points):
    return {label: tuple(zip(*points))} if points else {}


def running_mean(values, window=WINDOW):
    """The mean of each value and of those before it, at most ``window`` in all."""
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]


def deviations(entries, count=10):
    """{stage: (mean ``x0_std`` of its first ``count`` updates, of its last)} of a record."""
    return {stage: (fmean(v[:count]), fmean(v[-count:])) for stage, (_, v) in _by_stage(entries, "x0_std").items()}


def grids(folder):
    """[(update, path)] of a run's validation images: the first, the last and some between, SHOWN at most."""
    images, older = (sorted((Path(folder) / name).glob("step_*.png")) for name in ("images", "pictures"))
    found = images or older
    if len(found) > SHOWN:
        found = [found[round(number * (len(found) - 1) / (SHOWN - 1))] for number in range(SHOWN)]
    return [(int(path.stem.removeprefix("step_")), path) for path in found]


def draw(runs, images):
    """A matplotlib figure; ``runs``: {label: entries of a record}, ``images``: {label: what ``grids`` gave}."""
    from matplotlib.figure import Figure
    from PIL import Image

    panels = [panel for panel in PANELS if any(lines_of(entries, panel) for entries in runs.values())]
    images = {label: shown for label, shown in images.items() if shown}
    rows = -(-len(panels) // COLUMNS)
    heights = [2.6 * rows, *[3.0 for _ in images]]
    figure = Figure(figsize=(4.1 * COLUMNS, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    parts[0].suptitle("     ".join(_summary(label, entries) for label, entries in runs.items()), fontsize=11)
    axes = list(parts[0].subplots(rows, COLUMNS, squeeze=False).flat)
    for panel, axis in zip(panels, axes):
        _draw_panel(axis, panel, runs)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for part, (label, shown) in zip(parts[1:], images.items()):
        for axis, (update, path) in zip(part.subplots(1, SHOWN, squeeze=False)[0], shown):
            axis.imshow(Image.open(path).convert("RGB"), interpolation="nearest")
            axis.set_title(f"{label}, update {update}" if len(runs) > 1 else f"update {update}", fontsize=9)
        for axis in part.axes:
            axis.set_axis_off()
    return figure


def _draw_panel(axis, panel, runs):
    for number, (label, entries) in enumerate(runs.items()):
        for place, (name, (updates, values)) in enumerate(lines_of(entries, panel).items()):
            color, style = (f"C{number}", STYLES[place % len(STYLES)]) if len(runs) > 1 else (f"C{place}", "-")
            words = ", ".join(word for word in (label if len(runs) > 1 else "", name) if word)
            # Images are rare enough to be shown as they are, and a sum has no mean.
            raw = panel.kind == "sum" or panel.figure == "picture_saturation"
            marker = "." if len(values) < 30 else None
            axis.plot(updates, values if raw else running_mean(values), style, color=color, label=words, marker=marker)
            if not raw:
                axis.plot(updates, values, color=color, linewidth=0.6, alpha=0.3)
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel("update", fontsize=8)
    axis.set_xlim(left=0, right=1 + max((entry["update"] for entries in runs.values() for entry in entries), default=0))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    if panel.log:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    if any(line.get_label()[:1] not in ("", "_") for line in axis.lines):
        axis.legend(fontsize=7)


def _summary(label, entries):
    """What a run is, in a few words."""
    seconds = sum(entry.get("seconds", 0.0) for entry in entries)
    took = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    return f"{label}: {max((entry['update'] for entry in entries), default=0)} updates in {took}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of distill.py")
    parser.add_argument("--out", type=Path, help="the image (png, svg or pdf); default: curves.png in the first folder")
    given = parser.parse_args(arguments)
    out = given.out or given.runs[0] / "curves.png"
    try:
        labels = {folder.resolve().name: folder for folder in given.runs}
        runs = {label: read_entries(folder) for label, folder in labels.items()}
        draw(runs, {label: grids(folder) for label, folder in labels.items()}).savefig(out, dpi=100)
        for label, entries in runs.items():
            stages = ", ".join(f"{name}: {a:.2f} to {b:.2f}" for name, (a, b) in deviations(entries).items())
            print(f"{label}: deviation of the clean latents, {stages or 'not recorded'}")
    except (RMDError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"image: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Train the demo in four ways and draw how a healthy and a burnt run look: run_*.png in docs/images.

    OMP_NUM_THREADS=1 python -m benchmarks.run_curves

The runs go to outputs/run_curves/ and take about 15 CPU minutes; finished ones are kept. It also prints the table of
docs/train/guide.md: means over some updates, by the size that an update trains.
"""

import argparse
import shutil
import sys
from statistics import fmean

from training import distill
from training.plot_run import read_entries, running_mean

from .results import ROOT

IMAGES = ROOT / "docs" / "images"
RUNS = ROOT / "outputs" / "run_curves"
CONFIG = ROOT / "training" / "configs" / "demo.yaml"
SHARED = ("output.validate_every=20", "output.trackers=[]")
# title, colour, updates, overrides of the demo's configuration
HEALTHY, NO_GUIDANCE, BURNING, BURNT = "healthy", "no_guidance", "burning", "burnt"
WAYS = {
    HEALTHY: ("as configured", "#0072b2", 200, ()),
    NO_GUIDANCE: ("without guidance", "#e69f00", 200, ("loss.cfg=1",)),
    BURNING: ("20 x the student's rate", "#cc3311", 120, ("optimiser.student_lr=2e-3",)),
    BURNT: ("50 x", "#767676", 60, ("optimiser.student_lr=5e-3",)),
}
PANELS = (  # name in the record, stage or None, title
    ("loss_fake", None, "loss of the fake score"),
    ("loss_student", None, "loss of the student"),
    ("picture_saturation", None, "share of pixels at the ends of a channel"),
    ("x0_std", 1, "deviation of the clean latents, small size"),
    ("x0_std", 2, "deviation of the clean latents, full size"),
    ("x0_saturation", 1, "share of latents beyond 3 deviations, small size"),
)
SHOWN_AFTER = 60  # updates
SPANS = ((1, 10), (16, 30), (46, 60))  # updates, first and last, of a cell's three means
ROWS = (  # title, name in the record, stage or None, digits after the point
    ("`loss_fake`", "loss_fake", None, 3),
    ("`loss_student`", "loss_student", None, 2),
    ("`x0_saturation`, small size", "x0_saturation", 1, 3),
    ("`x0_saturation`, final size", "x0_saturation", 2, 3),
    ("`x0_std`, small size", "x0_std", 1, 2),
    ("`x0_std`, final size", "x0_std", 2, 2),
)


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for name in WAYS:
        if code := train(name):
            return code
    records = {name: read_entries(RUNS / name) for name in WAYS}
    curves({name: records[name] for name in (HEALTHY, NO_GUIDANCE, BURNING)}).savefig(
        IMAGES / "run_curves.png", dpi=130
    )
    for name in (HEALTHY, BURNING, BURNT):
        shutil.copy(next((RUNS / name).glob(f"*/step_{SHOWN_AFTER:06}.png")), IMAGES / f"run_{name}.png")
    print(means({name: records[name] for name in (HEALTHY, BURNING, BURNT)}))
    return 0


def train(name):
    """Train a way as far as it is not there and return the trainer's exit code."""
    _, _, updates, changes = WAYS[name]
    folder = RUNS / name
    if (folder / "rmd_tiny_wan_student.safetensors").exists():
        return 0
    sets = (*SHARED, *changes, f"train.updates={updates}", f"output.folder={folder}")
    resume = ["--resume"] if folder.exists() else []
    return distill.main(["--config", str(CONFIG), *resume, *(word for text in sets for word in ("--set", text))])


def points(record, name, stage):
    """(update, value) of a figure of a record, those of a stage alone where one is given."""
    return [(e["update"], e[name]) for e in record if name in e and stage in (None, e.get("stage"))]


def curves(records):
    """A matplotlib Figure of two rows of three panels; a thick line is the mean over 20 updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    for axes, (name, stage, title) in zip(figure.subplots(2, 3).flat, PANELS):
        for way, record in records.items():
            label, colour, *_ = WAYS[way]
            updates, values = zip(*points(record, name, stage))
            if len(values) > 20:
                axes.plot(updates, values, color=colour, lw=0.6, alpha=0.35)
                values = running_mean(values)
            axes.plot(updates, values, color=colour, lw=2.2, label=label)
        axes.set_title(title, fontsize=11)
        axes.set_xlim(0, max(updates for _, _, updates, _ in WAYS.values()))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("update")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def means(records):
    """The table as text: a row for each figure, a column for each way, in a cell the mean over each of SPANS."""
    lines = []
    for title, name, stage, digits in ROWS:
        cells = [[_mean(points(record, name, stage), *span, digits) for span in SPANS] for record in records.values()]
        lines.append(f"| {title} | " + " | ".join(", ".join(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _mean(found, first, last, digits):
    values = [value for update, value in found if first <= update <= last]
    return f"{fmean(values):.{digits}f}" if values else "-"


if __name__ == "__main__":
    sys.exit(main())

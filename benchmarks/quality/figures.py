"""Two figures from the kept rows: quality against cost, and the students during training."""

from statistics import mean

from matplotlib.figure import Figure

from . import rows
from .students import CELLS, CHANGES, DEFAULT, SINGLE

FIGURES = {"fd": "Frechet distance", "swd": "patch sliced Wasserstein, x100"}
INK, MUTED = "#1b1b1b", "#767676"


def kinds():
    """What is drawn in one colour: (title, colour, marker, lists of rows, a list a point)."""
    plain, guided = ([[row] for row in rows.cascade_rows() if (row.guidance == 1.0) == same] for same in (True, False))
    changed = [rows.student_rows(student) for student in CHANGES]
    return [
        ("teacher", "#0072b2", "s", [[row] for row in rows.teacher_rows()]),
        ("cascade, not distilled", "#999999", "o", plain),
        ("cascade, not distilled, CFG 2", "#56b4e9", "o", guided),
        ("one change of RMD 2+2, shorter training", "#f0c9a0", "^", changed),
        ("RMD 2+2, other upsampler or mapping", "#e69f00", "^", [rows.student_rows(student) for student in CELLS]),
        ("one resolution, 4 steps, distilled", "#009e73", "D", [rows.student_rows(SINGLE)]),
        ("RMD 2+2", "#d55e00", "*", [rows.student_rows(DEFAULT)]),
    ]


def quality_against_cost(store):
    """A Figure: distance against network evaluations, a point a row; bars span the training seeds."""
    figure, panels = _panels()
    for panel, name in zip(panels, FIGURES):
        for title, colour, marker, points in kinds():
            shown = [(found[0].units, values) for found in points if (values := _values(store, found, name))]
            if shown:
                costs, means = [cost for cost, _ in shown], [mean(values) for _, values in shown]
                spans = [[mean(v) - min(v) for _, v in shown], [max(v) - mean(v) for _, v in shown]]
                panel.errorbar(costs, means, yerr=spans, fmt=marker, color=colour, ms=10 if marker == "*" else 6,
                               lw=1.2, label=title)  # fmt: skip
        _floor(panel, store, name)
        panel.set_xscale("log")
        panel.set_xlim(1.5, 130)
        panel.set_xticks([2, 4, 8, 100], ["2", "4", "8", "100"])
        panel.minorticks_off()
        panel.set_xlabel("network evaluations a picture, in units of one at 128 px")
    _legend(figure, panels[0])
    return figure


def during_training(store):
    """A Figure: distance against training cost, a thin line a seed and a thick one for their mean."""
    figure, panels = _panels()
    shown = [(DEFAULT, "#d55e00"), (SINGLE, "#009e73"), *zip(CELLS, ("#e69f00", "#cc79a7", "#0072b2"))]
    for panel, name in zip(panels, FIGURES):
        for student, colour in shown:
            curves = []
            for seed in student.seeds:
                found = [rows.student_rows(student, mark)[seed] for mark in student.marks]
                values = [figures[name] for row in found if (figures := store.figures(rows.key_of(row)))]
                if len(values) == len(student.marks):
                    curves.append(values)
            costs = [student.cost * mark / student.marks[-1] for mark in student.marks]
            for values in curves:
                panel.plot(costs, values, color=colour, lw=0.8, alpha=0.6)
            if curves:
                title = f"{student.title} ({len(curves)} seed{'s' * (len(curves) > 1)})"
                panel.plot(costs, [mean(column) for column in zip(*curves)], "o-", color=colour, lw=2, label=title)
        _floor(panel, store, name)
        panel.set_xlabel("training cost, in updates of RMD 2+2")
    _legend(figure, panels[0])
    return figure


def _values(store, found, name):
    return [figures[name] for row in found if (figures := store.figures(rows.key_of(row)))]


def _panels():
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, title in zip(panels, FIGURES.values()):
        panel.set_title(f"{title} (less is better)", fontsize=11, color=INK)
        panel.grid(color="#e6e6e6", lw=0.8)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    return figure, panels


def _floor(panel, store, name):
    values = _values(store, rows.floor_rows(), name)
    if values:
        panel.axhline(mean(values), color=MUTED, ls="--", lw=1, label="real pictures")
    panel.set_ylim(bottom=0)


def _legend(figure, panel):
    handles, titles = panel.get_legend_handles_labels()
    if handles:
        figure.legend(handles, titles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)

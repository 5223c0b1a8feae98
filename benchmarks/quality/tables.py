"""The tables and figures of the benchmark, from the kept rows; a row that is not there says so."""

import re
import textwrap
from pathlib import Path
from statistics import mean

from demo.comparison import table
from rmd_core.errors import RMDError
from rmd_core.files import write_text

from . import rows
from .scoring import DAMAGES, PAIRS, PROMPTS, REPEATS, violations
from .students import BOTH, FULL, LONG, OPTION_COST, WORLDS

NAMES = ("fd", "kid", "swd", "concept", "worst_concept", "doubt", "spread")
DIGITS = {"fd": 3, "kid": 1, "swd": 2, "concept": 3, "worst_concept": 2, "doubt": 1, "spread": 2}
RANGED = ("fd", "kid", "swd")  # shown with the range over several rows, the others as their mean
HEAD = ["", "cost", "ms at 1", "at 32", "FD", "KID", "SWD", "concept", "worst", "doubt", "spread"]
NOT_RUN = "not run yet"
BEGIN, END = "<!-- printed by python -m benchmarks.quality -->", "<!-- end -->"
INK, MUTED = "#1b1b1b", "#767676"


def report(store, timing):
    """The tables with their titles, and how the rows were made. ``timing``: what was kept of ``--time``, or None."""
    tables = Tables(store, timing)
    parts = [f"{title}\n\n{text()}\n" for title, text in tables.all().items()]
    parts.append(f"{len(PROMPTS) * REPEATS} images a row; {'; '.join(store.provenance()) or 'no row is there'}")
    if timing:
        parts.append("ms: CPU time of an image on one thread, {cpu}, torch {torch}, {date}".format(**timing["made"]))
    return "\n".join(line.rstrip() for line in "\n".join(parts).splitlines())


def update_page(path, text):
    """Put ``text`` as the code block between the marks of a page. Raises RMDError for a page without marks."""
    page, inside = Path(path).read_text(encoding="utf-8"), re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    if not inside.search(page):
        raise RMDError(f"the page has no place for the tables; write {BEGIN} and {END} into it")
    write_text(path, inside.sub(lambda _: f"{BEGIN}\n```\n{text}\n```\n{END}", page))


def timing_key(row):
    """What the time of a row's images depends on: steps at each size in latent cells, and guidance."""
    steps = "+".join(f"{len(stage.sigmas)}x{stage.height}x{stage.width}" for stage in row.plan.stages)
    return steps + (" guided" if row.guidance != 1.0 else "")


class Tables:
    """Texts from what a Store keeps. ``timing``: what was kept of ``--time``, or None."""

    def __init__(self, store, timing=None):
        self.store = store
        self.timing = timing

    def all(self):
        """Every table as a function, by its title."""
        return {
            "Teacher trained at the full size only: a gap between the sizes": lambda: self.main(FULL),
            "Teacher trained at both sizes: no gap": lambda: self.main(BOTH),
            "Differences from RMD with area mapping, at the same training seed and cost": self.paired,
            "Are the small steps of use? Teacher trained at the full size only": self.small_steps,
            "One change of RMD at a time, with a gap and without": self.options,
            "During training": self.curves,
            "The metric on damaged real images": self.check,
        }

    def main(self, world):
        """The floor, the teacher, the few-step student, that student in the cascade, tuned, and RMD."""
        lines = [self.line("real, other jitters", rows.floor_rows())]
        lines += [self.line(row.title, [row]) for row in rows.teacher_rows(world)]
        lines.append(self.line(world.single.title, rows.student_rows(world.single)))
        for several in zip(*(rows.untouched_rows(world, seed) for seed in world.tuned_area.seeds)):
            lines.append(self.line(f"  untouched, {several[0].title}", several))
        for student in world.main[1:]:
            lines.append(self.line(f"{student.title}, {student.marks[-1]} updates", rows.student_rows(student)))
        if world is FULL:
            lines += [self.line(f"{row.title}, {LONG} updates, seed 0", [row]) for row in rows.long_rows()]
        return self._text(lines)

    def paired(self):
        """Differences from RMD with area mapping at the same training seed, seed by seed."""
        lines, missing = [], []
        for world in WORLDS:
            for student in world.main[:-1]:
                pairs = [(rows.student_row(student, s), rows.student_row(world.rmd_area, s)) for s in student.seeds]
                found = [(self.store.figures(one), self.store.figures(two)) for one, two in pairs]
                found = [pair for pair in found if all(pair)]
                cells = [" ".join(f"{a[name] - b[name]:+.{DIGITS[name]}f}" for a, b in found) for name in RANGED]
                title = f"{world.teacher.name}: {student.title}"
                (lines.append([title, *cells]) if found else missing.append(title))
        return "\n".join(
            [table(["minus RMD, area mapping, seed by seed", "FD", "KID", "SWD"], lines), *_not_run(missing)]
        )

    def small_steps(self):
        """Students of the full size alone beside RMD with small steps before as many or fewer large ones."""
        one_step, *cascades = FULL.few
        students = (one_step, *cascades, FULL.two_steps, FULL.rmd_area, FULL.single)
        return self._text([self.line(f"{s.title}, {s.marks[-1]} updates", rows.student_rows(s)) for s in students])

    def options(self):
        """One change at a time, in both worlds, beside RMD at equal training cost."""
        lines = []
        for world in WORLDS:
            name, base = world.teacher.name, world.base
            lines.append(
                self.line(f"{name}: {base.title}, {len(base.seeds)} seeds", rows.student_rows(base, OPTION_COST))
            )
            lines.append(self.line(f"{name}: {base.title}, seed 0", [rows.student_row(base, 0, OPTION_COST)]))
            lines += [self.line(f"{name}: {s.title}", rows.student_rows(s)) for s in world.options]
        return self._text(lines)

    def curves(self):
        """The students of the main tables after each of their marks."""
        lines = []
        for world in WORLDS:
            for student in (*world.main, *world.lora):
                for mark in student.marks:
                    title = f"{world.teacher.name}: {student.title}, {mark} updates"
                    lines.append(self.line(title, rows.student_rows(student, mark)))
        return self._text(lines)

    def check(self):
        """Damaged real images, and whether the figures rank them as they should."""
        lines = [self.line("real, other jitters", rows.floor_rows())]
        figures = {"": self.store.figures(rows.floor_rows()[0])}
        for damage, row in zip(DAMAGES, rows.damaged_rows()):
            lines.append(self.line(damage.title, [row]))
            figures[damage.name] = self.store.figures(row)
        if not all(figures.values()):
            return self._text(lines)
        wrong = violations(figures)
        verdict = f"{len(PAIRS) - len(wrong)} of {len(PAIRS)} comparisons rank as they should"
        for worse, better, name in wrong:
            verdict += f"; {name} of {worse} is not worse than of {better or 'no damage'}"
        return f"{self._text(lines)}\n{verdict}"

    def line(self, title, found):
        """One line of a table: means over the ``found`` rows that are kept, or the title alone where none is."""
        figures = values_of(self.store, found)
        if not figures:
            return [title]
        if len(figures) < len(found):
            title += f" ({len(figures)} of {len(found)} seeds)"
        return [title, *self._cost(found[0]), *(_cell(figures, name) for name in NAMES)]

    def _cost(self, row):
        """Network evaluations in units of one at the final size, and CPU ms an image at batch 1 and 32."""
        if row.units is None:
            return ["-", "-", "-"]
        times = (self.timing or {"ms": {}})["ms"].get(timing_key(row), {})
        return [f"{row.units:.2f}", *(f"{times[batch]:.1f}" if batch in times else "-" for batch in ("1", "32"))]

    def _text(self, lines):
        there, missing = [line for line in lines if len(line) > 1], [line[0] for line in lines if len(line) == 1]
        shown = [column for column in range(len(HEAD)) if column not in (2, 3) or self.timing]
        parts = [table([HEAD[c] for c in shown], [[line[c] for c in shown] for line in there])] if there else []
        return "\n".join([*parts, *_not_run(missing)])


def values_of(store, found):
    """The figures of the ``found`` rows that are kept."""
    return [figures for row in found if (figures := store.figures(row))]


def _not_run(titles):
    return textwrap.wrap(f"{NOT_RUN}: {'; '.join(titles)}", 110) if titles else []


def _cell(figures, name):
    values = [each[name] for each in figures if name in each]
    if not values:
        return "-"
    if name == "fd" and len(figures) == 1 and "fd_low" in figures[0]:
        return "{fd:.3f} [{fd_low:.3f}..{fd_high:.3f}]".format(**figures[0])
    average, low, high = (f"{value:.{DIGITS[name]}f}" for value in (mean(values), min(values), max(values)))
    return average if low == high or name not in RANGED else f"{average} ({low}..{high})"


def draw(store, folder):
    """Write both figures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, panel in (("quality_against_cost", against_cost), ("quality_during_training", during_training)):
        figure_of(store, panel).savefig(folder / f"{name}.png", dpi=110)


def figure_of(store, panel):
    """A matplotlib Figure of two panels, ``panel(axes, store, name)``, with the real images' distance as a line."""
    from matplotlib.figure import Figure  # only here: tables need no matplotlib

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    titles = {"fd": "Frechet distance", "swd": "patch sliced Wasserstein, x100"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items()):
        axes.set_title(f"{title} (less is better)", fontsize=11, color=INK)
        axes.grid(color="#e6e6e6", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        panel(axes, store, name)
        floor = values_of(store, rows.floor_rows())
        if floor:
            axes.axhline(mean(values[name] for values in floor), color=MUTED, ls="--", lw=1, label="real images")
    handles, titles = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, titles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def against_cost(axes, store, name):
    """Distance against network evaluations with a gap between the sizes, a point a row; bars span the seeds."""
    untouched = zip(*(rows.untouched_rows(FULL, seed) for seed in FULL.tuned_area.seeds))
    teacher = rows.teacher_rows(FULL)
    kinds = [  # title, colour, marker, lists of rows, one a point
        ("teacher", "#0072b2", "s", [[row] for row in teacher[:3]]),
        ("teacher in the cascade", "#56b4e9", "o", [[row] for row in teacher[3:]]),
        ("one resolution, 4 steps", "#009e73", "D", [rows.student_rows(FULL.single)]),
        ("one resolution, 2 steps", "#66c2a5", "D", [rows.student_rows(FULL.two_steps)]),
        ("the same untouched in the cascade", "#999999", "o", untouched),
        ("the same, tuned, area mapping", "#cc79a7", "^", [rows.student_rows(FULL.tuned_area)]),
        ("RMD, no mapping", "#e69f00", "^", [rows.student_rows(FULL.rmd_none)]),
        ("RMD, area mapping", "#d55e00", "*", [rows.student_rows(FULL.rmd_area)]),
    ]
    for title, colour, marker, points in kinds:
        kept = [(found[0].units, [v[name] for v in values]) for found in points if (values := values_of(store, found))]
        if kept:
            costs, means = [cost for cost, _ in kept], [mean(values) for _, values in kept]
            spans = [[mean(v) - min(v) for _, v in kept], [max(v) - mean(v) for _, v in kept]]
            size = 10 if marker == "*" else 6
            axes.errorbar(costs, means, yerr=spans, fmt=marker, color=colour, ms=size, lw=1.2, label=title)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1.5, 130)
    axes.set_xticks([2, 4, 8, 100], ["2", "4", "8", "100"])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations an image, in units of one at 128 px")


def during_training(axes, store, name):
    """Distance against training cost with a gap between the sizes; a thin line a seed, a thick one for their mean."""
    colours = ("#009e73", "#66c2a5", "#8c6bb1", "#cc79a7", "#e69f00", "#0072b2", "#d55e00")
    for student, colour in zip(FULL.main, colours):
        seeds = zip(*(rows.student_rows(student, mark) for mark in student.marks))
        curves = [[figures[name] for figures in values_of(store, found)] for found in seeds]
        curves = [curve for curve in curves if len(curve) == len(student.marks)]
        costs = [student.cost * mark / student.marks[-1] for mark in student.marks]
        for curve in curves:
            axes.plot(costs, curve, color=colour, lw=0.8, alpha=0.6)
        if curves:
            title = f"{student.title} ({len(curves)} seed{'s' * (len(curves) > 1)})"
            axes.plot(costs, [mean(column) for column in zip(*curves)], "o-", color=colour, lw=2, label=title)
    axes.set_yscale("log")
    axes.set_xlabel("training cost, in updates of RMD 2+2")

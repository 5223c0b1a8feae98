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
from .students import BOTH, COST, FULL, LONG, OPTION_COST, SEEDS, WORLDS

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
            f"Its main rows with {len(PROMPTS) * rows.MANY} images, training seeds 3 and 4": self.many,
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
            for student in (FULL.rmd_none, FULL.rmd_area):
                for mark, row in zip(LONG, rows.long_rows(student)):
                    lines.append(self.line(f"{row.title}, {mark} updates, seed 0", [row]))
        return self._text(lines)

    def many(self):
        """The main rows of the first table with more images."""
        lines = [
            self.line(row.title, [rows.with_many(row)]) for row in (rows.floor_rows()[0], *rows.teacher_rows(FULL)[:2])
        ]
        lines.append(self._line_of_many(FULL.single))
        for several in zip(*map(rows.many_untouched, rows.SEEDS_OF_MANY)):
            lines.append(self.line(f"  untouched, {several[0].title}", several))
        return self._text([*lines, *map(self._line_of_many, FULL.main[1:])])

    def _line_of_many(self, student):
        found = [rows.with_many(rows.student_row(student, seed)) for seed in rows.SEEDS_OF_MANY]
        return self.line(f"{student.title}, {student.marks[-1]} updates", found)

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
    for name, figure in (("quality_against_cost", against_cost), ("quality_during_training", during_training)):
        figure(store).savefig(folder / f"{name}.png", dpi=160)


def against_cost(store):
    """A matplotlib Figure: Frechet distance against cost where there is a gap, seven points; bars span the seeds."""
    untouched = {found[0].name: found for found in zip(*(rows.untouched_rows(FULL, seed) for seed in SEEDS))}
    few_step, unmapped, mapped = "few-step model", "full_untouched_2+2_none_seed_0", "full_untouched_2+2_area_seed_0"
    right, above = ((14, -4), "left"), ((0, 14), "right")
    points = [  # title, colour, marker, its size, rows, (offset of the title in points, which end of it is there)
        ("teacher, 50 steps with guidance", "#0072b2", "s", 8, rows.teacher_rows(FULL)[:1], above),
        (f"{few_step} at 128 px, 4 steps", "#009e73", "D", 8, rows.student_rows(FULL.single), right),
        (f"{few_step} in the cascade, untouched", "#888888", "o", 8, untouched[unmapped], right),
        (f"{few_step} in the cascade, levels mapped", "#888888", "o", 8, untouched[mapped], right),
        (
            f"{few_step} in the cascade, tuned",
            "#b0468e",
            "^",
            17,
            rows.student_rows(FULL.tuned_area),
            ((14, 14), "left"),
        ),
        ("RMD", "#d55e00", "*", 9, rows.student_rows(FULL.rmd_area), ((-14, 2), "right")),
        ("control: 2 steps at 128 px", "#56b4e9", "D", 8, rows.student_rows(FULL.two_steps), ((-8, -22), "left")),
    ]
    figure, (axes,) = _figure(store, fd="Frechet distance to real images (less is better)", width=9)
    for title, colour, marker, size, found, (offset, side) in points:
        values = [figures["fd"] for figures in values_of(store, found)]
        if values:
            at, shown = (found[0].units, mean(values)), {"ms": size, "mfc": "none" if marker == "^" else colour}
            span = [[at[1] - min(values)], [max(values) - at[1]]]
            axes.errorbar(*at, yerr=span, fmt=marker, color=colour, lw=1.2, zorder=3, **shown)
            axes.annotate(f"{title}: {at[1]:.3g}", at, offset, textcoords="offset points", ha=side, color=INK)
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.set_xlim(1.3, 130)
    axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20], ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20"])
    axes.set_xticks([2, 2.5, 4, 10, 100], ["2", "2.5", "4", "10", "100"])
    axes.minorticks_off()
    axes.set_xlabel("cost of an image, in network calls at 128 px")
    return figure


def during_training(store):
    """A matplotlib Figure: distances during training where there is a gap; bands span the seeds, lines are means."""
    titles = {"fd": "Frechet distance (less is better)", "swd": "patch distance, texture (less is better)"}
    lines = (
        (FULL.tuned_area, "few-step model, tuned (its own training not counted)", "#b0468e"),
        (FULL.rmd_area, "RMD", "#d55e00"),
    )
    figure, panels = _figure(store, width=11, **titles)
    for axes, name in zip(panels, titles):
        for student, title, colour in lines:
            kept = {mark: values_of(store, rows.student_rows(student, mark)) for mark in student.marks}
            kept = {mark: [values[name] for values in figures] for mark, figures in kept.items() if figures}
            costs, values = [student.cost * mark / student.marks[-1] for mark in kept], list(kept.values())
            axes.fill_between(costs, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.2, lw=0)
            axes.plot(costs, [*map(mean, values)], "o-", color=colour, lw=2, label=title)
        _reference(axes, store, name, rows.student_rows(FULL.single), "few-step model at 128 px")
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, COST + 10)
        axes.set_xlabel("training cost, in updates of RMD 2+2")
    panels[1].legend(loc="lower center", frameon=False)
    return figure


def _figure(store, *, width, **titles):
    """A matplotlib Figure and its panels, ``titles`` by the name of the distance; the real images' is a line."""
    from matplotlib.figure import Figure  # only here: tables need no matplotlib

    figure = Figure(figsize=(width, 4.8), layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, (name, title) in zip(panels, titles.items()):
        axes.set_title(title, fontsize=12, color=INK)
        axes.grid(color="#e6e6e6", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        _reference(axes, store, name, rows.floor_rows(), "real images")
    return figure, panels


def _reference(axes, store, name, found, title):
    """A dashed line at the mean of the ``found`` rows that are kept, its title below its right end."""
    values = [figures[name] for figures in values_of(store, found)]
    if values:
        axes.axhline(mean(values), color=MUTED, ls="--", lw=1)
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "va": "top"}
        axes.annotate(title, (1, mean(values)), (-2, -3), color=MUTED, **place)

"""The tables of the benchmark, from the kept rows; a row that is not there says so."""

import textwrap

from demo.comparison import table

from . import rows
from .damage import DAMAGES, PAIRS, violations
from .students import CELLS, CHANGES, DEFAULT, SINGLE
from .timing import timing_key

NAMES = ("fd", "kid", "swd", "concept", "worst_concept", "doubt", "spread")
DIGITS = {"fd": 3, "kid": 1, "swd": 2, "concept": 3, "worst_concept": 2, "doubt": 1, "spread": 2}
RANGED = ("fd", "kid", "swd")  # shown with the range over several rows, the others as their mean
HEAD = ["", "cost", "ms at 1", "at 32", "FD", "KID", "SWD", "concept", "worst", "doubt", "spread"]
NOT_RUN = "not run yet"


class Tables:
    """Texts from what a Store keeps. ``timing``: what ``timing.kept`` returns."""

    def __init__(self, store, timing=None):
        self.store = store
        self.timing = timing

    def main(self):
        """The floor, the teacher, the cascade without distillation, and the students of three training seeds."""
        lines = [self.line("real, other jitters", rows.floor_rows())]
        lines += [self.line(row.title, [row]) for row in rows.teacher_rows()]
        lines += [self.line(f"cascade undistilled, {row.title}", [row]) for row in rows.cascade_rows()]
        lines += [self.line(student.title, rows.student_rows(student)) for student in (SINGLE, DEFAULT)]
        return self._text(lines)

    def cells(self):
        """Upsampler of x0 by mapping, three training seeds each."""
        lines = [self.line(student.title, rows.student_rows(student)) for student in (DEFAULT, *CELLS)]
        return self._text(lines)

    def paired(self):
        """Differences from the default at the same training seed, paired, seed by seed."""
        head = ["minus RMD 2+2, seed by seed", "FD", "KID", "SWD"]
        lines = []
        for student in (SINGLE, *CELLS):
            pairs = zip(rows.student_rows(student), rows.student_rows(DEFAULT))
            figures = [(self.figures(one), self.figures(two)) for one, two in pairs]
            figures = [pair for pair in figures if all(pair)]
            cells = [" ".join(f"{a[name] - b[name]:+.{DIGITS[name]}f}" for a, b in figures) for name in RANGED]
            lines.append([student.title, *cells])
        there, missing = [line for line in lines if line[1]], [line[0] for line in lines if not line[1]]
        return "\n".join([table(head, there), *_not_run(missing)])

    def changes(self):
        """One change at a time, one training seed, beside the default at equal training cost."""
        at = CHANGES[0].cost
        lines = [self.line(f"RMD 2+2, {len(DEFAULT.seeds)} seeds", rows.student_rows(DEFAULT, at))]
        lines.append(self.line("RMD 2+2, seed 0", rows.student_rows(DEFAULT, at)[:1]))
        for student in CELLS:
            lines.append(self.line(student.title.removeprefix("RMD 2+2, "), rows.student_rows(student, at)[:1]))
        return self._text(lines + [self.line(student.title, rows.student_rows(student)) for student in CHANGES])

    def curves(self):
        """The students of three seeds after a third, two thirds and all of the training."""
        lines = []
        for student in (DEFAULT, SINGLE, *CELLS):
            lines += [
                self.line(f"{student.title}, {mark} updates", found) for mark, found in rows.curve_rows(student).items()
            ]
        return self._text(lines)

    def shares(self):
        """Teachers of short runs, with more or fewer steps at low resolution."""
        lines = []
        for teacher, *found in rows.share_rows():
            lines += [self.line(f"{teacher.title}: {row.title}", [row]) for row in found]
        return self._text(lines)

    def check(self):
        """Damaged real pictures, and whether the figures rank them as they should."""
        lines = [self.line("real, other jitters", rows.floor_rows())]
        figures = {"": self.figures(rows.floor_rows()[0])}
        for damage, row in zip(DAMAGES, rows.damaged_rows()):
            lines.append(self.line(damage.title, [row]))
            figures[damage.name] = self.figures(row)
        figures = {name: values for name, values in figures.items() if values}
        wrong = violations(figures)
        told = f"{len(PAIRS) - len(wrong)} of {len(PAIRS)} comparisons rank as they should"
        for worse, better, name in wrong:
            told += f"; {name} of {worse} is not worse than of {better or 'no damage'}"
        return self._text(lines) + (f"\n{told}" if len(figures) == len(DAMAGES) + 1 else "")

    def figures(self, row):
        """The kept figures of a row, or None."""
        return self.store.figures(rows.key_of(row))

    def line(self, title, found):
        """One line of a table: means over the ``found`` rows that are kept, or the title alone where none is."""
        figures = [values for values in map(self.figures, found) if values]
        cost = self._cost(found[0])
        if not figures:
            return [title]
        if len(figures) < len(found):
            title += f" ({len(figures)} of {len(found)} seeds)"
        return [title, *cost, *(_cell([values[name] for values in figures], name) for name in NAMES)]

    def _cost(self, row):
        """Network evaluations in units of one at the final size, and CPU ms a picture at batch 1 and 32."""
        if row.units is None:
            return ["-", "-", "-"]
        times = (self.timing or {"ms": {}})["ms"].get(timing_key(row), {})
        return [f"{row.units:.2f}", *(f"{times[batch]:.1f}" if batch in times else "-" for batch in ("1", "32"))]

    def _text(self, lines):
        there, missing = [line for line in lines if len(line) > 1], [line[0] for line in lines if len(line) == 1]
        shown = [column for column in range(len(HEAD)) if column not in (2, 3) or self.timing]
        parts = [table([HEAD[c] for c in shown], [[line[c] for c in shown] for line in there])] if there else []
        return "\n".join([*parts, *_not_run(missing)])


def _not_run(titles):
    return textwrap.wrap(f"{NOT_RUN}: {'; '.join(titles)}", 110) if titles else []


def _cell(values, name):
    digits = DIGITS[name]
    mean, low, high = (f"{value:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values)))
    return mean if low == high or name not in RANGED else f"{mean} ({low}..{high})"

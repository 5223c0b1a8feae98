"""The stored results of a device, and the speed tables in Markdown that are made from them alone."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.results import ROOT, markdown_table, read_results, write_results
from rmd_core.errors import RMDError

from .models import FULL, MODES, TINY, Group, size_name

PAGE, README = ROOT / "docs" / "use" / "speed.md", ROOT / "README.md"
TITLES = {"teacher": "teacher", "few": "few steps", "rmd": "RMD", "three": "RMD 1+1+2"}
MARK = "speed"


@dataclass
class Results:
    """The stored results of one device: what it was ``made`` with, FLOP ``counts``, largest ``batches``, ``rows``."""

    path: Path
    made: dict
    counts: dict = field(default_factory=dict)
    batches: dict = field(default_factory=dict)
    rows: dict = field(default_factory=dict)

    @classmethod
    def open(cls, path, made=None):
        """A file's contents, empty without one. Raises RMDError where ``made`` differs in more than the date."""
        stored = read_results(path)
        results = cls(path, made) if stored is None else cls(path, **stored)
        for name in (made or {}).keys() - {"date"}:
            before = results.made.get(name)
            if before != made[name]:
                raise RMDError(
                    f"{path} was made with {name} {before}, this is {made[name]}; "
                    "remove the file to measure everything again"
                )
        return results

    def save(self):
        """Write everything."""
        contents = {"made": self.made, "counts": self.counts, "batches": self.batches, "rows": self.rows}
        write_results(self.path, contents)

    def count(self, model):
        """The FLOP counts of a model, counted at the first use."""
        if model.name not in self.counts:
            self.counts[model.name] = model.count_flops()
            self.save()
        return self.counts[model.name]

    def groups(self):
        """(group, its rows by name) of the groups of which any way was measured."""
        for model, mode, full in itertools.product((*FULL, *TINY), MODES, (False, True)):
            group = Group(model=model, mode=mode, full=full)
            found = {name: self.rows[group.key(name)] for name in model.ways if group.key(name) in self.rows}
            if found:
                yield group, found

    def decoding(self, model):
        """The row of decoding, or None."""
        return self.rows.get(Group(model=model, mode="eager", full=False).key("decode"))


class Ratios:
    """How a model's ways compare in arithmetic; ``of(name, decoded)`` is the teacher's over a way's."""

    def __init__(self, model, counts):
        self.model = model
        self.sizes, self.decode = counts["sizes"], counts["decode"]
        self.low, self.high = (self.sizes[size_name(size)] for size in (model.low, model.high))
        self.low_to_high = self.low / self.high

    def of(self, name, *, decoded=False):
        """The teacher's arithmetic over a way's; ``decoded``: with the autoencoder's."""
        extra = self.decode if decoded else 0
        ways = self.model.ways
        return (ways["teacher"].flops(self.sizes) + extra) / (ways[name].flops(self.sizes) + extra)


def flop_table(counts):
    """The arithmetic of the full-size models: a small call over a large one, and the speed-ups that it allows."""
    head = ["", "steps", "low / high", "few steps", "RMD", "RMD / few", "1+1+2", "with decoding: few", "RMD"]
    rows = []
    for model in FULL:
        ratios = Ratios(model, counts[model.name])
        rows.append(
            [
                model.name,
                f"{model.teacher_steps} x 2, {'+'.join(map(str, model.split))}",
                f"{ratios.low_to_high:.3f}",
                f"{ratios.of('few'):.1f} x",
                f"**{ratios.of('rmd'):.1f} x**",
                f"{ratios.of('rmd') / ratios.of('few'):.2f} x",
                f"{ratios.of('three'):.1f} x" if "three" in model.ways else "-",
                f"{ratios.of('few', decoded=True):.1f} x",
                f"{ratios.of('rmd', decoded=True):.1f} x",
            ]
        )
    return markdown_table(head, rows)


def time_table(results):
    """Seconds a sample and the peak of memory of every group of rows that is there."""
    head = ["", "", "batch", *TITLES.values(), "decoding", "around the calls", "peak memory: few, RMD"]
    rows = []
    for group, found in results.groups():
        first, rmd = next(iter(found.values())), found.get("rmd")
        rows.append(
            [
                group.model.name,
                group.mode,
                first["batch"],
                *(_time(found.get(name)) for name in TITLES),
                _time(results.decoding(group.model)),
                f"{100 * rmd['outside']:.1f} %" if rmd else "-",
                "-" if first["peak_bytes"] is None else ", ".join(_peak(found.get(name)) for name in ("few", "rmd")),
            ]
        )
    return markdown_table(head, rows, left=2)


def ratio_table(results):
    """How many times faster than the teacher, by arithmetic alone in brackets."""
    head = ["", "", "batch", *list(TITLES.values())[1:], "low / high", "with decoding: few", "RMD"]
    rows = []
    for group, found in results.groups():
        ratios = Ratios(group.model, results.counts[group.model.name])
        decode, batch, cost = results.decoding(group.model), "-", "-"
        if rmd := found.get("rmd"):
            batch = rmd["batch"]
            cost = f"{measured_low_to_high(group.model, rmd):.3f} ({ratios.low_to_high:.3f})"
        alone = [_ratio(found, name, ratios) for name in ("few", "rmd", "three")]
        decoded = [_ratio(found, name, ratios, decode) for name in ("few", "rmd")]
        rows.append([group.model.name, group.mode, batch, *alone, cost, *decoded])
    return markdown_table(head, rows, left=2)


def measured_low_to_high(model, row):
    """The cost of a network call at the smaller size over one at the final size, as a row measured it."""
    return row["calls"][size_name(model.low)]["median"] / row["calls"][size_name(model.high)]["median"]


def headlines(results):
    """One line for each group of a model whose speed-up the paper reports: ours, and the ratio that explains it."""
    lines = []
    for group, found in results.groups():
        model = group.model
        if not (model.paper and {"rmd", "teacher"} <= found.keys()):
            continue
        ratios, rmd, teacher = Ratios(model, results.counts[model.name]), found["rmd"], found["teacher"]
        ours = teacher["seconds"]["median"] / rmd["seconds"]["median"]
        low, high = model.split
        measured = measured_low_to_high(model, rmd)
        needed = (2 * model.teacher_steps / model.paper - high) / low
        lines.append(
            f"- {model.name} {low}+{high} against {model.teacher_steps} x 2 calls, {group.mode}, batch {rmd['batch']}: "
            f"**{ours:.1f} x**, the paper {model.paper:g} x. A low call costs {measured:.3f} of a high one; "
            f"by arithmetic {ratios.low_to_high:.3f}, the paper's figure needs {needed:.3f}."
        )
    return "\n".join(lines)


def page_block(all_results):
    """What is between the marks of docs/use/speed.md: the arithmetic, then each device that ran full-size models."""
    parts = ["### By arithmetic", flop_table(_all_counts(all_results))]
    for results in _full_size(all_results):
        made = results.made
        versions = ", ".join(f"{name} {made[name]}" for name in ("torch", "diffusers") if name in made)
        parts += [
            f"### On {made['device']}",
            f"{made['precision']}, {versions}, {made['date']}.",
            "Time a sample, median (quartiles):",
            time_table(results),
            "Times faster than the teacher (by arithmetic alone):",
            ratio_table(results),
        ]
    return "\n\n".join(parts)


def readme_block(all_results):
    """What is between the marks of README.md: the speed-ups that the paper reports too, by arithmetic and measured."""
    counts, measured = _all_counts(all_results), _full_size(all_results)
    columns = [f"measured, {results.made['device']}" for results in measured]
    head = ["", "calls: teacher, RMD", "paper", "by arithmetic", "with decoding", *columns]
    rows = []
    for model in (model for model in FULL if model.paper):
        ratios = Ratios(model, counts[model.name])
        rows.append(
            [
                model.name,
                f"{model.teacher_steps} x 2, {'+'.join(map(str, model.split))}",
                f"{model.paper:g} x",
                f"{ratios.of('rmd'):.1f} x",
                f"{ratios.of('rmd', decoded=True):.1f} x",
                *(_best(results, model) for results in measured),
            ]
        )
    return (
        "RMD against the teacher with guidance at full size: the arithmetic of the network calls, and measured "
        f"(`python -m benchmarks.speed`, [docs/use/speed.md](docs/use/speed.md)).\n\n{markdown_table(head, rows)}"
    )


def _best(results, model):
    ours = []
    for group, found in results.groups():
        if group.model == model and {"rmd", "teacher"} <= found.keys():
            ratio = found["teacher"]["seconds"]["median"] / found["rmd"]["seconds"]["median"]
            ours.append(f"{ratio:.1f} x ({group.mode}, batch {found['rmd']['batch']})")
    return ", ".join(ours) or "not yet"


def _all_counts(all_results):
    return next(results.counts for results in all_results if all(model.name in results.counts for model in FULL))


def _full_size(all_results):
    names = {model.name for model in FULL}
    return [results for results in all_results if any(key.split(" | ")[0] in names for key in results.rows)]


def _time(row):
    if row is None:
        return "-"
    values = [row["seconds"][name] / row["batch"] for name in ("median", "low", "high")]
    unit, factor = ("ms", 1000) if values[0] < 1 else ("s", 1)
    shown = [factor * value for value in values]
    median, low, high = (f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in shown)
    return f"{median} {unit} ({low} to {high})"


def _peak(row):
    return "-" if row is None else f"{row['peak_bytes'] / 2**30:.2f} GiB"


def _ratio(found, name, ratios, decode=None):
    """A way's speed-up, the arithmetic's in brackets; with the time of decoding every sample where that is given."""
    if name not in found or "teacher" not in found:
        return "-"
    teacher, way = (found[each]["seconds"]["median"] / found[each]["batch"] for each in ("teacher", name))
    extra = decode["seconds"]["median"] if decode else 0.0
    return f"{(teacher + extra) / (way + extra):.1f} ({ratios.of(name, decoded=decode is not None):.1f})"

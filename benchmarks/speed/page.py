"""The speed tables in Markdown, from stored results alone."""

from pathlib import Path

from benchmarks.markdown import markdown_table

from .models import FULL, TINY
from .rows import MODES, Group
from .ways import size_name

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "speed.md", ROOT / "README.md"
TITLES = {"teacher": "teacher", "few": "few steps", "rmd": "RMD", "three": "RMD 1+1+2"}
MARK = "speed"


class Ratios:
    """How a model's ways compare in arithmetic; ``of(name, decoded)`` is the teacher's over a way's."""

    def __init__(self, model, counts):
        self.model = model
        self.sizes, self.decode = counts["sizes"], counts["decode"]

    @property
    def low_to_high(self):
        """One call at the smaller size over one at the final size."""
        return self.sizes[size_name(self.model.low)] / self.sizes[size_name(self.model.high)]

    def of(self, name, *, decoded=False):
        """The teacher's arithmetic over a way's; ``decoded``: with the autoencoder's."""
        extra = self.decode if decoded else 0
        ways = self.model.ways
        return (ways["teacher"].flops(self.sizes) + extra) / (ways[name].flops(self.sizes) + extra)


def flop_table(counts):
    """The arithmetic of the full-size models: one call, one decoding, and the speed-ups that it allows."""
    head = [
        "",
        "low, high",
        "TFLOP a call",
        "low / high",
        "decoding",
        "teacher",
        "steps",
        "few steps",
        "RMD",
        "RMD / few",
        "1+1+2",
        "with decoding: few",
        "RMD",
    ]
    rows = []
    for model in FULL:
        ratios = Ratios(model, counts[model.name])
        low, high = (ratios.sizes[size_name(size)] / 1e12 for size in (model.low, model.high))
        three = f"{ratios.of('three'):.1f} x" if "three" in model.ways else "-"
        rows.append(
            [
                model.name,
                f"{_pixels(model.low)}, {_pixels(model.high)}",
                f"{low:,.4g}, {high:,.4g}",
                f"{ratios.low_to_high:.3f}",
                f"{ratios.decode / 1e12:.1f}",
                f"{model.teacher_steps} x 2",
                "+".join(map(str, model.split)),
                f"{ratios.of('few'):.1f} x",
                f"**{ratios.of('rmd'):.1f} x**",
                f"{ratios.of('rmd') / ratios.of('few'):.2f} x",
                three,
                f"{ratios.of('few', decoded=True):.1f} x",
                f"{ratios.of('rmd', decoded=True):.1f} x",
            ]
        )
    return markdown_table(head, rows)


def time_table(results):
    """Seconds a sample and the peak of memory of every group of rows that is there."""
    head = ["", "", "batch", *TITLES.values(), "decoding", "around the calls", "peak memory: few, RMD"]
    rows = []
    for group, found in _groups(results):
        cells = [_time(found.get(name)) for name in TITLES]
        decode = results.rows.get(Group(model=group.model, mode="eager", full=False).key("decode"))
        rmd = found.get("rmd")
        rows.append(
            [
                group.model.name,
                group.mode,
                str(next(iter(found.values()))["batch"]),
                *cells,
                _time(decode),
                f"{100 * rmd['outside']:.1f} %" if rmd else "-",
                ", ".join(_memory(found.get(name)) for name in ("few", "rmd")) if _on_gpu(found) else "-",
            ]
        )
    return markdown_table(head, rows, left=2)


def ratio_table(results):
    """How many times faster than the teacher, the FLOP-only limit in brackets."""
    head = ["", "", "batch", *list(TITLES.values())[1:], "low / high", "with decoding: few", "RMD"]
    rows = []
    for group, found in _groups(results):
        ratios = Ratios(group.model, results.counts[group.model.name])
        decode = results.rows.get(Group(model=group.model, mode="eager", full=False).key("decode"))
        cells = [_ratio(found, name, ratios) for name in ("few", "rmd", "three")]
        both = [_ratio(found, name, ratios, decode) for name in ("few", "rmd")]
        cost = f"{measured_low_to_high(group.model, found['rmd']):.3f} ({ratios.low_to_high:.3f})"
        rows.append(
            [group.model.name, group.mode, str(found["rmd"]["batch"]), *cells, cost, *both]
            if "rmd" in found
            else [group.model.name, group.mode, "-", *cells, "-", *both]
        )
    return markdown_table(head, rows, left=2)


def measured_low_to_high(model, row):
    """The cost of a network call at the smaller size over one at the final size, as a row measured it."""
    return row["calls"][size_name(model.low)]["median"] / row["calls"][size_name(model.high)]["median"]


def headlines(results):
    """One line for each group of a model whose speed-up the paper reports: ours, and the ratio that explains it."""
    lines = []
    for group, found in _groups(results):
        model = group.model
        if model.paper and {"rmd", "teacher"} <= found.keys():
            lines.append(f"- {_headline(model, group.mode, found, results)}")
    return "\n".join(lines)


def _headline(model, mode, found, results):
    ratios, rmd, teacher = Ratios(model, results.counts[model.name]), found["rmd"], found["teacher"]
    ours = teacher["seconds"]["median"] / rmd["seconds"]["median"]
    low, high = model.split
    steps = "+".join(map(str, model.split))
    text = (
        f"{model.name} {steps} against {model.teacher_steps} x 2 calls, {mode}, batch {rmd['batch']}: "
        f"**{ours:.1f} x**, the paper {model.paper:g} x, by arithmetic alone {ratios.of('rmd'):.1f} x. "
    )
    measured = measured_low_to_high(model, rmd)
    calls = model.ways["teacher"].calls
    needed = (calls / model.paper - high) / low
    guided = teacher["calls"][size_name(model.high)]["median"] / rmd["calls"][size_name(model.high)]["median"]
    return text + (
        f"A low call costs {measured:.3f} of a high one, {100 * (measured / ratios.low_to_high - 1):+.0f} % over the "
        f"arithmetic ({ratios.low_to_high:.3f}); the paper's figure needs {needed:.3f}. A guided call costs "
        f"{guided:.2f} plain ones; {100 * rmd['outside']:.1f} % of RMD's time is around its calls."
    )


def page_block(all_results):
    """What stands between the marks of docs/speed.md: the arithmetic, then each device."""
    counts = next(results.counts for results in all_results if all(model.name in results.counts for model in FULL))
    parts = ["### By arithmetic", flop_table(counts)]
    for results in all_results:
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
        if headlines(results):
            parts += ["Against the paper:", headlines(results)]
    if not _full_size(all_results):
        parts.append(
            "**The full-size models have not been timed: no GPU was at hand.** The times above are of tiny models of "
            "the same classes, which show that the command works and say nothing about the large ones."
        )
    return "\n\n".join(parts)


def readme_block(all_results):
    """What stands between the marks of README.md: the speed-ups by arithmetic, and measured ones if there are any."""
    counts = next(results.counts for results in all_results if all(model.name in results.counts for model in FULL))
    measured = _full_size(all_results)
    columns = [f"measured, {results.made['device']}" for results in measured] or ["measured"]
    head = ["", "calls: teacher, RMD", "paper", "by arithmetic", "with decoding", *columns]
    rows = []
    for model in FULL:
        ratios = Ratios(model, counts[model.name])
        cells = [_best(results, model) for results in measured] or ["not yet"]
        rows.append(
            [
                model.name,
                f"{model.teacher_steps} x 2, {'+'.join(map(str, model.split))}",
                f"{model.paper:g} x" if model.paper else "-",
                f"{ratios.of('rmd'):.1f} x",
                f"{ratios.of('rmd', decoded=True):.1f} x",
                *cells,
            ]
        )
    known = "and measured" if measured else "not yet measured, for want of a GPU"
    return (
        f"RMD against the teacher with guidance at full size: the arithmetic of the network calls, {known} (`python -m "
        f"benchmarks.speed`, [docs/speed.md](docs/speed.md)).\n\n{markdown_table(head, rows)}"
    )


def _best(results, model):
    ours = []
    for group, found in _groups(results):
        if group.model == model and {"rmd", "teacher"} <= found.keys():
            ratio = found["teacher"]["seconds"]["median"] / found["rmd"]["seconds"]["median"]
            ours.append(f"{ratio:.1f} x ({group.mode}, batch {found['rmd']['batch']})")
    return ", ".join(ours) or "not yet"


def _full_size(all_results):
    names = {model.name for model in FULL}
    return [results for results in all_results if any(key.split(" | ")[0] in names for key in results.rows)]


def _groups(results):
    """(group, its rows by name) of those that have any way measured."""
    for model in (*FULL, *TINY):
        for mode in MODES:
            for full in (False, True):
                group = Group(model=model, mode=mode, full=full)
                found = {name: results.rows.get(group.key(name)) for name in model.ways}
                found = {name: row for name, row in found.items() if row}
                if found:
                    yield group, found


def _pixels(size):
    return f"{8 * size[1]} x {8 * size[0]}"


def _time(row):
    if row is None:
        return "-"
    values = [row["seconds"][name] / row["batch"] for name in ("median", "low", "high")]
    unit, factor = ("ms", 1000) if values[0] < 1 else ("s", 1)
    shown = [factor * value for value in values]
    median, low, high = (f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in shown)
    return f"{median} {unit} ({low} to {high})"


def _on_gpu(found):
    return any(row["peak_bytes"] is not None for row in found.values())


def _memory(row):
    return "-" if row is None else f"{row['peak_bytes'] / 2**30:.2f} GiB"


def _ratio(found, name, ratios, decode=None):
    """A way's speed-up, the arithmetic's in brackets; with the time of decoding every sample where that is given."""
    if name not in found or "teacher" not in found:
        return "-"
    teacher, way = (found[each]["seconds"]["median"] / found[each]["batch"] for each in ("teacher", name))
    extra = decode["seconds"]["median"] if decode else 0.0
    return f"{(teacher + extra) / (way + extra):.1f} ({ratios.of(name, decoded=decode is not None):.1f})"

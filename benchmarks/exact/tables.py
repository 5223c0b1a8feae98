"""The tables and the figure of docs/method/exact.md from stored scores."""

import torch
from matplotlib.figure import Figure

from rmd_core.boundary import Boundary

from ..results import markdown_table
from .students import Walk
from .world import BANDS, CURVE, FULL, MAPS, SMALL, covariance, plan_of, power_of, student

SPLITS, UPSAMPLERS = ("1+3", "2+2", "3+1"), ("nearest", "bilinear", "bicubic")
KNOWN = {"seen": "both sizes", "unseen": "full size only"}
NETWORKS = {"student": "student, 4 steps", "teacher 4": "teacher, 4 steps", "teacher 50": "teacher, 50 steps"}
CASES = [(small, mapping) for small in KNOWN for mapping in MAPS]
ENDS = [case for case in CASES if case[1] != "half"]
NOISES = [("exact", eta) for eta in (0.0, 0.5, 0.9, 1.0)] + [(n, eta) for n in ("fresh", "mix") for eta in (0.5, 0.9)]
RATIOS, LENGTHS, LOW_STEPS = (1.0, 1.41, 2.0, 2.83, 4.0), (1.0, 2.0, 4.0), range(1, 8)
DISTILLED = [
    *((split, ("nearest", "exact", 0.5)) for split in SPLITS),
    ("2+2", ("bilinear", "exact", 0.5)),
    *(("2+2", ("nearest", *noise)) for noise in NOISES if noise != ("exact", 0.5)),
]


def key(*parts):
    """The name of a stored score."""
    return " ".join(map(str, parts))


def digits(value):
    """A percentage to about three digits."""
    return "0" if value < 5e-4 else f"{value:.{3 if value < 1 else 2 if value < 10 else 1}f}"


def total(found):
    return digits(found["total"])


def banded(found):
    return f"{total(found)} ({' / '.join(digits(found[band]) for band in BANDS)})"


def before_and_after(found):
    ways = [total(found[way]) for way in ("three", "free") if way in found]
    return "; ".join([f"{1000 * found['start']:.2f}", *ways])


def grid(rows, corner, titles, cell, cases):
    """A table of cell(score) with the cases as columns, from {row's title: head of the key}."""
    heads = [f"{KNOWN[small]}, {mapping}" for small, mapping in cases]
    lines = [[title, *(cell(rows[key(head, *case)]) for case in cases)] for title, head in titles.items()]
    return markdown_table([corner, *heads], lines)


def report(stored):
    """Everything that goes between the marks of the page."""
    rows, made = stored["field"], stored["made"]
    kinds = {f"{title}, {split}": key(name, split) for name, title in NETWORKS.items() for split in SPLITS}
    upsamplers = {f"{split}, {way}": key(split, way) for split in SPLITS[1:] for way in UPSAMPLERS}
    noises = {f"{noise}, eta {eta:g}": key(noise, eta) for noise, eta in NOISES}
    lengths = {f"{length:g}": key("length", length) for length in LENGTHS}
    switches = {f"{low}+{8 - low}, {after_switch(low):.2f}": key("low", low) for low in LOW_STEPS}
    recipes = {
        f"{split}, {way}, {rule}, eta {eta:g}": key(split, way, rule, eta) for split, (way, rule, eta) in DISTILLED
    }
    parts = {
        "The untouched cascade": grid(rows, "total", kinds, total, CASES),
        "The student 2+2 by band": by_band(rows),
        "Upsamplers": grid(rows, "total (low / mid / high)", upsamplers, banded, ENDS),
        "The state after the switch": largest_scale(),
        "Noise at the switch, and eta": grid(rows, "total", noises, total, ENDS),
        "The ratio": ratios(rows),
        "The size of what is in the image": grid(rows, "correlation length, cells", lengths, total, ENDS),
        "The place of the switch": grid(rows, "8 steps, logSNR after the switch", switches, total, ENDS),
        "Distilled": grid(stored["distilled"], "divergence; three; free", recipes, before_and_after, ENDS),
        "Four classes": four_classes(stored["classes"]),
    }
    where = (
        f"One thread of {made['device']}, torch {made['torch']}, {made['date']}, {made['cpu_seconds']:.0f} CPU seconds."
    )
    alone = ", ".join(f"{title} {total(rows[f'alone {name}'])}" for name, title in NETWORKS.items())
    tables = [f"### {title}\n\n{table}" for title, table in parts.items()]
    return "\n\n".join([where, f"At the full size alone: {alone}.", *tables])


def after_switch(low):
    """The unmapped logSNR of the first full-size step of 8."""
    return CURVE.logsnr(plan_of(f"{low}+{8 - low}").stages[1].sigmas[0])


def largest_scale():
    """The power of the mean of the image in the student's first full-size state, over what its level promises.

    Before it that of the small size's last estimate, over the true one.
    """
    lines, true = [], power_of(FULL, "seen").flatten()[0]
    for rule in ("exact", "fresh", "mix"):
        cells = []
        for mapping in MAPS:
            plan, boundary = plan_of("2+2", mapping), Boundary(switch_noise=rule)
            walk, gain_at = Walk(plan, boundary, 0.5), student(plan, "seen", 0.5)
            state = walk.start()
            for step in plan.steps[:2]:
                estimate = (gain_at(step).flatten()[0] ** 2 * state.flatten()[0]).item()
                state = walk.after(state, step, gain_at(step))
            sigma = plan.steps[2].sigma
            cells.append(f"{(state[0, 0, 0] / (CURVE.alpha(sigma) ** 2 * true + sigma**2)).item():.3f}")
        lines.append([rule, f"{estimate / power_of(SMALL, 'seen').flatten()[0].item():.3f}", *cells])
    return markdown_table(["both sizes, eta 0.5", "estimate", *(f"state, {mapping}" for mapping in MAPS)], lines)


def by_band(rows):
    lines = []
    for small, mapping in CASES:
        found = rows[key("student 2+2", small, mapping)]
        power = [f"{found[f'power {band}']:.2f}" for band in BANDS]
        lines.append([f"{KNOWN[small]}, {mapping}", *(digits(found[band]) for band in BANDS), *power])
    return markdown_table(["", *BANDS, *(f"power, {band}" for band in BANDS)], lines)


def ratios(rows):
    lines = [[KNOWN[small], *(total(rows[key("ratio", ratio, small)]) for ratio in RATIOS)] for small in KNOWN]
    return markdown_table(["r", *(f"{ratio:g}" for ratio in RATIOS)], lines)


def of_classes(found):
    """The share of recognised images, and the total with its interval."""
    return "{:.0f} %; {:.1f} +- {:.1f}".format(found["recognised"][0], *found["total"])


def four_classes(rows):
    alone = ", ".join(f"{name}: {of_classes(rows[name])}" for name in ("true images", "student 4", "teacher 16"))
    kinds = [*(f"student {split}" for split in SPLITS), "teacher 8+8"]
    kinds += [f"student 2+2 {rule}" for rule in ("bilinear exact", "nearest fresh", "nearest mix")]
    table = grid(rows, "recognised; total", dict(zip(kinds, kinds)), of_classes, ENDS)
    return f"At the full size alone: {alone}.\n\n{table}"


def figure(rows):
    """Left: the untouched student's power at each scale. Right: its distance by the place of the switch."""
    drawn = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = drawn.subplots(1, 2)
    true, k = power_of(FULL, "seen").flatten(), torch.arange(FULL)
    largest = torch.maximum(k[:, None], k).flatten()
    for (small, mapping), look in zip(ENDS, ("C0--", "C0-", "C3--", "C3-")):
        plan = plan_of("2+2", mapping)
        ratio = covariance(plan, student(plan, small, 0.5), Boundary(), 0.5).diagonal() / true
        means = [ratio[largest == index].mean().item() for index in range(FULL)]
        left.plot(range(FULL), means, look, label=f"{KNOWN[small]}, {mapping}")
        totals = [rows[key("low", low, small, mapping)]["total"] for low in LOW_STEPS]
        right.plot([after_switch(low) for low in LOW_STEPS], totals, look, marker="o", markersize=3)
    left.axhline(1, color="grey", linewidth=0.8)
    left.axvline(SMALL - 0.5, color="grey", linewidth=0.8, linestyle=":")
    left.set(xlabel="half periods in the image", ylabel="power / true power", title="untouched student, 2+2")
    right.set(xlabel="logSNR after the switch, unmapped", ylabel="squared W2, %", title="untouched student, 8 steps")
    right.set(yscale="log", ylim=(1e-3, 30))
    left.legend(fontsize=8)
    return drawn

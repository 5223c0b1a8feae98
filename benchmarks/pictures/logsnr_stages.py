"""The logSNR curves of SDXL and Wan2.1 at their two sizes, with the steps and stages of 2+2 and 3+3."""

import math

from matplotlib.figure import Figure

from rmd_core.plan import plan_from_split
from rmd_core.schedule import AreaMap, FlowCurve, ShiftPairMap, VPCurve

COLOURS = ("#2a78b8", "#d9731a")  # the smaller size, the larger
DARK, PALE = "#333333", "#bbbbbb"
THRESHOLD = -2.5
LOWEST, HIGHEST = -8.5, 3.2
CURVE_END = -6.9
PURE_NOISE = -7.3  # where a flow's first step is drawn, whose own logSNR is -inf


def logsnr_stages():
    """A matplotlib Figure with a panel for each model."""
    sdxl = plan_from_split(
        VPCurve.scaled_linear(0.00085, 0.012), "2+2", sizes=[(64, 64), (128, 128)], mapping=AreaMap()
    )
    wan = plan_from_split(FlowCurve(3.0), "3+3", sizes=[(60, 104), (90, 160)], mapping=ShiftPairMap(3.0, 5.0))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, sdxl, "SDXL, 2+2", ("512 px", "1024 px"), labels=("512 px", "1024 px: lower by 2 ln 2"))
    _panel(right, wan, "Wan2.1, 3+3", ("480p", "720p"), labels=("480p, shift 3", "720p, shift 5: lower by 2 ln 5/3"))
    left.set_ylabel("logSNR of the latent (lower: noisier)")
    return figure


def _panel(axes, plan, title, sizes, *, labels):
    curve = plan.curve
    places = [1.0 - i / 400 for i in range(401)]
    for stage, colour, label in zip(plan.stages, COLOURS, labels):
        levels = [_level(curve, u) - 2.0 * math.log(stage.ratio) for u in places]
        levels = [level if level > CURVE_END else math.nan for level in levels]
        axes.plot(places, levels, color=colour, linewidth=1.6, label=label, zorder=2)
    axes.axhline(THRESHOLD, color=DARK, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    axes.text(0.015, THRESHOLD + 0.12, f"threshold {THRESHOLD:g}", ha="right", va="bottom", fontsize=9, color=DARK)
    _stages(axes, plan, sizes)
    _steps(axes, plan)
    axes.set(xlim=(1.03, 0.0), ylim=(LOWEST, HIGHEST), title=title)
    axes.set_xlabel("place on the noise table (1: noisiest, 0: clean)")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _stages(axes, plan, sizes):
    """A shade behind the steps of each stage, and the arrow of the switch."""
    switch = _place(plan.curve, plan.stages[1].base_sigmas[0])
    for (begin, end), colour, name, count in zip(((1.03, switch), (switch, 0.0)), COLOURS, sizes, plan.calls_per_stage):
        axes.axvspan(begin, end, color=colour, alpha=0.08, linewidth=0, zorder=0)
        axes.text((begin + end) / 2, LOWEST + 0.12, f"{count} steps at {name}", ha="center", va="bottom", color=colour)
    before = plan.curve.logsnr(plan.stages[0].end_base_sigma)
    after = plan.curve.logsnr(plan.stages[1].sigmas[0])
    arrow = {"arrowstyle": "-|>", "color": DARK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 8}
    axes.annotate("", xy=(switch, after), xytext=(switch, before), arrowprops=arrow, zorder=3)
    axes.plot(switch, before, "o", color="white", markeredgecolor=COLOURS[0], markersize=7, zorder=4)
    axes.annotate(
        "switch: upsampled,\nmade noisier",
        xy=(switch, before),
        xytext=(10, 6),
        textcoords="offset points",
        fontsize=9,
        color=DARK,
        va="bottom",
        ha="right",
    )


def _steps(axes, plan):
    for step in plan.steps:
        level = step.logsnr if math.isfinite(step.logsnr) else PURE_NOISE
        at = (_place(plan.curve, step.base_sigma), level)
        axes.plot(*at, "o", color=COLOURS[step.stage], markersize=15, zorder=5)
        axes.text(*at, str(step.index + 1), color="white", ha="center", va="center_baseline", fontsize=10, zorder=6)
        if level != step.logsnr:
            axes.annotate(
                "pure noise", xy=at, xytext=(12, 0), textcoords="offset points", fontsize=9, color=DARK, va="center"
            )


def _place(curve, sigma):
    return (curve.table_index(sigma) + 1.0) / curve.table_size


def _level(curve, place):
    index = min(max(place * curve.table_size - 1.0, 0.0), curve.table_size - 1.0)
    return curve.logsnr(curve.table_sigma(index))

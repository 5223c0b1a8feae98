"""Draw the images of README and docs into docs/images, from the shipped models.

    OMP_NUM_THREADS=1 python -m benchmarks.pictures

logsnr_stages.png: curves and plans, computed. full_size_cascade_rmd.png and stages_of_a_sample.png: sampled from the
demo's two students on one CPU thread.
"""

import argparse
import math
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from demo import files
from demo.sampling import SamplingSetup, sample_setup, student_setup
from demo.world import prompt
from rmd_core.boundary import orthonormal_rows
from rmd_core.cascade import DenoiserRunner, run_cascade
from rmd_core.noise import SeededNoise
from rmd_core.plan import plan_from_split
from rmd_core.recipe import read_recipe
from rmd_core.schedule import AreaMap, FlowCurve, NoMap, ShiftPairMap, VPCurve
from training.backbones import make_backbone
from training.objective import estimate_x0_eps
from training.prompts import PromptCache

from .results import ROOT

FOLDER = ROOT / "docs" / "images"
GREY = "#555555"


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    logsnr_stages().savefig(FOLDER / "logsnr_stages.png", dpi=100)
    shipped = load_shipped()
    full_size_cascade_rmd(shipped).save(FOLDER / "full_size_cascade_rmd.png", optimize=True)
    stages_of_a_sample(shipped).save(FOLDER / "stages_of_a_sample.png", optimize=True)
    for name in ("logsnr_stages", "full_size_cascade_rmd", "stages_of_a_sample"):
        print(FOLDER / f"{name}.png")


@dataclass(frozen=True)
class Shipped:
    """The demo's backbone, autoencoder and prompts, and three ways to sample: see ``full_size_cascade_rmd``."""

    backbone: object
    vae: object
    cache: PromptCache
    few_step: SamplingSetup
    cascade: SamplingSetup
    student: SamplingSetup


def load_shipped():
    """The shipped files as ``Shipped``."""
    curve = read_recipe(files.STUDENT).curve
    backbone = make_backbone("wan", shift=curve.shift)
    student = student_setup("RMD student", files.STUDENT, backbone)
    few_step = student_setup("few-step model", files.FEW_STEP, backbone)
    sizes = [stage.size for stage in student.plan.stages]
    plan = plan_from_split(curve, student.plan.calls_per_stage, sizes=sizes, mapping=NoMap(), steps=4)
    cascade = replace(student, title="the same in a cascade", network=few_step.network, plan=plan)
    return Shipped(backbone, backbone.load_vae(files.VAE), PromptCache(files.PROMPTS), few_step, cascade, student)


def to_pixels(images):
    """8-bit arrays (N, S, S, 3) of decoded images (N, 3, 1, S, S) in 0..1."""
    return rearrange((images * 255).round().byte(), "n c 1 h w -> n h w c").numpy()


# The few-step model at full size, it untouched in a cascade, and the RMD student, from the same noise.

COLUMNS = tuple(
    prompt(concept, style, background)
    for concept, style, background in (
        ("mushroom", "noto", "blue"),
        ("doughnut", "fluent", "pink"),
        ("burger", "noto", "green"),
        ("panda", "fluent", "orange"),
        ("sunglasses", "noto", "black"),
    )
)


class SharedStart(SeededNoise):
    """Noise whose first state at a smaller size is that of the final size read down to it, which is white as well."""

    def __init__(self, seed, items, final_hw):
        super().__init__(seed, items)
        self._final_hw = final_hw

    def sample(self, stage, purpose, shape):
        if purpose != "start" or tuple(shape[-2:]) == self._final_hw:
            return super().sample(stage, purpose, shape)
        final = super().sample(stage, purpose, (*shape[:-2], *self._final_hw))
        rows, columns = (orthonormal_rows(low, high) for low, high in zip(shape[-2:], self._final_hw))
        return (rows @ final.double() @ columns.T).float()


@torch.no_grad()
def full_size_cascade_rmd(shipped):
    """The PIL image: a row for each setup, a column for each prompt, one noise for all setups."""
    labels, head, gap = 190, 30, 6
    noise = SharedStart(7, tuple(range(len(COLUMNS))), shipped.student.plan.final_hw)
    setups, rows = (shipped.few_step, shipped.cascade, shipped.student), []
    for setup in setups:
        latents = sample_setup(setup, shipped.backbone, shipped.cache, COLUMNS, noise)
        rows.append(to_pixels(shipped.backbone.decode(shipped.vae, latents)))
    side = rows[0].shape[1]
    large, small = (ImageFont.load_default(size=size) for size in (17, 15))
    size = (labels + len(COLUMNS) * (side + gap) - gap, head + len(rows) * (side + gap) - gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(COLUMNS):
        draw.text((labels + column * (side + gap) + side / 2, head / 2), text.split()[0], "black", large, anchor="mm")
    for number, (setup, images) in enumerate(zip(setups, rows)):
        top = head + number * (side + gap)
        draw.text((0, top + side / 2), setup.title, "black", large, anchor="ls")
        draw.text((0, top + side / 2 + 6), f"{setup.sides}\ncost {setup.units:g}", GREY, small)
        for column, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (labels + column * (side + gap), top))
    return sheet


# The stages of one sample: what the student expects the image to be after each step, sizes to scale.

ROWS = (prompt("burger", "noto", "green"), prompt("panda", "fluent", "orange"))


@torch.no_grad()
def estimates(shipped):
    """(step, 8-bit images (N, S, S, 3)) of every step: the clean estimate after it, decoded."""
    backbone, setup = shipped.backbone, shipped.student
    conditioning = backbone.conditioning(shipped.cache, ROWS)
    found = []

    def denoise(x, step):
        sigma = torch.full((len(x),), step.sigma, dtype=torch.float64)
        x0, eps = estimate_x0_eps(backbone, setup.network, x, sigma, conditioning, curve=setup.plan.curve)
        found.append((step, to_pixels(backbone.decode(shipped.vae, x0))))
        return x0, eps

    run_cascade(
        setup.plan,
        DenoiserRunner(denoise, eta=setup.eta),
        shape=backbone.latent_shape(len(ROWS), 1),
        noise=SeededNoise(3),
        boundary=setup.boundary,
    )
    return found


def stages_of_a_sample(shipped):
    """The PIL image: a row for each sample, a column for each step, twice as large, an arrow at the switch."""
    scale, gap, head, between = 2, 12, 46, 40
    found = estimates(shipped)
    tall = max(scale * images.shape[1] for _, images in found)
    lefts, switches, right = [], [], 0
    for number, (step, images) in enumerate(found):
        if number:
            switched = step.stage != found[number - 1][0].stage
            right += between if switched else gap
            switches += [right - between // 2] * switched
        lefts.append(right)
        right += scale * images.shape[1]
    sheet = Image.new("RGB", (right, head + len(ROWS) * (tall + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = (ImageFont.load_default(size=size) for size in (17, 15))
    for (step, images), left in zip(found, lefts):
        side = scale * images.shape[1]
        draw.text((left, 0), f"step {step.index + 1}", "black", large)
        draw.text((left, 23), f"{images.shape[1]} px, sigma {step.sigma:.3f}", GREY, small)
        for row, image in enumerate(images):
            top = head + row * (tall + gap) + (tall - side) // 2
            sheet.paste(Image.fromarray(image).resize((side, side), Image.NEAREST), (left, top))
    for x in switches:
        for row in range(len(ROWS)):
            y = head + row * (tall + gap) + tall // 2
            draw.line([(x - 12, y), (x + 8, y)], "black", 2)
            draw.polygon([(x + 13, y), (x + 5, y - 5), (x + 5, y + 5)], "black")
    return sheet


# The logSNR curves of SDXL and Wan2.1 at their two sizes, with the steps and stages of 2+2 and 3+3.

COLOURS = ("#2a78b8", "#d9731a")  # the smaller size, the larger
DARK = "#333333"
NOTE = {"textcoords": "offset points", "fontsize": 9, "color": DARK}
THRESHOLD = -2.5
LOWEST, HIGHEST = -8.5, 3.2
CURVE_END = -6.9
PURE_NOISE = -7.3  # where a flow's first step is drawn, whose own logSNR is -inf


def logsnr_stages():
    """A matplotlib Figure with a panel for each model."""
    vp = VPCurve.scaled_linear(0.00085, 0.012)
    sdxl = plan_from_split(vp, "2+2", sizes=[(64, 64), (128, 128)], mapping=AreaMap())
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
    place = {"xy": (switch, before), "xytext": (10, 6), "va": "bottom", "ha": "right"}
    axes.annotate("switch: upsampled,\nmade noisier", **place, **NOTE)


def _steps(axes, plan):
    for step in plan.steps:
        level = step.logsnr if math.isfinite(step.logsnr) else PURE_NOISE
        at = (_place(plan.curve, step.base_sigma), level)
        axes.plot(*at, "o", color=COLOURS[step.stage], markersize=15, zorder=5)
        axes.text(*at, str(step.index + 1), color="white", ha="center", va="center_baseline", fontsize=10, zorder=6)
        if level != step.logsnr:
            axes.annotate("pure noise", xy=at, xytext=(12, 0), va="center", **NOTE)


def _place(curve, sigma):
    return (curve.table_index(sigma) + 1.0) / curve.table_size


def _level(curve, place):
    index = min(max(place * curve.table_size - 1.0, 0.0), curve.table_size - 1.0)
    return curve.logsnr(curve.table_sigma(index))


if __name__ == "__main__":
    main()

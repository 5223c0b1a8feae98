"""Draw the images of README and docs into docs/images, from the shipped models.

    OMP_NUM_THREADS=1 python -m benchmarks.figures

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
    logsnr_stages().savefig(FOLDER / "logsnr_stages.png", dpi=150)
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
    few_step = student_setup("few-step, full size", files.FEW_STEP, backbone)
    sizes = [stage.size for stage in student.plan.stages]
    plan = plan_from_split(curve, student.plan.calls_per_stage, sizes=sizes, mapping=NoMap(), steps=4)
    cascade = replace(student, title="the same, untouched", network=few_step.network, plan=plan)
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
    """The PIL image: a row for each setup, a column for each prompt, twice as large; one noise for all setups."""
    scale, labels, head, gap = 2, 390, 60, 12
    noise = SharedStart(7, tuple(range(len(COLUMNS))), shipped.student.plan.final_hw)
    setups, rows = (shipped.few_step, shipped.cascade, shipped.student), []
    for setup in setups:
        latents = sample_setup(setup, shipped.backbone, shipped.cache, COLUMNS, noise)
        rows.append(to_pixels(shipped.backbone.decode(shipped.vae, latents)))
    side = scale * rows[0].shape[1]
    large, small = (ImageFont.load_default(size=size) for size in (34, 30))
    size = (labels + len(COLUMNS) * (side + gap) - gap, head + len(rows) * (side + gap) - gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(COLUMNS):
        draw.text((labels + column * (side + gap) + side / 2, head / 2), text.split()[0], "black", large, anchor="mm")
    for number, (setup, images) in enumerate(zip(setups, rows)):
        top = head + number * (side + gap)
        draw.text((0, top + side / 2), setup.title, "black", large, anchor="ls")
        draw.text((0, top + side / 2 + 12), f"{setup.sides}\ncost {setup.units:g}", GREY, small)
        for column, image in enumerate(images):
            sheet.paste(enlarged(image, side), (labels + column * (side + gap), top))
    return sheet


def enlarged(image, side):
    """The PIL image of an 8-bit array (S, S, 3), each pixel a square."""
    return Image.fromarray(image).resize((side, side), Image.NEAREST)


# The stages of one sample: what each step gets and what the student expects the image to be, sizes to scale.

SAMPLE = prompt("burger", "noto", "green")
ROWS = ("a step gets", "and estimates")


@torch.no_grad()
def stages(shipped):
    """(step, 8-bit images (2, S, S, 3)) of every step: its latent and the clean estimate, decoded."""
    backbone, setup = shipped.backbone, shipped.student
    conditioning = backbone.conditioning(shipped.cache, [SAMPLE])
    found = []

    def denoise(x, step):
        sigma = torch.full((len(x),), step.sigma, dtype=torch.float64)
        x0, eps = estimate_x0_eps(backbone, setup.network, x, sigma, conditioning, curve=setup.plan.curve)
        found.append((step, to_pixels(backbone.decode(shipped.vae, torch.cat((x, x0))))))
        return x0, eps

    run_cascade(
        setup.plan,
        DenoiserRunner(denoise, eta=setup.eta),
        shape=backbone.latent_shape(1, 1),
        noise=SeededNoise(3),
        boundary=setup.boundary,
    )
    return found


def stages_of_a_sample(shipped):
    """The PIL image: a column for each step, three times as large, an arrow at the switch."""
    scale, labels, gap, head, between = 3, 170, 14, 84, 130
    found = stages(shipped)
    tall = max(scale * images.shape[1] for _, images in found)
    sheet = Image.new("RGB", (1600, head + len(ROWS) * (tall + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = (ImageFont.load_default(size=size) for size in (30, 24))
    tops = [head + row * (tall + gap) for row in range(len(ROWS))]
    for text, top in zip(ROWS, tops):
        draw.text((0, top + tall / 2), text, "black", small, anchor="lm")
    left = labels
    for number, (step, images) in enumerate(found):
        side = scale * images.shape[1]
        if number and step.stage != found[number - 1][0].stage:
            end, y = left + between - 10, tops[0] + tall // 2
            draw.line([(left, y), (end - 8, y)], "black", 3)
            draw.polygon([(end, y), (end - 14, y - 9), (end - 14, y + 9)], "black")
            draw.text(((left + end) / 2, y - 14), "enlarge,\nadd noise", GREY, small, anchor="md", align="center")
            left += between
        draw.text((left, 0), f"step {step.index + 1}", "black", large)
        draw.text((left, 42), f"{images.shape[1]} px, sigma {step.sigma:g}", GREY, small)
        for image, top in zip(images, tops):
            sheet.paste(enlarged(image, side), (left, top + (tall - side) // 2))
        left += side + gap
    return sheet.crop((0, 0, left - gap, sheet.height))


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
    _panel(left, sdxl, "SDXL, 2+2", ("512 px", "1024 px"), labels=("512 px", "1024 px, mapped: lower by 2 ln 2"))
    _panel(
        right,
        wan,
        "Wan2.1, 3+3",
        ("480p", "720p"),
        labels=("480p, shift 3", "720p, shift 5, mapped: lower by 2 ln 5/3"),
    )
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
    _unmapped(axes, plan, f"{sizes[1]}, unmapped: stays on the curve of {sizes[0]}")
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


def _unmapped(axes, plan, label):
    """The steps of the later stages without a mapping: at the same places, on the smaller size's curve."""
    curve = plan.curve
    sigmas = [step.base_sigma for step in plan.steps if step.stage]
    places, levels = [_place(curve, sigma) for sigma in sigmas], [curve.logsnr(sigma) for sigma in sigmas]
    axes.plot(places, levels, "o", color=COLOURS[1], markerfacecolor="white", markersize=13, zorder=5, label=label)
    for step, *at in zip((step for step in plan.steps if step.stage), places, levels):
        axes.text(*at, str(step.index + 1), color=COLOURS[1], ha="center", va="center_baseline", fontsize=9, zorder=6)


def _place(curve, sigma):
    return (curve.table_index(sigma) + 1.0) / curve.table_size


def _level(curve, place):
    index = min(max(place * curve.table_size - 1.0, 0.0), curve.table_size - 1.0)
    return curve.logsnr(curve.table_sigma(index))


if __name__ == "__main__":
    main()

"""The demo: distil the shipped teacher into an RMD student, sample both, print a table, write an image.

python -m demo [--updates N] [--out FOLDER]
"""

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from rmd_core.boundary import Boundary
from rmd_core.recipe import read_recipe
from training.backbones import make_backbone
from training.prompts import PromptCache

from . import files
from .classifier import classify, load_classifier
from .comparison import comparison_image, table
from .sampling import SamplingSetup, make_images, single_resolution, student_setup
from .world import BACKGROUNDS, CONCEPTS, TEACHER_STYLES, prompt

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path("training", "configs", "demo.yaml")
TEACHER_STEPS, TEACHER_GUIDANCE = 50, 2.0
NAME = "rmd_tiny_wan_student"


def distil(folder, extra):
    """Run the trainer as a user would; continues an interrupted run."""
    command = [sys.executable, str(Path("training", "distill.py")), "--config", str(CONFIG)]
    command += ["--set", f"output.folder={folder}", *extra]
    if (folder / "run.json").exists():
        command.append("--resume")
    # passive waiting: spinning threads collapse when another program wants the cores
    quiet = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    print("$ " + " ".join(command[1:]), flush=True)
    done = subprocess.run(command, cwd=ROOT, env={**quiet, **os.environ}, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return folder / f"{NAME}.safetensors"


def demo_prompts():
    """One prompt for every concept in every style, backgrounds in turn; the first half has each concept once."""
    styles, backgrounds = list(TEACHER_STYLES), list(BACKGROUNDS)
    return [
        prompt(concept, styles[(i + turn) % len(styles)], backgrounds[(i + 3 * turn) % len(backgrounds)])
        for turn in range(len(styles))
        for i, concept in enumerate(CONCEPTS)
    ]


def sampling_setups(student, backbone):
    """The teacher at length, in few steps and in the cascade, the student of this run, and the shipped one."""
    recipe = read_recipe(student)
    teacher = backbone.load(files.TEACHER, dtype=torch.float32)
    steps = sum(recipe.split)
    long, plain = (single_resolution(recipe.curve, count, recipe.final_hw) for count in (TEACHER_STEPS, steps))
    at_once = dict(network=teacher, boundary=Boundary(), eta=1.0)
    ours = student_setup("RMD student", student, backbone)
    return [
        SamplingSetup(title="teacher", plan=long, guidance=TEACHER_GUIDANCE, **at_once),
        SamplingSetup(title=f"teacher, {steps} steps", plan=plain, **at_once),
        replace(ours, title="teacher in the cascade", network=teacher, guidance=1.0),
        ours,
        student_setup("RMD student, shipped", files.STUDENT, backbone),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs", "demo"))
    parser.add_argument("--seed", type=int, default=0, help="of the images")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="passed on to the trainer")
    args = parser.parse_args()
    student = distil(args.out, [part for value in args.set for part in ("--set", value)])

    torch.set_num_threads(1)
    backbone = make_backbone("wan", shift=read_recipe(student).curve.shift)
    cache, vae, classifier = PromptCache(files.PROMPTS), backbone.load_vae(files.VAE), load_classifier()
    prompts = demo_prompts()
    truth = torch.tensor([list(CONCEPTS).index(text.split()[0]) for text in prompts])
    lines, rows, slowest = [], [], None
    for setup in sampling_setups(student, backbone):
        timings = 1 if len(setup.plan.steps) == TEACHER_STEPS else 5
        images, seconds = make_images(setup, backbone, vae, cache, prompts, seed=args.seed, timings=timings)
        slowest = slowest or seconds
        right = (classify(classifier, images).labels["concept"] == truth).float().mean().item()
        steps = setup.sides + ("" if setup.guidance == 1.0 else " x 2 (CFG)")
        times = f"{1000 * seconds:.1f} ms", f"{slowest / seconds:.1f} x"
        lines.append([setup.title, steps, f"{setup.units:.2f}", *times, f"{100 * right:.0f} %"])
        rows.append((setup.title, f"{steps}\n{1000 * seconds:.0f} ms an image", images[: len(CONCEPTS)]))
        print(f"sampled: {setup.title}", flush=True)
    head = ["", "steps at each size", "cost", "time an image", "faster", "named right"]
    print("\n" + table(head, lines))
    print(
        "\ncost: network calls in units of one at the full size, a smaller one counted by its pixels;"
        "\ntime: CPU time of the denoiser on one thread in a batch of 24, decoding left out,"
        "\nthe shortest of five runs where a run is short;"
        "\nnamed right: by the shipped classifier, over 24 images."
    )
    sheet = args.out / "comparison.png"
    comparison_image(rows, prompts[: len(CONCEPTS)]).save(sheet)
    print(f"\nimage: {sheet}\nstudent: {student}")


if __name__ == "__main__":
    main()

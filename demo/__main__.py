"""The demo: distil an RMD student, and compare it with a few-step model at full size and untouched in the cascade.

python -m demo [--out FOLDER] [--set train.updates=N]
"""

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from rmd_core.boundary import Boundary
from rmd_core.plan import plan_from_split
from rmd_core.recipe import read_recipe
from rmd_core.schedule import NoMap
from training.backbones import make_backbone
from training.prompts import PromptCache

from . import files
from .classifier import classify, decode_frames, frame_vae, frechet_distance, load_classifier, real_images
from .comparison import comparison_image, table
from .sampling import SamplingSetup, make_latents, single_resolution, student_setup
from .world import BACKGROUNDS, CONCEPTS, TEACHER_STYLES, prompt

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path("training", "configs", "demo.yaml")
TEACHER_STEPS, TEACHER_GUIDANCE = 50, 2.0
NAME = "rmd_tiny_wan_student"
BATCH = 24


def distil(folder, extra):
    """Run the trainer as a user would; continues an interrupted run."""
    command = [sys.executable, str(Path("training", "distill.py")), "--config", str(CONFIG)]
    command += ["--set", f"output.folder={folder}", *extra]
    if (folder / "run.json").exists():
        command.append("--resume")
    # passive waiting: spinning threads collapse when another program uses the cores
    quiet = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    print("$ " + " ".join(command[1:]), flush=True)
    done = subprocess.run(command, cwd=ROOT, env={**quiet, **os.environ}, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return folder / f"{NAME}.safetensors"


def all_prompts():
    """Every concept in every style on every background; the first dozen shows each concept once."""
    styles, backgrounds, count = list(TEACHER_STYLES), list(BACKGROUNDS), len(TEACHER_STYLES) * len(BACKGROUNDS)
    return [
        prompt(concept, styles[(i + turn) % len(styles)], backgrounds[(i + turn // len(styles)) % len(backgrounds)])
        for turn in range(count)
        for i, concept in enumerate(CONCEPTS)
    ]


def sampling_setups(student, backbone):
    """The teacher, a few-step student at full size and untouched in the cascade, and RMD: shipped, and of this run."""
    recipe = read_recipe(student)
    teacher = backbone.load(files.TEACHER, dtype=torch.float32)
    long = single_resolution(recipe.curve, TEACHER_STEPS, recipe.final_hw)
    ours = student_setup("RMD, distilled just now", student, backbone)
    few_step = student_setup("few-step model", files.FEW_STEP, backbone)
    sizes = [(stage.height, stage.width) for stage in ours.plan.stages]
    unmapped = plan_from_split(recipe.curve, recipe.split, sizes=sizes, mapping=NoMap(), steps=sum(recipe.split))
    cascade = replace(ours, title="the same in a cascade", network=few_step.network, plan=unmapped)
    return [
        SamplingSetup(
            title="teacher", network=teacher, plan=long, boundary=Boundary(), eta=1.0, guidance=TEACHER_GUIDANCE
        ),
        few_step,
        cascade,
        replace(cascade, title="... with mapped levels", plan=ours.plan),
        student_setup("RMD, as shipped", files.STUDENT, backbone),
        ours,
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
    cache, vae, classifier = PromptCache(files.PROMPTS), frame_vae(), load_classifier()
    prompts = all_prompts()
    truth = torch.tensor([list(CONCEPTS).index(text.split()[0]) for text in prompts])
    real = classify(classifier, real_images(vae, prompts, seed=args.seed + 1000)).features
    lines, rows = [], []
    for setup in sampling_setups(student, backbone):
        few = prompts[:BATCH] if len(setup.plan.steps) == TEACHER_STEPS else prompts  # all of them take minutes
        alone = make_latents(setup, backbone, cache, prompts[:1], seed=args.seed, timings=1 if few != prompts else 5)[1]
        latents, seconds = make_latents(setup, backbone, cache, few, seed=args.seed, batch=BATCH)
        found = classify(classifier, images := decode_frames(vae, latents))
        right = (found.labels["concept"] == truth[: len(few)]).float().mean().item()
        distance = f"{frechet_distance(found.features, real):.2f}" if few == prompts else "-"
        steps = setup.sides + ("" if setup.guidance == 1.0 else " x 2 (CFG)")
        times = f"{1000 * alone:.0f} ms", f"{1000 * seconds:.0f} ms"
        lines.append([setup.title, steps, f"{setup.units:.2f}", *times, distance, f"{100 * right:.0f} %"])
        rows.append((setup.title, f"{steps}\ncost {setup.units:g}", images[: len(CONCEPTS)]))
        print(f"sampled: {setup.title}", flush=True)
    head = ["", "steps at each size", "cost", "alone", f"in {BATCH}", "FD", "named right"]
    print("\n" + table(head, lines))
    print(
        "\ncost: network calls in units of one at the full size, a smaller one counted by its pixels;"
        f"\nalone, in {BATCH}: CPU time of an image on one thread, alone and in a batch of {BATCH}, decoding left out;"
        f"\nFD: Frechet distance of {len(prompts)} images to as many real ones, lower is better;"
        f"\nnamed right: by the shipped classifier, over {len(prompts)} images ({BATCH} of the teacher's)."
    )
    sheet = args.out / "comparison.png"
    comparison_image(rows, prompts[: len(CONCEPTS)]).save(sheet)
    print(f"\nimage: {sheet}\nstudent: {student}")


if __name__ == "__main__":
    main()

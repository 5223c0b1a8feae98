"""Draw the pictures of README and docs into docs/images, from the shipped models.

    OMP_NUM_THREADS=1 python -m benchmarks.pictures

logsnr_stages.png: curves and plans, computed. teacher_cascade_student.png and stages_of_a_sample.png: sampled from the
demo's teacher and student on one CPU thread, which takes about a minute.
"""

import argparse
from pathlib import Path

import torch

from .logsnr_stages import logsnr_stages
from .shipped import load_shipped
from .stages_of_a_sample import stages_of_a_sample
from .teacher_cascade_student import teacher_cascade_student

FOLDER = Path(__file__).parents[2] / "docs" / "images"


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    logsnr_stages().savefig(FOLDER / "logsnr_stages.png", dpi=100)
    shipped = load_shipped()
    teacher_cascade_student(shipped).save(FOLDER / "teacher_cascade_student.png", optimize=True)
    stages_of_a_sample(shipped).save(FOLDER / "stages_of_a_sample.png", optimize=True)
    for name in ("logsnr_stages", "teacher_cascade_student", "stages_of_a_sample"):
        print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()

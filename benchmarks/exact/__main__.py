"""Few-step cascades in a world whose scores are known: the tables and the figure of docs/method/exact.md.

    OMP_NUM_THREADS=1 python -m benchmarks.exact [--page docs/method/exact.md]

Rows are kept in benchmarks/results/exact.json, and a further run makes only the missing ones. All of them take some
minutes on one core.
"""

import argparse
import time
from pathlib import Path

import torch

from rmd_core.boundary import Boundary

from ..results import FOLDER, ROOT, cpu_name, provenance, read_results, replace_block, write_results
from . import classes
from .students import at_steps, rmd_optimum
from .tables import (
    CASES,
    DISTILLED,
    ENDS,
    KNOWN,
    LENGTHS,
    LOW_STEPS,
    NOISES,
    RATIOS,
    SPLITS,
    UPSAMPLERS,
    figure,
    key,
    report,
)
from .world import FULL, LENGTH, covariance, plan_of, score, student, teacher

RESULTS, FIGURE, MARK = FOLDER / "exact.json", ROOT / "docs" / "images" / "exact_bands.png", "exact"
SECTIONS = ("field", "distilled", "classes")
FIFTY = {"1+3": "12+38", "2+2": "25+25", "3+1": "38+12"}
NEAREST = Boundary()  # exact noise, eta 0.5


def of_student(split, small, mapping, boundary=NEAREST, length=LENGTH):
    """The score of the few-step student, untouched in a cascade, with one eta inside the sizes and at the switch."""
    plan, eta = plan_of(split, mapping), boundary.eta_switch
    return score(covariance(plan, student(plan, small, eta, length), boundary, eta), length)


def of_teacher(split, small, mapping, eta):
    """The score of the teacher in a cascade."""
    return score(covariance(plan_of(split, mapping), teacher(small), Boundary(eta_switch=eta), eta))


def distilled(split, rule, small, mapping):
    """The scores of RMD students with three factors a step and with all gains free, and the divergence at the start."""
    boundary, plan = Boundary(*rule), plan_of(split, mapping)
    eta, found = boundary.eta_switch, {}
    for name in ("three", "free"):
        gains, found["start"] = rmd_optimum(plan, boundary, eta, student(plan, small, eta), free=name == "free")
        found[name] = score(covariance(plan, at_steps(gains), boundary, eta))
    return found


def sampled(kind, split, small, mapping, boundary):
    """The mean scores of the four classes over the seeds, and their intervals."""
    plan, eta = plan_of(split, mapping), boundary.eta_switch
    denoise = classes.teacher(small) if kind == "teacher" else classes.student(plan, small, eta)
    return classes.over_seeds(lambda seed: classes.sampled(plan, denoise, boundary, eta, seed))


def true_images():
    return classes.over_seeds(lambda seed: classes.classes(FULL, "seen").sample(classes.IMAGES, seed))


def everything():
    """(section, name, function, its arguments) of every stored score."""
    whole = Boundary(eta_switch=1.0)
    yield "field", "alone student", of_student, ("4", "seen", "none")
    yield "field", "alone teacher 4", of_teacher, ("4", "seen", "none", 0.5)
    yield "field", "alone teacher 50", of_teacher, ("50", "seen", "none", 1.0)
    yield "classes", "true images", true_images, ()
    yield "classes", "student 4", sampled, ("student", "4", "seen", "none", NEAREST)
    yield "classes", "teacher 16", sampled, ("teacher", "16", "seen", "none", whole)
    for case in CASES:
        for split in SPLITS:
            yield "field", key("student", split, *case), of_student, (split, *case)
            yield "field", key("teacher 4", split, *case), of_teacher, (split, *case, 0.5)
            yield "field", key("teacher 50", split, *case), of_teacher, (FIFTY[split], *case, 1.0)
    for case in ENDS:
        for split in SPLITS:
            yield "classes", key("student", split, *case), sampled, ("student", split, *case, NEAREST)
        yield "classes", key("teacher 8+8", *case), sampled, ("teacher", "8+8", *case, whole)
        for split in SPLITS[1:]:
            for upsampler in UPSAMPLERS:
                yield "field", key(split, upsampler, *case), of_student, (split, *case, Boundary(upsampler))
        for noise in NOISES:
            yield "field", key(*noise, *case), of_student, ("2+2", *case, Boundary("nearest", *noise))
        for length in LENGTHS:
            yield "field", key("length", length, *case), of_student, ("2+2", *case, NEAREST, length)
        for low in LOW_STEPS:
            yield "field", key("low", low, *case), of_student, (f"{low}+{8 - low}", *case)
        for split, rule in DISTILLED:
            yield "distilled", key(split, *rule, *case), distilled, (split, rule, *case)
        for rule in (("bilinear", "exact"), ("nearest", "fresh"), ("nearest", "mix")):
            yield "classes", key("student 2+2", *rule, *case), sampled, ("student", "2+2", *case, Boundary(*rule))
    for small in KNOWN:
        for ratio in RATIOS:
            yield "field", key("ratio", ratio, small), of_student, ("2+2", small, ratio)


def measure(stored):
    """Make what is missing, and write it row by row: an interrupted run keeps what it has."""
    for section, name, function, arguments in sorted(everything(), key=lambda row: SECTIONS.index(row[0])):
        if name not in stored.setdefault(section, {}):
            started = time.process_time()
            stored[section][name] = function(*arguments)
            spent = stored.get("made", {}).get("cpu_seconds", 0.0) + time.process_time() - started
            stored["made"] = provenance(device=cpu_name(), cpu_seconds=round(spent, 2))
            write_results(RESULTS, stored)
    return stored


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, metavar="FILE", help="also put the tables into docs/method/exact.md")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    stored = measure(read_results(RESULTS) or {})
    text = report(stored)
    print(text)
    if arguments.page:
        figure(stored["field"]).savefig(FIGURE, dpi=100)
        replace_block(arguments.page, MARK, text)


if __name__ == "__main__":
    main()

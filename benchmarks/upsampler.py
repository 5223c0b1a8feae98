"""A learnt upsampler for the demo: what it does to the cascade and to RMD: ``python -m benchmarks.upsampler``.

    OMP_NUM_THREADS=1 python -m benchmarks.upsampler [--table]

It writes the demo's drawings as images, trains the upsampler, then the students it needs, samples and scores. What is
there already is not made again: outputs/upsampler/, outputs/quality/, and the results.
"""

import argparse
import logging
import sys
from dataclasses import replace
from functools import cache

import torch

from benchmarks.quality import rows
from benchmarks.quality.students import AREA, BOTH, FULL, NONE, OPTION_COST, Run, Student
from benchmarks.results import FOLDER, ROOT, read_results, write_results
from demo import files
from demo.comparison import table
from demo.make.upsampler import write_images
from rmd_core.errors import RMDError
from rmd_core.files import read_json
from rmd_core.upsampler import read_upsampler
from training import train_upsampler

RESULTS = FOLDER / "upsampler.json"
OUT = ROOT / "outputs" / "upsampler"
SEEDS = (0, 1, 2)
OPTIONS = (
    "--backbone", "wan", "--vae", str(files.VAE), "--size", "128x128", "--smaller", "64x64", "96x96", "--device", "cpu",
    "--width", "32", "--blocks", "2", "--updates", "1500", "--lr", "1e-3", "--held-out", "64",
)  # fmt: skip
FIGURES = {"fd": 3, "kid": 1, "swd": 2}
GUIDANCE = 2.0


def train():
    """The file of the upsampler, trained if need be. Raises RMDError when that fails."""
    path, images = OUT / "upsampler.safetensors", OUT / "images.safetensors"
    if not (OUT / "report.json").exists():
        if not images.exists():
            write_images(images)
        resume = ["--resume"] if (OUT / "checkpoint.safetensors").exists() else []
        code = train_upsampler.main([*OPTIONS, "--images", str(images), "--out", str(OUT), *resume])
        if code:
            raise RMDError(f"training the upsampler ended with code {code}")
    return path


@cache
def learnt():
    """The trained upsampler, and the changes of a configuration that use it."""
    path = train()
    network = read_upsampler(path)
    return network, (f"method.upsampler={path}", f"method.upsampler_sha256={network.digest()}")


def sampling(*changes):
    """How a configuration samples with the upsampler."""
    network, change = learnt()
    found = rows.sampling(*changes, *change)
    return found | {"boundary": replace(found["boundary"], learned=network)}


def learnt_rows(seed):
    """The untouched few-step student in the cascade, and RMD, with the upsampler."""
    student = Student(
        name="full_learnt",
        title="RMD, area mapping",
        teacher=FULL.teacher,
        changes=(AREA, *learnt()[1]),
        seeds=SEEDS,
        marks=(OPTION_COST,),
        cost=OPTION_COST,
    )
    found = {
        "untouched": (Run(FULL.single, seed, FULL.single.marks[-1]), sampling(AREA)),
        "rmd": (Run(student, seed, OPTION_COST), sampling(AREA)),
    }
    for kind, (network, rules) in found.items():
        yield rows.SampledRow(name=f"{kind}_learnt_seed_{seed}", title="learnt", network=network, **rules)


def teacher_rows():
    """The teacher of both sizes in the cascade with each way to enlarge: no gap between the sizes, no distillation."""
    for way in ("nearest", "bicubic", "learnt"):
        rules = sampling(NONE) if way == "learnt" else rows.sampling(NONE, f"method.upsampler={way}")
        name = f"teacher_{way}"
        yield rows.SampledRow(name=name, title=way, network=BOTH.teacher, guidance=GUIDANCE, **rules)


def measure(kept):
    """The figures of every row by name, those that are kept not again; the results are written after each."""
    for row in (*teacher_rows(), *(row for seed in SEEDS for row in learnt_rows(seed))):
        if row.name not in kept:
            row.prepare()
            kept[row.name] = row.figures(rows.scorer())
            write_results(
                RESULTS,
                {"figures": kept, "report": read_json(OUT / "report.json"), "made": rows.made_here()},
            )
    return kept


def report(results, store):
    """The tables as text. ``results``: what was kept of a measurement; ``store``: the rows of benchmarks.quality."""
    kept = results["figures"]
    lines = [_line(f"teacher of both sizes, 2+2, {way}", [kept.get(f"teacher_{way}")]) for way in _WAYS]
    for seed in SEEDS:
        untouched = {row.name: store.figures(row) for row in rows.untouched_rows(FULL, seed)}
        for way, name in (("nearest", "2+2_area"), ("bicubic", "bicubic")):
            kept[f"untouched_{way}_seed_{seed}"] = untouched[f"full_untouched_{name}_seed_{seed}"]
        kept[f"rmd_nearest_seed_{seed}"] = store.figures(rows.student_row(FULL.rmd_area, seed, OPTION_COST))
    for kind, title in (("untouched", "one resolution, untouched in the cascade"), ("rmd", "RMD, 160 updates")):
        for way in _WAYS:
            found = [kept.get(f"{kind}_{way}_seed_{seed}") for seed in SEEDS]
            lines += [_line(f"{title}, {way}", found)] if any(found) else []
    enlarged = train_upsampler.table(results["report"]["rows"], 8)
    made = "{cpu}, torch {torch}, {date}".format(**results["made"])
    return "\n\n".join([enlarged, table(["seed by seed", *map(str.upper, FIGURES)], lines), made])


_WAYS = ("nearest", "bicubic", "learnt")


def _line(title, found):
    """The figures of one way, seed by seed."""
    return [
        title,
        *(" ".join(f"{f[name]:.{digits}f}" if f else "-" for f in found) for name, digits in FIGURES.items()),
    ]


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="make nothing, print the tables")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    torch.set_num_threads(1)
    try:
        results = read_results(RESULTS)
        if not args.table:
            measure((results or {"figures": {}})["figures"])
            results = read_results(RESULTS)
        if results is None:
            raise RMDError(f"there is no {RESULTS}; run without --table")
        print(report(results, rows.Store()))
    except RMDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

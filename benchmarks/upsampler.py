"""A learned upsampler for the demo: what it does to the cascade and to RMD: ``python -m benchmarks.upsampler``.

    OMP_NUM_THREADS=1 python -m benchmarks.upsampler [--table]

It writes the demo's drawings as images, trains the upsampler, then the students it needs, samples and scores. What is
there already is not made again: outputs/upsampler/, outputs/quality/, and the results.
"""

import argparse
import logging
import sys
from dataclasses import dataclass, replace
from functools import cache

import torch

from benchmarks.quality import rows
from benchmarks.quality.scoring import REPEATS
from benchmarks.quality.students import AREA, BOTH, FULL, NONE, OPTION_COST, Run, Student
from benchmarks.results import FOLDER, ROOT, read_results, write_results
from demo import files
from demo.classifier import decode_frames
from demo.comparison import table
from demo.sampling import make_latents
from demo.world import TEACHER_STYLES, Drawings
from rmd_core.errors import RMDError
from rmd_core.files import make_folder, read_json, save_safetensors
from rmd_core.upsampler import read_upsampler
from training import train_upsampler

RESULTS = FOLDER / "upsampler.json"
OUT = ROOT / "outputs" / "upsampler"
SEEDS = (0, 1, 2)
DRAWINGS = 1536  # to train the upsampler on
OPTIONS = (
    "--backbone", "wan", "--vae", str(files.VAE), "--size", "128x128", "--smaller", "64x64", "96x96", "--device", "cpu",
    "--width", "32", "--blocks", "2", "--updates", "1500", "--lr", "1e-3", "--held-out", "64",
)  # fmt: skip
FIGURES = {"fd": 3, "kid": 1, "swd": 2}
WAYS = ("nearest", "bicubic", "learned")
TITLES = {
    "teacher": "teacher of both sizes, 2+2",
    "no_gap": "few-step model of both sizes, untouched, 2+2",
    "untouched": "few-step model of the large size, untouched, 2+2, area mapping",
    "rmd": f"RMD, area mapping, {OPTION_COST} updates",
}
GUIDANCE = 2.0  # of the teacher


def write_drawings(path):
    """Write ``images`` (DRAWINGS, 3, 128, 128), bytes, as a safetensors file: the teacher's drawings and jitters."""
    drawings, generator = Drawings(TEACHER_STYLES), torch.Generator().manual_seed(0)
    images = torch.cat([drawings.sample(32, generator, side=128)[0] for _ in range(DRAWINGS // 32)]) / 2 + 0.5
    make_folder(path.parent)
    save_safetensors(path, {"images": (images.clamp(0, 1) * 255).round().to(torch.uint8)})


def train():
    """The file of the upsampler, trained if need be. Raises RMDError when that fails."""
    path, images = OUT / "upsampler.safetensors", OUT / "images.safetensors"
    if not (OUT / "report.json").exists():
        if not images.exists():
            write_drawings(images)
        resume = ["--resume"] if (OUT / "checkpoint.safetensors").exists() else []
        code = train_upsampler.main([*OPTIONS, "--images", str(images), "--out", str(OUT), *resume])
        if code:
            raise RMDError(f"training the upsampler ended with code {code}")
    return path


@cache
def learned():
    """The trained upsampler, and the changes of a configuration that use it."""
    path = train()
    network = read_upsampler(path)
    return network, (f"method.upsampler={path}", f"method.upsampler_sha256={network.digest()}")


def sampling(*changes):
    """How a configuration samples with the upsampler."""
    network, change = learned()
    found = rows.sampling(*changes, *change)
    return found | {"boundary": replace(found["boundary"], learned=network)}


def learned_rows(seed):
    """The few-step models untouched in the cascade, without a gap and with one, and RMD, with the upsampler."""
    student = Student(
        name="full_learned",
        title="RMD, area mapping",
        teacher=FULL.teacher,
        changes=(AREA, *learned()[1]),
        seeds=SEEDS,
        marks=(OPTION_COST,),
        cost=OPTION_COST,
    )
    found = {
        "no_gap": (Run(BOTH.single, seed, BOTH.single.marks[-1]), sampling(NONE)),
        "untouched": (Run(FULL.single, seed, FULL.single.marks[-1]), sampling(AREA)),
        "rmd": (Run(student, seed, OPTION_COST), sampling(AREA)),
    }
    for kind, (network, rules) in found.items():
        yield rows.SampledRow(name=f"{kind}_learned_seed_{seed}", title="learned", network=network, **rules)


@dataclass(frozen=True, kw_only=True)
class NoiseRow(rows.SampledRow):
    """Images of other noise than the rows of benchmarks.quality; ``noise``: the first seed, theirs is 0."""

    noise: int

    @torch.no_grad()
    def figures(self, scorer):
        """The figures of the row."""
        setup, noises = self.setup(self.network.load(rows.backbone())), range(self.noise, self.noise + scorer.repeats)
        given = (setup, rows.backbone(), scorer.cache, scorer.prompts)
        made = [make_latents(*given, seed=seed, batch=24)[0] for seed in noises]
        return scorer.score(decode_frames(scorer.vae, torch.cat(made)))


def teacher_rows(noise):
    """The teacher of both sizes in the cascade with each way to enlarge: no gap between the sizes, no distillation."""
    for way in WAYS:
        rules = sampling(NONE) if way == "learned" else rows.sampling(NONE, f"method.upsampler={way}")
        own = {"name": f"teacher_{way}_seed_{noise}", "title": way, "guidance": GUIDANCE}
        yield NoiseRow(network=BOTH.teacher, noise=noise * REPEATS, **own, **rules)


def measure(kept):
    """The figures of every row by name, those that are kept not again; the results are written after each."""
    made = [row for maker in (teacher_rows, learned_rows) for seed in SEEDS for row in maker(seed)]
    for row in made:
        if row.name not in kept:
            row.prepare()
            kept[row.name] = row.figures(rows.scorer())
            results = {"figures": kept, "report": read_json(OUT / "report.json"), "made": rows.made_here()}
            write_results(RESULTS, results)
            logging.info("made %s", row.name)
    return kept


def report(results, store):
    """The tables as text. ``results``: what was kept of a measurement; ``store``: the rows of benchmarks.quality."""
    kept = dict(results["figures"])
    for seed in SEEDS:
        for kind, world, names in (
            ("no_gap", BOTH, {"nearest": "2+2_none", "bicubic": "none_bicubic"}),
            ("untouched", FULL, {"nearest": "2+2_area", "bicubic": "bicubic"}),
        ):
            found = {row.name: row for row in rows.untouched_rows(world, seed)}
            for way, name in names.items():
                row = found[f"{world.teacher.name}_untouched_{name}_seed_{seed}"]
                kept[f"{kind}_{way}_seed_{seed}"] = store.figures(row)
        bicubic = next(student for student in FULL.options if student.name == "full_bicubic")
        for way, student in (("nearest", FULL.rmd_area), ("bicubic", bicubic)):
            kept[f"rmd_{way}_seed_{seed}"] = store.figures(rows.student_row(student, seed, OPTION_COST))
    lines = []
    for kind, title in TITLES.items():
        for way in WAYS:
            found = [kept.get(f"{kind}_{way}_seed_{seed}") for seed in SEEDS]
            cells = [" ".join(f"{f[name]:.{digits}f}" if f else "-" for f in found) for name, digits in FIGURES.items()]
            lines += [[f"{title}, {way}", *cells]] if any(found) else []
    enlarged = train_upsampler.table(results["report"]["rows"], rows.backbone().pixels_per_cell)
    made = "{cpu}, torch {torch}, {date}".format(**results["made"])
    return "\n\n".join([enlarged, table(["seed by seed", *map(str.upper, FIGURES)], lines), made])


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

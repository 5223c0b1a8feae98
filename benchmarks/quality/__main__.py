"""Train the demo's students, sample, score and print the tables: ``python -m benchmarks.quality``.

    OMP_NUM_THREADS=1 python -m benchmarks.quality [--jobs 2] [--only NAME ...] [--minutes N] [--table] [--time]
                                                [--page FILE] [--figures FOLDER]

It uses the GPU where there is one; 12 jobs share one well. Finished rows are kept in benchmarks/results/quality/,
students in outputs/quality/. The same command goes on where it was stopped, and makes no kept row again.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.results import FOLDER, read_results, write_results
from demo import files
from demo.sampling import make_latents
from rmd_core.errors import RMDError
from training.prompts import PromptCache

from .rows import SampledRow, Store, all_groups, backbone, made_here, make_rows
from .scoring import PROMPTS
from .tables import draw, report, timing_key, update_page

TIMING = FOLDER / "quality_timing.json"
BATCHES = {1: 6, 32: 1}  # batch -> batches sampled in one round
ROUNDS = 7


def measure_times():
    """CPU ms of one image on one thread, ``{timing_key: {batch: median over the rounds}}``, the ways taken in turn.

    The time depends on plan and guidance and not on the weights. Decoding is left out. Run it while nothing else runs.
    """
    found = [row for group in all_groups() for row in group if isinstance(row, SampledRow)]
    ways = {timing_key(row): row for row in reversed(found)}
    network, cache = backbone().load(files.TEACHER, dtype=torch.float32), PromptCache(files.PROMPTS)
    spent = {key: {batch: [] for batch in BATCHES} for key in ways}
    for turn in range(ROUNDS + 1):
        for key, row in ways.items():
            for batch, count in BATCHES.items():
                began = time.process_time()
                make_latents(row.setup(network), backbone(), cache, PROMPTS[: batch * count], seed=turn, batch=batch)
                if turn:  # the first round warms up
                    spent[key][batch].append(1000 * (time.process_time() - began) / (batch * count))
    return {key: {str(batch): median(times) for batch, times in by.items()} for key, by in spent.items()}


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="groups of rows made at a time, each in its own process")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="make only rows whose names begin like this")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no row after so many minutes")
    parser.add_argument("--table", action="store_true", help="make nothing, print the tables")
    parser.add_argument("--time", action="store_true", help="make no row, measure CPU times; let nothing else run")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="also draw the figures into this folder")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also put the tables into docs/method/quality.md")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        return _run(args, Store())
    except RMDError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on from here", 130)


def _run(args, store):
    errors = []
    if args.time:
        write_results(TIMING, {"ms": measure_times(), "made": made_here()})
    elif not args.table:
        begins = tuple(args.only or ("",))
        groups = [[row for row in group if row.name.startswith(begins)] for group in all_groups()]
        errors = make_rows(groups, jobs=args.jobs, minutes=args.minutes)
    text = report(store, read_results(TIMING))
    print(text)
    if args.page:
        update_page(args.page, text)
    if args.figures:
        draw(store, args.figures)
    return max([_fail(error, 1) for error in errors], default=0)


def _fail(problem, code):
    print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

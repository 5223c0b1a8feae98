"""Train the demo's students, sample, score and print the tables: ``python -m benchmarks.quality``.

    OMP_NUM_THREADS=1 python -m benchmarks.quality [--jobs 2] [--only NAME ...] [--no-training] [--table] [--time]
                                                [--page FILE] [--figures FOLDER]

Finished rows are kept in benchmarks/results/quality/, students in outputs/quality/. The same command goes on where it
was stopped, and a row that is kept is neither trained nor sampled again.
"""

import argparse
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from statistics import median
from threading import Lock

import torch

from benchmarks.results import FOLDER, read_results, write_results
from demo import files
from demo.sampling import make_latents
from rmd_core.errors import RMDError
from training.prompts import PromptCache

from .rows import SampledRow, Store, all_rows, backbone, made_here
from .scoring import PROMPTS, Scorer
from .tables import draw, report, timing_key, update_page

log = logging.getLogger(__name__)
TIMING = FOLDER / "quality_timing.json"
BATCHES = {1: 6, 32: 1}  # batch -> batches sampled in one round
ROUNDS = 7


class Bench:
    """Makes rows that are not kept yet. Training runs in programs of its own, scoring one row at a time."""

    def __init__(self, store, *, training):
        self.store = store
        self.training = training
        self._scorer = None
        self._lock = Lock()

    def make_all(self, rows):
        """Make rows one after the other up to the first RMDError, which is returned."""
        try:
            for row in rows:
                self.make(row)
        except RMDError as error:
            return error
        return None

    def make(self, row):
        """Train where needed, sample, score and keep one row."""
        if self.store.figures(row) is not None:
            return
        if self.training:
            row.prepare()
        if row.ready:
            with self._lock:
                if self._scorer is None:
                    log.info("rendering the reference")
                    self._scorer = Scorer()
                self.store.keep(row, self._scorer.score(row.images(self._scorer)))
            log.info("%s is done", row.name)


def measure_times():
    """CPU ms of one image on one thread, ``{timing_key: {batch: median over the rounds}}``, the ways taken in turn.

    The time depends on plan and guidance and not on the weights. Decoding is left out. Run it while nothing else runs.
    """
    ways = {timing_key(row): row for row in reversed(all_rows()) if isinstance(row, SampledRow)}
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
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each on one core")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="make only rows whose names begin like this")
    parser.add_argument("--no-training", action="store_true", help="score what is trained already")
    parser.add_argument("--table", action="store_true", help="make nothing, print the tables")
    parser.add_argument("--time", action="store_true", help="make no row, measure CPU times; let nothing else run")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="also draw the figures into this folder")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also put the tables into this page, docs/quality.md")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    torch.set_num_threads(1)
    try:
        return _run(args, Store())
    except RMDError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on from here", 130)


def _run(args, store):
    failed = []
    if args.time:
        write_results(TIMING, {"ms": measure_times(), "made": made_here()})
    elif not args.table:
        chosen = [row for row in all_rows() if row.name.startswith(tuple(args.only or ("",)))]
        groups = [list(group) for _, group in groupby(chosen, key=lambda row: row.group)]
        with ThreadPoolExecutor(args.jobs) as pool:
            failed = list(filter(None, pool.map(Bench(store, training=not args.no_training).make_all, groups)))
    text = report(store, read_results(TIMING))
    print(text)
    if args.page:
        update_page(args.page, text)
    if args.figures:
        draw(store, args.figures)
    return max([_fail(error, 1) for error in failed], default=0)


def _fail(problem, code):
    print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Train the demo's students, sample, score and print the tables: ``python -m benchmarks.quality``.

    OMP_NUM_THREADS=1 python -m benchmarks.quality [--jobs 2] [--only NAME ...] [--no-training] [--table] [--time]
                                                [--figures FOLDER]

Finished rows are kept in benchmarks/results/quality/, students in outputs/quality/. The same command goes on where it
was stopped, and a row that is kept is neither trained nor sampled again.
"""

import argparse
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from threading import Lock

import torch

from rmd_core.errors import RMDError
from training.files import make_folder

from . import timing
from .rows import all_rows, key_of
from .scoring import PROMPTS, REPEATS, Scorer
from .store import Store
from .tables import Tables

log = logging.getLogger(__name__)
TABLES = (
    ("Real pictures, teacher, cascade without distillation, students", "main"),
    ("Upsampler of the clean estimate and mapping of the levels", "cells"),
    ("Differences between students of the same training seed", "paired"),
    ("One change at a time, at two thirds of the training", "changes"),
    ("During training", "curves"),
    ("Low-resolution share of a short teacher training", "shares"),
    ("The metric on damaged real pictures", "check"),
)


class Bench:
    """Makes rows that are not kept yet. Training goes on in programs of its own, scoring one row at a time."""

    def __init__(self, store, *, training):
        self.store = store
        self.training = training
        self._scorer = None
        self._lock = Lock()

    def make_all(self, rows):
        """Make rows one after the other; returns the errors that came."""
        return [error for error in map(self.make, rows) if error]

    def make(self, row):
        """Train where needed, sample, score and keep one row; returns the RMDError that came, if one did."""
        key = key_of(row)
        if self.store.figures(key) is not None:
            return None
        try:
            if self.training:
                row.prepare()
            if row.ready:
                with self._lock:
                    self.store.keep(row, key, self._score(row))
                log.info("%s is done", row.name)
        except RMDError as error:
            return error
        return None

    def _score(self, row):
        if self._scorer is None:
            log.info("drawing the reference")
            self._scorer = Scorer()
        return self._scorer.score(row.pictures(self._scorer))


def draw(store, folder):
    """Draw both figures as PNG files."""
    from .figures import during_training, quality_against_cost  # only here: tables need no matplotlib

    make_folder(folder)
    for name, figure in (("quality_against_cost", quality_against_cost), ("quality_during_training", during_training)):
        figure(store).savefig(folder / f"{name}.png", dpi=110)


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each on one core")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="make only rows whose names begin like this")
    parser.add_argument("--no-training", action="store_true", help="score what is trained already")
    parser.add_argument("--table", action="store_true", help="make nothing, print the tables")
    parser.add_argument("--time", action="store_true", help="make no row, measure CPU times; let nothing else run")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="also draw the figures into this folder")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    torch.set_num_threads(1)
    store, failed = Store(), []
    if not (args.table or args.time):
        chosen = [row for row in all_rows() if row.name.startswith(tuple(args.only or ("",)))]
        bench = Bench(store, training=not args.no_training)
        with ThreadPoolExecutor(args.jobs) as pool:
            groups = [list(group) for _, group in groupby(chosen, key=lambda row: row.source)]
            failed = [error for errors in pool.map(bench.make_all, groups) for error in errors]
    if args.time:
        timing.keep(timing.measure())
    times = timing.kept()
    tables = Tables(store, times)
    for title, name in TABLES:
        print(f"{title}\n\n{getattr(tables, name)()}\n")
    print(f"{len(PROMPTS) * REPEATS} pictures a row; {'; '.join(store.made())}")
    if times:
        print("ms: CPU time of a picture on one thread, {cpu}, torch {torch}, {date}".format(**times["made"]))
    if args.figures:
        draw(store, args.figures)
    for error in failed:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

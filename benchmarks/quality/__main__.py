"""Train the demo's students, sample, score and print the tables: ``python -m benchmarks.quality``.

    OMP_NUM_THREADS=1 python -m benchmarks.quality [--jobs 2] [--only NAME ...] [--no-training] [--table] [--time]
                                                [--page FILE] [--figures FOLDER]

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
from rmd_core.files import make_folder

from . import timing
from .report import report, update_page
from .rows import all_rows, key_of
from .scoring import Scorer
from .store import Store

log = logging.getLogger(__name__)


class Bench:
    """Makes rows that are not kept yet. Training goes on in programs of its own, scoring one row at a time."""

    def __init__(self, store, *, training):
        self.store = store
        self.training = training
        self._scorer = None
        self._lock = Lock()

    def make_all(self, rows):
        """Make rows one after the other up to the first RMDError, which is returned."""
        return next((error for error in map(self.make, rows) if error), None)

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
    parser.add_argument("--page", type=Path, metavar="FILE", help="also put the tables into this page, docs/quality.md")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    torch.set_num_threads(1)
    try:
        return _run(args, Store())
    except RMDError as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        return _say("stopped; the same command goes on from here", 130)


def _run(args, store):
    failed = [] if args.table or args.time else _make_rows(args, store)
    if args.time:
        timing.keep(timing.measure())
    text = report(store, timing.kept())
    print(text)
    if args.page:
        update_page(args.page, text)
    if args.figures:
        draw(store, args.figures)
    return max([_say(error, 1) for error in failed], default=0)


def _make_rows(args, store):
    chosen = [row for row in all_rows() if row.name.startswith(tuple(args.only or ("",)))]
    bench = Bench(store, training=not args.no_training)
    with ThreadPoolExecutor(args.jobs) as pool:
        groups = [list(group) for _, group in groupby(chosen, key=lambda row: row.source)]
        return [error for error in pool.map(bench.make_all, groups) if error]


def _say(problem, code):
    print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Makes rows in several processes: trains where needed, samples, scores and keeps."""

import logging
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache

import torch

from rmd_core.errors import RMDError

from .rows import Store, all_groups
from .scoring import Scorer

log = logging.getLogger(__name__)


@cache
def scorer():
    """The Scorer of this process."""
    return Scorer(device="cuda" if torch.cuda.is_available() else "cpu")


def make_group(names, stop_at):
    """In a process of its own: train, sample, score and keep the rows of one group that are not kept yet.

    Begins no row after ``stop_at`` (seconds since 1970). Returns the rows made, and an error as text or None.
    """
    torch.set_num_threads(1)
    store, made = Store(), []
    rows = next(group for group in all_groups() if names[0] in {row.name for row in group})
    try:
        for row in rows:
            if row.name not in names or store.figures(row) is not None:
                continue
            if time.time() > stop_at:
                break
            row.prepare()
            store.keep(row, row.figures(scorer()))
            made.append(row.name)
    except RMDError as error:
        return made, str(error)
    return made, None


def make_rows(groups, *, jobs, minutes):
    """Make the rows that are not kept, ``jobs`` groups at a time; returns the errors as texts."""
    stop_at, errors, store = time.time() + 60 * minutes, [], Store()
    wanted = [names for group in groups if (names := [row.name for row in group if store.figures(row) is None])]
    log.info("%d rows to make in %d groups", sum(map(len, wanted)), len(wanted))
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(make_group, names, stop_at) for names in wanted]):
            names, error = done.result()
            errors += [error] if error else []
            if names or error:
                log.info("made %s%s", ", ".join(names) or "nothing", f"; {error}" if error else "")
    return errors

"""The record of a run: ``metrics.jsonl``, one JSON object per update, and the trackers that show it.

TensorBoard's event file is written here, wandb and trackio by accelerate. A tracker that fails never ends the run.
"""

import json
import logging
import math
import os
import time
from importlib.util import find_spec
from pathlib import Path

from rmd_core.errors import RMDError, one_line
from rmd_core.files import write_atomically, writing

log = logging.getLogger(__name__)

SATURATED = 3.0  # a latent value beyond three standard deviations of the data


def latent_figures(x0):
    """Mean, standard deviation and share of saturated values of a batch of latents; burnt colours show here first.

    They are tensors: to read one would let the device wait.
    """
    values = x0.detach().float()
    return {
        "x0_mean": values.mean(),
        "x0_std": values.std(),
        "x0_saturation": (values.abs() > SATURATED).float().mean(),
    }


def combine(figures):
    """Figures of equally large shares of a batch, one dictionary each, as those of the whole batch."""
    mean = {name: sum(part[name] for part in figures) / len(figures) for name in figures[0]}
    if "x0_std" not in mean or len(figures) == 1:
        return mean
    square = sum(part["x0_std"] ** 2 + part["x0_mean"] ** 2 for part in figures) / len(figures)
    return mean | {"x0_std": math.sqrt(max(square - mean["x0_mean"] ** 2, 0.0))}


class MetricsFile:
    """Appends one line per update, flushed at once."""

    def __init__(self, path):
        self.path = Path(path)

    def keep_until(self, update):
        """Drop the lines after ``update``, which a resumed run writes again. Raises RMDError for a damaged file."""
        if not self.path.exists():
            return
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise RMDError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        kept = []
        for number, line in enumerate(lines, start=1):
            reached = _update_of(line)
            if reached is None and number < len(lines):
                raise RMDError(
                    f"{self.path}, line {number}: damaged; repair the line, or move the file away to resume without it"
                )
            if reached is None or reached > update:
                break  # the last line may be cut off by a crash
            kept.append(line)
        write_atomically(self.path, b"".join(kept))

    def append(self, entry):
        """Write one entry. Raises RMDError when the disk is full."""
        with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _update_of(line):
    """The update of one line, or None if it is damaged."""
    try:
        update = json.loads(line)["update"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return update if type(update) is int else None


def check_trackers(names):
    """Raise RMDError for a tracker that is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for name in names:
        if find_spec(name) is None:
            raise RMDError(f"output.trackers: {name} is not installed; pip install {name}, or take it out of the list")
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RMDError(f"output.trackers: this accelerate does not know {name}; pip install --upgrade accelerate")


def start_trackers(config, folder, *, first):
    """The trackers of a run that goes on with update ``first``. Raises RMDError for one that cannot be started."""
    board = {"tensorboard": lambda: Board(folder / "tensorboard", first=first)}
    names = config.output.trackers
    return [board[name]() if name in board else OutsideTracker.start(name, config, folder) for name in names]


class Board:
    """One event file in ``folder``; what an earlier part of the run wrote from update ``first`` on no longer counts.

    Written at once, without a thread. The first failure, such as a full disk, is logged and only ends the board.
    """

    def __init__(self, folder, *, first):
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self.path = folder / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"
        self._failed = False
        self._write(file_version="brain.Event:2")
        self._write(step=first, session_log=SessionLog(status=SessionLog.START))

    def add(self, figures, update):
        """Write the figures of an update, a scalar each."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._write(step=update, summary=Summary(value=values))

    def finish(self):
        """Do nothing: each figure is written at once. An OutsideTracker has something to send here."""

    def _write(self, **entry):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._failed:
            return
        try:
            self.path.parent.mkdir(exist_ok=True)
            with open(self.path, "ab") as file:
                RecordWriter(file).write(Event(wall_time=time.time(), **entry).SerializeToString())
        except OSError as error:
            self._failed = True
            log.warning("%s: no further figures for TensorBoard (%s)", self.path, error.strerror or error)


class OutsideTracker:
    """A tracker of accelerate's, by any name; its first failure is logged and ends it alone, never the run."""

    def __init__(self, tracker):
        self._tracker = tracker
        self._failed = False

    @classmethod
    def start(cls, name, config, folder):
        """The tracker of that name, with the run's configuration. Raises RMDError where it cannot be started."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        # wandb would else write into the folder that the command is run in.
        places = {"dir": str(folder)} if name == "wandb" else {}
        try:
            tracker = LOGGER_TYPE_TO_CLASS[name](config.output.name, **places)
            if hasattr(tracker, "start"):  # older ones start when they are made
                tracker.start()
            tracker.store_init_configuration(flat_settings(config))
        except Exception as error:  # these packages have many kinds of their own
            raise RMDError(
                f"output.trackers: {name} could not be started ({one_line(error, 200)}); set it up, or take it out of "
                "the list"
            ) from None
        return cls(tracker)

    def add(self, figures, update):
        """Give it the figures of an update."""
        self._do(self._tracker.log, dict(figures), step=update)

    def finish(self):
        """Have it send what it has not sent yet."""
        self._do(self._tracker.finish)

    def _do(self, call, *arguments, **named):
        if self._failed:
            return
        try:
            call(*arguments, **named)
        except Exception as error:  # as above
            self._failed = True
            log.warning("%s: no further figures (%s)", self._tracker.name, one_line(error, 200))


def flat_settings(config):
    """The configuration as ``{"section.key": value}``, with anything but numbers and texts as text."""
    return {
        f"{section}.{key}": value if isinstance(value, (bool, int, float, str)) else str(value)
        for section, keys in config.model_dump(mode="json").items()
        for key, value in keys.items()
    }

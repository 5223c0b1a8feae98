"""The record for TensorBoard, a convenience beside ``metrics.jsonl`` that never ends a run."""

import logging
import os
import time

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

log = logging.getLogger(__name__)


class Board:
    """One event file in ``folder``; what an earlier part of the run wrote from update ``first`` on no longer counts.

    Written at once, without a thread. The first failure, such as a full disk, is logged and ends the board alone.
    """

    def __init__(self, folder, *, first):
        self.path = folder / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"
        self._failed = False
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(Event(wall_time=time.time(), step=first, session_log=SessionLog(status=SessionLog.START)))

    def add(self, figures, update):
        """Write the figures of an update, a scalar each."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._write(Event(wall_time=time.time(), step=update, summary=Summary(value=values)))

    def finish(self):
        """Nothing is held back or left open."""

    def _write(self, event):
        if self._failed:
            return
        try:
            self.path.parent.mkdir(exist_ok=True)
            with open(self.path, "ab") as file:
                RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            self._failed = True
            log.warning("%s: no further figures for TensorBoard (%s)", self.path, error.strerror or error)

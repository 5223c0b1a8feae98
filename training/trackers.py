"""Who keeps a run's figures beside ``metrics.jsonl``, by name: TensorBoard here, wandb and trackio by accelerate."""

import logging
from importlib.util import find_spec

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from rmd_core.errors import RMDError, one_line

from .board import Board

log = logging.getLogger(__name__)


def check_trackers(names):
    """Raise RMDError for a tracker that is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise RMDError(f"output.trackers: {name} is not installed; pip install {name}, or take it out of the list")
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RMDError(f"output.trackers: this accelerate does not know {name}; pip install --upgrade accelerate")


def start_trackers(config, folder, *, first):
    """The trackers of a run that goes on with update ``first``. Raises RMDError for one that cannot be started."""
    return [
        Board(folder / "tensorboard", first=first) if name == "tensorboard" else _outside(name, config, folder)
        for name in config.output.trackers
    ]


class OutsideTracker:
    """A tracker of accelerate's, by any name; its first failure is logged and ends it alone, never the run."""

    def __init__(self, tracker):
        self._tracker = tracker
        self._failed = False

    def add(self, figures, update):
        """Give it the figures of an update."""
        self._do(self._tracker.log, dict(figures), step=update)

    def finish(self):
        """Have it send what it holds."""
        self._do(self._tracker.finish)

    def _do(self, call, *arguments, **named):
        if self._failed:
            return
        try:
            call(*arguments, **named)
        except Exception as error:  # these packages have many kinds of their own
            self._failed = True
            log.warning("%s: no further figures (%s)", self._tracker.name, one_line(error, 200))


def flat_settings(config):
    """The configuration as ``{"section.key": value}``, with anything but numbers and texts as text."""
    flat = {}
    for section, keys in config.model_dump(mode="json").items():
        for key, value in keys.items():
            flat[f"{section}.{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def _outside(name, config, folder):
    # wandb would else write into the folder that the command is run in.
    places = {"dir": str(folder)} if name == "wandb" else {}
    try:
        tracker = LOGGER_TYPE_TO_CLASS[name](config.output.name, **places)
        if hasattr(tracker, "start"):  # older ones start when they are made
            tracker.start()
        tracker.store_init_configuration(flat_settings(config))
    except Exception as error:  # as above
        raise RMDError(
            f"output.trackers: {name} could not be started ({one_line(error, 200)}); set it up, or take it out of "
            "the list"
        ) from None
    return OutsideTracker(tracker)

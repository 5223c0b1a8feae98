"""The rows of the speed table, the most important first, and the file that keeps those that are done."""

import gc
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rmd_core.errors import RMDError
from rmd_core.files import make_folder, write_json
from training.offload import ran_out_of_memory

from .flops import count_flops
from .measure import largest_batch, measure_decoding, measure_way
from .models import SpeedModel
from .subject import Subject

log = logging.getLogger(__name__)

MODES = ("eager", "compile")
MOST_ON_CPU = 2  # the batch at which the search for the largest ends where memory is no limit
MOST = 256


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that share a loaded model: its mode, and a batch of one or the largest that fits."""

    model: SpeedModel
    mode: str
    full: bool

    def key(self, name):
        """What a row of the group is called in the file."""
        return " | ".join([self.model.name, self.mode, "full batch" if self.full else "batch 1", name])

    @property
    def names(self):
        """The rows: every way, and decoding once for each model."""
        decoding = ("decode",) if self.mode == "eager" and not self.full else ()
        return ("rmd", *(name for name in self.model.ways if name != "rmd"), *decoding)


def groups(models, modes):
    """All groups: those of the paper's headline models first, batch 1 before full batches."""
    headline = [model for model in models if model.paper]
    others = [model for model in models if not model.paper]
    order = [(part, full) for full in (False, True) for part in (headline, others)]
    return [Group(model=model, mode=mode, full=full) for part, full in order for mode in modes for model in part]


@dataclass
class Results:
    """The stored results of one device: what it was ``made`` with, FLOP ``counts``, largest ``batches``, ``rows``."""

    path: Path
    made: dict
    counts: dict = field(default_factory=dict)
    batches: dict = field(default_factory=dict)
    rows: dict = field(default_factory=dict)

    @classmethod
    def read(cls, path):
        """A file's contents."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, stored["made"], stored["counts"], stored["batches"], stored["rows"])

    @classmethod
    def open(cls, path, made):
        """A file's contents, empty without one. Raises RMDError for results of another device or other versions."""
        if not path.exists():
            return cls(path, made)
        results = cls.read(path)
        for name in made.keys() - {"date"}:
            before = results.made.get(name)
            if before != made[name]:
                raise RMDError(
                    f"{path} was made with {name} {before}, this is {made[name]}; "
                    "remove the file to measure everything again"
                )
        return results

    def save(self):
        """Write everything in one stroke."""
        make_folder(self.path.parent)
        contents = {"made": self.made, "counts": self.counts, "batches": self.batches, "rows": self.rows}
        write_json(self.path, contents)

    def count(self, model):
        """The FLOP counts of a model, counted at the first use."""
        if model.name not in self.counts:
            self.counts[model.name] = count_flops(model)
            self.save()
        return self.counts[model.name]


class Bench:
    """Measures the rows that are missing in ``results`` until they are done or ``minutes`` are up."""

    def __init__(self, results, *, device, minutes=None):
        self.results = results
        self.device = torch.device(device)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.until = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def late(self):
        """Whether the time is up."""
        return self.until is not None and time.monotonic() > self.until

    def run(self, models):
        """Measure group by group; True when no row is missing."""
        missing = 0
        modes = MODES[:1] if self.device.type == "cpu" else MODES
        for group in groups(models, modes):
            missing += self._group(group)
        return missing == 0

    def _group(self, group):
        """Measure the missing rows of a group; gives how many are missing after it."""
        names = [name for name in group.names if group.key(name) not in self.results.rows]
        if group.full and self.results.batches.get(group.model.name) in (0, 1):
            return 0
        if not names or self.late:
            return len(names)
        subject = None
        try:
            subject = Subject(group.model, device=self.device, dtype=self.dtype, mode=group.mode)
            batch = self._batch(group, subject)
            if group.full and batch < 2:
                return 0
            return self._rows(group, names, subject, batch)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            log.warning("%s: its weights do not fit", group.model.name)
            return len(names)
        finally:
            del subject
            gc.collect()
            torch.compiler.reset()

    def _rows(self, group, names, subject, batch):
        missing = len(names)
        for name in names:
            if self.late:
                break
            try:
                if name == "decode":
                    figures = measure_decoding(subject)
                    flops = self.results.count(group.model)["decode"]
                else:
                    way = group.model.ways[name]
                    figures = measure_way(subject, way, batch)
                    flops = way.flops(self.results.count(group.model)["sizes"]) * batch
            except RuntimeError as error:  # out of memory, or a compiler that fails: the other rows are still wanted
                log.warning("%s: left out, %s", group.key(name), str(error).strip().split("\n")[0][:200])
                continue
            self.results.rows[group.key(name)] = {**figures, "flops": flops}
            self.results.save()
            missing -= 1
            log.info("%s: %.4g s", group.key(name), figures["seconds"]["median"])
        return missing

    def _batch(self, group, subject):
        """1, or the largest batch at which a guided call at the final size fits."""
        if not group.full:
            return 1
        batches = self.results.batches
        if group.model.name not in batches:
            guided = group.model.ways["teacher"].shortened(1)
            most = MOST_ON_CPU if self.device.type == "cpu" else MOST
            batches[group.model.name] = largest_batch(lambda batch: subject.sample(guided, batch), most)
            self.results.save()
            log.info("%s: batch %d fits", group.model.name, batches[group.model.name])
        return batches[group.model.name]

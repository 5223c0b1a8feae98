"""Time the teacher, few steps at one size and RMD, and write the tables of docs/use/speed.md and README.md.

    OMP_NUM_THREADS=1 python -m benchmarks.speed [--models SDXL "Wan2.1 14B"] [--device cpu] [--minutes 9]

With a GPU: the full-size architectures with random weights, on which speed does not depend, in bfloat16. Without one:
tiny models of the same classes, not compiled, and the arithmetic of the full-size ones. Every finished row is stored in
benchmarks/results/speed*.json, one file for each device, and a further run goes on with those that are missing.
"""

import argparse
import gc
import logging
import re
import sys
import time

import diffusers
import torch

from benchmarks.results import FOLDER, cpu_name, provenance, replace_block
from rmd_core.errors import RMDError
from training.offload import ran_out_of_memory

from .measure import Subject, largest_batch, measure_decoding, measure_way
from .models import FULL, MODES, TINY, groups
from .page import MARK, PAGE, README, Results, headlines, page_block, ratio_table, readme_block, time_table

log = logging.getLogger(__name__)
MOST_ON_CPU = 2  # the batch at which the search for the largest ends where memory is no limit
MOST = 256


class Bench:
    """Measures the rows that are missing in ``results`` until they are done or ``minutes`` are up."""

    def __init__(self, results, *, device, minutes=None):
        self.results = results
        self.device = torch.device(device)
        self.on_cpu = self.device.type == "cpu"
        self.until = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def late(self):
        """Whether the time is up."""
        return self.until is not None and time.monotonic() > self.until

    def run(self, models):
        """Measure group by group; True when no row is missing."""
        return sum(map(self._group, groups(models, MODES[:1] if self.on_cpu else MODES))) == 0

    def _group(self, group):
        """Measure the missing rows of a group; gives how many are missing after it."""
        names = [name for name in group.names if group.key(name) not in self.results.rows]
        if group.full and self.results.batches.get(group.model.name) in (0, 1):
            return 0
        if not names or self.late:
            return len(names)
        subject = None
        try:
            dtype = torch.float32 if self.on_cpu else torch.bfloat16
            subject = Subject(group.model, device=self.device, dtype=dtype, mode=group.mode)
            batch = self._batch(group, subject)
            if group.full and batch < 2:
                return 0
            return sum(not self._row(group, name, subject, batch) for name in names)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            log.warning("%s: its weights do not fit", group.model.name)
            return len(names)
        finally:
            del subject
            gc.collect()
            torch.compiler.reset()

    def _row(self, group, name, subject, batch):
        """Measure and store a row; False where the time is up or it fails, which leaves the other rows alone."""
        if self.late:
            return False
        counts = self.results.count(group.model)
        try:
            if name == "decode":
                figures, flops = measure_decoding(subject), counts["decode"]
            else:
                way = group.model.ways[name]
                figures, flops = measure_way(subject, way, batch), way.flops(counts["sizes"]) * batch
        except RuntimeError as error:  # out of memory, or a compiler that fails
            log.warning("%s: left out, %s", group.key(name), str(error).strip().split("\n")[0][:200])
            return False
        self.results.rows[group.key(name)] = {**figures, "flops": flops}
        self.results.save()
        log.info("%s: %.4g s", group.key(name), figures["seconds"]["median"])
        return True

    def _batch(self, group, subject):
        """1, or the largest batch at which a guided call at the final size fits."""
        if not group.full:
            return 1
        batches = self.results.batches
        if group.model.name not in batches:
            guided = group.model.ways["teacher"].shortened(1)
            most = MOST_ON_CPU if self.on_cpu else MOST
            batches[group.model.name] = largest_batch(lambda batch: subject.sample(guided, batch), most)
            self.results.save()
            log.info("%s: batch %d fits", group.model.name, batches[group.model.name])
        return batches[group.model.name]


def open_results(device):
    """The results of a device: speed.json for the CPU, else a file with the device's name in it."""
    if device.type == "cpu":
        path, name, precision = FOLDER / "speed.json", f"{cpu_name()}, one thread", "float32, CPU time"
    else:
        name, precision = torch.get_device_module(device).get_device_name(device), "bfloat16"
        path = FOLDER / f"speed_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.json"
    return Results.open(path, provenance(device=name, precision=precision, diffusers=diffusers.__version__))


def stored_results():
    """Everything stored, GPUs first."""
    return [Results.open(p) for p in sorted(FOLDER.glob("speed*.json"), key=lambda p: (p.stem == "speed", p.name))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [model.name for model in (*FULL, *TINY)]
    parser.add_argument("--models", nargs="+", choices=names, metavar="NAME", help="only these: " + ", ".join(names))
    parser.add_argument("--device", help="such as cpu; default: the accelerator, or the CPU where there is none")
    parser.add_argument("--minutes", type=float, help="start no row after so long; the most important come first")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_cpu = device.type == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    if args.models:
        models = [model for model in FULL + TINY if model.name in args.models]
    else:
        models = TINY if on_cpu else FULL
    try:
        results = open_results(device)
        complete = Bench(results, device=device, minutes=args.minutes).run(models)
        if complete or on_cpu:
            for model in FULL:
                results.count(model)
        results.save()
        stored = stored_results()
        replace_block(PAGE, MARK, page_block(stored))
        replace_block(README, MARK, readme_block(stored))
    except RMDError as error:
        sys.exit(f"error: {error}")
    print(f"\n{time_table(results)}\n\n{ratio_table(results)}\n\n{headlines(results)}".rstrip())
    if not complete:
        print("\nrows are missing; run the same command again to go on")
    print(f"\n{page_block(stored).split('### On')[0].strip()}")
    if on_cpu:
        print("\nThe full-size models were not timed: that takes a GPU.")


if __name__ == "__main__":
    main()

"""Time and memory of an update: the trainer's, the plain loop's over the same networks, and three networks'.

    OMP_NUM_THREADS=1 python -m benchmarks.training_cost [--blocks 8]   # on the CPU: the demo's model and a tiny SDXL
    python -m benchmarks.training_cost --device cuda                    # SDXL, Wan2.1 1.3B and 14B at full size
    python -m benchmarks.training_cost --device cpu --tiny              # the same three as tiny networks

The plain loop is the authors' (benchmarks/plain_loop.py). Both ways make blocks of updates in turn, in which every step
of the plan (with larger batches: every stage) is sampled once; a pair of blocks gives a ratio, and the figures are
medians and quartiles of these. "counted" is the same ratio by forwards of the network, as a dry run reports it. Time is
of device events, on the CPU of the process; the peak of memory is the device's own, there is none on the CPU. The
full-size networks have random weights, on which neither depends. Results: benchmarks/results/training_cost.json.
"""

import argparse
import contextlib
import gc
import itertools
import logging
import statistics
import time
from dataclasses import dataclass
from functools import cache

import torch

from demo.comparison import table
from training.memory import gib, plain_cost, update_cost
from training.offload import ran_out_of_memory

from .plain_loop import PlainLoop
from .results import FOLDER, cpu_name, made, quartiles, read_results, write_results
from .speed.measure import DeviceClock
from .training_runs import DEMO, FULL, MODES, TINY, make_trainer

RESULTS = FOLDER / "training_cost.json"
WAYS = ("trainer", "plain")
PARTS = ("forward", "graph", "backward", "optimiser", "rest")
# One timed block of six updates in place of eight; with warm-up, peaks and parts both ways make some 40 updates.
ADVICE = {"Wan2.1 14B": " --modes adapters --blocks 1  # 40 updates of about 70 PFLOP: 2 hours at 400 TFLOP/s"}


@dataclass(frozen=True)
class Updates:
    """Both ways to make update number n of one trainer, and the numbers of blocks that are alike."""

    trainer: object
    plain: PlainLoop

    @classmethod
    def of(cls, trainer):
        return cls(trainer, PlainLoop(trainer))

    def run(self, way, numbers):
        """Make the updates of these numbers one way."""
        update = self.trainer.update if way == "trainer" else self.plain.update
        for number in numbers:
            update(number)

    def blocks(self):
        """Blocks of update numbers, without end. In each the draws of both phases meet every kind once.

        A kind is a step of the plan where a batch is one sample, else a stage.
        """
        numbers, plan = itertools.count(1), self.trainer.setup.plan
        single = self.trainer.config.train.batch == 1
        kinds = len(plan.steps) if single else len(plan.stages)

        def kind(draw):
            return int(draw.steps[0]) if single else draw.stage

        while True:
            block = {}
            for number in numbers:
                first, second = (kind(draw) for draw in self.plain.drawn(number))
                if second == (first + 1) % kinds:
                    block.setdefault(first, number)
                if len(block) == kinds:
                    break
            yield [block[first] for first in sorted(block)]


def measure(case, mode, device, blocks):
    """The row of a case in a mode."""
    trainer = make_trainer(case, case.config(f"model.mode={mode}", f"train.device={device}"))
    updates = Updates.of(trainer)
    seconds = timed(updates, blocks)
    ratio = quartiles(plain / ours for ours, plain in zip(seconds["trainer"], seconds["plain"]))
    row = {
        "batch": trainer.config.train.batch,
        "counted": counted_ratio(trainer),
        "ratio": ratio.pop("median"),
        **ratio,
    }
    row |= {f"{way}_ms": 1000 * statistics.median(seconds[way]) for way in WAYS}
    row |= {f"{way}_bytes": peak for way, peak in peaks(updates).items()}
    block = next(updates.blocks())
    return row | {"parts": {way: parts_of(updates, way, block) for way in WAYS}}


def timed(updates, count, *, warmup=1):
    """Seconds of an update for each way, ``count`` blocks of each, one way after the other and changing first."""
    clock = DeviceClock(updates.trainer.device)
    seconds = {way: [] for way in WAYS}
    for number, block in enumerate(itertools.islice(updates.blocks(), count + warmup)):
        for way in WAYS if number % 2 else reversed(WAYS):
            spent = clock.timed(lambda way=way, block=block: updates.run(way, block))
            if number >= warmup:
                seconds[way].append(spent / len(block))
    return seconds


def counted_ratio(trainer):
    """The ratio of the plain loop's cost to the trainer's in forwards."""
    setup, config = trainer.setup, trainer.config
    frames, checkpointing = config.plan.frames, config.backbone.gradient_checkpointing is not False

    @cache
    def flops(height, width):
        return setup.backbone.flops(setup.teacher, height, width, frames, setup.cache.tokens)

    def relative(height, width):
        return flops(height, width) / flops(*setup.plan.final_hw)

    common = {"cfg": config.loss.cfg, "checkpointing": checkpointing}
    ours = update_cost(setup.plan, relative, shared=config.train.share_forward, **common)
    return plain_cost(setup.plan, relative, **common).total / ours.total


def peaks(updates):
    """The most bytes on the device in an update for each way; nothing on the CPU.

    It is an update whose student is trained at the final size, where memory peaks, after ``timed`` has made the
    optimisers' states.
    """
    clock, block = DeviceClock(updates.trainer.device), next(updates.blocks())
    found = {}
    for way, phase in zip(WAYS, (0, 1)):  # the trainer's student shares the fake score's draw
        largest = max(block, key=lambda number, phase=phase: int(updates.plain.drawn(number)[phase].steps.max()))
        clock.start_peak()
        updates.run(way, [largest])
        found[way] = clock.peak()
    return {way: peak for way, peak in found.items() if peak is not None}


def parts_of(updates, way, block):
    """Milliseconds of an update, made one way, by part of PARTS: forwards without and with a graph, backwards,
    optimisers, and the rest. The device is waited for each time; on the CPU it is the time of the process."""
    trainer, phases = updates.trainer, updates.trainer.phases
    seconds = dict.fromkeys(PARTS, 0.0)
    on_cpu = trainer.device.type == "cpu"

    def now():
        if not on_cpu:
            torch.get_device_module(trainer.device).synchronize()
        return time.process_time() if on_cpu else time.perf_counter()

    def watched(function, part=None):
        def call(*arguments, **named):
            began = now()
            try:
                return function(*arguments, **named)
            finally:
                seconds[part or ("graph" if torch.is_grad_enabled() else "forward")] += now() - began

        return call

    class Watched:
        """A network whose calls are timed; everything else is its own."""

        def __init__(self, network):
            self.network, self.call = network, watched(network)

        def __call__(self, *arguments, **named):
            return self.call(*arguments, **named)

        def __getattr__(self, name):
            return getattr(self.network, name)

    with contextlib.ExitStack() as undo:
        for name in ("student", "fake", "teacher"):
            undo.callback(setattr, phases, name, getattr(phases, name))
            setattr(phases, name, Watched(getattr(phases, name)))
        undo.callback(setattr, phases, "backward", phases.backward)
        phases.backward = watched(phases.backward, "backward")
        for optimiser in trainer.networks.optimisers.values():
            undo.callback(setattr, optimiser, "step", optimiser.step)
            optimiser.step = watched(optimiser.step, "optimiser")
        began = now()
        updates.run(way, block)
        whole = now() - began
    seconds["rest"] = whole - sum(seconds.values())
    return {part: 1000 * spent / len(block) for part, spent in seconds.items()}


def attempt(case, mode, device, blocks):
    """The row, or one that says that the device is too small."""
    try:
        return measure(case, mode, device, blocks)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return {"batch": case.config().train.batch, "failed": "does not fit"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def cost_table(rows):
    """Time and memory of an update for each row that could be run."""
    head = ["", "batch", "trainer ms", "plain ms", "ratio", "quartiles", "counted", "trainer peak", "plain peak"]
    lines = []
    for name, row in rows.items():
        if "failed" in row:
            lines.append([name, row["batch"], row["failed"], *["-"] * (len(head) - 3)])
            continue
        ratio = [f"{row['ratio']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}", f"{row['counted']:.2f}"]
        peaks = [gib(row[f"{way}_bytes"]) if f"{way}_bytes" in row else "-" for way in WAYS]
        lines.append([name, row["batch"], *(f"{row[f'{way}_ms']:.0f}" for way in WAYS), *ratio, *peaks])
    return table(head, lines)


def parts_table(rows):
    """Where the time goes, in milliseconds of an update."""
    lines = [
        [f"{name}, {way}", *(f"{row['parts'][way][part]:.1f}" for part in PARTS)]
        for name, row in rows.items()
        if "parts" in row
        for way in WAYS
    ]
    return table(["ms of an update", *PARTS], lines)


def main(argv=None, results=RESULTS):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny networks in place of the full-size ones")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="some of the cases alone")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE", help="one mode alone")
    parser.add_argument("--blocks", type=int, default=8, help="timed pairs of blocks (default 8)")
    arguments = parser.parse_args(argv)
    on_gpu = arguments.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("error: PyTorch finds no GPU; leave --device out, or try --device cpu --tiny")
    offered = {case.name: case for case in (TINY if arguments.tiny else FULL if on_gpu else (DEMO, TINY[0]))}
    wrong = set(arguments.cases or offered) - set(offered)
    if wrong:
        raise SystemExit(f"error: no case is called {', '.join(sorted(wrong))}; choose from: {', '.join(offered)}")
    logging.getLogger("training").setLevel(logging.ERROR)
    made_here = made(
        hardware=torch.cuda.get_device_name() if on_gpu else cpu_name(),
        threads=torch.get_num_threads(),
        blocks=arguments.blocks,
    )
    rows = (read_results(results) or {"rows": {}})["rows"]
    for name in arguments.cases or offered:
        for mode in arguments.modes:
            row = attempt(offered[name], mode, "auto" if on_gpu else "cpu", arguments.blocks)
            rows[f"{name}, {mode}"] = row | {"made": made_here}
            write_results(results, {"rows": rows})  # row by row: an interrupted run keeps what it has
    print(f"{cost_table(rows)}\n\n{parts_table(rows)}\n")
    missing = [case.name for case in FULL if f"{case.name}, adapters" not in rows]
    if missing:
        print("Not measured, as there was no GPU. On a machine with one (80 GB for 14B):")
        for name in missing:
            print(f'    python -m benchmarks.training_cost --device cuda --cases "{name}"{ADVICE.get(name, "")}')


if __name__ == "__main__":
    main()

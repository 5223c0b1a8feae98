"""Time and memory of an update: the trainer's, the plain loop's over the same networks, and three networks'.

    OMP_NUM_THREADS=1 python -m benchmarks.training_cost [--blocks 8]   # on the CPU: the demo's model and a tiny SDXL
    python -m benchmarks.training_cost --device cuda                    # SDXL, Wan2.1 1.3B and 14B at full size
    python -m benchmarks.training_cost --device cpu --tiny              # the same three as tiny networks

The plain loop is the authors' (benchmarks/training_cost/plain_loop.py). Both ways make blocks of updates in turn, in
which every step of the plan (with larger batches: every stage) is drawn once; a pair of blocks gives a ratio, and the
figures are medians and quartiles of these. "counted" is the same ratio by forwards of the network, as a dry run tells
it. Time is of device events, on the CPU of the process; "held" is the device's own peak, on the CPU the weights, the
optimisers' states and what LiveMemory counts. The full-size networks have random weights, on which neither depends.
Results: benchmarks/results/training_cost.json.
"""

import argparse
import datetime
import gc
import json
import logging
from pathlib import Path

import torch

from benchmarks.node_overhead import cpu_name
from rmd_core.files import write_json
from training.memory import plain_cost, update_cost
from training.offload import ran_out_of_memory

from .cases import DEMO, FULL, MODES, TINY
from .measure import Updates, figures, peaks, timed
from .parts import parts_of
from .runs import make_trainer
from .tables import parts_table, speed_table, targets_table

RESULTS = Path(__file__).parents[1] / "results" / "training_cost.json"
NAME = "python -m benchmarks.training_cost"
# One timed block of six updates in place of eight; with warm-up, peaks and parts both ways make some 40 updates.
ADVICE = {"Wan2.1 14B": " --modes adapters --blocks 1  # 40 updates of about 70 PFLOP: 2 hours at 400 TFLOP/s"}


def counted_ratio(trainer):
    """The ratio of the plain loop's cost to the trainer's in forwards."""
    setup, config = trainer.setup, trainer.config
    backbone, teacher, tokens = setup.backbone, setup.teacher, setup.cache.tokens
    frames, checkpointing = config.plan.frames, config.backbone.gradient_checkpointing is not False
    sizes = {(stage.height, stage.width) for stage in setup.plan.stages}
    flops = {size: backbone.flops(teacher, *size, frames, tokens) for size in sizes}

    def relative(height, width):
        return flops[height, width] / flops[setup.plan.final_hw]

    common = {"cfg": config.loss.cfg, "checkpointing": checkpointing}
    ours = update_cost(setup.plan, relative, shared=config.train.share_forward, **common)
    return plain_cost(setup.plan, relative, **common).total / ours.total


def measure(case, mode, device, blocks):
    """The row of a case in a mode."""
    trainer = make_trainer(case, mode, device)
    updates = Updates.of(trainer)
    row = {"batch": trainer.config.train.batch, "counted": counted_ratio(trainer), **figures(timed(updates, blocks))}
    row |= {f"{way}_bytes": held for way, held in peaks(updates).items()}
    block = next(updates.blocks())
    row["parts"] = {way: parts_of(updates, way, block) for way in ("trainer", "plain")}
    return row | {"estimated_bytes": trainer.setup.memory.total}


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


def chosen_cases(arguments):
    """The cases to measure."""
    offered = TINY if arguments.tiny else FULL if arguments.device == "cuda" else (DEMO, TINY[0])
    names = [case.name for case in offered]
    wrong = set(arguments.cases or names) - set(names)
    if wrong:
        raise SystemExit(f"error: no case is called {', '.join(sorted(wrong))}; choose from: {', '.join(names)}")
    return [case for case in offered if case.name in (arguments.cases or names)]


def say(rows):
    """Print the tables of all rows that are stored, and what is missing."""
    print(speed_table(rows))
    print()
    print(parts_table(rows))
    print()
    print(targets_table(rows))
    missing = [case.name for case in FULL if f"{case.name}, adapters" not in rows]
    if missing:
        print("Not measured for want of a GPU. On a machine with one (80 GB for 14B):")
        print("\n".join(f'    {NAME} --device cuda --cases "{name}"{ADVICE.get(name, "")}' for name in missing))


def main(argv=None, results=RESULTS):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny networks in place of the full-size ones")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="some of the cases alone")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE", help="one mode alone")
    parser.add_argument("--blocks", type=int, default=8, help="timed pairs of blocks (default 8)")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: PyTorch finds no GPU; leave --device out, or try --device cpu --tiny")
    logging.getLogger("training").setLevel(logging.ERROR)
    hardware = torch.cuda.get_device_name() if arguments.device == "cuda" else cpu_name()
    made = {
        "hardware": hardware,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "blocks": arguments.blocks,
        "date": datetime.date.today().isoformat(),
    }
    stored = json.loads(results.read_text()) if results.exists() else {"rows": {}}
    for case in chosen_cases(arguments):
        for mode in arguments.modes:
            row = attempt(case, mode, "cpu" if arguments.device == "cpu" else "auto", arguments.blocks)
            stored["rows"][f"{case.name}, {mode}"] = row | {"made": made}
            write_json(results, stored)  # row by row: an interrupted run keeps what it has
    say(stored["rows"])


if __name__ == "__main__":
    main()

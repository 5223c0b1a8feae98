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
import gc
import itertools
import logging
import statistics

import torch

from demo.comparison import table
from training.memory import CHECKPOINTED, GRADIENT, UpdateCost, forward_costs, gib, update_cost
from training.offload import ran_out_of_memory

from .plain_loop import PlainLoop
from .results import FOLDER, cpu_name, provenance, quartiles, read_results, write_results
from .speed.measure import DeviceClock
from .training_runs import DEMO, FULL, MODES, TINY, make_trainer

RESULTS = FOLDER / "training_cost.json"
WAYS = ("trainer", "plain")
# One timed block of six updates in place of eight; with warm-up and peaks both ways make some 26 updates.
ADVICE = {"Wan2.1 14B": " --modes adapters --blocks 1  # 26 updates of about 70 PFLOP: 1.3 hours at 400 TFLOP/s"}


def measure(case, mode, device, blocks):
    """The row of a case in a mode."""
    trainer = make_trainer(case, case.config(f"model.mode={mode}", f"train.device={device}"))
    ways = {"trainer": trainer, "plain": PlainLoop(trainer)}
    seconds = timed(ways, blocks)
    ratio = quartiles(plain / ours for ours, plain in zip(seconds["trainer"], seconds["plain"]))
    row = {
        "batch": trainer.config.train.batch,
        "counted": counted_ratio(trainer),
        "ratio": ratio.pop("median"),
        **ratio,
    }
    row |= {f"{way}_ms": 1000 * statistics.median(seconds[way]) for way in WAYS}
    return row | {f"{way}_bytes": peak for way, peak in peaks(ways).items()}


def alike(plain):
    """Blocks of update numbers, without end. In each both phases meet every kind of sample once.

    A kind is a step of the plan where a batch is one sample, else a stage. ``plain``: the PlainLoop of a trainer.
    """
    numbers, plan = itertools.count(1), plain.trainer.setup.plan
    single = plain.trainer.config.train.batch == 1
    kinds = len(plan.steps) if single else len(plan.stages)
    while True:
        block = {}
        while len(block) < kinds:
            number = next(numbers)
            first, second = (int(batch.steps[0]) if single else batch.stage for batch in plain.batches(number))
            if second == (first + 1) % kinds:
                block.setdefault(first, number)
        yield [block[first] for first in sorted(block)]


def timed(ways, count, *, warmup=1):
    """Seconds of an update for each way, ``count`` blocks of each, one way after the other and changing first."""
    clock = DeviceClock(ways["trainer"].device)
    seconds = {way: [] for way in WAYS}
    for number, block in enumerate(itertools.islice(alike(ways["plain"]), count + warmup)):
        for way in WAYS if number % 2 else reversed(WAYS):
            spent = clock.timed(lambda way=way, block=block: [ways[way].update(each) for each in block])
            if number >= warmup:
                seconds[way].append(spent / len(block))
    return seconds


def counted_ratio(trainer):
    """The ratio of the plain loop's cost to the trainer's in forwards."""
    setup, config = trainer.setup, trainer.config
    frames, tokens = config.plan.frames, setup.cache.tokens
    _, relative = forward_costs(setup.backbone, setup.teacher, setup.plan, frames=frames, tokens=tokens)
    common = {"cfg": config.loss.cfg, "checkpointing": config.backbone.gradient_checkpointing is not False}
    ours = update_cost(setup.plan, relative, shared=config.train.share_forward, **common)
    return plain_cost(setup.plan, relative, **common).total / ours.total


def plain_cost(plan, relative_cost, *, cfg, fake_steps=1, checkpointing=False):
    """The UpdateCost of the plain loop: the whole cascade every time, and a student forward in each phase."""
    per_stage = [relative_cost(stage.height, stage.width) for stage in plan.stages]
    gradient = CHECKPOINTED if checkpointing else GRADIENT
    at_step = sum(per_stage) / len(per_stage)
    return UpdateCost(
        trajectory=sum(plan.step_costs(relative_cost)) * fake_steps,
        student=at_step * (fake_steps + gradient),
        fake=gradient * fake_steps,
        score_queries=(2.0 if cfg != 1.0 else 1.0) + 1.0,
    )


def peaks(ways):
    """The most bytes on the device in an update for each way; nothing on the CPU.

    It is an update whose student is trained at the final size, where memory peaks, after ``timed`` has made the
    optimisers' states.
    """
    clock, block, found = DeviceClock(ways["trainer"].device), next(alike(ways["plain"])), {}
    for phase, way in enumerate(WAYS):  # the trainer's student shares the fake score's samples
        last = max(block, key=lambda number, phase=phase: int(ways["plain"].batches(number)[phase].steps.max()))
        clock.start_peak()
        ways[way].update(last)
        found[way] = clock.peak()
    return {way: peak for way, peak in found.items() if peak is not None}


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


def main(argv=None, results=RESULTS):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny networks in place of the full-size ones")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="only these cases")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE", help="only these modes")
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
    here = provenance(
        hardware=torch.cuda.get_device_name() if on_gpu else cpu_name(),
        threads=torch.get_num_threads(),
        blocks=arguments.blocks,
    )
    rows = (read_results(results) or {"rows": {}})["rows"]
    for name in arguments.cases or offered:
        for mode in arguments.modes:
            row = attempt(offered[name], mode, "auto" if on_gpu else "cpu", arguments.blocks)
            rows[f"{name}, {mode}"] = row | {"made": here}
            write_results(results, {"rows": rows})  # row by row: an interrupted run keeps what it has
    print(f"{cost_table(rows)}\n")
    missing = [case.name for case in FULL if f"{case.name}, adapters" not in rows]
    if missing:
        print("Not measured, as there was no GPU. On a machine with one (80 GB for 14B):")
        for name in missing:
            print(f'    python -m benchmarks.training_cost --device cuda --cases "{name}"{ADVICE.get(name, "")}')


if __name__ == "__main__":
    main()

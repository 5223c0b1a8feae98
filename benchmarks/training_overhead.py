"""The trainer's own time around the calls of a full-size network, which do nothing here.

    OMP_NUM_THREADS=1 python -m benchmarks.training_overhead [--row NAME]

SDXL's modules with their adapters are all there, without weights; in place of the forward pass is a product with one
number. So what is left of the two phases of an update is Python: batches, noise, conditioning, casts, the choice of an
adapter, losses. CPU time of one thread, at the sizes of the shipped recipe and batch 1. ``--row``: under which name the
result is kept in benchmarks/results/training_overhead.json; it writes the table of docs/method/method.md.
"""

import argparse
import statistics
import time

import torch

from training.backbones import make_backbone
from training.objective import Objective
from training.plans import build_intervals, build_plan
from training.setup import Setup

from .models import outline
from .results import FOLDER, ROOT, cpu_name, markdown_table, provenance, read_results, replace_block, write_results
from .training_runs import FULL, PROMPTS, RandomPrompts

RESULTS = FOLDER / "training_overhead.json"
PAGE, MARK = ROOT / "docs" / "method" / "method.md", "training overhead"
UPDATES = 40


class Idle:
    """The forward pass of a network that does nothing, and how often it was called."""

    def __init__(self):
        self.calls = 0
        self.gain = torch.nn.Parameter(torch.ones(()))

    def __call__(self, sample, *_, **__):
        self.calls += 1
        return (sample * self.gain,)


def measure(case):
    """{figure: number} of a case of ``training_runs`` with adapters."""
    from training.networks import adapt  # the one import that differs between versions

    config = case.config("train.device=cpu", "train.precision=float32", "model.rank=1")
    name, kind, architecture = case.network()
    backbone = make_backbone(name, shift=config.backbone.shift)
    network, idle, plan = outline(kind, architecture), Idle(), build_plan(config, backbone)
    base = adapt(network, backbone, config.model)
    network.forward = idle
    student, fake, teacher = (base.with_adapter(role) for role in ("student", "fake", None))
    setup = Setup(
        config=config,
        backbone=backbone,
        plan=plan,
        intervals=build_intervals(config, plan),
        cache=RandomPrompts(backbone, network, case.tokens),
        prompts=PROMPTS,
        validation_prompts=PROMPTS,
        memory=None,
        teacher=network,
        vae=None,
    )
    objective = Objective(setup, student=student, fake=fake, teacher=teacher)
    sampler, seconds, calls = setup.sampler(), [], []
    for number in range(1, UPDATES + 2):
        idle.calls, began = 0, time.process_time()
        batches = sampler.batches(number, "fake-0", round_number=number)
        _, samples = objective.fake_phase(batches, share=True)
        objective.student_phase([sampler.other_levels(batch, number, "student") for batch in batches], samples)
        seconds.append(time.process_time() - began)
        calls.append(idle.calls)
    each = [1000 * spent / count for spent, count in zip(seconds[1:], calls[1:])]  # the first one fills caches
    return {
        "modules": sum(1 for _ in network.modules()),
        "calls": statistics.fmean(calls[1:]),
        "update_ms": 1000 * statistics.median(seconds[1:]),
        "call_ms": statistics.median(each),
    }


def block(stored):
    """What is between the marks of docs/method/method.md."""
    head = ["SDXL with adapters", "own time an update", "own time a call"]
    rows = [[name, f"{row['update_ms']:.3g} ms", f"{row['call_ms']:.3g} ms"] for name, row in stored["rows"].items()]
    last = next(reversed(stored["rows"].values()))
    made = last["made"]
    counted = f"{last['modules']:,} modules, {last['calls']:.1f} network calls an update"
    where = f"one thread of {made['device']}, torch {made['torch']}, {made['date']}"
    return f"{markdown_table(head, rows)}\n\n{counted}, {where}."


def main(argv=None, results=RESULTS, page=PAGE):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", default="now", metavar="NAME", help="the name of the row (default: now)")
    row = parser.parse_args(argv).row
    torch.set_num_threads(1)
    stored = read_results(results) or {"rows": {}}
    stored["rows"][row] = measure(FULL[0]) | {"made": provenance(device=cpu_name())}
    write_results(results, stored)
    replace_block(page, MARK, block(stored))
    print(block(stored))


if __name__ == "__main__":
    main()

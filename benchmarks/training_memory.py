"""The memory that training takes by the estimate, by network and options; on a CUDA device measured beside it.

    OMP_NUM_THREADS=1 python -m benchmarks.training_memory [--only sdxl wan-1.3b wan-14b] [--measure] [--tiny]

Batch 1, rank 64, calls in bfloat16. The estimate goes through full-size networks on the meta device and needs no GPU.
`--measure` trains random weights for a few updates and takes the peak of an update at the final size: PyTorch's own
count on a CUDA device, or a count of the live tensors on the CPU, where what would wait in main memory counts too.
`--tiny` does all of this with small networks, to try it. Results: benchmarks/results/training_memory.json, or with
`--tiny` no file.
"""

import argparse
import contextlib
import datetime
import gc
import tempfile
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from demo.comparison import table
from training.files import write_json
from training.live_memory import LiveMemory
from training.memory import GIB, estimate_memory, gib
from training.plans import build_intervals, build_plan
from training.processes import Processes
from training.prompt_cache import PromptCache
from training.setup import Setup
from training.trainer import Trainer

from .memory_cases import CASES, SETS, TINY

RESULTS = Path(__file__).parent / "results" / "training_memory.json"
UPDATES = 12  # at most, until one is of the last stage


def estimated(case, overrides, device):
    """The MemoryEstimate of a case."""
    config = case.config(overrides, device=device)
    size = config.plan.sizes[-1]
    return estimate_memory(config, case.made_backbone(), case.outline(), size=size, tokens=case.tokens)


def measured(case, overrides, estimate, device):
    """The most bytes on the device in an update at the final size, after one that makes the optimisers' states."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        case.write_prompts(folder)
        counted = contextlib.nullcontext() if device == "auto" else LiveMemory()
        with counted:
            trainer = _trainer(case, case.config(overrides, folder, device), estimate)
            trainer.update(1)
            gc.collect()
            return _peak_of_last_stage(trainer, counted)


def _trainer(case, config, estimate):
    backbone = case.made_backbone()
    plan, cache = build_plan(config, backbone), PromptCache(config.prompts.cache)
    whole = config.model.mode == "three networks"
    teacher = case.random_network(torch.float32 if whole else getattr(torch, config.train.precision))
    intervals, prompts = build_intervals(config, plan), cache.texts
    setup = Setup(config, backbone, plan, intervals, cache, prompts, prompts, estimate, teacher, None)
    return Trainer(setup, Processes(config))


def _peak_of_last_stage(trainer, counted):
    peak, last = None, len(trainer.setup.plan.stages)
    for number in range(2, 2 + UPDATES):
        if isinstance(counted, LiveMemory):
            counted.peak = counted.live
        else:
            torch.cuda.reset_peak_memory_stats()
        if trainer.update(number)["stage"] == last:
            peak = counted.peak if isinstance(counted, LiveMemory) else torch.cuda.max_memory_allocated()
            break
    return peak


def figures(case, overrides, *, measure, tiny):
    """{"device", "main", "parts"} in bytes, with "measured" where asked for."""
    device = "auto" if torch.cuda.is_available() or not tiny else "cpu"
    estimate = estimated(case, overrides, device)
    found = {"device": estimate.total, "main": estimate.waiting, "parts": dict(estimate.rows())}
    if measure:
        try:
            found["measured"] = measured(case, overrides, estimate, device)
        except torch.OutOfMemoryError:
            found["measured"] = None
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
    return found


def row(name, found):
    """A line of the printed table."""
    activations = sum(count for part, count in found["parts"].items() if part.startswith("activations"))
    cells = [name, gib(found["device"]), gib(activations), gib(found["main"]) if found["main"] else ""]
    if "measured" in found:
        cells.append("does not fit" if found["measured"] is None else gib(found["measured"]))
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="these networks")
    parser.add_argument("--measure", action="store_true", help="train random weights and measure")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try this command")
    arguments = parser.parse_args()
    if arguments.measure and not (arguments.tiny or torch.cuda.is_available()):
        parser.error("--measure needs a CUDA device, or --tiny")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "estimate, no GPU"
    made = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "device": where}
    rows, head = {}, ["", "on the device", "of it activations", "in main memory"]
    head += ["measured"] if arguments.measure else []
    for name in arguments.only:
        case = (TINY if arguments.tiny else CASES)[name]
        rows[case.title] = {
            title: figures(case, overrides, measure=arguments.measure, tiny=arguments.tiny)
            for title, overrides in SETS.items()
        }
        print(f"\n{case.title} ({where})\n")
        print(table(head, [row(title, found) for title, found in rows[case.title].items()]), flush=True)
    if not arguments.tiny:
        write_json(RESULTS, {"made": made, "gib": GIB, "rows": rows})


if __name__ == "__main__":
    main()

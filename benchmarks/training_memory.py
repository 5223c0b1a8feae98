"""The memory that training takes by the estimate, by network and options; on a CUDA device measured beside it.

    OMP_NUM_THREADS=1 python -m benchmarks.training_memory [--only sdxl wan-1.3b wan-14b] [--measure] [--tiny]

Batch 1, rank 64, calls in bfloat16. The estimate goes through full-size networks on the meta device and needs no GPU.
`--measure` trains random weights for a few updates and takes the peak of an update at the final size: PyTorch's own
count on a CUDA device, or a count of the live tensors on the CPU, where what would wait in main memory counts too.
A row that needs more main memory than the machine has is not trained. `--tiny` does all of this with small networks, to
try it. Results: benchmarks/results/training_memory.json, row by row, or with `--tiny` no file. What was measured stays
there until it is measured again.
"""

import argparse
import datetime
import gc
import json
import tempfile
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from demo.comparison import table
from rmd_core.files import write_json
from training.memory import GIB, estimate_memory, gib, main_memory
from training.offload import ran_out_of_memory
from training.parallel import Processes
from training.plans import build_intervals, build_plan
from training.prompts import PromptCache
from training.setup import Setup, loaded_in
from training.trainer import Trainer

from .memory_cases import CASES, SETS, TINY
from .peak_memory import PeakMemory
from .speed.networks import random_network

RESULTS = Path(__file__).parent / "results" / "training_memory.json"
NAME = "python -m benchmarks.training_memory"
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
        config = case.config(overrides, folder, device)
        processes = Processes(config)
        with PeakMemory(processes.device) as memory:
            trainer = _trainer(case, config, estimate, processes)
            trainer.update(1)
            gc.collect()
            return _peak_of_last_stage(trainer, memory)


def _trainer(case, config, estimate, processes):
    backbone = case.made_backbone()
    plan, cache = build_plan(config, backbone), PromptCache(config.prompts.cache)
    teacher = random_network(case.kind, case.network, device="cpu", dtype=loaded_in(config))
    intervals, prompts = build_intervals(config, plan), cache.texts
    setup = Setup(config, backbone, plan, intervals, cache, prompts, prompts, estimate, teacher, None)
    return Trainer(setup, processes)


def _peak_of_last_stage(trainer, memory):
    last = len(trainer.setup.plan.stages)
    for number in range(2, 2 + UPDATES):
        memory.restart()
        if trainer.update(number)["stage"] == last:
            return memory.peak
    return None


def main_need(case, overrides, estimate, device):
    """The bytes of main memory without which a case is not measured: what waits, or the weights as they are made."""
    values = sum(p.numel() for p in case.outline().parameters())
    return max(estimate.waiting, values * loaded_in(case.config(overrides, device=device)).itemsize)


def figures(case, overrides, *, measure, tiny):
    """{"device", "main", "parts"} in bytes, with "measured" where asked for."""
    device = "auto" if torch.cuda.is_available() or not tiny else "cpu"
    estimate = estimated(case, overrides, device)
    found = {"device": estimate.total, "main": estimate.waiting, "parts": dict(estimate.rows())}
    need, room = main_need(case, overrides, estimate, device), main_memory()
    if measure and need > room:
        print(f"not measured: {gib(need)} of main memory are needed, and there are {gib(room)}")
    elif measure:
        try:
            found["measured"] = measured(case, overrides, estimate, device)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            found["measured"] = None
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
    return found


def store(results, title, name, found):
    """Write a row into the file ``results``; one that was measured is not replaced by an estimate. Returns the row."""
    stored = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    rows = stored.setdefault("rows", {}).setdefault(title, {})
    if "measured" in found or "measured" not in rows.get(name, {}):
        rows[name] = found
        write_json(results, {"gib": GIB, "rows": stored["rows"]})
    return rows[name]


def row(name, found):
    """A line of the printed table."""
    activations = sum(count for part, count in found["parts"].items() if part.startswith("activations"))
    cells = [name, gib(found["device"]), gib(activations), gib(found["main"]) if found["main"] else ""]
    if "measured" in found:
        cells.append("does not fit" if found["measured"] is None else gib(found["measured"]))
    else:
        cells.append("missing")
    return cells


def main(argv=None, results=RESULTS):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="these networks")
    parser.add_argument("--measure", action="store_true", help="train random weights and measure")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try this command")
    arguments = parser.parse_args(argv)
    if arguments.measure and not (arguments.tiny or torch.cuda.is_available()):
        parser.error("--measure needs a CUDA device, or --tiny")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "estimate, no GPU"
    made = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "device": where}
    head = ["", "on the device", "of it activations", "in main memory", "measured"]
    for name in arguments.only:
        case, rows = (TINY if arguments.tiny else CASES)[name], {}
        for title, overrides in SETS.items():
            found = figures(case, overrides, measure=arguments.measure, tiny=arguments.tiny) | {"made": made}
            rows[title] = found if arguments.tiny else store(results, case.title, title, found)
        print(f"\n{case.title} ({where})\n")
        print(table(head, [row(title, found) for title, found in rows.items()]))
        if not any("measured" in found for found in rows.values()):
            tiny = " --tiny" if arguments.tiny else ""
            print(f"measured: missing; run {NAME} --only {name} --measure{tiny}{'' if tiny else ' on a CUDA device'}")
        print(flush=True)


if __name__ == "__main__":
    main()

"""The memory that training takes, by network and options: what can be counted, and on a CUDA device the measured peak.

    OMP_NUM_THREADS=1 python -m benchmarks.training_memory [--only sdxl wan-1.3b wan-14b] [--measure] [--tiny]

Batch 1, rank 64, calls in bfloat16, no weight average. Weights, gradients and optimiser states are counted for networks
of full size on the meta device, which needs no GPU; activations come on top. `--measure` trains random weights for some
updates on a CUDA device and takes PyTorch's own peak of an update at the final size. It leaves out what would wait in
system memory (RAM) and has no room there. `--tiny` takes small networks, to try it. Results:
benchmarks/results/training_memory.json, row by row, or with `--tiny` no file. What was measured stays there until it is
measured again.
"""

import argparse
import gc

import torch

from demo.comparison import table
from training.memory import GIB, gib, system_memory
from training.offload import ran_out_of_memory

from .results import FOLDER, provenance, read_results, write_results
from .speed.measure import DeviceClock
from .training_runs import FULL, TINY, make_trainer

RESULTS = FOLDER / "training_memory.json"
NETWORKS = {  # name of the option: the title of its table, the full-size case, the tiny one
    "sdxl": ("SDXL, 512 to 1024", FULL[0], TINY[0]),
    "wan-1.3b": ("Wan2.1-1.3B, 480p to 720p, 81 frames", FULL[1], TINY[1]),
    "wan-14b": ("Wan2.1-14B, 480p to 720p, 81 frames", FULL[2], TINY[2]),
}
COMMON = ("train.precision=bfloat16", "train.ema=null", "backbone.gradient_checkpointing=true")
OFFLOAD = (*COMMON[:2], "backbone.gradient_checkpointing=offload")
PACKED = ("optimiser.kind=adamw8bit", "train.offload=waiting", "train.guidance_calls=apart")
SETS = {  # what the table calls them: overrides
    "three networks": (*COMMON, "model.mode=three networks"),
    "three networks, `train.offload: waiting`, block inputs `offload`": (
        *OFFLOAD,
        "model.mode=three networks",
        "train.offload=waiting",
    ),
    "adapters": COMMON,
    "adapters, `share_forward: false`": (*COMMON, "train.share_forward=false"),
    "adapters, block inputs `offload`": OFFLOAD,
    "the same, `base_dtype: int8`": (*OFFLOAD, "model.base_dtype=int8"),
    "the same, `base_dtype: nf4`, `kind: adamw8bit`, `train.offload: waiting`, calls `apart`": (
        *OFFLOAD,
        "model.base_dtype=nf4",
        *PACKED,
    ),
}
UPDATES = 12  # at most, until one is of the last stage


def measured(case, config):
    """The most bytes on the device in an update at the final size, after one that makes the optimisers' states.

    None where it does not fit.
    """
    try:
        trainer = make_trainer(case, config)
        clock, last = DeviceClock(trainer.device), len(trainer.setup.plan.stages)
        trainer.update(1)
        gc.collect()
        for number in range(2, 2 + UPDATES):
            clock.start_peak()
            if trainer.update(number)["stage"] == last:
                return clock.peak()
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
    finally:
        trainer = None
        gc.collect()
        torch.cuda.empty_cache()
    return None


def figures(case, overrides, *, measure):
    """{"device", "main", "parts"} in bytes, with "measured" where asked for; "main" waits in system memory (RAM)."""
    config = case.config(*overrides, "train.device=auto")
    memory = case.memory(config)
    found = {"device": memory.total, "main": memory.waiting, "parts": dict(memory.rows())}
    if not measure:
        return found
    ram = system_memory()
    if memory.waiting > ram:
        print(f"not measured: it needs {gib(memory.waiting)} of system memory, and there are {gib(ram)}")
        return found
    return found | {"measured": measured(case, config)}


def store(results, title, name, found):
    """Write a row into the file ``results``, with the peak that was measured before where there is no new one.

    Returns the row.
    """
    stored = read_results(results) or {"rows": {}}
    rows = stored["rows"].setdefault(title, {})
    before = rows.get(name, {})
    if "measured" in before and "measured" not in found:
        found = found | {"measured": before["measured"], "made": before["made"]}
    rows[name] = found
    write_results(results, {"gib": GIB, "rows": stored["rows"]})
    return found


def line(name, found):
    """A line of the printed table."""
    cells = [name, gib(found["device"]), gib(found["main"]) if found["main"] else ""]
    if "measured" not in found:
        return [*cells, "missing"]
    return [*cells, "does not fit" if found["measured"] is None else gib(found["measured"])]


def main(argv=None, results=RESULTS):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="these networks")
    parser.add_argument("--measure", action="store_true", help="train random weights on a CUDA device and measure")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try this command")
    arguments = parser.parse_args(argv)
    if arguments.measure and not torch.cuda.is_available():
        parser.error("--measure needs a CUDA device")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "counted, no GPU"
    for name in arguments.only:
        title, full, tiny = NETWORKS[name]
        title, rows = f"{title}, tiny" if arguments.tiny else title, {}
        for options, overrides in SETS.items():
            case = tiny if arguments.tiny else full
            found = figures(case, overrides, measure=arguments.measure) | {"made": provenance(device=where)}
            rows[options] = found if arguments.tiny else store(results, title, options, found)
        print(f"\n{title} ({where})\n")
        head = ["", "weights, gradients, optimiser", "in system memory", "measured peak"]
        print(table(head, [line(options, found) for options, found in rows.items()]), flush=True)


if __name__ == "__main__":
    main()

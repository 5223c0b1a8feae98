"""Time the teacher, few steps at one size and RMD, and write the tables of docs/speed.md and README.md.

    OMP_NUM_THREADS=1 python -m benchmarks.speed [--models SDXL "Wan2.1 14B"] [--device cpu] [--minutes 9]

With a GPU: the full-size architectures with random weights, on which speed does not depend, in bfloat16. Without one:
tiny models of the same classes, not compiled, and the arithmetic of the full-size ones. Every finished row is stored in
benchmarks/results/speed*.json, one file for each device, and a further run goes on with those that are missing.
"""

import argparse
import datetime
import logging
import re
import sys
from pathlib import Path

import diffusers
import torch

from benchmarks.markdown import replace_block
from benchmarks.node_overhead import cpu_name
from rmd_core.errors import RMDError

from .models import FULL, TINY
from .page import MARK, PAGE, README, headlines, page_block, ratio_table, readme_block, time_table
from .rows import Bench, Results

FOLDER = Path(__file__).parents[1] / "results"


def made_with(device):
    """What results depend on beside the code: device, precision, versions; and the date."""
    gpu = device.type != "cpu"
    name = torch.get_device_module(device).get_device_name(device) if gpu else f"{cpu_name()}, one thread"
    return {
        "device": name,
        "precision": "bfloat16" if gpu else "float32, CPU time",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": datetime.date.today().isoformat(),
    }


def results_path(device, name):
    """The file of a device: speed.json for the CPU, else with the device's name in it."""
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return FOLDER / ("speed.json" if device.type == "cpu" else f"speed_{slug}.json")


def stored_results():
    """Everything stored, GPUs first."""
    paths = sorted(FOLDER.glob("speed*.json"), key=lambda path: (path.stem == "speed", path.name))
    return [Results.read(path) for path in paths]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [model.name for model in (*FULL, *TINY)]
    parser.add_argument("--models", nargs="+", choices=names, metavar="NAME", help="only these: " + ", ".join(names))
    parser.add_argument("--device", help="such as cpu; default: the accelerator, or the CPU where there is none")
    parser.add_argument("--minutes", type=float, help="start no row after so long; the most important come first")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        torch.set_num_threads(1)
    models = [
        model
        for model in (FULL + TINY if args.models else FULL if device.type != "cpu" else TINY)
        if args.models is None or model.name in args.models
    ]
    made = made_with(device)
    try:
        results = Results.open(results_path(device, made["device"]), made)
        complete = Bench(results, device=device, minutes=args.minutes).run(models)
        if complete or device.type == "cpu":
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
    if device.type == "cpu":
        print("\nThe full-size models were not timed: that takes a GPU.")


if __name__ == "__main__":
    main()

"""What the cascade itself costs: peak memory against one size throughout, and its own time around the network calls.

    OMP_NUM_THREADS=1 python -m benchmarks.cascade_overhead

Memory is counted at full size on tensors without data, attention as a fused kernel, weights left out. Time is that of
the whole engine on the full-size latents with a network that does nothing, on one CPU thread: noise, mixing, the
switch, conversions and casts. Results: benchmarks/results/cascade_overhead.json and the table of docs/speed.md.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path

import torch
from torch.nn import Module, Parameter

from benchmarks.node_overhead import cpu_name
from rmd_core.boundary import Boundary
from rmd_core.files import write_json
from rmd_core.noise import SeededNoise
from training.backbones import make_backbone
from training.memory import FusedAttention, LiveMemory
from training.sample import sample_latents

from .markdown import markdown_table, replace_block
from .speed.models import FULL
from .speed.networks import random_conditioning

RESULTS = Path(__file__).parent / "results" / "cascade_overhead.json"
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
MARK = "cascade overhead"
RUNS = 5


class Idle(Module):
    """A network that does nothing: its output is its input."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.one = Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x, *arguments, **named):
        return (x,)


def outline(model):
    """The network of a SpeedModel without data, in bfloat16."""
    kind, config = model.network
    with torch.device("meta"):
        network = kind(**config)
    return network.to(torch.bfloat16).requires_grad_(False)


def sample(model, network, way, *, device):
    """Sample one latent of a SpeedModel by a way."""
    backbone = make_backbone(model.backbone)
    conditioning = random_conditioning(backbone, network, tokens=model.tokens, batch=1, device=device, seed=1)
    return sample_latents(
        backbone,
        network,
        way.plan,
        conditioning=conditioning,
        noise=SeededNoise(0),
        boundary=Boundary(),
        eta=0.5,
        frames=model.frames,
        device=device,
    )


def peak_memory(model, way):
    """The most bytes that sampling holds beside the weights, by count."""
    network = outline(model)
    with FusedAttention(), LiveMemory() as memory:
        sample(model, network, way, device="meta")
    return memory.peak


def own_seconds(model, way):
    """CPU seconds of one sampling whose network calls cost nothing."""
    network = Idle(outline(model).config)
    sample(model, network, way, device="cpu")  # fills the caches of matrices
    spent = []
    for _ in range(RUNS):
        began = time.process_time()
        sample(model, network, way, device="cpu")
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def overhead_table(stored):
    """The stored figures in Markdown."""
    rows = []
    for model in FULL:
        figures = stored["rows"].get(model.name)
        if figures:
            few, rmd = figures["few"], figures["rmd"]
            rows.append(
                [
                    model.name,
                    "+".join(map(str, model.split)),
                    f"{few['peak'] / 2**20:,.0f} MiB",
                    f"{rmd['peak'] / 2**20:,.0f} MiB",
                    f"{rmd['peak'] / few['peak']:.3f}",
                    f"{1000 * few['seconds']:.3g} ms",
                    f"{1000 * rmd['seconds']:.3g} ms",
                ]
            )
    head = ["", "steps", "peak, one size", "peak, cascade", "ratio", "own time, one size", "own time, cascade"]
    return markdown_table(head, rows)


def overhead_block(stored):
    """What stands between the marks of docs/speed.md."""
    made = stored["made"]
    where = f"Counted without data; times on one thread of {made['device']}, torch {made['torch']}, {made['date']}."
    return f"{where}\n\n{overhead_table(stored)}"


def read_stored():
    """The stored figures."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    made = {"device": cpu_name(), "torch": torch.__version__, "date": datetime.date.today().isoformat()}
    stored = {"made": made, "rows": {}}
    for model in FULL:
        stored["rows"][model.name] = {
            name: {"peak": peak_memory(model, way), "seconds": own_seconds(model, way)}
            for name, way in model.ways.items()
            if name in ("few", "rmd")
        }
        write_json(RESULTS, stored)
    replace_block(PAGE, MARK, overhead_block(stored))
    print(overhead_table(stored))


if __name__ == "__main__":
    main()

"""The cascade's own time around the network calls, against as many steps at one size.

    OMP_NUM_THREADS=1 python -m benchmarks.cascade_overhead

The whole engine runs on full-size latents with a network that does nothing, on one CPU thread: noise, mixing, the
switch, conversions and casts. Results: benchmarks/results/cascade_overhead.json and the table of docs/speed.md.
"""

import argparse
import statistics

import torch
from torch.nn import Module, Parameter

from rmd_core.boundary import Boundary
from rmd_core.noise import SeededNoise
from training.backbones import make_backbone
from training.sample import sample_latents

from .models import outline, random_conditioning
from .results import FOLDER, ROOT, cpu_name, made, markdown_table, replace_block, write_results
from .speed.measure import DeviceClock
from .speed.models import FULL

RESULTS = FOLDER / "cascade_overhead.json"
PAGE, MARK = ROOT / "docs" / "speed.md", "cascade overhead"
RUNS = 5


class Idle(Module):
    """A network that does nothing: its output is its input."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.one = Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x, *arguments, **named):
        return (x,)


def own_seconds(model, way):
    """CPU seconds of sampling one latent of a SpeedModel whose network calls cost nothing."""
    backbone, network = make_backbone(model.backbone), Idle(outline(*model.network).config)
    conditioning = random_conditioning(backbone, network, tokens=model.tokens, batch=1, device="cpu", seed=1)

    def sample():
        sample_latents(
            backbone,
            network,
            way.plan,
            conditioning=conditioning,
            noise=SeededNoise(0),
            boundary=Boundary(),
            eta=0.5,
            frames=model.frames,
        )

    sample()  # fills the caches of matrices
    clock = DeviceClock("cpu")
    return statistics.median(clock.timed(sample) for _ in range(RUNS))


def overhead_block(stored):
    """What is between the marks of docs/speed.md."""
    made, rows = stored["made"], []
    for model in FULL:
        few, rmd = (f"{1000 * stored['rows'][model.name][way]['seconds']:.3g} ms" for way in ("few", "rmd"))
        rows.append([model.name, "+".join(map(str, model.split)), few, rmd])
    where = f"Times on one thread of {made['device']}, torch {made['torch']}, {made['date']}."
    return f"{where}\n\n{markdown_table(['', 'steps', 'own time, one size', 'own time, cascade'], rows)}"


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    rows = {m.name: {way: {"seconds": own_seconds(m, m.ways[way])} for way in ("few", "rmd")} for m in FULL}
    stored = {"made": made(device=cpu_name()), "rows": rows}
    write_results(RESULTS, stored)
    replace_block(PAGE, MARK, overhead_block(stored))
    print(overhead_block(stored))


if __name__ == "__main__":
    main()

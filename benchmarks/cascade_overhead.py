"""The cascade's own time around the network calls, against as many steps at one size.

    OMP_NUM_THREADS=1 python -m benchmarks.cascade_overhead

The whole engine runs on full-size latents with a network that does nothing, on one CPU thread: noise, mixing, the
switch, conversions and casts. Results: benchmarks/results/cascade_overhead.json and the table of docs/use/speed.md.
"""

import argparse
import statistics

import torch

from .results import FOLDER, ROOT, cpu_name, markdown_table, provenance, replace_block, write_results
from .speed.measure import Subject
from .speed.models import FULL

RESULTS = FOLDER / "cascade_overhead.json"
PAGE, MARK = ROOT / "docs" / "use" / "speed.md", "cascade overhead"
RUNS = 5


def own_seconds(model):
    """CPU seconds of sampling one latent of a SpeedModel whose network calls cost nothing, by way."""
    subject, found = Subject(model, device="cpu", dtype=torch.float32, mode="idle"), {}
    for name in ("few", "rmd"):
        runs = [subject.sample(model.ways[name], 1).seconds for _ in range(RUNS + 1)]
        found[name] = statistics.median(runs[1:])  # the first fills the caches of matrices
    return found


def overhead_block(stored):
    """What is between the marks of docs/use/speed.md."""
    made, rows = stored["made"], []
    for model in FULL:
        few, rmd = (f"{1000 * stored['rows'][model.name][way]['seconds']:.3g} ms" for way in ("few", "rmd"))
        rows.append([model.name, "+".join(map(str, model.split)), few, rmd])
    where = f"Times on one thread of {made['device']}, torch {made['torch']}, {made['date']}."
    return f"{where}\n\n{markdown_table(['', 'steps', 'own time, one size', 'own time, cascade'], rows)}"


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    rows = {m.name: {way: {"seconds": spent} for way, spent in own_seconds(m).items()} for m in FULL}
    stored = {"made": provenance(device=cpu_name()), "rows": rows}
    write_results(RESULTS, stored)
    replace_block(PAGE, MARK, overhead_block(stored))
    print(overhead_block(stored))


if __name__ == "__main__":
    main()

"""CPU time of a picture for each way to sample, which depends on plan and guidance and not on the weights."""

import json
import time
from statistics import median

import torch

from demo import files
from demo.sampling import make_latents
from rmd_core.errors import RMDError
from rmd_core.files import make_folder, write_json
from training.prompts import PromptCache

from .rows import SampledRow, all_rows, backbone
from .scoring import PROMPTS
from .store import RESULTS, made_here

FILE = RESULTS.parent / "quality_timing.json"
BATCHES = {1: 6, 32: 1}  # batch -> batches sampled in one round
ROUNDS = 7


def timing_key(row):
    """What the time of a row's pictures depends on: steps at each size in latent cells, and guidance."""
    steps = "+".join(f"{len(stage.sigmas)}x{stage.height}x{stage.width}" for stage in row.plan.stages)
    return steps + (" guided" if row.guidance != 1.0 else "")


def measure(rounds=ROUNDS, batches=None):
    """CPU ms of one picture on one thread, ``{key: {batch: median over the rounds}}``, the ways taken in turn.

    Decoding is left out. Run it while nothing else runs.
    """
    ways = {timing_key(row): row for row in reversed(all_rows()) if isinstance(row, SampledRow)}
    network, cache = backbone().load(files.TEACHER, dtype=torch.float32), PromptCache(files.PROMPTS)
    spent = {key: {batch: [] for batch in batches or BATCHES} for key in ways}
    for turn in range(rounds + 1):
        for key, row in ways.items():
            for batch, count in (batches or BATCHES).items():
                began = time.process_time()
                make_latents(row.way(network), backbone(), cache, PROMPTS[: batch * count], seed=turn, batch=batch)
                if turn:  # the first round warms up
                    spent[key][batch].append(1000 * (time.process_time() - began) / (batch * count))
    return {key: {str(batch): median(times) for batch, times in by.items()} for key, by in spent.items()}


def keep(figures, path=FILE):
    """Write what ``measure`` returned, with processor, date and versions."""
    make_folder(path.parent)
    write_json(path, {"ms": figures, "made": made_here()})


def kept(path=FILE):
    """What ``keep`` wrote, or None. Raises RMDError for a damaged file."""
    if not path.exists():
        return None
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        dict(entry["ms"]), dict(entry["made"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RMDError(f"{path} is damaged ({error!r:.80}); delete it and run with --time again") from None
    return entry

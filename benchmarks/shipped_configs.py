"""What each shipped configuration asks of a machine: memory by the trainer's estimate, and the arithmetic of a run.

    OMP_NUM_THREADS=1 python -m benchmarks.shipped_configs

Goes through the full-size networks on the meta device, without weights and without a GPU; some minutes on a CPU. It
writes the table of docs/training-backbones.md.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from training.backbones import make_backbone
from training.config import load_config
from training.memory import GIB, estimate_memory, update_cost
from training.plans import build_plan

from .full_size import ARCHITECTURES
from .markdown import markdown_table, replace_block

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "training" / "configs"
PAGE, MARK = ROOT / "docs" / "training-backbones.md", "shipped configurations"
MODELS = {  # name of the configuration: the network, and the tokens of a prompt as its encoders give them
    "sdxl": ("SDXL", 77),
    "pixart_alpha": ("PixArt alpha", 120),
    "pixart_sigma": ("PixArt Sigma", 300),
    "sd35_medium": ("SD3.5 Medium", 154),
    "sd35_large": ("SD3.5 Large", 154),
    "wan21_1.3b": ("Wan2.1 1.3B", 512),
    "wan21_14b": ("Wan2.1 14B", 512),
}


@dataclass(frozen=True)
class Need:
    """Of one configuration: bytes on the device and in main memory, samples and updates, and operations of a run."""

    device: int
    main: int
    samples: int
    updates: int
    flops: float

    def cells(self, name):
        """A row of the table."""
        main = f"{self.main / GIB:.1f} GiB" if self.main else "-"
        return [
            f"`{name}.yaml`", f"{self.device / GIB:.1f} GiB", main, str(self.samples), str(self.updates),
            f"{self.flops / 1e15:,.2g}" if self.flops < 1e16 else f"{self.flops / 1e15:,.0f}",
            f"{self.flops * self.updates / 1e18:,.2g}" if self.flops * self.updates < 1e19
            else f"{self.flops * self.updates / 1e18:,.0f}",
        ]  # fmt: skip


def need(name, *overrides):
    """The Need of a shipped configuration, with ``--set`` overrides, on one device."""
    config = load_config(CONFIGS / f"{name}.yaml", list(overrides)).resolved()
    model, tokens = MODELS[name]
    _, kind, architecture = ARCHITECTURES[model]
    with torch.device("meta"):
        network = kind(**architecture).eval()
    backbone = make_backbone(config.backbone.name, shift=config.backbone.shift)
    plan, frames = build_plan(config, backbone), config.plan.frames
    estimate = estimate_memory(config, backbone, network, size=config.plan.sizes[-1], tokens=tokens)
    final = backbone.flops(network, *plan.final_hw, frames, tokens)

    @cache
    def relative(height, width):
        return backbone.flops(network, height, width, frames, tokens) / final

    cost = update_cost(
        plan, relative, cfg=config.loss.cfg, fake_steps=config.train.fake_steps, shared=config.train.share_forward,
        accumulation=config.train.accumulation, checkpointing=bool(config.backbone.gradient_checkpointing),
    ).total  # fmt: skip
    samples = config.train.batch * config.train.accumulation
    return Need(estimate.total, estimate.waiting, samples, config.train.updates, cost * final * samples)


def table(needs):
    """The table of the page; ``needs``: Need by the configuration's name."""
    head = ["", "memory", "main memory", "samples an update", "updates", "PFLOP an update", "EFLOP in all"]
    return markdown_table(head, [found.cells(name) for name, found in needs.items()])


def main(argv=None, page=PAGE):
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    text = table({name: need(name) for name in MODELS})
    replace_block(page, MARK, text)
    print(text)


if __name__ == "__main__":
    main()

"""What each shipped configuration asks of a machine: memory without activations, arithmetic and hours of a run.

    OMP_NUM_THREADS=1 python -m benchmarks.shipped_configs

Counted for the full-size networks on the meta device, without weights and without a GPU; some minutes on a CPU. It
writes the table of docs/train/models.md.
"""

import argparse

from training.backbones import make_backbone
from training.config import load_config
from training.memory import forward_costs, gib, update_cost
from training.plans import build_plan

from .models import outline
from .results import ROOT, markdown_table, replace_block
from .training_runs import CONFIGS, Case

SPEED = 400e12  # FLOP a second, about 40 % of an H100's bfloat16 peak
PAGE, MARK = ROOT / "docs" / "train" / "models.md", "shipped configurations"
CASES = {  # by the configuration's name: the network, and the tokens of a prompt as its encoders give them
    recipe: Case(name=recipe, recipe=recipe, architecture=architecture, tokens=tokens)
    for recipe, architecture, tokens in (
        ("sdxl", "SDXL", 77),
        ("sdxl_from_dmd2", "SDXL", 77),
        ("pixart_alpha", "PixArt alpha", 120),
        ("pixart_sigma", "PixArt Sigma", 300),
        ("sd35_medium", "SD3.5 Medium", 154),
        ("sd35_large", "SD3.5 Large", 154),
        ("z_image", "Z-Image", 128),
        ("qwen_image", "Qwen-Image", 128),
        ("flux2_klein_4b", "FLUX.2 klein 4B", 512),
        ("wan21_1.3b", "Wan2.1 1.3B", 512),
        ("wan21_14b", "Wan2.1 14B", 512),
        ("wan21_14b_from_lightx2v", "Wan2.1 14B", 512),
        ("wan22_a14b", "Wan2.2 A14B", 512),
        ("wan22_5b", "Wan2.2 5B", 512),
    )
}


def row(name):
    """A row of the table, for one device."""
    case = CASES[name]
    config = load_config(CONFIGS / f"{name}.yaml", []).resolved()
    _, kind, architecture = case.network()
    network, backbone = outline(kind, architecture), make_backbone(config.backbone.name, shift=config.backbone.shift)
    plan = build_plan(config, backbone)
    final, relative = forward_costs(backbone, network, plan, frames=config.plan.frames, tokens=case.tokens)
    cost = update_cost(
        plan,
        relative,
        cfg=config.loss.cfg,
        fake_steps=config.train.fake_steps,
        shared=config.train.share_forward,
        accumulation=config.train.accumulation,
        checkpointing=bool(config.backbone.gradient_checkpointing),
    ).total
    samples, updates = config.train.batch * config.train.accumulation, config.train.updates
    each, whole = cost * final * samples, cost * final * samples * updates
    return [
        f"`{name}.yaml`",
        gib(case.memory(config).total),
        samples,
        updates,
        *(_two_digits(number) for number in (each / 1e15, whole / 1e18, whole / SPEED / 3600)),
    ]


def _two_digits(number):
    """A number in at least two digits."""
    return f"{number:,.2g}" if number < 10 else f"{number:,.0f}"


def table(names):
    """The table of the page for some configurations."""
    head = ["", "weights, gradients, optimiser", "samples an update", "updates", "PFLOP an update", "EFLOP", "hours"]
    return markdown_table(head, map(row, names))


def main(argv=None, page=PAGE):
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    text = table(CASES)
    replace_block(page, MARK, text)
    print(text)


if __name__ == "__main__":
    main()

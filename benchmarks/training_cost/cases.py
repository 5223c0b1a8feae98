"""What is measured: shipped recipes on full-size networks with random weights, and tiny forms of the same."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.full_size import ARCHITECTURES
from training.backbones import make_backbone
from training.config import load_config

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
MODES = ("adapters", "three networks")
# Every update is one batch of the recipe, past the warm-up; nothing is written, and no prompt list is read.
PLAIN = ("train.accumulation=1", "train.warmup_updates=0", "backbone.vae=null", "output.trackers=[]")
RANDOM = (*PLAIN, "train.batch=1", "prompts.file=null", "prompts.encode_from=null", "prompts.negative=''")
ON_CPU = ("train.device=cpu", "train.precision=float32")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe of training/configs. ``architecture``: its name in benchmarks.full_size, None for the recipe's own file.

    ``tiny``: what the network has otherwise; ``changes``: overrides of the recipe. ``target``: GiB that its adapters
    should stay below.
    """

    name: str
    recipe: str
    architecture: str | None = None
    tokens: int = 77
    tiny: dict | None = None
    changes: tuple = ()
    target: int | None = None

    def config(self, *overrides):
        """The resolved configuration of an update."""
        common = PLAIN if self.architecture is None else RANDOM
        return load_config(CONFIGS / f"{self.recipe}.yaml", [*common, *self.changes, *overrides]).resolved()

    def network(self):
        """(backbone, class, configuration of the network)."""
        name, kind, config = ARCHITECTURES[self.architecture]
        return make_backbone(name), kind, config | (self.tiny or {})


FULL = (
    Case(name="SDXL", recipe="sdxl", architecture="SDXL", target=22),
    Case(name="Wan2.1 1.3B", recipe="wan21_1.3b", architecture="Wan2.1 1.3B", tokens=512, target=40),
    Case(name="Wan2.1 14B", recipe="wan21_14b", architecture="Wan2.1 14B", tokens=512, target=78),
)
TINY_WAN = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128}
TINY_CLIP = ("plan.sizes=[[12, 20], [18, 32]]", "plan.frames=3", *ON_CPU)
TINY = (
    Case(
        name="SDXL, tiny",
        recipe="sdxl",
        architecture="SDXL",
        tiny={
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (2, 4),
            "norm_num_groups": 8,
        },
        changes=("plan.sizes=[[16, 16], [32, 32]]", "model.rank=4", *ON_CPU),
    ),
    *(
        Case(
            name=f"{case.name}, tiny",
            recipe=case.recipe,
            architecture=case.architecture,
            tokens=16,
            tiny=TINY_WAN | {"num_layers": layers},
            changes=(*TINY_CLIP, "model.rank=4"),
        )
        for case, layers in zip(FULL[1:], (2, 3))
    ),
)
DEMO = Case(name="Wan, the demo's", recipe="demo")

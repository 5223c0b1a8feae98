"""Trainers in memory for measurements: shipped recipes on full-size or tiny networks with random weights, no files."""

from dataclasses import dataclass, replace

import torch
from accelerate.state import AcceleratorState

from training.backbones import make_backbone
from training.config import load_config
from training.memory import count_memory
from training.parallel import Processes
from training.plans import build_intervals, build_plan
from training.setup import Setup, loaded_in, outline_run, prepare
from training.trainer import Trainer

from .models import ARCHITECTURES, outline, random_network
from .models import TINY as TINY_NETWORKS
from .results import ROOT

CONFIGS = ROOT / "training" / "configs"
MODES = ("adapters", "three networks")
PROMPTS = ("a red apple", "a blue cup", "a green leaf", "a yellow sun")
# Every update has one batch of the recipe in each phase, past the warm-up; nothing is written, no prompt list is read.
PLAIN = (
    "train.accumulation=1",
    "train.warmup_updates=0",
    "train.fake_steps=1",
    "backbone.vae=null",
    "output.trackers=[]",
)
RANDOM = (*PLAIN, "train.batch=1", "prompts.file=null", "prompts.encode_from=null", "prompts.negative=''")
ON_CPU = ("train.device=cpu", "train.precision=float32")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe of training/configs on an architecture of benchmarks.models; the recipe's own files where it is None.

    ``tiny``: what the network has otherwise; ``changes``: overrides of the recipe.
    """

    name: str
    recipe: str
    architecture: str | None = None
    tokens: int = 77
    tiny: dict | None = None
    changes: tuple = ()

    def config(self, *overrides):
        """The resolved configuration of an update."""
        common = PLAIN if self.architecture is None else RANDOM
        return load_config(CONFIGS / f"{self.recipe}.yaml", [*common, *self.changes, *overrides]).resolved()

    def network(self):
        """(backbone, class, configuration of the network)."""
        name, kind, config = ARCHITECTURES[self.architecture]
        return name, kind, config | (self.tiny or {})

    def memory(self, config):
        """The Memory of a configuration of this case: what can be counted, without activations."""
        name, kind, network = self.network()
        return count_memory(config, make_backbone(name), outline(kind, network))


def _tiny(case, tokens, *changes):
    changes = (*changes, "model.rank=4", *ON_CPU)
    tiny = TINY_NETWORKS[case.architecture]
    return replace(case, name=f"{case.name}, tiny", tokens=tokens, tiny=tiny, changes=changes)


FULL = (
    Case(name="SDXL", recipe="sdxl", architecture="SDXL"),
    Case(name="Wan2.1 1.3B", recipe="wan21_1.3b", architecture="Wan2.1 1.3B", tokens=512),
    Case(name="Wan2.1 14B", recipe="wan21_14b", architecture="Wan2.1 14B", tokens=512),
)
TINY = (
    _tiny(FULL[0], 77, "plan.sizes=[[16, 16], [32, 32]]"),
    *(_tiny(case, 16, "plan.sizes=[[12, 20], [18, 32]]", "plan.frames=3") for case in FULL[1:]),
)
DEMO = Case(name="Wan, the demo's", recipe="demo")


class RandomPrompts:
    """What a backbone asks of a prompt cache, with random embeddings of the widths that a network takes."""

    encoder = "random"

    def __init__(self, backbone, network, tokens):
        self.tokens = tokens
        self._tensors = {}
        generator = torch.Generator().manual_seed(0)
        for name, blank in backbone.zero_conditioning(network, tokens, "cpu").items():
            shape = (len(PROMPTS) + 1, *blank.shape[1:])
            self._tensors[name] = torch.randn(shape, generator=generator)

    def batch(self, texts):
        """Embeddings (B, tokens, dim)."""
        return self._rows("text", texts)

    def pooled(self, texts):
        """Pooled embeddings (B, width)."""
        return self._rows("pooled", texts)

    def _rows(self, name, texts):
        return self._tensors[name][[("", *PROMPTS).index(text) for text in texts]]


def make_trainer(case, config, *, weights_on=None):
    """A Trainer of a case by a configuration of it. It writes nothing.

    ``weights_on``: the device whose generator makes the random weights, the run's own where None.
    """
    AcceleratorState._reset_state(reset_partial_state=True)  # a process normally makes one run
    if case.architecture is None:
        return Trainer(prepare(outline_run(config)), Processes(config))
    processes = Processes(config)
    name, kind, network = case.network()
    backbone = make_backbone(name, shift=config.backbone.shift)
    device = weights_on or processes.device
    teacher = random_network(kind, network, device=device, dtype=loaded_in(config)).to(processes.device)
    plan = build_plan(config, backbone)
    setup = Setup(
        config=config,
        backbone=backbone,
        plan=plan,
        intervals=build_intervals(config, plan),
        cache=RandomPrompts(backbone, teacher, case.tokens),
        prompts=PROMPTS,
        validation_prompts=PROMPTS,
        memory=None,
        teacher=teacher,
        vae=None,
    )
    return Trainer(setup, processes)

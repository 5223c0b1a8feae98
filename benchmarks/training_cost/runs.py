"""A trainer in memory for each case: networks with random weights, prompts with random embeddings, no files."""

import torch
from accelerate.state import AcceleratorState

from benchmarks.speed.networks import random_network
from training.memory import estimate_memory
from training.parallel import Processes
from training.plans import build_intervals, build_plan
from training.setup import Setup, loaded_in, prepare
from training.trainer import Trainer

PROMPTS = ("a red apple", "a blue cup", "a green leaf", "a yellow sun")


class RandomPrompts:
    """What a backbone asks of a prompt cache, with random embeddings of the widths that a network takes."""

    encoder = "random"

    def __init__(self, backbone, network, tokens):
        self.tokens = tokens
        self._tensors = {}
        generator = torch.Generator().manual_seed(0)
        for name, blank in backbone.blank_conditioning(network, tokens, "cpu").items():
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


def make_trainer(case, mode, device):
    """A Trainer of a case in a mode, on the device that ``device`` means for train.device. It writes nothing."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a process normally makes one run
    config = case.config(f"model.mode={mode}", f"train.device={device}")
    if case.architecture is None:
        return Trainer(prepare(config), Processes(config))
    processes = Processes(config)
    return Trainer(_random_setup(case, config, processes.device), processes)


def estimated(case, config):
    """The MemoryEstimate of a case's configuration, found without weights."""
    backbone, kind, network = case.network()
    with torch.device("meta"):
        outline = kind(**network)
    return estimate_memory(config, backbone, outline, size=config.plan.sizes[-1], tokens=case.tokens)


def _random_setup(case, config, device):
    backbone, kind, network = case.network()
    backbone = type(backbone)(shift=config.backbone.shift)
    teacher = random_network(kind, network, device=device, dtype=loaded_in(config))
    plan = build_plan(config, backbone)
    return Setup(
        config=config,
        backbone=backbone,
        plan=plan,
        intervals=build_intervals(config, plan),
        cache=RandomPrompts(backbone, teacher, case.tokens),
        prompts=PROMPTS,
        validation_prompts=PROMPTS,
        memory=estimated(case, config),
        teacher=teacher,
        vae=None,
    )

"""The GPU computes what the CPU computes, in the same tiny trainings and in samples of the demo's student.

python -m pytest -m gpu
"""

import pytest
import torch

from benchmarks.training_runs import MODES, TINY, make_trainer
from demo import files
from demo.sampling import student_setup
from rmd_core.noise import SeededNoise
from training.backbones import make_backbone
from training.prompts import PromptCache
from training.sample import sample_latents

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
TOLERANCE = 2e-3  # relative, in float32 without TF32
FIGURES = ("loss_fake", "loss_student", "norm_fake", "norm_student")
PROMPTS = ("apple noto on-white", "panda fluent on-green", "star fluent on-green")


@pytest.fixture(autouse=True)
def whole_float32():
    """Products in float32 without TF32."""
    settings = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = False
    yield
    for setting, value in zip(settings, before):
        setting.allow_tf32 = value


def trained(case, mode, device):
    """Losses and gradient norms of three updates from the same random weights."""
    trainer = make_trainer(case, case.config(f"model.mode={mode}", f"train.device={device}"), weights_on="cpu")
    updates = [trainer.update(number) for number in (1, 2, 3)]
    return [[update[name] for name in FIGURES] for update in updates]


def sampled(device):
    """Latents of the shipped student, on the CPU."""
    backbone = make_backbone("wan")
    setup = student_setup("student", files.STUDENT, backbone)
    conditioning = backbone.conditioning(PromptCache(files.PROMPTS), PROMPTS)
    return sample_latents(
        backbone,
        setup.network.to(device),
        setup.plan,
        conditioning={name: rows.to(device) for name, rows in conditioning.items()},
        noise=SeededNoise(7),
        boundary=setup.boundary,
        eta=setup.eta,
        device=device,
    ).x0.cpu()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_training_has_the_same_losses_and_gradient_norms(case, mode):
    device = "cpu" if DEVICE == "cpu" else "auto"
    for ours, theirs in zip(trained(case, mode, device), trained(case, mode, "cpu")):
        assert ours == pytest.approx(theirs, rel=TOLERANCE)


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_a_phase_does_not_wait_for_the_gpu(case):
    trainer = make_trainer(case, case.config("model.mode=adapters", "train.device=auto"))
    trainer.update(1)  # what is made once
    batches = trainer.sampler.batches(2, "fake-0", round_number=1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, samples = trainer.objective.fake_phase(batches, share=True)
        trainer.objective.student_phase(batches, samples)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def test_a_student_samples_the_same_latents_and_the_same_bits_twice():
    on_cpu, once, again = sampled("cpu"), sampled(DEVICE), sampled(DEVICE)
    assert (once - on_cpu).norm() <= TOLERANCE * on_cpu.norm()
    assert torch.equal(once, again)

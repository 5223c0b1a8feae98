"""Settings for speed: the same gradients but for rounding, the same fingerprint; the device is asked for nothing."""

import math

import pytest
import torch

from backbone_world import NAMES, tiny_network, write_backbone_world
from rmd_core.errors import RMDError
from training.backbones import make_backbone
from training.config import TrainSection, load_config
from training.objective import Objective
from training.setup import outline_run
from training.speed import matmul_tflops, speed_up
from training_world import adapted, distill, gradients, make_setup, metrics, tensors, tiny_wan

SETTINGS = {
    "compile": "inductor",
    "attention": "native",
    "channels_last": "true",
    "tf32": "true",
    "cudnn_benchmark": "true",
    "expandable_segments": "false",
    "replicas": "2",
    "context_parallel": "2",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_for_speed_are_not_in_the_fingerprint_of_a_run(world, name):
    plain, other = (load_config(world / "config.yaml", sets) for sets in ([], [f"train.{name}={SETTINGS[name]}"]))
    assert plain != other and plain.resolved().digest() == other.resolved().digest()


def test_precision_is_this_machines_and_in_the_fingerprint(world):
    plain, whole, half = (
        load_config(world / "config.yaml", [f"train.precision={value}"]).resolved()
        for value in ("null", "float32", "bfloat16")
    )
    assert plain.train.precision == "float32"  # of a run on the CPU
    assert plain.digest() == whole.digest() != half.digest()


def grads(network, *, adapter=None, rows=2, side=8):
    """Gradients of a call, with the adapter ``adapter`` where there is one; and the output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 16, 1, side, side, generator=generator)
    text = torch.randn(rows, 4, 16, generator=generator)
    call = network if adapter is None else network.with_adapter(adapter)
    y = call(x, torch.full((rows,), 300.0), text, return_dict=False)[0]
    (y * torch.randn(y.shape, generator=generator)).mean().backward()
    trained = network if adapter is None else network.adapters[adapter]
    found = gradients(trained)
    for parameter in trained.parameters():
        parameter.grad = None
    return found, y.detach()


def assert_close(found, expected):
    assert found.keys() == expected.keys() and found
    assert all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-7) for name in found)


def with_speed(**settings):
    """A train section with these settings."""
    return TrainSection(updates=1, batch=1, **settings)


def test_compiled_blocks_have_the_same_gradients_with_each_adapter_and_size():
    torch._dynamo.reset()
    plain, compiled = (adapted(network=tiny_wan()) for _ in range(2))
    speed_up(compiled.network, with_speed(compile="eager"))
    for side in (4, 8):
        for role in ("student", "fake", "student"):
            expected, found = (grads(base, adapter=role, side=side) for base in (plain, compiled))
            assert torch.allclose(expected[1], found[1], atol=1e-5)
            assert_close(found[0], expected[0])
    with torch.no_grad():
        x, text = torch.ones(1, 16, 1, 8, 8), torch.ones(1, 4, 16)
        teacher = [
            base.with_adapter(None)(x, torch.tensor([9.0]), text, return_dict=False)[0] for base in (plain, compiled)
        ]
    assert torch.allclose(*teacher, atol=1e-5)


def test_compiled_blocks_with_recomputed_activations_have_the_same_gradients():
    torch._dynamo.reset()
    plain, compiled = (adapted(network=tiny_wan()) for _ in range(2))
    compiled.enable_gradient_checkpointing()
    speed_up(compiled.network.train(), with_speed(compile="aot_eager"))
    assert_close(grads(compiled, adapter="student", side=4)[0], grads(plain, adapter="student", side=4)[0])


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_an_attention_backend_has_the_same_gradients(backend):
    plain, other = tiny_wan(), speed_up(tiny_wan(), with_speed(attention=backend))
    try:
        assert_close(grads(other)[0], grads(plain)[0])
    finally:
        other.set_attention_backend("native")  # of all networks of this process


def test_an_attention_that_is_not_there_is_refused(world, tmp_path):
    write_backbone_world("sdxl", tmp_path)
    for folder, name, words in ((world, "quick", "must be one of"), (tmp_path, "native", "always calls PyTorch's own")):
        with pytest.raises(RMDError, match=words):
            outline_run(load_config(folder / "config.yaml", [f"train.attention={name}"]).resolved())


def test_channels_last_trains_and_resumes_as_the_plain_form(tmp_path):
    write_backbone_world("sdxl", tmp_path)
    mode = ("model.mode=three networks", "optimiser.eps=1e-5", "train.updates=2", "output.checkpoint_every=1")
    for layout in ("true", "false"):
        assert distill(tmp_path, *mode, f"train.channels_last={layout}", f"output.folder={tmp_path}/{layout}") == 0
    a, b = (tensors(tmp_path / layout / "student.safetensors") for layout in ("true", "false"))
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=2e-4) for name in a)
    more = (*mode, "train.updates=3", "train.channels_last=true", f"output.folder={tmp_path}/true")
    assert distill(tmp_path, *more, flags=["--resume"]) == 0
    assert math.isfinite(metrics(tmp_path / "true")[-1]["loss_student"])


@pytest.mark.parametrize(
    "method", [(), ("method.switch_noise=mix", "method.eta_train=0.3"), ("method.upsampler=area",)]
)
def test_losses_and_gradients_are_made_without_a_question_to_the_device(world, method):
    # On the meta device there are no values: whatever asks for one, and so would wait for a GPU, fails.
    setup = make_setup(world, *method, "train.accumulation=2", "train.warmup_updates=0")
    networks = [tiny_wan(seed=seed).to("meta") for seed in (5, 6, 7)]
    objective = Objective(setup, **dict(zip(("student", "fake", "teacher"), networks)), device="meta")
    for stage in (0, 1):
        batches = setup.sampler().of_stage(stage).batches(1, "fake-0", round_number=0)
        losses, samples = objective.fake_phase(batches, share=True)
        assert len(losses) == 2 and all(loss.is_meta for loss in losses)
        assert objective.student_phase(batches, samples)[0].is_meta
    assert all(parameter.grad is not None for parameter in networks[0].parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_called_without_a_question_to_the_device(name):
    backbone, network = make_backbone(name), tiny_network(name).to("meta")
    x = torch.empty(*backbone.latent_shape(1, 1), 16, 16, device="meta")
    sigma = torch.full((1,), backbone.curve.sigma_max, dtype=torch.float64)
    assert backbone.predict(network, x, sigma, backbone.zero_conditioning(network, 4, "meta")).is_meta


def test_the_peak_of_a_device_is_measured():
    assert 0 < matmul_tflops("cpu", torch.float32, size=64, repeats=2) < 1e3

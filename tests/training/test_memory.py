"""What is counted of a run's memory against what tiny runs really have, to the byte; costs in forwards."""

import logging

import pytest
import torch
from accelerate.state import AcceleratorState

from backbone_world import write_backbone_world
from launched import finished
from training import memory
from training.backbones.wan import WanBackbone
from training.config import load_config
from training.memory import advice, count_memory, log_memory, update_cost
from training.offload import ran_out_of_memory
from training.parallel import Processes
from training.quantised import QuantisedLinear, has_bitsandbytes
from training.trainer import Trainer
from training_world import copy_world, distill, make_setup, tiny_wan, write_world

ADAPTERS = ("model.mode=adapters", "model.rank=4")


PACKED = pytest.mark.skipif(not has_bitsandbytes(), reason="needs bitsandbytes")


def packed(*overrides):
    """A case that needs bitsandbytes."""
    return pytest.param(overrides, marks=PACKED)


@pytest.fixture(scope="module")
def deeper(pristine, tmp_path_factory):
    """The tiny world with a teacher of two blocks; to be copied, never to be changed."""
    folder = copy_world(pristine, tmp_path_factory.mktemp("deeper"))
    WanBackbone().export(tiny_wan(layers=2), folder / "teacher.safetensors", dtype=torch.float32)
    return folder


@pytest.fixture
def trainer(deeper, tmp_path):
    """A function that makes the trainer of a run."""

    def make(*overrides):
        AcceleratorState._reset_state(reset_partial_state=True)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        setup = make_setup(copy_world(deeper, folder), "train.warmup_updates=0", *overrides)
        return Trainer(setup, Processes(setup.config))

    return make


def size_of(tensors):
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def gradients_of(parameters):
    return size_of(parameter.grad for parameter in parameters if parameter.grad is not None)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.ema=null", "train.precision=bfloat16"),
        ADAPTERS,
        (*ADAPTERS, "train.precision=bfloat16"),
        (*ADAPTERS, "model.targets=[to_v, patch_embedding]", "train.ema=null", "model.base_dtype=bfloat16"),
        packed(*ADAPTERS, "model.base_dtype=nf4", "train.precision=bfloat16"),
        packed("model.mode=adapters", "model.rank=32", "model.base_dtype=int8", "optimiser.kind=adamw8bit"),
        packed("optimiser.kind=adamw8bit"),
    ],
)
def test_weights_gradients_and_optimiser_are_counted_to_the_byte(trainer, overrides):
    run = trainer("output.merge=true", *overrides)
    counted, networks = run.setup.memory, run.networks
    parameters = [*networks.student.parameters(), *networks.fake.parameters(), *networks.teacher.parameters()]
    for dtype in (torch.float32, torch.bfloat16):
        measured = size_of(p for p in parameters if p.dtype == dtype)
        assert counted.weights.get(str(dtype).removeprefix("torch."), 0) == measured
    batch = run.sampler.batch(1, "fake-0", round_number=0)
    for role in ("fake", "student"):
        if role == "fake":
            run.objective.fake_phase([batch], share=False)
        else:
            run.objective.student_phase([batch])
        assert gradients_of(parameters) == counted.gradients
        networks.optimisers[role].step()
        networks.optimisers[role].zero_grad()
        assert gradients_of(parameters) == 0
    layers = [layer for layer in networks.teacher.modules() if isinstance(layer, QuantisedLinear)]
    small = [tensor for layer in layers for tensor in (layer.weight, layer.scales)]
    assert sum(counted.weights.get(kind, 0) for kind in ("int8", "nf4")) == size_of(small)
    states = [entries for o in networks.optimisers.values() for entries in o.state.values()]
    assert counted.optimiser == size_of(
        v for entries in states for v in entries.values() if isinstance(v, torch.Tensor)
    )
    assert counted.average == (size_of(networks.average.tensors.values()) if networks.average else 0)
    assert counted.trained == sum(p.numel() for p in networks.trained["student"].parameters())


def test_what_waits_is_counted_in_system_memory(trainer):
    """Three networks that wait, against sizes written out as the powers of two that page-locked memory takes."""

    def power_of_two(count):
        power = 1
        while power < count:
            power *= 2
        return power

    network = tiny_wan(layers=2)
    base = sum(p.numel() for p in network.parameters())
    here, away = (trainer(f"train.offload={which}").setup.memory for which in ("none", "waiting"))
    apart = trainer("train.offload=waiting", "train.share_forward=false").setup.memory
    assert here.waiting == 0 and here.weights["float32"] == 3 * 4 * base
    assert away.weights["float32"] == 2 * apart.weights["float32"] == 2 * 4 * base and away.average == 0
    weights = sum(power_of_two(4 * p.numel()) for p in network.parameters())
    steps, buffers = 4 * len(list(network.parameters())), sum(power_of_two(b.nbytes) for b in network.buffers())
    assert away.waiting == 3 * (weights + buffers) + 2 * (2 * weights + steps) + here.average
    assert away.total < here.total and 2 * away.optimiser == here.optimiser


def test_sharded_networks_are_counted_as_one_share(world):
    for options in ((), ADAPTERS):
        whole, halves = (make_setup(world, *options, shards=number).memory for number in (1, 2))
        own = 0 if not options else 2 * 4 * whole.trained  # the adapters, whole in each process
        assert halves.weights["float32"] - own == (whole.weights["float32"] - own) // 2
        if options:
            assert (halves.gradients, halves.optimiser) == (whole.gradients, whole.optimiser)
        else:
            assert 2 * halves.gradients == whole.gradients and halves.optimiser < 0.51 * whole.optimiser


def test_advice_is_taken_until_it_fits(deeper, caplog, monkeypatch):
    def resolved(*overrides):
        return load_config(deeper / "config.yaml", ["model.rank=4", *overrides]).resolved()

    setup = make_setup(deeper)
    of_run = (setup.backbone, setup.backbone.outline(deeper / "teacher.safetensors"))
    whole = count_memory(resolved(), *of_run)
    assert advice(resolved(), whole.total, *of_run) == ([], whole)
    waiting = count_memory(resolved("train.offload=waiting"), *of_run)
    assert advice(resolved(), whole.total - 1, *of_run) == (["train.offload=waiting"], waiting)
    overrides, least = advice(resolved(), 1000, *of_run)
    assert overrides[-2:] == ["model.mode=adapters", "model.base_dtype=bfloat16"]
    assert 1000 < least.total < whole.total / 3
    assert least == count_memory(resolved(*overrides), *of_run)
    sharded, _ = advice(resolved(), 1000, *of_run, shards=2)
    assert "train.offload=waiting" not in sharded

    caplog.set_level(logging.INFO)
    for available in (whole.total, waiting.total, 1000):
        monkeypatch.setattr(memory, "device_memory", lambda device, count=available: (count, "a device"))
        assert log_memory(resolved(), *of_run) == whole
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2 and all("even without activations" in line and "\n" not in line for line in warnings)
    assert "--set train.offload=waiting needs" in warnings[0] and "still too much" in warnings[1]


def test_dry_run_shows_what_is_counted_and_a_run_says_it_first(deeper, tmp_path, capsys, caplog):
    world = copy_world(deeper, tmp_path)
    caplog.set_level(logging.INFO)
    assert distill(world, *ADAPTERS, flags=["--dry-run"]) == 0
    printed = capsys.readouterr().out
    for words in ("weights in float32", "gradients", "optimiser", "together; activations come on top", "there is on"):
        assert words in printed
    assert "in the frozen base" in printed and "in each of the two adapters" in printed
    caplog.clear()
    assert distill(world, *ADAPTERS, "train.updates=1") == 0
    assert caplog.records[0].getMessage().startswith("memory: weights in float32")
    assert "activations come on top" in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (MemoryError(), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error, full):
    assert ran_out_of_memory(error) == full


class Stages:
    """Stages of a plan for counting: (size, steps) pairs."""

    def __init__(self, *pairs):
        self.stages = [type("S", (), {"height": size, "width": size, "sigmas": (0,) * steps}) for size, steps in pairs]


@pytest.mark.parametrize(
    ("plan", "low", "separate", "ours"),
    [(Stages((60, 3), (90, 3)), 0.257, 12.2, 10.5), (Stages((64, 2), (128, 2)), 0.235, 11.2, 10.0)],
)
def test_costs_are_those_of_the_method_page(plan, low, separate, ours):
    """With recomputed activations (docs/method/method.md, cost of one update)."""
    final = plan.stages[-1].height

    def relative(height, width):
        return 1.0 if height == final else low

    apart = update_cost(plan, relative, cfg=5.0, checkpointing=True, shared=False)
    assert apart.total == pytest.approx(separate, abs=0.05)
    assert update_cost(plan, relative, cfg=5.0, checkpointing=True).total == pytest.approx(ours, abs=0.05)


def test_accumulation_shares_trajectories_but_not_forwards():
    plan = Stages((64, 2), (128, 2))
    one, many, apart = (
        update_cost(plan, lambda h, w: (h / 128) ** 2, cfg=2.0, fake_steps=2, **sharing)
        for sharing in ({}, {"accumulation": 4}, {"shared": False})
    )
    # Means over the stages: a forward costs 1/4 and 1, the steps before it 1/8 and 1.
    at_step, to_step = (0.25 + 1) / 2, (0.125 + 1) / 2
    assert (one.student, many.student, apart.student) == pytest.approx((4 * at_step, 5 * at_step, 5 * at_step))
    trajectories = (one.trajectory, many.trajectory, apart.trajectory)
    assert trajectories == pytest.approx((2 * to_step, 2 * to_step, 3 * to_step))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("sdxl", ADAPTERS), pytest.param("wan", (*ADAPTERS, "model.base_dtype=int8"), marks=PACKED)],
)
def test_a_dry_run_of_its_own_prints_what_one_with_every_package_prints(tmp_path, capsys, name, overrides):
    """It imports less; here everything has been imported."""
    if name == "wan":
        write_world(tmp_path)
    else:
        write_backbone_world(name, tmp_path)
    code, printed = finished(tmp_path / "config.yaml", *overrides, flags=["--dry-run"])
    assert code == 0, printed
    assert distill(tmp_path, *overrides, flags=["--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [line for line in printed.splitlines() if "memory:" not in line]

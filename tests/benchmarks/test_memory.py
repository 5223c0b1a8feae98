"""The memory estimate against what tiny runs really hold."""

import json
import logging

import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks import training_memory
from benchmarks.memory_cases import SETS, TINY
from benchmarks.training_memory import figures, main, row, store
from training.backbones.wan import save_wan_transformer
from training.config import load_config
from training.memory import LiveMemory, advice, estimate_memory, tell_memory
from training.offload import ran_out_of_memory
from training.parallel import Processes
from training.quantised import has_bitsandbytes, quantised_layers
from training.trainer import Trainer
from training_world import copy_world, distill, make_setup, tiny_wan

PLAN = ("plan.sizes=[[16, 16], [32, 32]]", "train.warmup_updates=0")
ADAPTERS = ("model.mode=adapters", "model.rank=4")


def packed(*overrides, limits=()):
    """A case that needs bitsandbytes."""
    mark = pytest.mark.skipif(not has_bitsandbytes(), reason="needs bitsandbytes")
    return pytest.param(overrides, *limits, marks=mark)


@pytest.fixture(scope="module")
def deeper(pristine, tmp_path_factory):
    """The tiny world with a teacher of two blocks; to be copied, never to be changed."""
    folder = copy_world(pristine, tmp_path_factory.mktemp("deeper"))
    save_wan_transformer(tiny_wan(layers=2), folder / "teacher.safetensors", dtype=torch.float32)
    return folder


@pytest.fixture
def trainer(deeper, tmp_path):
    """A function that makes the trainer of a run."""

    def make(*overrides):
        AcceleratorState._reset_state(reset_partial_state=True)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        setup = make_setup(copy_world(deeper, folder), *PLAN, *overrides)
        return Trainer(setup, Processes(setup.config))

    return make


def size_of(tensors):
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def power_of_two(count):
    power = 1
    while power < count:
        power *= 2
    return power


def gradients_of(parameters):
    return size_of(parameter.grad for parameter in parameters if parameter.grad is not None)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.ema=null", "train.precision=bfloat16"),
        ADAPTERS,
        (*ADAPTERS, "train.precision=bfloat16"),
        ("model.mode=adapters", "model.targets=[to_v]", "train.ema=null", "model.base_dtype=bfloat16"),
        packed(*ADAPTERS, "model.base_dtype=nf4", "train.precision=bfloat16"),
        packed("model.mode=adapters", "model.rank=32", "model.base_dtype=int8", "optimiser.kind=adamw8bit"),
        packed("optimiser.kind=adamw8bit"),
    ],
)
def test_weights_gradients_and_optimiser_are_counted_to_the_byte(trainer, overrides):
    run = trainer(*overrides)
    estimate, networks = run.setup.memory, run.networks
    parameters = [*networks.student.parameters(), *networks.fake.parameters(), *networks.teacher.parameters()]
    for dtype in (torch.float32, torch.bfloat16):
        measured = size_of(p for p in parameters if p.dtype == dtype)
        assert estimate.weights.get(str(dtype).removeprefix("torch."), 0) == measured
    draw = run.draws.phase(1, "fake-0", round_number=0)
    for role, phase in (("fake", lambda: run.phases.fake_phase(draw, share=False)), ("student", None)):
        (phase or (lambda: run.phases.student_phase(draw)))()
        assert gradients_of(parameters) == estimate.gradients
        networks.optimisers[role].step()
        networks.optimisers[role].zero_grad()
        assert gradients_of(parameters) == 0
    small = [tensor for layer in quantised_layers(networks.teacher) for tensor in (layer.weight, layer.scales)]
    assert sum(estimate.weights.get(kind, 0) for kind in ("int8", "nf4")) == size_of(small)
    states = [entries for o in networks.optimisers.values() for entries in o.optimizer.state.values()]
    held = [value for entries in states for value in entries.values() if isinstance(value, torch.Tensor)]
    assert estimate.optimiser == size_of(held)
    assert estimate.average == (size_of(networks.average.tensors.values()) if networks.average else 0)
    assert estimate.trained == sum(p.numel() for p in networks.trained["student"].parameters())
    assert estimate.total == sum(count for _, count in estimate.rows())


@pytest.mark.parametrize(
    ("overrides", "low", "high"),
    [
        ((), 0.95, 1.15),
        (("backbone.gradient_checkpointing=true",), 0.95, 1.15),
        (("train.share_forward=false",), 0.95, 1.15),
        (("train.accumulation=2",), 0.9, 1.15),
        (("train.offload=waiting", "train.ema=null"), 0.9, 1.2),
        (("train.guidance_calls=apart", "train.share_forward=false"), 0.9, 1.2),
        (("train.precision=bfloat16",), 0.95, 1.15),
        (("train.precision=bfloat16", "backbone.gradient_checkpointing=true"), 0.95, 1.25),
        (ADAPTERS, 0.95, 1.15),
        ((*ADAPTERS, "backbone.gradient_checkpointing=true"), 0.9, 1.15),
        ((*ADAPTERS, "model.base_dtype=bfloat16"), 0.95, 1.15),
        ((*ADAPTERS, "train.precision=bfloat16"), 0.9, 1.15),
        ((*ADAPTERS, "train.precision=bfloat16", "backbone.gradient_checkpointing=true"), 0.88, 1.15),
        packed(*ADAPTERS, "train.precision=bfloat16", "model.base_dtype=nf4", limits=(0.88, 1.15)),
    ],
)
def test_activations_are_near_what_an_update_holds(trainer, overrides, low, high):
    """What an update of the last stage holds beyond what it began with, in real tensors on the CPU."""
    run = trainer(*overrides)
    run.update(1)  # makes the optimisers' state
    number, stage, last = 2, 1, len(run.setup.plan.stages)
    while stage != last:
        with LiveMemory() as memory:
            stage = run.update(number)["stage"]
        number += 1
    estimate = run.setup.memory
    expected = estimate.activations + estimate.casts + estimate.gradients
    if run.config.train.offload == "waiting":  # then these come and go too
        expected += sum(estimate.weights.values()) + estimate.optimiser
    ratio = expected / memory.peak
    print(f"estimated {ratio:.3f} of the measured peak {memory.peak}: {' '.join(overrides)}")
    assert low < ratio < high


def test_live_memory_counts_what_is_held_and_forgets_what_is_gone():
    before = torch.zeros(1000)
    with LiveMemory() as memory:
        a = torch.zeros(1000)
        view = a.view(10, 100)[2:]
        assert memory.live == 4000
        total = view.sum() + before.sum()
        assert memory.live == 4004
        b = torch.ones(500, dtype=torch.float64) * 2
        assert memory.live == 8004 and memory.peak == 12004
        del a, b
        assert memory.live == 4004
        del view
        assert memory.live == 4 == total.nbytes


def test_the_outline_has_the_shapes_of_the_network(deeper):
    setup = make_setup(deeper)
    outline = setup.backbone.outline(deeper / "teacher.safetensors")
    ours, theirs = outline.state_dict(), setup.teacher.state_dict()
    assert all(p.is_meta for p in outline.parameters()) and outline.config == setup.teacher.config
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


def test_advice_is_taken_until_it_fits(deeper, caplog):
    config = load_config(deeper / "config.yaml", PLAN).resolved()
    setup = make_setup(deeper, *PLAN)
    outline = setup.backbone.outline(deeper / "teacher.safetensors")

    known = {}

    def estimated(config):
        key = config.to_yaml()
        if key not in known:
            known[key] = estimate_memory(config, setup.backbone, outline, size=(32, 32), tokens=4)
        return known[key]

    whole = estimated(config).total
    assert advice(config, whole, estimated) == ([], estimated(config))
    first = ["train.precision=bfloat16", "backbone.gradient_checkpointing=true"]
    wanted = estimated(load_config(deeper / "config.yaml", [*PLAN, *first]).resolved())
    assert advice(config, wanted.total, estimated) == (first, wanted)
    overrides, estimate = advice(config, 1000, estimated)
    assert overrides[-2:] == ["model.mode=adapters", "model.base_dtype=bfloat16"] and 1000 < estimate.total < whole / 3
    assert estimate == estimated(load_config(deeper / "config.yaml", [*PLAN, *overrides]).resolved())

    caplog.set_level(logging.INFO)
    caplog.clear()
    assert tell_memory(config, estimated, whole, "a device") == estimated(config)
    assert [record.levelname for record in caplog.records] == ["INFO"] and "of" in caplog.text
    tell_memory(config, estimated, wanted.total, "a device")
    tell_memory(config, estimated, 1000, "a device")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "--set train.precision=bfloat16 --set backbone.gradient_checkpointing=true needs" in warnings[0]
    assert "still too much" in warnings[1] and all("\n" not in line for line in warnings)


def test_dry_run_shows_the_estimate_and_a_run_says_it_first(deeper, tmp_path, capsys, caplog):
    world = copy_world(deeper, tmp_path)
    caplog.set_level(logging.INFO)
    assert distill(world, *ADAPTERS, flags=["--dry-run"]) == 0
    told = capsys.readouterr().out
    for words in (
        "weights in float32",
        "gradients",
        "optimiser",
        "activations at 8x8, estimated",
        "together",
        "there is",
    ):
        assert words in told
    assert "in the frozen base" in told and "in each of the two adapters" in told
    caplog.clear()
    assert distill(world, *ADAPTERS, "train.updates=1") == 0
    assert caplog.records[0].getMessage().startswith("memory: weights in float32")


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


def test_what_waits_is_counted_in_main_memory(trainer):
    """Three networks that wait, and the inputs of blocks, against sizes written out as powers of two."""
    base = sum(p.numel() for p in tiny_wan(layers=2).parameters())
    here, away = (trainer(f"train.offload={which}").setup.memory for which in ("none", "waiting"))
    assert here.waiting == 0 and here.weights["float32"] == 3 * 4 * base
    assert away.weights["float32"] == 2 * 4 * base and away.average == 0
    network = tiny_wan(layers=2)
    weights = sum(power_of_two(4 * p.numel()) for p in network.parameters())
    steps, buffers = 4 * len(list(network.parameters())), sum(power_of_two(b.nbytes) for b in network.buffers())
    assert away.waiting == 3 * (weights + buffers) + 2 * (2 * weights + steps) + here.average
    assert away.waiting > 3 * 4 * base + here.optimiser + here.average and away.total < here.total
    kept, parked = (
        trainer(*ADAPTERS, f"backbone.gradient_checkpointing={which}").setup.memory for which in ("true", "offload")
    )
    inputs = 3 * (16 * 16 + 4 + 6) * 128 * 4  # tokens, text and time of three samples
    rounded = sum(power_of_two(3 * count * 128 * 4) for count in (16 * 16, 4, 6))
    rounded += sum(power_of_two(3 * count * 128) for count in (16 * 16, 4, 6))  # the first stage's, a quarter
    assert kept.waiting == 0 and parked.waiting == 2 * 2 * rounded  # of two blocks, for both passes
    one = trainer(*ADAPTERS, "backbone.gradient_checkpointing=offload", "plan.sizes=[[32, 32]]", "plan.split='4'")
    rounded = sum(power_of_two(3 * count * 128 * 4) for count in (16 * 16, 4, 6))
    assert one.setup.memory.waiting == 2 * 2 * rounded > 2 * 2 * inputs
    assert 2 * 2 * 3 * 16 * 16 * 128 * 4 * 0.7 < kept.activations - parked.activations <= 2 * 2 * inputs


def test_the_benchmark_measures_what_it_estimates():
    found = figures(TINY["wan-1.3b"], SETS["adapters"], measure=True, tiny=True)
    assert sum(found["parts"].values()) == found["device"] and found["main"] == 0
    assert 0.8 < found["device"] / found["measured"] < 1.25
    assert len(row("adapters", found)) == 5


def test_the_benchmark_keeps_what_was_measured(tmp_path):
    results, estimate = tmp_path / "results.json", {"device": 2, "main": 0, "parts": {}}
    measured = estimate | {"device": 1, "measured": 3}
    assert store(results, "a", "x", estimate) == estimate and store(results, "a", "x", measured) == measured
    assert store(results, "a", "x", estimate) == measured and store(results, "b", "x", estimate) == estimate
    full = measured | {"measured": None}
    assert store(results, "a", "x", full) == full and store(results, "a", "y", estimate) == estimate
    assert json.loads(results.read_text())["rows"] == {"a": {"x": full, "y": estimate}, "b": {"x": estimate}}


def test_the_benchmark_says_what_it_did_not_measure(tmp_path, capsys, monkeypatch):
    main(["--tiny", "--only", "wan-1.3b"], results=tmp_path / "results.json")
    assert "measured: missing; run python -m benchmarks.training_memory --only wan-1.3b --measure" in (
        capsys.readouterr().out
    )
    monkeypatch.setattr(training_memory, "main_memory", lambda: 1000)
    assert "measured" not in figures(TINY["wan-1.3b"], SETS["adapters"], measure=True, tiny=True)
    assert "not measured:" in capsys.readouterr().out and not list(tmp_path.iterdir())

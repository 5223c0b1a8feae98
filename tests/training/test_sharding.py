"""Networks sharded over processes: who loads what, in which precision it travels, replicas, split sequences."""

import pytest
import torch

from process_world import Run, distill_on, on_each
from sharded_world import compiled_gradients, start_sharded, travelling
from training.backbones.wan import WanBackbone
from training.run import CheckpointStore
from training_world import EPS, TOLERANCE, copy_world, distance, distill, equal, metrics, tiny_wan

BF16 = ("model.mode=adapters", "model.rank=2", "model.base_dtype=bfloat16")


@pytest.mark.parametrize("overrides", [(), BF16], ids=["three networks", "adapters"])
def test_one_process_loads_and_all_have_the_same_weights(world, overrides):
    WanBackbone().export(tiny_wan(layers=16), world / "teacher.safetensors", dtype=torch.float32)
    teacher = WanBackbone().load(world / "teacher.safetensors", dtype=torch.bfloat16 if overrides else torch.float32)
    expected = teacher.state_dict()
    (_, first), (most, second) = on_each(2, start_sharded, world, "train.ema=null", *overrides, sharded=True)
    for found in (first, second):
        for role, state in found.items():
            assert equal(expected, state), role
            assert {n: t.dtype for n, t in expected.items()} == {n: t.dtype for n, t in state.items()}
    # The process that loads nothing has its shards, and one whole tensor at a time: at no time a whole network more.
    whole = sum(tensor.nbytes for tensor in expected.values())
    own = len(first) * (whole / 2 + sum(buffer.nbytes for buffer in teacher.buffers()))
    print(f"{most / 2**20:.1f} MiB at most, of which it keeps {own / 2**20:.1f}; a network has {whole / 2**20:.1f}")
    assert own < most < own + whole / 2


def parts_of(folder, update=3):
    """The parts of a checkpoint, whole."""
    checkpoint = CheckpointStore(folder / "checkpoints", keep=2).load(update, PARTS)
    return {name: dict(part) for name, part in checkpoint.parts.items()}


@pytest.fixture(scope="module")
def wider(pristine, tmp_path_factory):
    """The tiny world with two heads, as one process has trained it with batch 4 in both modes and precisions."""
    folder = copy_world(pristine, tmp_path_factory.mktemp("wider"))
    WanBackbone().export(tiny_wan(layers=2, heads=2), folder / "teacher.safetensors", dtype=torch.float32)
    for name, overrides in MODES.items():
        assert distill(folder, EPS, *SHORT, *overrides, "train.batch=4", f"output.folder={folder}/{name}") == 0
    return folder


MODES = {"three": (), "adapters": ("model.mode=adapters", "model.rank=3")}
SHORT = ("train.updates=3", "train.ema=null")
PARTS = ("student", "fake", "student_optimiser", "fake_optimiser")
WAYS = {
    "replicas": (4, True, ("train.replicas=2", "train.batch=1")),
    "split sequences": (2, False, ("train.context_parallel=2", "train.batch=4")),
    "split sequences, sharded": (2, True, ("train.context_parallel=2", "train.batch=4")),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
def test_processes_train_like_one(wider, mode, way):
    count, sharded, overrides = WAYS[way]
    folder = wider / f"{mode}, {way}"
    distill_on(count, wider, EPS, *SHORT, *MODES[mode], *overrides, f"output.folder={folder}", sharded=sharded)
    ours, theirs = parts_of(folder), parts_of(wider / mode)
    start = tiny_wan(layers=2, heads=2).state_dict()
    for role in ("student", "fake"):
        start_of_role = start if mode == "three" else {name: torch.zeros_like(t) for name, t in theirs[role].items()}
        found = distance(theirs[role], ours[role], start_of_role)
        print(f"{way}, {mode}, {role}: {found:.2g}")
        assert found < TOLERANCE
    a, b = (metrics(path) for path in (wider / mode, folder))
    assert [entry["loss_student"] for entry in a] == pytest.approx([entry["loss_student"] for entry in b], rel=1e-3)
    if way == "replicas" and mode == "three":  # written by the processes of the first replica
        assert len(list((folder / "checkpoints" / "step_000003").glob("student.*"))) == 2


def test_weights_travel_in_bfloat16_and_stay_float32(world):
    for found in on_each(2, travelling, world, "train.precision=bfloat16", sharded=True):
        assert found["kept"] == found["outside"] == found["gradients"] == ["torch.float32"]
        assert found["in blocks"] == ["torch.bfloat16"]
        assert found["steps"] > 0


def test_compiled_blocks_of_a_sharded_network_have_the_same_gradients(world):
    for plain, compiled in on_each(2, compiled_gradients, world, sharded=True):
        assert plain.keys() == compiled.keys()
        assert all(torch.allclose(plain[name], compiled[name], rtol=1e-4, atol=1e-7) for name in plain)


def test_what_does_not_divide_is_refused(world):
    for overrides, words in (
        (["train.context_parallel=3"], "by which 2 processes cannot be divided"),
        (["train.context_parallel=2"], "must divide the network's 1 heads"),
        (["train.replicas=2"], "launch with FSDP"),
    ):
        run = Run(2, world, *overrides)
        assert run.codes() == [2, 2], run.printed()
        assert words in run.error()

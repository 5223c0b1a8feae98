"""Two processes against one: the same global batch gives the same weights, whole or spread, and resumes exactly."""

import shutil

import pytest
import torch

from process_world import distill_on
from training.backbones.wan import load_wan_transformer
from training.networks import make_networks
from training.parallel import Processes
from training.run import CheckpointStore
from training_world import EPS, TOLERANCE, copy_world, distance, distill, equal, make_setup, metrics, tensors

MODES = {"three networks": ("model.mode=three networks",), "adapters": ("model.mode=adapters", "model.rank=3")}
KINDS = [(mode, sharded) for mode in MODES for sharded in (False, True)]


@pytest.fixture(scope="module")
def alone(pristine, tmp_path_factory):
    """A world for each mode in which one process has trained with batch 4."""
    worlds = {mode: copy_world(pristine, tmp_path_factory.mktemp("one")) for mode in MODES}
    for mode, world in worlds.items():
        assert distill(world, *MODES[mode], EPS, "train.batch=4") == 0
    return worlds


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}, {'spread' if kind[1] else 'whole'}")
def pair(request, pristine, tmp_path_factory):
    """(mode, sharded, world): two processes have trained with batch 2 each."""
    mode, sharded = request.param
    world = copy_world(pristine, tmp_path_factory.mktemp("two"))
    distill_on(2, world, *MODES[mode], EPS, "train.batch=2", sharded=sharded)
    return mode, sharded, world


PARTS = ("student", "fake", "average", "student_optimiser", "fake_optimiser")


def parts_of(world, update, folder="out"):
    """The parts of a checkpoint, whole."""
    checkpoint = CheckpointStore(world / folder / "checkpoints", keep=2).load(update, PARTS)
    return {name: dict(part) for name, part in checkpoint.parts.items()}


def test_two_processes_merge_into_a_base_that_was_quantised(pristine, tmp_path):
    pytest.importorskip("bitsandbytes")
    world = copy_world(pristine, tmp_path)
    quantised = (*MODES["adapters"], "model.base_dtype=nf4", "output.merge=true", "train.updates=1", "train.batch=1")
    distill_on(2, world, *quantised)
    student, start = (load_wan_transformer(world / path) for path in ("out/student.safetensors", "teacher.safetensors"))
    assert student.state_dict().keys() == start.state_dict().keys()


def start_of(world, mode):
    setup = make_setup(world, *MODES[mode])
    networks = make_networks(setup, Processes(setup.config))
    return {role: {n: t.clone() for n, t in networks.trained[role].state_dict().items()} for role in networks.trained}


def test_two_processes_train_like_one(pair, alone, record_property):
    mode, _, world = pair
    ours, theirs, start = parts_of(world, 6), parts_of(alone[mode], 6), start_of(world, mode)
    for part in ("student", "fake", "average"):
        found = distance(theirs[part], ours[part], start.get(part, start["student"]))
        record_property(part, found)
        print(mode, part, f"{found:.2g}")
        assert found < TOLERANCE, part
    a, b = metrics(alone[mode] / "out"), metrics(world / "out")
    assert len(a) == len(b) == 6
    for one, two in zip(a, b):
        assert one.keys() == two.keys() and one["stage"] == two["stage"]
        for name in one.keys() - {"seconds", "x0_mean"}:
            assert one[name] == pytest.approx(two[name], rel=1e-3), name
    exported, again = (tensors(path / "out" / "student.safetensors") for path in (alone[mode], world))
    assert exported.keys() == again.keys()
    assert all(torch.allclose(exported[name], again[name], rtol=1e-3, atol=1e-3) for name in exported)


def interrupted(world, name):
    """A copy of the run in a world, as it was after update 3; gives the overrides to go on with it there."""
    shutil.copytree(world / "out", world / name)
    shutil.rmtree(world / name / "checkpoints" / "step_000006")
    (world / name / "student.safetensors").unlink()
    return EPS, "train.batch=2", f"output.folder={world / name}"


def test_two_processes_resume_bit_for_bit(pair):
    mode, sharded, world = pair
    settings = interrupted(world, "again")
    run = distill_on(2, world, *MODES[mode], *settings, sharded=sharded, flags=["--resume"])
    assert "resuming after update 3" in run.printed()[0] and not run.printed()[1]
    straight, again = world / "out", world / "again"
    names = [path.relative_to(straight) for path in sorted(straight.rglob("*.safetensors"))]
    spread = sharded and mode == "three networks"
    assert len(names) == 1 + 2 * 5 * (2 if spread else 1)
    for name in names:
        assert (straight / name).read_bytes() == (again / name).read_bytes(), name
    a, b = ([{**entry, "seconds": 0} for entry in metrics(path)] for path in (straight, again))
    assert a == b


@pytest.mark.parametrize("count", [1, 3])
def test_a_run_goes_on_with_another_number_of_processes(pair, count):
    mode, sharded, world = pair
    folder, settings = f"on_{count}", (*MODES[mode], *interrupted(world, f"on_{count}"))
    run = distill_on(count, world, *settings, "train.updates=3", sharded=sharded, flags=["--resume"])
    assert f"had 2 processes until update 3 and has {count} from here on" in run.printed()[0]
    # What was read is what was written: a run that is over is only exported.
    before = parts_of(world, 3)
    average, student = before["average"], tensors(world / folder / "student.safetensors")
    if mode == "three networks":
        assert equal(dict(average), dict(load_wan_transformer(world / folder / "student.safetensors").state_dict()))
    else:
        layer = "diffusion_model.blocks.0.self_attn.q.lora_A.weight"
        assert torch.equal(student[layer], average["blocks.0.attn1.to_q.down"])
    distill_on(count, world, *settings, "train.updates=4", sharded=sharded, flags=["--resume"])
    after = parts_of(world, 4, folder)
    for part in PARTS:
        assert before[part].keys() == after[part].keys() and not equal(before[part], after[part])
    steps = {name: value for name, value in after["student_optimiser"].items() if name.endswith(".step")}
    assert steps and all(value == 4 for value in steps.values())


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_accumulation_in_two_processes_trains_like_one_batch(pristine, alone, tmp_path, mode, sharded):
    world = copy_world(pristine, tmp_path)
    distill_on(2, world, *MODES[mode], EPS, "train.batch=1", "train.accumulation=2", sharded=sharded)
    ours, theirs, start = parts_of(world, 6), parts_of(alone[mode], 6), start_of(world, mode)
    for part in ("student", "fake"):
        assert distance(theirs[part], ours[part], start[part]) < TOLERANCE, part

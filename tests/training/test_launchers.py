"""The real torchrun and `accelerate launch`, with the shipped configurations, on two processes without a GPU."""

import re

import pytest

from launched import Launched
from training.run import CheckpointStore
from training_world import EPS, TOLERANCE, copy_world, distance, distill, metrics, tensors, tiny_wan

PARTS = ("student", "fake", "student_optimiser", "fake_optimiser")


@pytest.fixture(scope="module")
def alone(pristine, tmp_path_factory):
    """A world in which one process has trained with batch 4."""
    world = copy_world(pristine, tmp_path_factory.mktemp("one"))
    assert distill(world, EPS, "train.ema=null", "train.updates=3", "train.batch=4") == 0
    return world


def assert_trained_alike(world, alone):
    """The checkpoint after update 3 is that of one process, in whichever parts it was written."""
    ours, theirs = (
        CheckpointStore(folder / "out" / "checkpoints", keep=2).load(3, PARTS).parts for folder in (world, alone)
    )
    for role in ("student", "fake"):
        found = distance(dict(theirs[role]), dict(ours[role]), tiny_wan().state_dict())
        print(f"{role}: {found:.2g} of the way that the weights have gone")
        assert found < TOLERANCE
    for one, two in zip(metrics(alone / "out"), metrics(world / "out")):
        assert one.keys() == two.keys() and one["stage"] == two["stage"]
        assert one["loss_student"] == pytest.approx(two["loss_student"], rel=1e-3)


@pytest.mark.parametrize("command", ["ddp", "fsdp2"])
def test_accelerate_launch_trains_like_one_process(world, alone, command):
    with Launched(command, world, EPS, "train.ema=null", "train.updates=3", "train.batch=2") as run:
        assert run.code() == 0, run.printed()
    assert "an update is 4 samples: batch 2 x accumulation 1 x processes 2" in run.printed()
    assert_trained_alike(world, alone)
    assert len(list((world / "out" / "checkpoints" / "step_000003").iterdir())) == 1 + 4 * (1 + (command == "fsdp2"))
    student, expected = (tensors(folder / "out" / "student.safetensors") for folder in (world, alone))
    assert student.keys() == expected.keys() and len(metrics(world / "out")) == 3


def test_torchrun_trains_like_one_process_until_a_killed_process_ends_it(world, alone):
    endless = ("train.updates=100000", "output.keep=100000")
    with Launched("torchrun", world, EPS, "train.ema=null", "train.batch=2", *endless) as run:
        run.wait_for_update(world / "out", 4)
        run.kill(1)
        assert run.code() == 1, run.printed()  # torchrun's own code, whatever its processes end with
    (line,) = run.errors()
    assert "process 1 of 2: another process of this run is gone" in line and "--resume" in line
    assert "Signal 9 (SIGKILL)" in run.printed() and not (world / "out" / "student.safetensors").exists()
    assert_trained_alike(world, alone)


def test_bad_input_is_one_line_under_torchrun_too(world):
    with Launched("torchrun", world, "train.btach=2") as run:
        assert run.code() == 1, run.printed()
    (line,) = run.errors()
    assert "unknown key 'train.btach'" in line and re.search(r"exitcode\s*: 2", run.printed())
    assert not (world / "out").exists()

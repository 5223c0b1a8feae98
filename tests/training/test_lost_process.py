"""What goes wrong in one process of several stops them all, with one message and within a bound."""

import signal

import pytest
import torch

from process_world import Run
from training.draws import PromptOrder
from training.prompts import write_prompt_cache
from training_world import PROMPTS, TEXT_DIM, distill, metrics

LONG = ("train.updates=100000", "output.keep=100000")


def the_error(run):
    """The one error line of a run, which the first process has printed; no process shows a traceback."""
    first, *others = run.errors()
    assert len(first) == 1 and not any(others), run.printed()
    assert not any("Traceback" in text for text in run.printed())
    return first[0]


def test_bad_input_of_one_process_ends_all(world):
    run = Run(2, world, each={1: [f"backbone.vae={world}/none.safetensors"]})
    assert run.codes() == [2, 2]
    assert "none.safetensors" in the_error(run) and not (world / "out").exists()


def test_another_configuration_in_one_process_is_refused(world):
    run = Run(2, world, each={1: ["loss.cfg=3.0"]})
    assert run.codes() == [2, 2]
    assert "process 2 of 2 has another configuration than the first one" in the_error(run)
    assert not (world / "out").exists()


def test_a_checkpoint_that_one_process_does_not_see_is_told_as_such(world):
    assert distill(world, "train.updates=3") == 0
    run = Run(2, world, flags=["--resume"], each={1: [f"output.folder={world}/elsewhere"]})
    assert run.codes() == [2, 2]
    line = the_error(run)
    assert "process 2 of 2 does not see" in line and "elsewhere" in line and "a disk that all machines share" in line


@pytest.mark.parametrize("sharded", [False, True])
def test_a_loss_of_one_process_that_is_no_number_ends_all(world, sharded):
    # The second sample of the first update is the second process's.
    first, second = PromptOrder(sorted(PROMPTS), 0).take(0, 2)
    generator = torch.Generator().manual_seed(1)
    embeddings = {text: torch.randn(4, TEXT_DIM, generator=generator) for text in ("", *PROMPTS)}
    embeddings[second].fill_(1e38)  # a number, which the network makes too large for one
    write_prompt_cache(world / "prompts.safetensors", embeddings, encoder="toy", dtype=torch.float32)
    run = Run(2, world, "train.batch=1", sharded=sharded)
    assert run.codes() == [1, 1]
    line = the_error(run)
    assert "update 1: the fake score's loss is " in line and f"for the batch of 1 prompts {second!r}" in line
    assert first not in line and not (world / "out" / "metrics.jsonl").exists()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_full_disk_of_one_process_ends_all_and_spares_the_last_checkpoint(world, sharded):
    run = Run(2, world, "train.updates=3", sharded=sharded)
    assert run.codes() == [0, 0], run.printed()
    before = {path: path.read_bytes() for path in (world / "out").rglob("*.safetensors")}
    # Where the networks are spread every process writes its part of a checkpoint; else the first one writes all.
    run = Run(2, world, sharded=sharded, flags=["--resume"], limits={int(sharded): 200_000})
    assert run.codes() == [1, 1]
    line = the_error(run)
    assert "could not be written" in line and "the last good checkpoint is" in line and "step_000003" in line
    assert before == {path: path.read_bytes() for path in (world / "out").rglob("*.safetensors")}
    assert [path.name for path in (world / "out" / "checkpoints").iterdir()] == ["step_000003"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(world, rank):
    run = Run(2, world, *LONG, "output.checkpoint_every=100000")
    run.wait_for_update(world / "out", 2)
    for _ in range(2):  # a launcher may well send it twice
        run.processes[rank]._popen._send_signal(signal.SIGTERM)
    assert run.codes() == [143, 143]
    reached = metrics(world / "out")[-1]["update"]
    assert [path.name for path in (world / "out" / "checkpoints").iterdir()] == [f"step_{reached:06d}"]
    first, second = run.printed()
    assert f"stopped by a signal after update {reached}" in first and not second


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_killed_process_takes_the_other_down_with_a_message(world, rank, sharded):
    run = Run(2, world, *LONG, sharded=sharded)
    run.wait_for_update(world / "out", 4)
    run.processes[rank].kill()
    codes = run.codes()  # within a bound
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 1)
    assert not run.errors()[rank]
    (line,) = run.errors()[1 - rank]
    assert f"process {2 - rank} of 2: another process of this run is gone" in line and "--resume" in line
    assert "Traceback" not in run.printed()[1 - rank]
    assert (world / "out" / "checkpoints" / "step_000003" / "state.json").is_file()

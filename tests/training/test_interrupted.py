"""Runs that are killed, stopped or run out of disk, as real processes."""

import shutil
import signal
import subprocess

import pytest
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launched import finished, one_error_line, record, start, wait_for_update
from training.distill import StopSignals, main
from training.record import Board
from training_world import write_world


@pytest.mark.parametrize("mode", ["three networks", "adapters"])
def test_kill_9_and_resume_give_the_run_that_was_never_killed(tmp_path, mode):
    config = write_world(tmp_path)
    config.write_text(config.read_text(encoding="utf-8").replace("three networks", mode), encoding="utf-8")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["--config", str(config), "--set", f"output.folder={straight}"]) == 0
    # The killed run is asked for many more updates, so that it is surely still running at its fourth.
    process = start(config, f"output.folder={killed}", "train.updates=100000", "output.keep=100000")
    wait_for_update(killed, 4, process)
    process.send_signal(signal.SIGKILL)
    assert finished(process)[0] == -signal.SIGKILL
    for path in (killed / "checkpoints").iterdir():  # however far it came, go on from update 3
        if path.name != "step_000003":
            shutil.rmtree(path)
    code, output = finished(start(config, f"output.folder={killed}", flags=["--resume"]))
    assert code == 0 and "resuming after update 3" in output
    assert (straight / "student.safetensors").read_bytes() == (killed / "student.safetensors").read_bytes()
    assert record(straight) == record(killed) and len(record(killed)) == 6


def test_ctrl_c_saves_and_exits(tmp_path):
    config = write_world(tmp_path)
    process = start(config, "train.updates=100000", "output.checkpoint_every=100000")
    wait_for_update(tmp_path / "out", 2, process)
    process.send_signal(signal.SIGINT)
    code, output = finished(process)
    assert code == 130 and "Traceback" not in output
    reached = record(tmp_path / "out")[-1]["update"]
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == [f"step_{reached:06d}"]
    assert f"after update {reached}" in output and "--resume" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_and_the_second_acts(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number and signals.exit_code == 128 + number
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_a_full_disk_is_one_line_and_spares_the_last_checkpoint(tmp_path):
    config = write_world(tmp_path)
    assert main(["--config", str(config), "--set", "train.updates=3"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}
    code, output = finished(start(config, flags=["--resume"], limit=200_000))
    line = one_error_line(output)
    assert code == 1 and "could not be written" in line and "File too large" in line
    assert "the last good checkpoint is" in line and "step_000003" in line
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step_000003"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk can only be mounted by root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_is_one_line(tmp_path, small_disk):
    config = write_world(tmp_path)  # a checkpoint takes 5 MB
    overrides = ("output.trackers=[tensorboard]", f"output.folder={small_disk}/out", "output.checkpoint_every=2")
    code, output = finished(start(config, *overrides))
    line = one_error_line(output)
    assert code == 1 and "No space left" in line and "there is no earlier checkpoint" in line
    assert len(record(small_disk / "out")) == 2 and not list((small_disk / "out" / "checkpoints").iterdir())


def test_a_full_board_is_a_warning_and_the_run_goes_on(tmp_path, caplog):
    (tmp_path / "board").write_text("a file in the folder's place")
    board = Board(tmp_path / "board", first=1)
    board.add({"loss": 1.0}, 1)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "no further figures" in caplog.text


def test_the_board_of_a_resumed_run_reads_as_one(tmp_path):
    for first, value in ((1, 1.0), (3, 2.0)):
        board = Board(tmp_path / "board", first=first)
        for update in range(first, 5):
            board.add({"loss": value * update}, update)
        board.path.rename(board.path.with_name(f"events.out.tfevents.{first}"))
    events = EventAccumulator(str(tmp_path / "board"), purge_orphaned_data=True).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 6.0), (4, 8.0)]


def test_the_command_runs_from_any_folder_without_installation(tmp_path):
    config = write_world(tmp_path)
    code, output = finished(start(config, "train.batch=0"))
    assert code == 2 and "train.batch" in one_error_line(output)

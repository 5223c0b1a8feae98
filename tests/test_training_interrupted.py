"""Runs that are killed, stopped or run out of disk, as real processes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_world import write_world

SCRIPT = Path(__file__).parent.parent / "training" / "distill.py"


def start(config, *overrides, flags=(), limit=None):
    """distill.py as a process of its own; ``limit``: no file may grow beyond so many bytes, as on a full disk."""
    sets = [part for override in overrides for part in ("--set", override)]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--config", str(config), *sets, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=config.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None,
    )


def finished(process):
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def wait_for_update(folder, update, process):
    """Wait until the record has reached an update; the process is still running then."""
    path = folder / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if len(lines) >= update:
            return
        time.sleep(0.01)
    raise AssertionError("the run made no progress")


def record(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def one_error_line(output):
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in output, output
    return lines[0]


def test_kill_9_and_resume_give_the_run_that_was_never_killed(tmp_path):
    config = write_world(tmp_path)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    first = start(config, f"output.folder={straight}")
    # The killed run is asked for many more updates, so that it is surely still running at its fourth.
    second = start(config, f"output.folder={killed}", "train.updates=100000")
    wait_for_update(killed, 4, second)
    second.send_signal(signal.SIGKILL)
    assert finished(second)[0] == -signal.SIGKILL
    assert finished(first)[0] == 0
    # Go back to the state right after the checkpoint of update 3, however far the kill came later.
    for path in (killed / "checkpoints").iterdir():
        if path.name != "step_000003" and not path.name.startswith("."):
            for part in path.iterdir():
                part.unlink()
            path.rmdir()
    assert (killed / "checkpoints" / "step_000003").is_dir(), "killed after too many updates for keep"
    code, output = finished(start(config, f"output.folder={killed}", flags=["--resume"]))
    assert code == 0 and "resuming after update 3" in output
    assert (straight / "student.safetensors").read_bytes() == (killed / "student.safetensors").read_bytes()
    assert record(straight) == record(killed) and len(record(killed)) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits(tmp_path, number):
    config = write_world(tmp_path)
    process = start(config, "train.updates=100000", "output.checkpoint_every=100000")
    wait_for_update(tmp_path / "out", 2, process)
    process.send_signal(number)
    code, output = finished(process)
    assert code == 128 + number and "Traceback" not in output
    reached = record(tmp_path / "out")[-1]["update"]
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == [f"step_{reached:06d}"]
    assert f"after update {reached}" in output and "--resume" in output


def test_a_full_disk_is_one_line_and_spares_the_last_checkpoint(tmp_path):
    config = write_world(tmp_path)
    code, _ = finished(start(config, "train.updates=3"))
    assert code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}
    code, output = finished(start(config, flags=["--resume"], limit=200_000))
    line = one_error_line(output)
    assert code == 1 and "could not be written" in line and "File too large" in line
    assert "the last good checkpoint is" in line and "step_000003" in line
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step_000003"]


def test_the_command_runs_from_any_folder_without_installation(tmp_path):
    config = write_world(tmp_path)
    code, output = finished(start(config, "train.batch=0"))
    assert code == 2 and "train.batch" in one_error_line(output)

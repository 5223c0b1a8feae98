"""Two runs that want one output folder: one has it, the other is told so in a line and changes nothing."""

import signal
import subprocess
import sys
from pathlib import Path

from launched import finished, record, start, wait_for_update
from training.run import LOCK, RunLock
from training_world import distill, refused, write_world

HOLD = "import sys, training.run as run; run.RunLock(sys.argv[1]).__enter__(); print('held', flush=True); input()"


def test_a_run_that_another_program_resumes_goes_on_alone(tmp_path, capsys):
    config = write_world(tmp_path)
    first = start(config, "train.updates=100000", "output.checkpoint_every=2", "output.keep=100000")
    wait_for_update(tmp_path / "out", 3, first)
    assert distill(tmp_path, "train.updates=100000", "output.checkpoint_every=2", "output.keep=100000") == 2
    refused(capsys, 2, "already holds a run", "--resume")
    resumed = ("train.updates=100000", "output.checkpoint_every=2", "output.keep=100000")
    assert distill(tmp_path, *resumed, flags=["--resume"]) == 2
    refused(capsys, 2, "another run is writing into the output folder", "output.folder")
    reached = len(record(tmp_path / "out"))
    wait_for_update(tmp_path / "out", reached + 2, first)
    first.send_signal(signal.SIGINT)
    assert finished(first)[0] == 130
    updates = [entry["update"] for entry in record(tmp_path / "out")]
    assert updates == list(range(1, len(updates) + 1))


def test_a_new_run_waits_for_nobody(tmp_path, capsys):
    """Refused while a run that has written nothing yet holds the folder; not when that one is gone."""
    write_world(tmp_path)
    out = tmp_path / "out"
    with RunLock(out):
        assert distill(tmp_path) == 2
        refused(capsys, 2, "another run is writing")
        assert [path.name for path in out.iterdir()] == [LOCK]
    assert distill(tmp_path) == 0


def test_a_killed_process_leaves_no_lock(tmp_path):
    root = Path(__file__).parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "out"],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.communicate()
    with RunLock(tmp_path / "out"):
        pass

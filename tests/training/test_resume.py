"""Runs that are killed, stopped, resumed, run out of disk, or use one folder at the same time."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from launched import finished
from process_world import Run, distill_on
from rmd_core.files import save_safetensors
from training.backbones.wan import WanBackbone
from training.distill import StopSignals
from training.plot_run import grids
from training.prompts import write_prompt_cache
from training.run import LOCK, CheckpointStore, lock_folder
from training_world import (
    PROMPTS,
    TEXT_DIM,
    TIMED,
    copy_world,
    distill,
    metrics,
    refused,
    tensors,
    tiny_wan,
    write_world,
)


@pytest.fixture(scope="module")
def interrupted(pristine, tmp_path_factory):
    """A world with a run that has reached update 3 of 6."""
    folder = copy_world(pristine, tmp_path_factory.mktemp("interrupted"))
    assert distill(folder, "train.updates=3") == 0
    return folder


@pytest.fixture
def half(interrupted, tmp_path):
    return copy_world(interrupted, tmp_path)


def record(folder):
    """The record of a run without its times."""
    return [{k: v for k, v in entry.items() if k not in TIMED} for entry in metrics(folder)]


def contents(folder):
    """The bytes of a run's student and of all parts of its checkpoints, by name."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("teacher", "the teacher"),
        ("cache", "the prompt cache"),
        ("prompts", "the list of prompts"),
    ],
)
def test_resuming_on_changed_data_is_refused(half, capsys, what, words):
    if what == "teacher":
        WanBackbone().export(tiny_wan(seed=5), half / "teacher.safetensors", dtype=torch.float32)
    elif what == "cache":
        embeddings = {text: torch.ones(4, TEXT_DIM) for text in ("", *PROMPTS)}
        write_prompt_cache(half / "prompts.safetensors", embeddings, encoder="toy")
    else:
        embeddings = {text: torch.ones(4, TEXT_DIM) for text in ("", *PROMPTS, "a new one")}
        write_prompt_cache(half / "prompts.safetensors", embeddings, encoder="toy")
    before = {path: path.read_bytes() for path in (half / "out").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert distill(half, flags=["--resume"]) == refused(capsys, 2, words, "changed since the run")
    assert before == {path: path.read_bytes() for path in (half / "out").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("metrics.jsonl", lambda text: text.replace(b"{", b"\xff", 1), "metrics.jsonl, line 1: damaged"),
        ("metrics.jsonl", lambda text: text.replace(b'"update": 2', b'"update": "x"'), "line 2: damaged"),
        ("run.json", lambda text: text.replace(b'"data"', b'"date"'), "run.json is damaged"),
        ("run.json", lambda text: text.replace(b'"version": 2', b'"version": 1'), "reads version 2"),
        ("config.yaml", lambda text: b"\xff", None),
        ("checkpoints/step_000003/state.json", lambda text: b"{", "state.json is damaged"),
        ("checkpoints/step_000003/state.json", lambda text: b'{"version": 1, "update": 3}', "state.json is damaged"),
        (
            "checkpoints/step_000003/state.json",
            lambda text: text.replace(b'"average",', b""),
            "it is of update 3",
        ),
        ("checkpoints/step_000003/state.json", lambda text: text.replace(b'n": 1', b'n": 9'), "version 9"),
        ("checkpoints/step_000003/fake.safetensors", lambda text: text[:1000], "truncated"),
    ],
)
def test_damaged_files_of_a_run_are_named(half, capsys, name, change, words):
    path = half / "out" / name
    path.write_bytes(change(path.read_bytes()))
    capsys.readouterr()
    if words is None:
        assert distill(half, flags=["--resume"]) == 0
    else:
        assert distill(half, flags=["--resume"]) == refused(capsys, 2, words)


@pytest.mark.parametrize(
    ("part", "name", "words"),
    [
        ("student_optimiser", "a.b", "optimiser state belongs"),
        ("average", "a.b", "weight average belongs"),
        ("student", "a.b", "its student does not fit"),
    ],
)
def test_foreign_tensors_in_a_checkpoint_are_refused(half, capsys, part, name, words):
    path = half / "out" / "checkpoints" / "step_000003" / f"{part}.safetensors"
    save_safetensors(path, {**tensors(path), name: torch.zeros(3)})
    capsys.readouterr()
    assert distill(half, flags=["--resume"]) == refused(capsys, 2, words, "step_000003")


def test_a_last_line_that_was_cut_off_is_dropped(half):
    with open(half / "out" / "metrics.jsonl", "a") as file:
        file.write('{"update": 4, "loss_fa')
    assert distill(half, flags=["--resume"]) == 0
    assert [entry["update"] for entry in metrics(half / "out")] == [1, 2, 3, 4, 5, 6]


def test_what_decides_no_weights_may_change_on_resume(half):
    changes = (f"backbone.vae={half}/vae.safetensors", "backbone.gradient_checkpointing=true")
    assert distill(half, *changes, flags=["--resume"]) == 0


def test_a_run_of_an_older_version_keeps_its_names(half):
    """Its configuration has output.pictures, its images are in a folder of that name."""
    for path in (half / "config.yaml", half / "out" / "config.yaml"):
        text = path.read_text(encoding="utf-8")
        assert "images: 3" in text
        path.write_text(text.replace("images: 3", "pictures: 3"), encoding="utf-8")
    (half / "out" / "pictures").mkdir()
    assert distill(half, f"backbone.vae={half}/vae.safetensors", flags=["--resume"]) == 0
    assert not (half / "out" / "images").exists()
    ((update, path),) = grids(half / "out")
    assert update == 6 and Image.open(path).size == (2 * 64 + 2, 2 * 64 + 2)  # three images of 64 x 64


def test_a_finished_run_stays_as_it_is(half):
    assert distill(half, "train.updates=3", flags=["--resume"]) == 0
    before = contents(half / "out")
    assert distill(half, "train.updates=3", flags=["--resume"]) == 0
    assert before == contents(half / "out")


def test_retention_keeps_the_newest(tmp_path):
    store = CheckpointStore(tmp_path / "c", keep=2)
    for update in (5, 10, 15):
        store.save(update, {"a": {"x": torch.full((2,), float(update))}})
    assert store.updates() == [10, 15]
    latest = store.load(15, ["a"])
    assert latest.update == 15 and torch.equal(latest.parts["a"]["x"], torch.full((2,), 15.0))
    shutil.copytree(tmp_path / "c" / "step_000015", tmp_path / "c" / ".part-000020")  # what a kill leaves behind
    assert store.updates() == [10, 15]
    store.save(20, {"a": {}})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step_000015", "step_000020"]


@pytest.mark.parametrize("mode", ["three networks", "adapters"])
def test_kill_9_and_resume_give_the_run_that_was_never_killed(tmp_path, mode):
    config = write_world(tmp_path)
    config.write_text(config.read_text(encoding="utf-8").replace("three networks", mode), encoding="utf-8")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert distill(tmp_path, f"output.folder={straight}") == 0
    # The killed run is asked for many more updates, so that it is surely still running at its fourth.
    run = Run(1, tmp_path, f"output.folder={killed}", "train.updates=100000", "output.keep=100000")
    run.wait_for_update(killed, 4)
    run.processes[0].kill()
    assert run.codes() == [-signal.SIGKILL]
    for path in (killed / "checkpoints").iterdir():  # however far it came, go on from update 3
        if path.name != "step_000003":
            shutil.rmtree(path)
    run = distill_on(1, tmp_path, f"output.folder={killed}", flags=["--resume"])
    assert "resuming after update 3" in run.printed()[0]
    assert contents(straight) == contents(killed)
    assert record(straight) == record(killed) and len(record(killed)) == 6


def test_ctrl_c_saves_and_exits(tmp_path):
    write_world(tmp_path)
    run = Run(1, tmp_path, "train.updates=100000", "output.checkpoint_every=100000")
    run.wait_for_update(tmp_path / "out", 2)
    os.kill(run.processes[0].pid, signal.SIGINT)
    codes, (output,) = run.codes(), run.printed()
    assert codes == [130] and "Traceback" not in output
    reached = record(tmp_path / "out")[-1]["update"]
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == [f"step_{reached:06d}"]
    assert f"after update {reached}" in output and "--resume" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_and_the_second_acts(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_a_full_disk_is_one_line_and_spares_the_last_checkpoint(tmp_path):
    write_world(tmp_path)
    assert distill(tmp_path, "train.updates=3") == 0
    before = contents(tmp_path / "out")
    run = Run(1, tmp_path, flags=["--resume"], limits={0: 200_000})
    assert run.codes() == [1]
    line = run.error()
    assert "could not be written" in line and "File too large" in line
    assert "the last good checkpoint is" in line and "step_000003" in line
    assert before == contents(tmp_path / "out")
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
    write_world(tmp_path)  # a checkpoint takes 5 MB
    overrides = ("output.trackers=[tensorboard]", f"output.folder={small_disk}/out", "output.checkpoint_every=2")
    run = Run(1, tmp_path, *overrides)
    assert run.codes() == [1]
    line = run.error()
    assert "No space left" in line and "there is no earlier checkpoint" in line
    assert len(record(small_disk / "out")) == 2 and not list((small_disk / "out" / "checkpoints").iterdir())


def test_the_command_runs_from_any_folder_without_installation(tmp_path):
    code, output = finished(write_world(tmp_path), "train.batch=0")
    assert code == 2 and "error: " in output and "train.batch" in output and "Traceback" not in output


HOLD = """
import pathlib, sys, training.run
with training.run.lock_folder(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    input()
"""


def test_a_run_that_another_program_resumes_goes_on_alone(tmp_path, capsys):
    write_world(tmp_path)
    settings = ("train.updates=100000", "output.checkpoint_every=2", "output.keep=100000")
    first = Run(1, tmp_path, *settings)
    first.wait_for_update(tmp_path / "out", 3)
    assert distill(tmp_path, *settings) == 2
    refused(capsys, 2, "already contains a run", "--resume")
    assert distill(tmp_path, *settings, flags=["--resume"]) == 2
    refused(capsys, 2, "another run is writing into the output folder", "output.folder")
    reached = len(record(tmp_path / "out"))
    first.wait_for_update(tmp_path / "out", reached + 2)
    os.kill(first.processes[0].pid, signal.SIGINT)
    assert first.codes() == [130]
    updates = [entry["update"] for entry in record(tmp_path / "out")]
    assert updates == list(range(1, len(updates) + 1))


def test_a_new_run_waits_for_nobody(tmp_path, capsys):
    """Refused while a run that has written nothing yet holds the folder; not when that one is gone."""
    write_world(tmp_path)
    out = tmp_path / "out"
    with lock_folder(out):
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
    assert holder.stdout.readline() == "locked\n"
    holder.kill()
    holder.communicate()
    with lock_folder(tmp_path / "out"):
        pass

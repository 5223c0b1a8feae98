"""The record of a run and its trackers: who is asked for, who is absent, and that none of them can end a run."""

from importlib.util import find_spec

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rmd_core.errors import RMDError
from training.config import load_config
from training.record import Board, OutsideTracker, check_trackers, flat_settings, start_trackers
from training_world import distill, metrics, refused


class Recorder(GeneralTracker):
    """A tracker that keeps what it is given; its disk is full from update ``full`` on."""

    name = "recorder"
    requires_logging_directory = False

    def __init__(self, full=None):
        super().__init__(_blank=True)
        self.full = full
        self.kept = []

    def log(self, values, step, **_):
        if self.full is not None and step >= self.full:
            raise ValueError("the disk\nis full")
        self.kept.append((step, values))

    def finish(self):
        self.kept.append("finished")


def test_tensorboard_is_the_default_and_holds_what_the_record_holds(world):
    default = load_config(world / "config.yaml", ["output={folder: x}"]).output.trackers
    assert default == ("tensorboard",)
    assert distill(world, "output.trackers=[tensorboard]", "train.updates=2") == 0
    events = EventAccumulator(str(world / "out" / "tensorboard")).Reload()
    for name in ("loss_student", "loss_fake", "x0_std"):
        kept = [(event.step, event.value) for event in events.Scalars(name)]
        assert kept == [(e["update"], pytest.approx(e[name], rel=1e-6)) for e in metrics(world / "out")]


def test_a_run_without_trackers_has_its_record(world):
    assert distill(world, "output.trackers=[]", "train.updates=2") == 0
    assert len(metrics(world / "out")) == 2 and not (world / "out" / "tensorboard").exists()
    assert distill(world, "output.trackers=[tensorboard]", "train.updates=3", flags=["--resume"]) == 0
    events = EventAccumulator(str(world / "out" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss_fake")] == [3]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_an_absent_tracker_is_one_line_before_training(world, capsys, name):
    if find_spec(name):
        pytest.skip(f"{name} is installed")
    for flags in ([], ["--dry-run"]):
        code = distill(world, f"output.trackers=[tensorboard, {name}]", flags=flags)
        assert code == refused(capsys, 2, f"output.trackers: {name} is not installed; pip install {name}")
    assert not (world / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("output.tensorboard=true", "unknown key 'output.tensorboard'"),
        ("output.trackers=[aim]", "'output.trackers"),
        ("output.trackers=tensorboard", "'output.trackers'"),
        ("output.trackers=[tensorboard, tensorboard]", "each tracker once"),
    ],
)
def test_other_values_are_refused_in_one_line(world, capsys, change, words):
    assert distill(world, change) == refused(capsys, 2, words)


def test_an_outside_tracker_gets_every_update_and_the_end():
    recorder = Recorder()
    tracker = OutsideTracker(recorder)
    for update in (1, 2):
        tracker.add({"loss": update / 2}, update)
    tracker.finish()
    assert recorder.kept == [(1, {"loss": 0.5}), (2, {"loss": 1.0}), "finished"]


def test_an_outside_tracker_that_fails_is_one_warning(caplog):
    recorder = Recorder(full=2)
    tracker = OutsideTracker(recorder)
    for update in range(1, 5):
        tracker.add({"loss": 1.0}, update)
    tracker.finish()
    assert len(recorder.kept) == 1
    assert [record.getMessage() for record in caplog.records] == ["recorder: no further figures (the disk is full)"]


def test_what_is_started_is_what_is_named(world, tmp_path):
    config = load_config(world / "config.yaml", ["output.trackers=[tensorboard]"])
    (board,) = start_trackers(config, tmp_path, first=1)
    assert isinstance(board, Board)
    assert {"tensorboard", "wandb"} <= set(LOGGER_TYPE_TO_CLASS)
    with pytest.raises(RMDError, match="not installed"):
        check_trackers(["tensorboard", "no_such_tracker"])


def test_settings_are_numbers_and_texts(world):
    settings = flat_settings(load_config(world / "config.yaml").resolved())
    assert settings["train.batch"] == 3 and settings["plan.sizes"] == "[[4, 4], [8, 8]]"
    assert all(isinstance(value, (bool, int, float, str)) for value in settings.values())


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

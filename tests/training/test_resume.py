"""Resuming: the same run goes on, bit for bit; another run, changed data or damaged files are refused in one line."""

import shutil

import pytest
import torch

from rmd_core.files import save_safetensors
from training.backbones.wan import save_wan_transformer
from training.prompts import write_prompt_cache
from training.run import CheckpointStore
from training_world import PROMPTS, TEXT_DIM, copy_world, distill, metrics, refused, tensors, tiny_wan


@pytest.fixture(scope="module")
def interrupted(pristine, tmp_path_factory):
    """A world with a run that has reached update 3 of 6."""
    folder = copy_world(pristine, tmp_path_factory.mktemp("interrupted"))
    assert distill(folder, "train.updates=3") == 0
    return folder


@pytest.fixture
def half(interrupted, tmp_path):
    return copy_world(interrupted, tmp_path)


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
        save_wan_transformer(tiny_wan(seed=5), half / "teacher.safetensors", dtype=torch.float32)
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


def test_resume_repeats_an_uninterrupted_run_bit_for_bit(world):
    assert distill(world, f"output.folder={world}/straight") == 0
    assert distill(world, "train.updates=3") == 0
    assert distill(world, flags=["--resume"]) == 0
    a, b = world / "straight", world / "out"
    for name in (
        "student.safetensors",
        *(
            f"checkpoints/step_000006/{part}.safetensors"
            for part in ("student", "fake", "average", "student_optimiser", "fake_optimiser")
        ),
    ):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    drop = {"seconds"}
    assert [{k: v for k, v in e.items() if k not in drop} for e in metrics(a)] == [
        {k: v for k, v in e.items() if k not in drop} for e in metrics(b)
    ]
    assert distill(world, flags=["--resume"]) == 0  # a finished run stays as it is
    assert (a / "student.safetensors").read_bytes() == (b / "student.safetensors").read_bytes()


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

"""Whole runs of distill.py on a tiny random world: what a run writes, refuses, and how it stops."""

import json
import math

import pytest
import torch
from PIL import Image

from rmd_core.files import read_header, read_tensors, save_safetensors
from rmd_core.recipe import read_recipe
from training.backbones.wan import WanBackbone
from training.export import student_recipe
from training.networks import WeightAverage, make_networks
from training.parallel import Processes
from training.trainer import Trainer
from training_world import distill, equal, make_setup, metrics, refused, tensors, tiny_wan, write_world


def test_a_run_writes_student_record_images_and_checkpoints(world, capsys):
    sets = (f"backbone.vae={world}/vae.safetensors", "output.trackers=[tensorboard]", "output.keep=1")
    assert distill(world, *sets) == 0
    out = world / "out"
    record = metrics(out)
    assert [entry["update"] for entry in record] == list(range(7))
    for entry in record[1:]:
        assert {
            "loss_fake",
            "loss_student",
            "x0_mean",
            "x0_std",
            "x0_saturation",
            "lr_student",
            "seconds",
            "samples_per_second",
            "tflop_per_second",
        } <= entry.keys()
        assert all(math.isfinite(value) for value in entry.values())
    assert [entry["update"] for entry in record if "picture_saturation" in entry] == [0, 3, 6]
    assert record[1]["stage"] == 1  # warm-up
    images = sorted(path.name for path in (out / "images").iterdir())
    assert images == ["step_000000.png", "step_000003.png", "step_000006.png"]
    assert Image.open(out / "images" / images[0]).size == (2 * 64 + 2, 2 * 64 + 2)  # three images of 64 x 64
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_000006"]
    assert list((out / "tensorboard").iterdir())

    recipe, setup = read_recipe(out / "student.safetensors"), make_setup(world)
    assert recipe.plan().steps == setup.plan.steps and recipe.training_step == 6
    assert (recipe.upsampler, recipe.switch_noise, recipe.eta, recipe.cfg) == ("nearest", "exact", 0.5, 1.0)
    assert recipe.prompt_encoder == "toy" and recipe.base_model == "teacher" and recipe.architecture == "wan2.1"
    header = read_header(out / "student.safetensors")
    assert header.metadata["modelspec.resolution"] == "64x64" and "blocks.0.self_attn.q.weight" in header.tensors
    student = WanBackbone().load(out / "student.safetensors").state_dict()
    average = tensors(out / "checkpoints" / "step_000006" / "average.safetensors")
    assert equal(dict(student), average)
    assert not equal(average, tensors(out / "checkpoints" / "step_000006" / "student.safetensors"))
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize("split", ["1+3", "2+2", "4+0", "0+4"])
def test_the_recipe_rebuilds_the_plan(world, split):
    setup = make_setup(world, f"plan.split={split}")
    plan = student_recipe(setup, update=3).plan()
    for name in ("sigma", "height", "width", "next_sigma"):
        assert [getattr(s, name) for s in plan.steps] == pytest.approx([getattr(s, name) for s in setup.plan.steps]), (
            name
        )


@pytest.mark.parametrize(
    "plan", [("plan.split=4", "plan.sizes=[[8,8]]"), ("plan.split=1+1+2", "plan.sizes=[[4,4],[6,6],[8,8]]")]
)
def test_other_plans_train_by_the_same_configuration(world, plan):
    assert distill(world, *plan, "train.updates=2") == 0
    assert len(metrics(world / "out")) == 2


@pytest.mark.parametrize(
    "change",
    [
        "train.accumulation=2",
        "train.share_forward=false",
        "train.fake_steps=2",
        "train.ema=null",
        "train.precision=bfloat16",
        "backbone.gradient_checkpointing=true",
        "method.preset=official-current",
        "plan.frames=2",
        "loss.cfg=1.0",
    ],
)
def test_options_train_and_stay_finite(world, change):
    assert distill(world, change, "train.updates=2", "output.dtype=bfloat16") == 0
    assert all(math.isfinite(v) for entry in metrics(world / "out") for v in entry.values())
    before, after = tensors(world / "teacher.safetensors"), tensors(world / "out" / "student.safetensors")
    assert any(not torch.equal(before[name].bfloat16(), after[name]) for name in before)


def test_equal_weights_have_nothing_to_match_at_half_precision_either(world):
    settings = ("train.precision=bfloat16", "loss.cfg=1.0", "optimiser.fake_lr=1e-30", "train.updates=2")
    assert distill(world, *settings, "optimiser.weight_decay=0.0") == 0
    assert [entry["loss_student"] for entry in metrics(world / "out")] == [0.0, 0.0]


def test_only_what_should_move_moves(world):
    updates = ("train.updates=3", "train.fake_only_updates=2", "output.checkpoint_every=2")
    assert distill(world, *updates, "train.ema=null") == 0
    start, folder = tiny_wan().state_dict(), world / "out" / "checkpoints" / "step_000002"
    assert equal(dict(start), tensors(folder / "student.safetensors"))
    moved = tensors(folder / "fake.safetensors")
    assert all(not torch.equal(start[name], moved[name]) for name in start if "attn1.to_k.bias" not in name)
    assert not tensors(folder / "student_optimiser.safetensors") and "loss_student" not in metrics(world / "out")[0]


@pytest.mark.parametrize("decay", ["none", "linear", "cosine"])
def test_rates_rise_and_fall_as_configured(world, capsys, decay):
    settings = ("train.updates=4", "optimiser.lr_warmup=2", f"optimiser.lr_decay={decay}", "train.fake_only_updates=1")
    rates = ("optimiser.student_lr=1e-3", "optimiser.fake_lr=2e-3", "train.ema=null")
    assert distill(world, *settings, *rates, "output.checkpoint_every=3") == 0
    left = {
        "none": [1, 1, 1, 1],
        "linear": [1, 0.75, 0.5, 0.25],
        "cosine": [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)],
    }[decay]
    record = metrics(world / "out")
    assert [e["lr_fake"] for e in record] == pytest.approx([2e-3 * w * d for w, d in zip([0.5, 1, 1, 1], left)])
    assert [e["lr_student"] for e in record] == pytest.approx([1e-3 * w * d for w, d in zip([0, 0.5, 1, 1], left)])
    longer = (*settings, *rates, "train.updates=5")
    if decay == "none":
        assert distill(world, *longer, flags=["--resume"]) == 0
    else:  # the rates before would have been others
        assert distill(world, *longer, flags=["--resume"]) == refused(capsys, 2, "train.updates")


def test_rates_are_those_the_optimisers_step_with(world):
    """The first step of AdamW moves each weight by its rate, whatever its gradient."""
    moved = {}
    for name, warmup in (("whole", 0), ("tenth", 10)):
        exact = ("train.updates=1", "optimiser.eps=1e-30", "optimiser.weight_decay=0", "output.dtype=float32")
        run = ("train.ema=null", f"optimiser.lr_warmup={warmup}", f"output.folder={world}/{name}")
        assert distill(world, *exact, *run) == 0
        start, end = tiny_wan().state_dict(), tensors(world / name / "checkpoints" / "step_000001" / "fake.safetensors")
        moved[name] = torch.cat([(end[n] - start[n]).flatten().abs() for n in start])
    usual = moved["whole"] > 0
    assert torch.allclose(moved["tenth"][usual].median() * 10, moved["whole"][usual].median(), rtol=1e-2)


def test_accumulation_mixes_stages_and_an_older_run_says_that_it_did_not(world, caplog):
    accumulated = ("train.warmup_updates=0", "train.batch=1", "train.accumulation=4", "output.checkpoint_every=1")
    assert distill(world, *accumulated, "train.updates=3") == 0
    assert sum("stage" not in entry for entry in metrics(world / "out")) > 0
    assert distill(world, *accumulated, "train.updates=4", flags=["--resume"]) == 0
    assert "one stage for a whole update" not in caplog.text
    state = world / "out" / "checkpoints" / "step_000004" / "state.json"
    kept = json.loads(state.read_text())
    assert kept.pop("mixes_stages")
    state.write_text(json.dumps(kept))
    assert distill(world, *accumulated, "train.updates=5", flags=["--resume"]) == 0
    assert "one stage for a whole update until update 4" in caplog.text


def test_dry_run_prints_the_plan_and_writes_nothing(world, capsys):
    assert distill(world, flags=["--dry-run"]) == 0
    text = capsys.readouterr().out
    setup = make_setup(world)
    for step in setup.plan.steps:
        assert (
            f"{step.sigma:.5f}" in text and f"{step.timestep:.2f}" in text and f"{step.height} x {step.width}" in text
        )
    assert f"{sum(p.numel() for p in setup.teacher.parameters()):,}" in text and "forwards at 8x8" in text
    assert not (world / "out").exists()


def test_dry_run_tells_the_notes_of_plan_and_intervals(world, capsys):
    many = ("plan.steps=60", "plan.split=30+30")
    assert distill(world, *many, flags=["--dry-run"]) == 0
    text = capsys.readouterr().out
    notes = make_setup(world, *many).intervals.notes
    assert notes and all(f"note: {note}" in text for note in notes)


def test_processes_that_cannot_find_each_other_are_refused(world, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distill(world) == refused(capsys, 2, "2 processes are set", "torchrun")
    assert not (world / "out").exists()


def test_an_existing_folder_is_refused_and_left_alone(world, capsys):
    assert distill(world, "train.updates=1") == 0
    before = {path: path.read_bytes() for path in (world / "out").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert distill(world) == refused(capsys, 2, "already contains a run", "--resume")
    assert distill(world, "train.seed=1", flags=["--resume"]) == refused(capsys, 2, "train.seed: 0 there, 1 here")
    assert before == {path: path.read_bytes() for path in (world / "out").rglob("*") if path.is_file()}
    (world / "mine").mkdir()
    (world / "mine" / "thesis.txt").write_text("x")
    assert distill(world, f"output.folder={world}/mine") == refused(capsys, 2, "other files")
    assert distill(world, f"output.folder={world}/mine", flags=["--resume"]) == refused(capsys, 2, "no run to resume")
    assert distill(world, f"output.folder={world}/new", flags=["--resume"]) == refused(capsys, 2, "no run to resume")
    assert distill(world, f"output.folder={world}/mine/thesis.txt") == refused(capsys, 2, "is a file")
    assert [path.name for path in (world / "mine").iterdir()] == ["thesis.txt"] and not (world / "new").exists()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", "no such file"),
        ("nan", "'head.head.bias' holds values that are not finite"),
        ("key", "unknown key"),
        ("prompts", "is empty"),
        ("config", "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(world, capsys, what, words):
    base, overrides = world / "teacher.safetensors", []
    if what == "missing":
        overrides = [f"backbone.base={world}/none.safetensors"]
    elif what == "nan":
        broken, metadata = read_tensors(base)
        broken["head.head.bias"][0] = math.nan
        save_safetensors(base, broken, metadata)
    elif what == "key":
        overrides = ["train.btach=3"]
    elif what == "prompts":
        (world / "p.txt").write_text("")
        overrides = [f"prompts.file={world}/p.txt"]
    elif what == "config":
        (world / "config.yaml").unlink()
    assert distill(world, *overrides) == refused(capsys, 2, words)
    assert distill(world, *overrides, flags=["--dry-run"]) == refused(capsys, 2, words)
    assert not (world / "out").exists()


def test_ten_steps_without_a_number_end_the_run_and_name_step_batch_and_checkpoint(world, capsys):
    sets = ("optimiser.student_lr=1e30", "output.checkpoint_every=1", "train.updates=30", "train.ema=null")
    assert distill(world, *sets) == refused(capsys, 1, "update 11:", "prompts '", "last good checkpoint", "step_000001")
    record = metrics(world / "out")
    assert [entry.get("skipped", 0) for entry in record] == [0, *[2] * 9]
    assert all(math.isfinite(value) for entry in record for value in entry.values())
    assert not (world / "out" / "student.safetensors").exists()


def test_a_step_without_a_number_is_left_out(tmp_path):
    setup = make_setup(tmp_path, "train.updates=3")
    trainer = Trainer(setup, Processes(setup.config))
    trainer.update(1)
    before = {part: {n: t.clone() for n, t in own.items()} for part, own in trainer.networks.state().items()}
    whole, trainer.objective.embed = trainer.objective.embed, lambda prompts: {"text": torch.full((3, 4, 16), math.nan)}
    figures = trainer.update(2)
    assert figures["skipped"] == 2 and not {"loss_fake", "norm_student", "x0_std"} & figures.keys()
    assert all(equal(own, before[part]) for part, own in trainer.networks.state().items())
    trainer.objective.embed = whole
    assert "skipped" not in trainer.update(3)
    assert not equal(trainer.networks.state()["student"], before["student"])


def test_a_branch_goes_on_from_another_run_with_other_settings(world, capsys):
    assert distill(world, "train.updates=6") == 0
    branch = world / "branch"
    sets = (f"output.folder={branch}", "train.updates=8", "optimiser.student_lr=1e-12", "output.checkpoint_every=100")
    assert distill(world, *sets, flags=["--branch", str(world / "out")]) == 0
    assert [entry["update"] for entry in metrics(branch)] == [7, 8]
    before, after = (tensors(run / "checkpoints" / f"step_{n:06d}" / "student.safetensors")
                     for run, n in ((world / "out", 6), (branch, 8)))  # fmt: skip
    assert all(torch.allclose(after[name], before[name], atol=1e-9) for name in before)
    assert (branch / "checkpoints" / "step_000006").is_dir()  # so that it resumes by itself
    capsys.readouterr()
    code = distill(world, f"output.folder={world / 'third'}", flags=["--branch", str(world / "nothing")])
    assert code == refused(capsys, 2, "--branch", "there is no checkpoint")


def test_a_device_without_room_is_one_line_and_the_checkpoint_stays(world, capsys, monkeypatch):
    """The allocator really fails, in the fifth update."""
    update = Trainer.update
    monkeypatch.setattr(Trainer, "update", lambda self, n: update(self, n) if n < 5 else torch.empty(10**15))
    assert distill(world) == refused(capsys, 1, "the memory of cpu ran out", "--dry-run", "train.offload")
    monkeypatch.undo()
    assert distill(world, "train.offload=waiting", flags=["--resume"]) == 0


def test_a_student_that_does_not_fit_its_dtype_is_finished_with_another_one(world, capsys):
    half = ("optimiser.student_lr=7e4", "train.updates=1", "output.dtype=float16", "train.ema=null")
    assert distill(world, *half) == refused(capsys, 1, "does not fit into float16", "set output.dtype")
    assert not (world / "out" / "student.safetensors").exists()
    assert distill(world, *half[:2], "train.ema=null", "output.dtype=bfloat16", flags=["--resume"]) == 0
    assert (world / "out" / "student.safetensors").exists()


def test_weight_average_is_the_recursion():
    network = tiny_wan()
    average = WeightAverage(network, 0.9)
    name, parameter = next(iter(network.named_parameters()))
    expected = parameter.detach().clone()
    for value in (1.0, 2.0):
        with torch.no_grad():
            parameter.fill_(value)
        average.update(network)
        expected = 0.9 * expected + 0.1 * value
    assert torch.allclose(average.tensors[name], expected, atol=1e-6)
    with average.applied_to(network):
        assert torch.allclose(parameter, expected, atol=1e-6)
    assert bool((parameter == 2.0).all()) and torch.allclose(average.tensors[name], expected, atol=1e-6)


def test_a_student_starts_from_another_and_the_fake_score_from_the_teacher(tmp_path):
    write_world(tmp_path)
    start = tmp_path / "start.safetensors"
    WanBackbone().export(tiny_wan(seed=9), start, dtype=torch.float32)
    setup = make_setup(tmp_path, f"model.init_from={start}")
    networks = make_networks(setup, Processes(setup.config))
    parts = networks.state()
    assert equal(parts["student"], tiny_wan(seed=9).state_dict())
    assert equal(parts["fake"], setup.teacher.state_dict()) and equal(parts["average"], parts["student"])


def test_a_start_of_another_size_is_refused_in_one_line(tmp_path, capsys):
    write_world(tmp_path)
    WanBackbone().export(tiny_wan(layers=2), tmp_path / "start.safetensors", dtype=torch.float32)
    code = distill(tmp_path, f"model.init_from={tmp_path / 'start.safetensors'}")
    assert refused(capsys, code, "other layer sizes", "model.init_from") == 2


def test_the_record_has_the_fake_scores_loss_by_stage_and_seconds_by_phase(world):
    sets = ("train.batch=1", "train.accumulation=3", "train.warmup_updates=0", "output.checkpoint_every=2")
    assert distill(world, *sets) == 0
    sampler, mixed = make_setup(world, *sets).sampler(), False
    for entry in metrics(world / "out"):
        update = entry["update"]
        stages = [batch.stage + 1 for batch in sampler.batches(update, "fake-0", round_number=update - 1)]
        mixed |= len(set(stages)) > 1
        parts = [entry[f"loss_fake_stage_{stage}"] for stage in stages]
        assert entry["loss_fake"] == pytest.approx(sum(parts) / 3, rel=1e-5)
        assert {f"loss_fake_stage_{stage}" for stage in stages} == {n for n in entry if n.startswith("loss_fake_")}
        assert 0 < entry["seconds_fake"] + entry["seconds_student"] <= entry["seconds"]
        assert ("seconds_checkpoint" in entry) == (update in (3, 5))  # of the one before
    assert mixed

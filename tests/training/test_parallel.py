"""Runs in several processes: they train like one, agree before any goes on, and shard networks (FSDP2) exactly."""

import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from backbone_world import write_backbone_world
from launched import Launched
from process_world import Run, distill_on, on_each
from sharded_world import signalled
from training.backbones.wan import WanBackbone
from training.batches import PromptOrder
from training.networks import make_networks
from training.parallel import Processes
from training.prompts import write_prompt_cache
from training.run import CheckpointStore
from training_world import (
    EPS,
    PROMPTS,
    TEXT_DIM,
    TIMED,
    TOLERANCE,
    copy_world,
    distance,
    distill,
    equal,
    make_setup,
    metrics,
    tensors,
    tiny_wan,
)

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
    student, start = (WanBackbone().load(world / path) for path in ("out/student.safetensors", "teacher.safetensors"))
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
        for name in one.keys() - TIMED - {"x0_mean"}:
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
    a, b = (
        [{k: v for k, v in entry.items() if k not in TIMED} for entry in metrics(path)] for path in (straight, again)
    )
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
        assert equal(dict(average), dict(WanBackbone().load(world / folder / "student.safetensors").state_dict()))
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
def test_accumulation_in_two_processes_trains_like_in_one(pristine, tmp_path, mode, sharded):
    world, single = copy_world(pristine, tmp_path / "two"), copy_world(pristine, tmp_path / "one")
    accumulated = (*MODES[mode], EPS, "train.accumulation=2")
    distill_on(2, world, *accumulated, "train.batch=1", sharded=sharded)
    assert distill(single, *accumulated, "train.batch=2") == 0
    ours, theirs, start = parts_of(world, 6), parts_of(single, 6), start_of(world, mode)
    for part in ("student", "fake"):
        assert distance(theirs[part], ours[part], start[part]) < TOLERANCE, part


CONFIGS = Path(__file__).parents[2] / "training" / "configs" / "accelerate"
ADAPTERS = ("model.mode=adapters", "model.rank=3")


@pytest.mark.parametrize(
    "options",
    [
        ("backbone.gradient_checkpointing=true", "train.fake_steps=2"),
        ("train.share_forward=false", "plan.split=1+1+2", "plan.sizes=[[4,4],[6,6],[8,8]]"),
        (*ADAPTERS, "backbone.gradient_checkpointing=true", "train.fake_steps=2"),
        (*ADAPTERS, "train.share_forward=false", "plan.split=4", "plan.sizes=[[8,8]]", "output.merge=true"),
    ],
    ids=["three, recomputed", "three, apart", "adapters, recomputed", "adapters, apart, merged"],
)
def test_spread_networks_train_like_whole_ones(world, options):
    students = []
    for sharded in (False, True):
        folder = f"output.folder={world}/{sharded}"
        settings = ("train.batch=1", "train.updates=3", f"backbone.vae={world}/vae.safetensors", folder)
        distill_on(2, world, EPS, *settings, *options, sharded=sharded)
        students.append(tensors(world / str(sharded) / "student.safetensors"))
    whole, spread = students
    assert whole.keys() == spread.keys()
    assert all(torch.allclose(whole[name], spread[name], rtol=1e-5, atol=1e-6) for name in whole)
    a, b = (metrics(world / name) for name in ("False", "True"))
    assert [entry["update"] for entry in a] == [0, 1, 2, 3]
    for one, two in zip(a, b):
        assert one.keys() == two.keys()
        assert all(one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-6) for name in one.keys() - TIMED)
    assert len(list((world / "True" / "images").iterdir())) == 2
    if "output.merge=true" in options:
        moved = WanBackbone().load(world / "True" / "student.safetensors").state_dict()
        start = tiny_wan().state_dict()
        assert moved.keys() == start.keys()
        changed = [name for name in start if not torch.equal(start[name], moved[name])]
        assert len(changed) == 10 and all(name.endswith(".weight") for name in changed)


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["three", "adapters"])
def test_spread_networks_train_at_half_precision(world, mode):
    settings = ("train.precision=bfloat16", "train.batch=1", "train.updates=2", "backbone.gradient_checkpointing=true")
    distill_on(2, world, *mode, *settings, sharded=True)
    record = metrics(world / "out")
    assert all(torch.isfinite(torch.tensor(value)) for entry in record for value in entry.values())
    assert all(entry["norm_student"] > 0 and entry["norm_fake"] > 0 for entry in record)


@pytest.mark.parametrize(
    ("name", "options"),
    [("sdxl", ADAPTERS), ("pixart_sigma", ()), ("sd3", ())],
    ids=["SDXL, adapters", "PixArt, three", "SD3.5, three"],
)
def test_spread_networks_of_every_family_train_like_whole_ones(tmp_path, name, options):
    write_backbone_world(name, tmp_path)
    students = []
    for sharded in (False, True):
        settings = ("train.batch=1", "train.updates=2", f"output.folder={tmp_path}/{sharded}")
        distill_on(2, tmp_path, EPS, *settings, *options, sharded=sharded)
        students.append(tensors(tmp_path / str(sharded) / "student.safetensors"))
    whole, spread = students
    assert whole.keys() == spread.keys()
    apart = torch.cat([(whole[key] - spread[key]).flatten() for key in whole]).square().mean().sqrt().item()
    way = 2 * 1e-3  # about what AdamW moves a weight in two updates
    print(f"{name}, {' '.join(options) or 'three networks'}: {apart / way:.1e} of the way that the weights have gone")
    assert apart < TOLERANCE * way


def test_the_shipped_launch_configurations_are_what_accelerate_reads():
    ddp, fsdp2 = (load_config_from_file(str(CONFIGS / f"{name}.yaml")) for name in ("ddp", "fsdp2"))
    assert (ddp.distributed_type, fsdp2.distributed_type) == (DistributedType.MULTI_GPU, DistributedType.FSDP)
    assert fsdp2.fsdp_config["fsdp_version"] == 2 and not ddp.fsdp_config
    assert not ddp.use_cpu and not fsdp2.use_cpu


def test_a_dry_run_of_several_processes_tells_their_batch_once(world):
    run = Run(2, world, "train.accumulation=4", flags=["--dry-run"])
    assert run.codes() == [0, 0]
    first, second = run.printed()
    assert "batch       3 x 4 x 2 = 24 samples an update" in first and not second and not (world / "out").exists()


@pytest.fixture(scope="module")
def short(pristine, tmp_path_factory):
    """A world in which one process has trained with batch 4, for three updates."""
    world = copy_world(pristine, tmp_path_factory.mktemp("one"))
    assert distill(world, EPS, "train.ema=null", "train.updates=3", "train.batch=4") == 0
    return world


def assert_trained_alike(world, short):
    """The checkpoint after update 3 is that of one process, in whichever parts it was written."""
    parts = [part for part in PARTS if part != "average"]
    ours, theirs = (
        CheckpointStore(folder / "out" / "checkpoints", keep=2).load(3, parts).parts for folder in (world, short)
    )
    for role in ("student", "fake"):
        found = distance(dict(theirs[role]), dict(ours[role]), tiny_wan().state_dict())
        print(f"{role}: {found:.2g} of the way that the weights have gone")
        assert found < TOLERANCE
    for one, two in zip(metrics(short / "out"), metrics(world / "out")):
        assert one.keys() == two.keys() and one["stage"] == two["stage"]
        assert one["loss_student"] == pytest.approx(two["loss_student"], rel=1e-3)


@pytest.mark.parametrize("command", ["ddp", "fsdp2"])
def test_accelerate_launch_trains_like_one_process(world, short, command):
    with Launched(command, world, EPS, "train.ema=null", "train.updates=3", "train.batch=2") as run:
        assert run.code() == 0, run.printed()
    assert "an update is 4 samples: batch 2 x accumulation 1 x processes 2" in run.printed()
    assert_trained_alike(world, short)
    assert len(list((world / "out" / "checkpoints" / "step_000003").iterdir())) == 1 + 4 * (1 + (command == "fsdp2"))
    student, expected = (tensors(folder / "out" / "student.safetensors") for folder in (world, short))
    assert student.keys() == expected.keys() and len(metrics(world / "out")) == 3


def test_torchrun_trains_like_one_process_until_a_killed_process_ends_it(world, short):
    endless = ("train.updates=100000", "output.keep=100000")
    with Launched("torchrun", world, EPS, "train.ema=null", "train.batch=2", *endless) as run:
        run.wait_for_update(world / "out", 4)
        run.kill(1)
        assert run.code() == 1, run.printed()  # torchrun's own code, whatever its processes end with
    (line,) = run.errors()
    assert "process 1 of 2: another process of this run is gone" in line and "--resume" in line
    assert "Signal 9 (SIGKILL)" in run.printed() and not (world / "out" / "student.safetensors").exists()
    assert_trained_alike(world, short)


def test_bad_input_is_one_line_under_torchrun_too(world):
    with Launched("torchrun", world, "train.btach=2") as run:
        assert run.code() == 1, run.printed()
    (line,) = run.errors()
    assert "unknown key 'train.btach'" in line and re.search(r"exitcode\s*: 2", run.printed())
    assert not (world / "out").exists()


LONG = ("train.updates=100000", "output.keep=100000")


def test_bad_input_of_one_process_ends_all(world):
    run = Run(2, world, each={1: [f"backbone.vae={world}/none.safetensors"]})
    assert run.codes() == [2, 2]
    assert "none.safetensors" in run.error() and not (world / "out").exists()


def test_another_configuration_in_one_process_is_refused(world):
    run = Run(2, world, each={1: ["loss.cfg=3.0"]})
    assert run.codes() == [2, 2]
    assert "process 2 of 2 has a different configuration from process 1" in run.error()
    assert not (world / "out").exists()


def test_a_checkpoint_that_one_process_does_not_see_is_named(world):
    assert distill(world, "train.updates=3") == 0
    run = Run(2, world, flags=["--resume"], each={1: [f"output.folder={world}/elsewhere"]})
    assert run.codes() == [2, 2]
    line = run.error()
    assert "process 2 of 2 does not see" in line and "elsewhere" in line and "a disk that all machines share" in line


@pytest.mark.parametrize("sharded", [False, True])
def test_a_loss_of_one_process_that_is_no_number_is_left_out_by_all(world, sharded):
    # The second sample of the first update is the second process's.
    first, second = PromptOrder(sorted(PROMPTS), 0).take(0, 2)
    generator = torch.Generator().manual_seed(1)
    embeddings = {text: torch.randn(4, TEXT_DIM, generator=generator) for text in ("", *PROMPTS)}
    embeddings[second].fill_(1e38)  # a number, which the network makes too large for one
    write_prompt_cache(world / "prompts.safetensors", embeddings, encoder="toy", dtype=torch.float32)
    run = Run(2, world, "train.batch=1", "train.updates=1", sharded=sharded)
    assert run.codes() == [0, 0]
    (entry,) = metrics(world / "out")
    assert entry["skipped"] == 2 and "loss_fake" not in entry and "norm_fake" not in entry
    assert equal(tensors(world / "out" / "student.safetensors"), tensors(world / "teacher.safetensors"))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_full_disk_of_one_process_ends_all_and_spares_the_last_checkpoint(world, sharded):
    run = Run(2, world, "train.updates=3", sharded=sharded)
    assert run.codes() == [0, 0], run.printed()
    before = {path: path.read_bytes() for path in (world / "out").rglob("*.safetensors")}
    # Where the networks are spread every process writes its part of a checkpoint; else the first one writes all.
    run = Run(2, world, sharded=sharded, flags=["--resume"], limits={int(sharded): 200_000})
    assert run.codes() == [1, 1]
    line = run.error()
    assert "could not be written" in line and "the last good checkpoint is" in line and "step_000003" in line
    assert before == {path: path.read_bytes() for path in (world / "out").rglob("*.safetensors")}
    assert [path.name for path in (world / "out" / "checkpoints").iterdir()] == ["step_000003"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(world, rank):
    run = Run(2, world, *LONG, "output.checkpoint_every=100000")
    run.wait_for_update(world / "out", 2)
    for _ in range(2):  # a launcher may well send it twice
        run.processes[rank]._popen._send_signal(signal.SIGTERM)
    assert run.codes() == [143, 143], run.printed()
    reached = metrics(world / "out")[-1]["update"]
    assert [path.name for path in (world / "out" / "checkpoints").iterdir()] == [f"step_{reached:06d}"]
    first, second = run.printed()
    assert f"stopped by a signal after update {reached}" in first and not second


@pytest.mark.parametrize("place", ["agree", "_speed", "_record"])  # while all agree whether to stop, or just after
def test_a_signal_at_any_time_stops_all_after_the_same_update(world, place):
    assert on_each(2, signalled, world, place) == [(143, 3)] * 2
    assert [path.name for path in (world / "out" / "checkpoints").iterdir()] == ["step_000003"]


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

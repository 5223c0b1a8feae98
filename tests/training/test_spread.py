"""Networks spread over two processes (FSDP2) train like whole ones under every option that changes their calls."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from backbone_world import write_backbone_world
from process_world import Run, distill_on
from training.backbones.wan import load_wan_transformer
from training_world import EPS, TOLERANCE, metrics, tensors, tiny_wan

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
        assert all(one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-6) for name in one.keys() - {"seconds"})
    assert len(list((world / "True" / "pictures").iterdir())) == 2
    if "output.merge=true" in options:
        moved = load_wan_transformer(world / "True" / "student.safetensors").state_dict()
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

"""Adapters on one frozen base: who moves, who sees what, resuming, and the files that come out."""

import copy

import pytest
import torch

from rmd_core.errors import RMDError
from rmd_core.recipe import read_recipe
from training.backbones.wan import WanBackbone
from training.lora import AdaptedNetwork
from training.lora_files import native_factors
from training_world import (
    TARGETS,
    adapted,
    distill,
    equal,
    gradients,
    make_objective,
    make_setup,
    metrics,
    refused,
    tensors,
    tiny_wan,
)

ADAPTERS = ("model.mode=adapters", "model.rank=3", "model.alpha=1.5")


def inputs(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, 16, 1, 8, 8, generator=generator),
        torch.tensor([900.0, 400.0]),
        torch.randn(2, 5, 16, generator=generator),
    )


def out(network):
    return network(*inputs(), return_dict=False)[0]


def test_adapters_start_without_effect_and_from_the_seed():
    plain, before = out(tiny_wan(layers=2)), torch.get_rng_state()
    base = adapted(moved=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(out(base.with_adapter(name)), plain) for name in ("student", "fake", None))
    again, other = adapted(moved=False), adapted(moved=False, seed=1)
    for name in ("student", "fake"):
        ours = base.adapters[name].state_dict()
        assert equal(ours, again.adapters[name].state_dict()) and not equal(ours, other.adapters[name].state_dict())
    down = base.adapters["student"].state_dict()["blocks.1.attn2.to_k.down"]
    assert down.shape == (3, 128) and 0.9 / 128**0.5 < down.abs().max() <= 1 / 128**0.5
    assert not equal(base.adapters["student"].state_dict(), base.adapters["fake"].state_dict())


def test_each_role_sees_its_own_adapter_and_the_teacher_none():
    base, plain = adapted(), tiny_wan(layers=2)
    assert torch.equal(out(base.with_adapter(None)), out(plain))
    weights = dict(plain.named_parameters())
    for name in ("student", "fake"):
        merged = copy.deepcopy(plain)
        for layer, factors in base.factors(name).items():
            weight = dict(merged.named_parameters())[f"{layer}.weight"]
            weight.data += factors.alpha / 3 * factors.up @ factors.down
        expected = out(merged)
        assert (out(base.with_adapter(name)) - expected).norm() < 1e-5 * expected.norm()
        assert (expected - out(plain)).norm() > 0.02 * expected.norm()
        again = base.merged(name, dtype=torch.float32)
        assert type(again) is type(plain) and (out(again) - expected).norm() < 1e-6 * expected.norm()
        assert again.state_dict().keys() == weights.keys()


@pytest.mark.parametrize("targets", [("to_q", "to_nowhere"), ("norm2",), ("to_q", "")])
def test_wrong_targets_are_named(targets):
    with pytest.raises(RMDError, match="model.targets") as caught:
        AdaptedNetwork(tiny_wan(), ("student",), rank=2, alpha=2.0, targets=targets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_three_separate_networks(tmp_path, share, checkpointing):
    setup = make_setup(tmp_path, "train.warmup_updates=0", "train.batch=3")
    ours, apart = make_objective(setup), make_objective(setup)
    base = adapted(network=copy.deepcopy(setup.teacher))
    if checkpointing:
        base.enable_gradient_checkpointing()
    ours.student, ours.fake, ours.teacher = (base.with_adapter(name) for name in ("student", "fake", None))
    single = {name: adapted(network=copy.deepcopy(setup.teacher)) for name in ("student", "fake")}
    apart.student, apart.fake = (single[name].with_adapter(name) for name in ("student", "fake"))
    sampler, stages = setup.sampler(), set()
    for update in range(1, 9):
        batch = sampler.batch(update, "fake-0", round_number=0)
        stages.add(batch.stage)
        later = sampler.other_levels(batch, update, "student")
        found = []
        for objective, fake, student in (
            (ours, base.adapters["fake"], base.adapters["student"]),
            (apart, single["fake"].adapters["fake"], single["student"].adapters["student"]),
        ):
            for adapter in (fake, student):
                for parameter in adapter.parameters():
                    parameter.grad = None
            _, samples = objective.fake_phase([batch], share=share)
            fakes = gradients(fake)
            assert fakes and not gradients(student)
            objective.student_phase([later], samples)
            assert equal(gradients(fake), fakes)
            found.append((fakes, gradients(student)))
        for a, b in zip(*found):
            assert len(a) == 2 * 10 and a.keys() == b.keys()
            assert all(torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-9) for name in a)
            assert all(gradient.abs().max() > 0 for name, gradient in a.items() if "attn1.to_k" not in name)
        assert all(parameter.grad is None for parameter in setup.teacher.parameters())
    assert stages == {0, 1}


def test_only_the_adapter_of_the_phase_moves(world):
    updates = ("train.updates=3", "train.fake_only_updates=2", "output.checkpoint_every=2")
    assert distill(world, *ADAPTERS, *updates, "train.ema=null") == 0
    folder = world / "out" / "checkpoints" / "step_000002"
    start = adapted(network=tiny_wan(), moved=False).adapters
    assert equal(start["student"].state_dict(), tensors(folder / "student.safetensors"))
    assert not tensors(folder / "student_optimiser.safetensors")
    moved = tensors(folder / "fake.safetensors")
    changed = [name for name, tensor in start["fake"].state_dict().items() if not torch.equal(tensor, moved[name])]
    assert len(changed) == len(moved) == 20
    assert sorted(path.stem for path in folder.iterdir()) == [
        "fake",
        "fake_optimiser",
        "state",
        "student",
        "student_optimiser",
    ]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000  # the base is not in it


@pytest.mark.parametrize(
    "change",
    [
        "train.accumulation=2",
        "train.share_forward=false",
        "train.fake_steps=2",
        "train.ema=null",
        "train.precision=bfloat16",
        "model.base_dtype=bfloat16",
        "model.targets=[to_q, ffn.net.2]",
        "model.alpha=null",
        "backbone.gradient_checkpointing=true",
        "method.preset=official-current",
        "plan.frames=2",
        "loss.cfg=1.0",
        "output.merge=true",
    ],
)
def test_options_train_and_stay_finite(world, change):
    assert distill(world, *ADAPTERS, change, "train.updates=2") == 0
    record = metrics(world / "out")
    assert all(torch.isfinite(torch.tensor(v)) for entry in record for v in entry.values())
    assert all(entry["norm_student"] > 0 and entry["norm_fake"] > 0 for entry in record[1:])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adapters_without_effect_have_nothing_to_match(world, precision):
    settings = (f"train.precision={precision}", "loss.cfg=1.0", "optimiser.fake_lr=1e-30", "train.updates=2")
    assert distill(world, *ADAPTERS, *settings, "optimiser.weight_decay=0.0") == 0
    assert [entry["loss_student"] for entry in metrics(world / "out")] == [0.0, 0.0]


def test_gradient_checkpointing_changes_nothing(world):
    for name, flag in (("a", "false"), ("b", "true")):
        folder = f"output.folder={world}/{name}"
        assert distill(world, *ADAPTERS, folder, f"backbone.gradient_checkpointing={flag}") == 0
    a, b = (tensors(world / name / "student.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-7) for name in a)


def test_what_is_exported_is_the_average_as_a_lora_or_merged(world):
    out = world / "out"
    assert distill(world, *ADAPTERS) == 0
    parts = (out / "checkpoints" / "step_000006" / f"{part}.safetensors" for part in ("average", "student"))
    average, last = map(tensors, parts)
    assert average.keys() == last.keys() and not equal(average, last)
    student = tensors(out / "student.safetensors")
    layer = "diffusion_model.blocks.0.self_attn.q"
    assert torch.equal(student[f"{layer}.lora_B.weight"], average["blocks.0.attn1.to_q.up"])
    # The finished run, once more, as a whole student: the form of the file is free.
    assert distill(world, *ADAPTERS, "output.merge=true", "output.name=whole", flags=["--resume"]) == 0
    whole = WanBackbone().load(out / "whole.safetensors").state_dict()
    start = tiny_wan().state_dict()
    moved = 1.5 / 3 * average["blocks.0.attn1.to_q.up"] @ average["blocks.0.attn1.to_q.down"]
    assert torch.allclose(whole["blocks.0.attn1.to_q.weight"], start["blocks.0.attn1.to_q.weight"] + moved, atol=1e-6)
    untouched = [name for name in start if not any(f"{target}.weight" in name for target in TARGETS)]
    assert len(untouched) > 10 and all(torch.equal(whole[name], start[name]) for name in untouched)
    assert read_recipe(out / "whole.safetensors").adapter_alpha is None


def test_a_run_of_another_mode_or_rank_is_not_resumed(world, capsys):
    assert distill(world, *ADAPTERS, "train.updates=1") == 0
    capsys.readouterr()
    assert distill(world, flags=["--resume"]) == refused(capsys, 2, "model.mode: adapters there, three networks here")
    other = (*ADAPTERS, "model.rank=4")
    assert distill(world, *other, flags=["--resume"]) == refused(capsys, 2, "model.rank: 3 there, 4 here")


def test_an_adapter_that_does_not_fit_its_dtype_is_finished_with_another_one(world, capsys):
    half = (*ADAPTERS, "optimiser.student_lr=7e4", "train.updates=1", "output.dtype=float16", "train.ema=null")
    assert distill(world, *half) == refused(capsys, 1, "does not fit into float16", "set output.dtype")
    assert not (world / "out" / "student.safetensors").exists()
    assert distill(world, *half, "output.dtype=bfloat16", flags=["--resume"]) == 0


def test_the_lora_file_has_its_recipe(world):
    assert distill(world, *ADAPTERS, "train.updates=2") == 0
    path = world / "out" / "student.safetensors"
    recipe, file = read_recipe(path), tensors(path)
    assert recipe.adapter_alpha == 1.5 and recipe.base_model == "teacher"
    assert recipe.plan().steps == make_setup(world, *ADAPTERS).plan.steps
    assert len(file) == 3 * 10 and all(name.startswith("diffusion_model.blocks.0.") for name in file)
    assert file["diffusion_model.blocks.0.ffn.2.alpha"] == 1.5


def test_layers_that_are_one_natively_get_one_lora():
    base = adapted(names=("student",))
    layers = tuple(f"blocks.0.attn1.to_{part}" for part in "qkv")
    factors = base.factors("student")
    for left_out in (None, layers[1]):
        ours = {name: value for name, value in factors.items() if name != left_out}
        stacked = native_factors(ours, {"qkv": layers})["qkv"]
        got = stacked.alpha / len(stacked.down) * stacked.up @ stacked.down
        deltas = [base.layers[name].delta("student") * (name != left_out) for name in layers]
        assert torch.allclose(got, torch.cat(deltas), atol=1e-6) and got.abs().max() > 1e-2

"""A base kept in 8 or 4 bits: its layers and networks against plain ones with the dequantised weights, and its runs."""

import copy
import sys

import pytest
import torch

from backbone_world import NAMES, backbone_setup, tiny_network
from rmd_core.errors import RMDError
from training.backbones.base import to_device
from training.backbones.wan import WanBackbone
from training.config import ModelSection
from training.networks import adapt, make_networks
from training.parallel import Processes
from training.quantised import QuantisedLinear, quantise
from training_world import distill, gradients, make_setup, refused, tensors, tiny_wan

pytest.importorskip("bitsandbytes")

KINDS = {"int8": (1, 0.01), "nf4": (0.5, 0.11)}  # bytes of a weight, relative error for normal weights
ADAPTERS = ("model.mode=adapters", "model.rank=3", "model.alpha=1.5")


def quantised_layers(network):
    return [layer for layer in network.modules() if isinstance(layer, QuantisedLinear)]


def plain_layer(rows=37, columns=128, dtype=torch.float32):
    layer = torch.nn.modules.linear.Linear(columns, rows, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator))
    return layer


def dequantised(network):
    """The same network with plain layers that hold the dequantised weights."""
    plain = copy.deepcopy(network)
    for name, layer in network.named_modules():
        if isinstance(layer, QuantisedLinear):
            weight = layer.dequantised(layer.dtype)
            own = torch.nn.modules.linear.Linear(*weight.shape[::-1], bias=layer.bias is not None, dtype=layer.dtype)
            own.load_state_dict({"weight": weight} | ({} if layer.bias is None else {"bias": layer.bias}))
            parent, _, last = name.rpartition(".")
            setattr(plain.get_submodule(parent), last, own.requires_grad_(False))
    return plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_a_plain_one_with_the_dequantised_weights(kind, dtype):
    plain = plain_layer(dtype=dtype)
    layer = QuantisedLinear(plain, kind, "cpu")
    size, error = KINDS[kind]
    blocks = plain.weight.numel() // 64
    assert layer.weight.nbytes + layer.scales.nbytes == size * plain.weight.numel() + 4 * blocks
    weight = layer.dequantised(dtype)
    assert 0 < (weight - plain.weight).float().norm() < error * plain.weight.float().norm()
    x = torch.randn(2, 5, 128, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ours, theirs = layer(x), torch.nn.functional.linear(x, weight, plain.bias)
    assert torch.equal(ours, theirs)
    back = [torch.autograd.grad(y, x, torch.ones_like(y))[0] for y in (ours, theirs)]
    assert torch.equal(*back) and all(parameter.grad is None for parameter in layer.parameters())
    meta = QuantisedLinear(plain.to("meta"), kind, "meta")
    for name in ("weight", "scales"):
        assert getattr(meta, name).shape == getattr(layer, name).shape
        assert getattr(meta, name).dtype == getattr(layer, name).dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_adapters_on_a_quantised_base_get_the_gradients_of_those_on_the_dequantised_one(name, kind, tmp_path):
    setup = backbone_setup(name, tmp_path)
    backbone, settings = setup.backbone, ModelSection(rank=3, alpha=1.5)
    network = quantise(tiny_network(name), kind, targets=backbone.adapter_targets, device="cpu")
    assert all(
        ".norm" not in n and "embed" not in n for n, m in network.named_modules() if m in quantised_layers(network)
    )
    plain = dequantised(network)
    assert not quantised_layers(plain)
    x = torch.randn(*backbone.latent_shape(1, 1), *setup.plan.final_hw, generator=torch.Generator().manual_seed(1))
    conditioning = to_device(setup.embed(setup.prompts[:1]), "cpu")
    found = []
    for base in (adapt(network, backbone, settings), adapt(plain, backbone, settings)):
        assert {type(layer.base_layer) for layer in base.layers.values()} <= {QuantisedLinear} or base.network is plain
        for number, parameter in enumerate(base.adapters["student"].parameters()):
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        sigma = torch.full((1,), 0.7, dtype=torch.float64)
        out = backbone.predict(base.with_adapter("student"), x, sigma, conditioning)
        out.square().mean().backward()
        teacher = backbone.predict(base.with_adapter(None), x, sigma, conditioning)
        found.append((out, teacher, *gradients(base.adapters["student"]).values()))  # Qwen-Image's last text has none
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found))
    assert sum(gradient.abs().max() > 0 for gradient in found[0][2:]) > len(found[0][2:]) / 2
    with torch.no_grad():
        first = backbone.predict(tiny_network(name), x, sigma, conditioning)
    assert 0 < (first - found[0][1]).norm() < 0.5 * first.norm()


def test_what_is_quantised_in_wan():
    network = quantise(tiny_wan(layers=2), "nf4", targets=("to_q",), device="cpu")
    names = {name for name, layer in network.named_modules() if isinstance(layer, QuantisedLinear)}
    layers = [f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    layers += ["ffn.net.0.proj", "ffn.net.2"]
    assert names == {f"blocks.{block}.{layer}" for block in (0, 1) for layer in layers}


def test_the_runs_own_targets_are_quantised_and_counted(world):
    setup = make_setup(world, *ADAPTERS, "model.base_dtype=nf4", "model.targets=[to_q, time_embedder.linear_2]")
    networks = make_networks(setup, Processes(setup.config))
    layers = quantised_layers(networks.teacher)
    assert networks.base.layers["condition_embedder.time_embedder.linear_2"].base_layer in layers
    assert setup.memory.weights["nf4"] == sum(layer.weight.nbytes + layer.scales.nbytes for layer in layers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_a_quantised_base_resumes_bit_for_bit_and_merges_into_the_whole_weights(world, kind):
    settings, straight, out = (
        (*ADAPTERS, f"model.base_dtype={kind}", "train.ema=null"),
        world / "straight",
        world / "out",
    )
    assert distill(world, *settings, f"output.folder={straight}", "train.updates=4") == 0
    assert distill(world, *settings, "train.updates=3") == 0
    assert distill(world, *settings, "train.updates=4", flags=["--resume"]) == 0
    for name in ("student.safetensors", "checkpoints/step_000004/student_optimiser.safetensors"):
        assert (straight / name).read_bytes() == (out / name).read_bytes(), name
    assert (
        distill(world, *settings, "train.updates=4", "output.merge=true", "output.name=whole", flags=["--resume"]) == 0
    )
    whole = WanBackbone().load(out / "whole.safetensors").state_dict()
    adapter, start = tensors(out / "checkpoints" / "step_000004" / "student.safetensors"), tiny_wan().state_dict()
    for layer in ("blocks.0.attn1.to_q", "blocks.0.ffn.net.2"):
        moved = 1.5 / 3 * adapter[f"{layer}.up"] @ adapter[f"{layer}.down"]
        assert torch.allclose(whole[f"{layer}.weight"], start[f"{layer}.weight"] + moved, atol=1e-6)
    assert torch.equal(whole["blocks.0.norm2.weight"], start["blocks.0.norm2.weight"])
    assert sum(path.stat().st_size for path in (out / "checkpoints" / "step_000004").iterdir()) < 200_000


def test_half_precision_calls_of_a_quantised_base(world):
    half = ("model.base_dtype=nf4", "train.precision=bfloat16", "backbone.gradient_checkpointing=offload")
    assert distill(world, *ADAPTERS, *half, "train.updates=2", "train.accumulation=2") == 0


def test_refusals_take_one_line(world, capsys, monkeypatch):
    assert distill(world, "model.base_dtype=nf4") == refused(capsys, 2, "base_dtype nf4 is for mode adapters")
    assert distill(world, *ADAPTERS, "model.base_dtype=int4") == refused(capsys, 2, "model.base_dtype", "'nf4'")
    for setting in ("model.base_dtype=int8", "model.base_dtype=nf4"):
        with pytest.raises(RMDError, match="sharded over processes; launch without FSDP"):
            make_setup(world, *ADAPTERS, setting, shards=2)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    for setting in ("model.base_dtype=int8", "optimiser.kind=adamw8bit"):
        assert distill(world, *ADAPTERS, setting) == refused(capsys, 2, setting.replace("=", ": "), "pip install")

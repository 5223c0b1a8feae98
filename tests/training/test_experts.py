"""Wan2.2 A14B: which expert makes which row, where both come from, training, resuming and what is written."""

import pytest
import torch
from diffusers import WanPipeline
from transformers import UMT5Config, UMT5EncoderModel

from backbone_world import EXPERT_BOUNDARY, expert, student_file, write_expert_world, write_pair
from encoder_world import t5, t5_tokenizer
from process_world import distill_on
from rmd_core.errors import RMDError
from rmd_core.experts import expert_files, expert_of
from rmd_core.recipe import read_recipe
from training.backbones import backbone_of, make_backbone
from training.backbones.experts import Experts
from training.backbones.wan import WanBackbone
from training.config import load_config
from training.export import convert
from training.networks import make_networks
from training.parallel import Processes
from training.setup import outline_run, prepare
from training.start import read_changes
from training.text_encoders import TextEncoders
from training_world import EPS, TOLERANCE, distance, distill, equal, metrics, refused, tensors, tiny_wan


@pytest.fixture
def world(tmp_path):
    return write_expert_world(tmp_path)


def test_each_row_is_made_by_the_expert_of_its_level():
    """Of networks that return 1 and 2, and say how many rows they were asked for."""
    asked = []

    class Constant(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value, self.config = value, {}
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, timestep, text, return_dict):
            asked.append((self.value, timestep.tolist(), text[:, 0, 0].tolist()))
            return (torch.full_like(x, self.value),)

    backbone, network = make_backbone("wan22_a14b"), Experts(Constant(1.0), Constant(2.0), EXPERT_BOUNDARY)
    levels = [0.5, 1.0, 0.875, 0.8749, 0.9375]
    x, text = torch.zeros(5, 16, 1, 2, 2), torch.arange(5.0).reshape(5, 1, 1)

    def predict(rows):
        sigma = torch.tensor([levels[row] for row in rows], dtype=torch.float64)
        asked.clear()
        return backbone.predict(network, x[rows], sigma, {"text": text[rows]})[:, 0, 0, 0, 0].tolist()

    assert predict([0, 1, 2, 3, 4]) == [2, 1, 1, 2, 1]
    times = [pytest.approx([1000, 875, 937.5]), pytest.approx([500, 874.9])]
    assert asked == [(1.0, times[0], [1, 2, 4]), (2.0, times[1], [0, 3])]
    assert predict([1, 4]) == [1, 1] and predict([3]) == [2] and [value for value, *_ in asked] == [2.0]


def test_a_mixed_batch_is_its_rows_one_by_one():
    backbone, network = make_backbone("wan22_a14b"), Experts(tiny_wan(seed=0), tiny_wan(seed=1), EXPERT_BOUNDARY)
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(4, 16, 1, 4, 6, generator=generator), torch.randn(4, 5, 16, generator=generator)
    sigma = torch.tensor([0.3, 0.95, 0.8, 1.0], dtype=torch.float64)
    got = backbone.predict(network, x, sigma, {"text": text})
    for row in range(4):
        own, one = (network.low, network.high)[row % 2], slice(row, row + 1)
        expected = WanBackbone().predict(own, x[one], sigma[one], {"text": text[one]})
        assert torch.allclose(got[one], expected, atol=1e-5)
    got.square().sum().backward()
    assert all(p.grad.any() for p in network.parameters() if p.grad is not None)


def test_the_names_of_two_files(tmp_path):
    pairs = (
        ("wan2.2_t2v_high_noise_14B_fp16", "wan2.2_t2v_low_noise_14B_fp16"),
        ("flow-T2V-HIGH_fp8", "flow-T2V-LOW_fp8"),
        ("HighNoise-overflow", "LowNoise-overflow"),
        ("high_res_high", "high_res_low"),
        ("Wan2.2-T2V-A14B-HighNoise-Q4", "Wan2.2-T2V-A14B-LowNoise-Q4"),
        ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise", "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise"),
        ("high_noise_model", "low_noise_model"),
        ("Wan22_T2VHighNoise", "Wan22_T2VLowNoise"),
        ("wan22t2vhighnoise", "wan22t2vlownoise"),
        ("WAN22-HIGH-NOISE_low_rank", "WAN22-LOW-NOISE_low_rank"),
        ("flow_noise_i2vHigh", "flow_noise_i2vLow"),
    )
    for names in pairs:
        files = tuple(tmp_path / f"{name}.safetensors" for name in names)
        files[0].touch()
        with pytest.raises(RMDError, match="there is no .*" + names[1]):
            expert_files(files[0])
        files[1].touch()
        assert expert_files(files[0]) == expert_files(files[1]) == files
        assert [expert_of(name) for name in names] == ["high", "low"]
    assert {expert_of(name) for name in ("workflow", "slow_noise", "FlowNoise", "highlow14B", "Lower")} == {None}
    assert expert_of("high_noise_to_low_noise") == "low" and expert_of("Low_then_high") == "high"  # the last one
    with pytest.raises(RMDError, match="does not say which"):
        expert_files(tmp_path / "flow.safetensors")


def test_a_pair_is_read_from_a_folder_and_from_two_native_files(world):
    backbone = make_backbone("wan22_a14b")
    folder = backbone.load(world / "model")
    for name in ("high", "low"):
        assert equal(folder.get_submodule(name).state_dict(), expert(name).state_dict())
        files = backbone.load(world / f"base_{name}_noise.safetensors")
        assert equal(files.state_dict(), folder.state_dict()) and files.config.boundary == 0.875
    outline = backbone.outline(world / "model")
    assert {p.device.type for p in outline.parameters()} == {"meta"}
    assert {n: t.shape for n, t in outline.state_dict().items()} == {n: t.shape for n, t in folder.state_dict().items()}
    write_pair(world / "other", boundary=0.7)
    assert backbone.load(world / "other").config.boundary == 0.7
    again = Experts.from_config(outline.config)
    assert again.config == outline.config and again.state_dict().keys() == outline.state_dict().keys()


def test_a_whole_model_encodes_the_prompts_and_trains(world):
    """As diffusers saves its pipeline; for the prompts neither network is read."""
    encoder = t5(16, (UMT5Config, UMT5EncoderModel))
    parts = {"tokenizer": t5_tokenizer(), "text_encoder": encoder, "vae": None, "scheduler": None}
    networks = {"transformer": expert("high"), "transformer_2": expert("low")}
    WanPipeline(**parts, **networks, boundary_ratio=0.7).save_pretrained(world / "whole")
    for part in networks:
        (world / "whole" / part).rename(world / part)
    with TextEncoders(world / "whole") as encoders:
        assert encoders.encode(["a b"])[0].embedding.shape[1] == 16
    for part in networks:
        (world / part).rename(world / "whole" / part)
    (world / "prompts.txt").write_text("a b c", encoding="utf-8")
    sets = (f"prompts.file={world}/prompts.txt", f"prompts.encode_from={world}/whole", f"prompts.cache={world}/cache")
    assert distill(world, f"backbone.base={world}/whole", "prompts.encoder=null", *sets) == 0
    assert read_recipe(student_file(world / "out", "high")).expert_sigma == 0.7


def test_what_is_no_pair_is_refused(world, capsys):
    backbone = make_backbone("wan22_a14b")
    with pytest.raises(RMDError, match="has no transformer_2"):
        backbone.outline(world / "model" / "transformer")
    with pytest.raises(RMDError, match="does not exist"):
        backbone.outline(world / "nothing")
    WanBackbone().export(tiny_wan(), world / "a_high.safetensors", dtype=torch.float32)
    WanBackbone().export(tiny_wan(layers=2), world / "a_low.safetensors", dtype=torch.float32)
    with pytest.raises(RMDError, match="networks of different kinds"):
        backbone.load(world / "a_low.safetensors")
    assert distill(world, "model.mode=three networks") == refused(capsys, 2, "set model.mode=adapters")
    with pytest.raises(RMDError, match="without FSDP"):
        outline_run(load_config(world / "config.yaml").resolved(), shards=2)


def test_a_run_writes_a_lora_for_each_expert_with_one_recipe(world):
    assert distill(world, f"backbone.base={world}/base_low_noise.safetensors") == 0
    out, backbone = world / "out", make_backbone("wan22_a14b")
    recipes = [read_recipe(student_file(out, name)) for name in ("high", "low")]
    assert [recipe.expert for recipe in recipes] == ["high", "low"] and {r.expert_sigma for r in recipes} == {
        EXPERT_BOUNDARY
    }
    assert [recipe.base_model for recipe in recipes] == ["base_high_noise", "base_low_noise"]
    assert recipes[0].plan() == recipes[1].plan() and backbone_of(recipes[0]).name == "wan22_a14b"
    average = tensors(out / "checkpoints" / "step_000002" / "average.safetensors")
    found = read_changes(student_file(out, "low"), backbone, backbone.load(world / "model")).factors
    assert len(found) * 2 == len(average)
    for layer, value in found.items():
        assert torch.equal(value.down, average[f"{layer}.down"]) and torch.equal(value.up, average[f"{layer}.up"])
    assert all(torch.tensor(list(entry.values())).isfinite().all() for entry in metrics(out))
    for name in ("high", "low"):
        assert any(value.up.any() for layer, value in found.items() if layer.startswith(name)), name
    convert(student_file(out, "high"), world / "kohya.safetensors", names="kohya")
    assert read_recipe(world / "kohya.safetensors") == recipes[0]
    start = f"model.init_from={student_file(out, 'high')}"
    assert distill(world, f"output.folder={world}/merged", "output.merge=true", start) == 0
    merged = backbone.load(student_file(world / "merged", "high"))
    assert not equal(merged.low.state_dict(), expert("low").state_dict())


def test_a_run_resumes_bit_for_bit_and_is_the_same_with_an_expert_that_waits(world):
    # In bfloat16: float32 weights are read in place, and the CPU's product with one row depends on their alignment.
    half, waiting = "train.precision=bfloat16", "train.offload=waiting"
    # Of one micro-batch both phases share the student's forward, whose blocks are recomputed after other calls.
    single = (half, "train.accumulation=1", "backbone.gradient_checkpointing=true")
    runs = {
        "straight": [(half,)],
        "resumed": [(half, "train.updates=1"), (half,)],
        "waiting": [(half, waiting)],
        "late": [(half, "train.updates=1"), (half, waiting)],
        "single": [single],
        "single_waiting": [(*single, waiting)],
    }
    for name, parts in runs.items():
        for number, overrides in enumerate(parts):
            flags = ["--resume"] if number else []
            assert distill(world, *overrides, f"output.folder={world}/{name}", flags=flags) == 0
    for names in (("straight", "resumed", "waiting", "late"), ("single", "single_waiting")):
        files = [file.relative_to(world / names[0]) for file in (world / names[0]).rglob("*.safetensors")]
        assert len(files) == 12
        for name in names[1:]:
            assert all(equal(tensors(world / names[0] / file), tensors(world / name / file)) for file in files), name


def test_processes_that_ask_different_experts_train_like_one(world):
    """The small size has steps of both experts, and a micro-batch of one sample a process."""
    settings = (EPS, "plan.split=3+1", "train.updates=3", "train.accumulation=1", "train.ema=null")
    assert distill(world, *settings, "train.batch=2", f"output.folder={world}/one") == 0
    distill_on(2, world, *settings, "train.batch=1", f"output.folder={world}/two")
    setup = prepare(outline_run(load_config(world / "config.yaml", ["train.ema=null"]).resolved()))
    networks = make_networks(setup, Processes(setup.config))
    for role, trained in networks.trained.items():
        files = (world / name / "checkpoints" / "step_000003" / f"{role}.safetensors" for name in ("one", "two"))
        assert distance(*map(tensors, files), trained.state_dict()) < TOLERANCE, role


def test_an_expert_that_waits_is_counted_in_system_memory(world):
    """Against sizes written out as the powers of two that page-locked memory takes."""
    here, away = (
        outline_run(load_config(world / "config.yaml", [f"train.offload={which}"]).resolved()).memory
        for which in ("none", "waiting")
    )
    base, adapters = sum(p.numel() for p in tiny_wan().parameters()), 2 * 4 * here.trained
    assert here.waiting == 0 and here.weights["float32"] - adapters == 2 * 4 * base
    assert away.weights["float32"] - adapters == 4 * base and 2 * away.optimiser == here.optimiser
    tensors_of = (*tiny_wan().parameters(), *tiny_wan().buffers())
    experts = 2 * sum(1 << (tensor.nbytes - 1).bit_length() for tensor in tensors_of)
    assert experts < away.waiting < experts + 2 * here.optimiser

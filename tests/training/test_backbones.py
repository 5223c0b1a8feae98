"""Every backbone in the trainer, on tiny networks: loading, predicting, one update, the student's file."""

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, Flux2KleinPipeline, WanTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backbone_world import (
    NAMES,
    backbone_setup,
    tiny_network,
    write_backbone_world,
    write_prompts,
)
from rmd_core.errors import RMDError
from rmd_core.recipe import read_recipe
from training.backbones import BACKBONES, make_backbone
from training.backbones.base import Backbone, network_dtype
from training.config import load_config
from training.export import base_name
from training.parallel import Processes
from training.prompts import PromptCache, write_prompt_cache
from training.trainer import Trainer
from training_world import distill, equal, metrics, refused, tensors, tiny_wan

ROOT = Path(__file__).parents[2]
IMAGE_MODELS = [name for name in NAMES if not name.startswith("wan")]
ARCHITECTURES = {
    "wan": "wan2.1",
    "wan22_5b": "wan2.2-5b",
    "sdxl": "stable-diffusion-xl-v1-base",
    "pixart_alpha": "pixart-alpha-xl-2",
    "pixart_sigma": "pixart-ms-sigma-xl-2",
    "sd3": "stable-diffusion-v3.5-medium",
    "qwen_image": "qwen-image",
    "z_image": "z-image",
    "flux2_klein": "Flux.2-klein-4b",
}


@pytest.fixture(scope="module", params=NAMES)
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_backbone_world(request.param, folder)
    return request.param, folder


def used_parameters(backbone, network, cache, size):
    """The parameters on which a prediction depends: those with a gradient that is not zero."""
    x = torch.randn(2, *backbone.latent_shape(2, 1)[1:], size, size, generator=torch.Generator().manual_seed(5))
    sigma = torch.tensor([0.9, 0.5], dtype=torch.float64)
    network.requires_grad_(True).zero_grad()
    backbone.predict(network, x, sigma, backbone.conditioning(cache, cache.texts[:2])).square().sum().backward()
    moving = {name for name, p in network.named_parameters() if p.grad is not None and bool(p.grad.any())}
    network.zero_grad()
    return moving


def test_names_are_those_of_the_configuration():
    assert tuple(BACKBONES) == (
        "wan",
        "wan22_a14b",
        "wan22_5b",
        "sdxl",
        "pixart_alpha",
        "pixart_sigma",
        "sd3",
        "qwen_image",
        "z_image",
        "flux2_klein",
    )
    for name, (_, _, architectures) in BACKBONES.items():
        backbone = make_backbone(name)
        assert backbone.name == name and backbone.architecture.startswith(architectures)


def test_one_update_moves_student_and_fake_wherever_the_output_depends_on_them(world):
    name, folder = world
    setup = backbone_setup(name, folder)
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(setup, Processes(setup.config))
    networks = {part: getattr(trainer.objective, part) for part in ("student", "fake", "teacher")}
    before = {part: {n: t.clone() for n, t in net.state_dict().items()} for part, net in networks.items()}
    assert equal(before["student"], before["teacher"]) and equal(before["fake"], before["teacher"])
    expected = used_parameters(setup.backbone, tiny_network(name), setup.cache, setup.config.plan.sizes[-1][0])
    assert expected
    trainer.update(1)
    for part, net in networks.items():
        moved = {n for n, t in net.state_dict().items() if not torch.equal(t, before[part][n])}
        assert moved == (set() if part == "teacher" else expected), part


def test_a_run_from_a_folder_writes_a_student_that_reads_back_with_its_recipe(world, tmp_path, capsys):
    name, folder = world
    vae = [] if name == "wan" else [f"backbone.vae={folder}/model"]
    assert distill(folder, f"output.folder={tmp_path}/out", *vae) == 0
    assert all(torch.tensor(list(entry.values())).isfinite().all() for entry in metrics(tmp_path / "out"))
    assert ("picture_saturation" in metrics(tmp_path / "out")[0]) == (name != "wan")
    path = tmp_path / "out" / "student.safetensors"
    recipe, backbone = read_recipe(path), make_backbone(name)
    assert recipe.architecture == ARCHITECTURES[name] and recipe.base_model == "model"
    assert (recipe.prediction, recipe.multiple) == (backbone.prediction, backbone.multiple)
    assert recipe.size_conditioning == ("stage" if name in ("sdxl", "pixart_alpha") else "none")
    assert recipe.curve == backbone.curve and recipe.plan().split == "1+1"
    student = tensors(tmp_path / "out" / "checkpoints" / "step_000001" / "student.safetensors")
    network = tiny_network(name)
    network.load_state_dict(student)
    assert equal(tensors(path), backbone.native_state(network))


def test_a_changed_folder_is_not_resumed(world, tmp_path, capsys):
    name, folder = world
    sets = [f"output.folder={tmp_path}/out", "train.updates=1"]
    assert distill(folder, *sets) == 0
    config = next((folder / "model").glob("*net*/config.json"), folder / "model" / "transformer" / "config.json")
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("{", "{ ", 1), encoding="utf-8")
    try:
        assert distill(folder, *sets, flags=["--resume"]) == refused(capsys, 2, "the teacher", "changed")
    finally:
        config.write_text(text, encoding="utf-8")


def test_an_outline_is_the_network_without_data(world, tmp_path):
    name, folder = world
    backbone, network = make_backbone(name), tiny_network(name)
    checkpoints = [folder / "model"]
    if name in ("wan", "sd3"):
        checkpoints.append(tmp_path / "m.safetensors")
        backbone.export(network, checkpoints[1], dtype=torch.float32, metadata={})
    for checkpoint in checkpoints:
        outline = backbone.outline(checkpoint)
        assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
        shapes = {key: tensor.shape for key, tensor in outline.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in network.state_dict().items()}
        assert not outline.training
    with pytest.raises(RMDError, match="does not exist"):
        backbone.outline(folder / "nothing")


def test_a_dry_run_counts_parameters_and_operations(world, capsys):
    name, folder = world
    assert distill(folder, flags=["--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"backbone    {name}," in printed and "GFLOP a forward" in printed
    assert f"{sum(p.numel() for p in tiny_network(name).parameters()):,} each" in printed


def test_half_precision_weights_predict_nearly_the_same(world):
    name, folder = world
    backbone, network = make_backbone(name), tiny_network(name)
    conditioning = backbone.conditioning(PromptCache(folder / "prompts.safetensors"), ["a red apple", ""])
    x = torch.randn(2, *backbone.latent_shape(2, 1)[1:], 34, 36, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.9, 0.4], dtype=torch.float64)
    with torch.no_grad():
        expected = backbone.predict(network, x, sigma, conditioning)
        for half in (backbone.load(folder / "model", dtype=torch.bfloat16), network.to(torch.bfloat16)):
            assert network_dtype(half) == torch.bfloat16
            got = backbone.predict(half, x, sigma, conditioning)
            assert got.dtype == torch.float32 and ((got - expected).norm() / expected.norm()) < 0.05


def test_z_image_is_given_one_minus_sigma_and_takes_prompts_without_padding(tmp_path):
    cache = write_prompts("z_image", tmp_path / "c.safetensors")
    backbone, network = make_backbone("z_image"), tiny_network("z_image")
    conditioning = backbone.conditioning(cache, cache.texts[:3])
    assert conditioning["lengths"].tolist() == [len(cache.embedding(text)[0]) for text in cache.texts[:3]]
    x = torch.randn(3, 16, 6, 10, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1.0, 0.75, 0.25], dtype=torch.float64)
    got = backbone.predict(network, x, sigma, conditioning)
    for i, text in enumerate(cache.texts[:3]):
        (own,) = network([x[i, :, None]], 1 - sigma[i : i + 1].float(), [cache.embedding(text)[0].float()]).sample
        assert torch.allclose(got[i], -own[:, 0], atol=1e-5)


def test_flux2_is_asked_as_its_pipeline_asks():
    backbone, pipeline = make_backbone("flux2_klein"), Flux2KleinPipeline
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 128, 3, 5, generator=generator), torch.randn(2, 7, 24, generator=generator)
    sigma = torch.tensor([0.9, 0.3], dtype=torch.float64)
    with torch.no_grad():
        expected = tiny_network("flux2_klein")(
            pipeline._pack_latents(x),
            encoder_hidden_states=text,
            timestep=sigma.float(),
            img_ids=pipeline._prepare_latent_ids(x),
            txt_ids=pipeline._prepare_text_ids(text),
        ).sample
        got = backbone.predict(tiny_network("flux2_klein"), x, sigma, {"text": text})
    assert torch.allclose(pipeline._pack_latents(got), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen_image", "flux2_klein"])
def test_half_precision_networks_embed_the_exact_level(name):
    """0.9 and 0.8984 are one number in bfloat16, and their embeddings are not."""
    backbone, network = make_backbone(name), tiny_network(name).to(torch.bfloat16)
    x = torch.zeros(*backbone.latent_shape(1, 1), 4, 4)
    conditioning, embeddings = backbone.zero_conditioning(network, 5, "cpu"), []
    embedder = next(module for module_name, module in network.named_modules() if module_name.endswith("time_proj"))
    embedder.register_forward_hook(lambda module, args, embedding: embeddings.append(embedding))
    with torch.no_grad():
        for sigma in (0.9, 0.8984375):
            backbone.predict(network, x, torch.tensor([sigma], dtype=torch.float64), conditioning)
    assert embeddings[0].dtype == torch.float32 and not torch.allclose(embeddings[0], embeddings[1], atol=0.1)


@pytest.mark.parametrize("name", ["sdxl", "pixart_alpha", "pixart_sigma", "sd3"])
def test_vp_models_are_given_the_table_index_and_flows_1000_sigma(name):
    backbone, given = make_backbone(name), {}

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, timestep=None, *args, **kwargs):
            given.update(kwargs, timestep=timestep)
            return (torch.cat((x, x), 1),) if name.startswith("pixart") else (x,)

    cache_like = {"text": torch.zeros(2, 3, 4), "pooled": torch.zeros(2, 5), "mask": torch.ones(2, 3)}
    x = torch.randn(2, backbone.channels, 40, 48, generator=torch.Generator().manual_seed(0))
    if backbone.prediction == "flow":
        sigma, expected = torch.tensor([1.0, 0.25], dtype=torch.float64), [1000.0, 250.0]
    else:
        alphas = DDIMScheduler(
            beta_start=0.00085 if name == "sdxl" else 1e-4,
            beta_end=0.012 if name == "sdxl" else 0.02,
            beta_schedule="scaled_linear" if name == "sdxl" else "linear",
        ).alphas_cumprod
        sigma, expected = (1 - alphas[[999, 250]].double()).sqrt(), [999.0, 250.0]
    output = backbone.predict(Spy(), x, sigma, cache_like)
    assert output.shape == x.shape and torch.equal(output, x)
    assert given["timestep"].dtype == torch.float32
    assert torch.allclose(given["timestep"], torch.tensor(expected), atol=1e-2)
    if name == "sdxl":
        assert given["added_cond_kwargs"]["time_ids"].tolist() == [[320.0, 384.0, 0.0, 0.0, 320.0, 384.0]] * 2
    if name == "pixart_alpha":
        assert given["added_cond_kwargs"]["resolution"].tolist() == [[320.0, 384.0]] * 2
        assert given["added_cond_kwargs"]["aspect_ratio"].flatten().tolist() == pytest.approx([40 / 48] * 2)


def test_padding_changes_nothing_for_pixart(tmp_path):
    cache = write_prompts("pixart_sigma", tmp_path / "c.safetensors")
    backbone, network = make_backbone("pixart_sigma"), tiny_network("pixart_sigma")
    x = torch.randn(1, 4, 34, 36, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.7], dtype=torch.float64)
    alone = {"text": cache.embedding("a red apple"), "mask": torch.ones(1, 2)}
    with torch.no_grad():
        a = backbone.predict(network, x, sigma, backbone.conditioning(cache, ["a red apple"]))
        b = backbone.predict(network, x, sigma, alone)
    assert alone["text"].shape[1] == 2 < cache.tokens and torch.allclose(a, b, atol=1e-5)


def test_the_count_of_operations_is_the_formula():
    """PyTorch's counter against Wan's closed form, which leaves out the small embeddings of time and text."""
    backbone, network = make_backbone("wan"), tiny_wan(layers=2)
    counted = Backbone.flops(backbone, network, 16, 24, 3, 7)
    assert counted == pytest.approx(backbone.flops(network, 16, 24, 3, 7), rel=0.05)


def test_only_networks_of_wans_own_sizes_are_known_to_need_large_batches():
    backbone = make_backbone("wan")
    with torch.device("meta"):
        smallest = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=1)  # Wan2.1 1.3B
    demo = backbone.outline(ROOT / load_config(ROOT / "training/configs/demo.yaml").backbone.base)
    assert backbone.recommended_batch(smallest) == 64 and backbone.recommended_batch(demo) is None


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_the_count_of_operations_is_that_of_a_real_forward(tmp_path, name):
    backbone, network = make_backbone(name), tiny_network(name)
    cache = write_prompts(name, tmp_path / "c.safetensors")
    x = torch.randn(*backbone.latent_shape(1, 1), 8, 12)
    # The counter knows attention written out, not the CPU's fused kernel.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone.predict(network, x, torch.tensor([0.5]).double(), backbone.conditioning(cache, ["a red apple"]))
    assert backbone.flops(network, 8, 12, 1, cache.tokens) == counter.get_total_flops() > 0


BAD = {
    "no such folder": ("sdxl", ["backbone.base={w}/nothing"], "does not exist"),
    "a name on the hub": ("sdxl", ["backbone.base=owner/model-1.0"], "hf download owner/model-1.0"),
    "no folder of a model": ("sdxl", ["backbone.base={w}"], "no unet/config.json"),
    "another model": ("sdxl", ["backbone.name=sd3"], "no transformer/config.json"),
    "another class": ("sd3", ["backbone.name=wan"], "contains a SD3Transformer2DModel"),
    "the other pixart": ("pixart_alpha", ["backbone.name=pixart_sigma"], "backbone.name is pixart_alpha"),
    "a shift": ("sdxl", ["backbone.shift=3"], "not a rectified flow"),
    "sizes too small": ("pixart_sigma", ["plan.sizes=[[32, 32], [40, 40]]"], "must be above 32 cells"),
    "sizes too large": ("sd3", ["plan.sizes=[[4, 4], [66, 66]]"], "at most 64 a side"),
    "frames": ("sdxl", ["plan.frames=2"], "single images"),
    "a file as autoencoder": ("sdxl", ["backbone.vae={w}/prompts.safetensors"], "not a AutoencoderKL in native"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(tmp_path, capsys, what):
    name, overrides, words = BAD[what]
    write_backbone_world(name, tmp_path)
    assert distill(tmp_path, *(o.format(w=tmp_path) for o in overrides)) == refused(capsys, 2, words)


@pytest.mark.parametrize(
    ("name", "of", "words"),
    [
        ("sdxl", "pixart_sigma", "mask the padding"),
        ("sd3", "wan", "width 16, but the transformer takes 24"),
        ("pixart_sigma", "sd3", "padding is masked"),
        ("sdxl", "plain", "no pooled embeddings"),
    ],
)
def test_caches_of_other_encoders_are_refused(tmp_path, name, of, words):
    if of == "plain":
        write_prompt_cache(tmp_path / "c.safetensors", {"": torch.zeros(2, 24), "a": torch.zeros(2, 24)}, encoder="toy")
        cache = PromptCache(tmp_path / "c.safetensors")
    else:
        cache = write_prompts(of, tmp_path / "c.safetensors")
    with pytest.raises(RMDError, match=words):
        make_backbone(name).check_cache(tiny_network(name), cache)


def test_adapters_train_at_half_precision_and_merge(world, tmp_path):
    _, folder = world
    settings = (f"output.folder={tmp_path}/out", "model.mode=adapters", "model.rank=2", "train.precision=bfloat16")
    settings += ("train.updates=2", "train.accumulation=2", "train.fake_steps=2")
    assert distill(folder, *settings, "backbone.gradient_checkpointing=true") == 0
    assert all(math.isfinite(value) for entry in metrics(tmp_path / "out") for value in entry.values())
    student = tensors(tmp_path / "out" / "student.safetensors")
    assert all(name.startswith("diffusion_model.") for name in student)
    again = ("output.merge=true", "output.name=whole", "backbone.gradient_checkpointing=true")
    assert distill(folder, *settings, *again, flags=["--resume"]) == 0
    assert "diffusion_model." not in "".join(tensors(tmp_path / "out" / "whole.safetensors"))


@pytest.mark.parametrize("base", ["model", "model/unet"])
def test_v_prediction_is_seen_from_the_folder_and_from_its_network(tmp_path, base):
    write_backbone_world("sdxl", tmp_path)
    (tmp_path / "model" / "scheduler").mkdir()
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    with pytest.raises(RMDError, match="prediction_type v_prediction; only epsilon"):
        backbone_setup("sdxl", tmp_path, f"backbone.base={tmp_path / base}")


def test_an_sdxl_model_of_other_noise_is_refused(tmp_path):
    write_backbone_world("sdxl", tmp_path)
    (tmp_path / "model" / "scheduler").mkdir()
    given = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.012}
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text(json.dumps(given))
    with pytest.raises(RMDError, match="says {'beta_schedule': 'linear', 'beta_start': 0.0001}; .* scaled_linear"):
        backbone_setup("sdxl", tmp_path)


@pytest.mark.parametrize(
    ("name", "given", "warned"),
    [
        ("sd3", {"shift": 3.0}, None),
        ("sd3", {"shift": 1.5}, 1.5),
        ("sd3", {"shift": 1.5, "use_dynamic_shifting": True}, None),
        ("wan", {"flow_shift": 5}, 5.0),
        ("wan", {"flow_shift": "5"}, None),
        ("sdxl", {"shift": 2.0}, None),
    ],
)
def test_a_scheduler_of_another_shift_is_logged_once(tmp_path, caplog, name, given, warned):
    write_backbone_world(name, tmp_path)
    (tmp_path / "model" / "scheduler").mkdir()
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text(json.dumps(given))
    for base in ("model", f"model/{'unet' if name == 'sdxl' else 'transformer'}"):
        caplog.clear()
        backbone_setup(name, tmp_path, f"backbone.base={tmp_path / base}")
        warnings = [record.getMessage() for record in caplog.records if "shift" in record.getMessage()]
        assert len(warnings) == (warned is not None)
        assert not warnings or f"has shift {warned:g}, but backbone.shift is 3," in warnings[0]
    if warned:
        caplog.clear()
        backbone_setup(name, tmp_path, f"backbone.shift={warned}")
        assert "shift" not in caplog.text


def test_layers_that_no_lora_file_can_hold(tmp_path):
    write_backbone_world("sd3", tmp_path)
    options = ["model.mode=adapters", "model.targets=[norm_out.linear]"]
    with pytest.raises(RMDError, match="model.targets: 'norm_out.linear' has its halves .* output.merge=true"):
        backbone_setup("sd3", tmp_path, *options)
    backbone_setup("sd3", tmp_path, *options, "output.merge=true")


def test_the_name_of_a_base(tmp_path, monkeypatch):
    for part in ("stable-diffusion", "stable-diffusion/unet"):
        (tmp_path / part).mkdir()
        assert base_name(tmp_path / part) == "stable-diffusion"
    monkeypatch.chdir(tmp_path / "stable-diffusion")
    assert base_name(type(tmp_path)(".")) == "stable-diffusion"
    assert base_name(tmp_path / "sd_xl_base_1.0.safetensors") == "sd_xl_base_1.0"

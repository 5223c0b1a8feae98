"""From the trainer to the image: LoRA students' files through the real nodes give what the trainer samples."""

from dataclasses import replace

import pytest
import torch

from backbone_world import random_network, student_file, write_expert_world
from comfy_students import STUDENTS, TOKENS
from rmd_core.files import read_tensors
from rmd_core.noise import SeededNoise
from rmd_core.recipe import read_recipe
from rmd_core.upsampler import LatentUpsampler, read_upsampler
from training.backbones import backbone_of, make_backbone
from training.config import ModelSection
from training.lora_files import merge_lora
from training.networks import adapt
from training.prompts import PromptCache, write_prompt_cache
from training.sample import sample_latents
from training.start import read_changes
from training_world import distill

CONFIG = """
backbone: {{name: {name}, base: "{folder}/model"}}
model: {{mode: adapters, rank: 3, alpha: 1.5}}
plan: {{steps: 4, split: 2+2, sizes: [[{low[0]}, {low[1]}], [{high[0]}, {high[1]}]]}}
loss: {{cfg: 3.0}}
prompts: {{cache: "{folder}/prompts.safetensors", encoder: toy}}
optimiser: {{student_lr: 3e-2, fake_lr: 1e-3, weight_decay: 0.0}}
train: {{updates: 1, batch: 1, warmup_updates: 0, device: cpu}}
output: {{folder: "{folder}/out", name: lora, images: 1, trackers: [], dtype: float32}}
"""
PROMPT = "a red apple"
SIZES = {"pixart": ((34, 36), (40, 48)), "sd3": ((8, 12), (16, 24)), "flux2": ((4, 6), (8, 12))}


def trained(key, folder, *overrides):
    """A LoRA student of a tiny network: backbone, size, and what the trainer samples with it, and without it."""
    name, kind, config, width, pooled, *_ = dict(STUDENTS)[key]
    low, high = SIZES[name.partition("_")[0]]
    random_network(kind, config).save_pretrained(folder / "model" / "transformer")
    generator = torch.Generator().manual_seed(1)
    masked = name.startswith("pixart")
    lengths = {"": 3 if masked else TOKENS[name], PROMPT: 4 if masked else TOKENS[name]}
    made = {text: torch.randn(length, width, generator=generator) for text, length in lengths.items()}
    extra = {} if pooled is None else {"pooled": {text: torch.randn(pooled, generator=generator) for text in made}}
    cache = folder / "prompts.safetensors"
    write_prompt_cache(cache, made, encoder="toy", masked=masked, dtype=torch.float32, **extra)
    (folder / "config.yaml").write_text(CONFIG.format(name=name, folder=folder, low=low, high=high))
    assert distill(folder, *overrides) == 0
    backbone = make_backbone(name)
    base = adapt(backbone.load(folder / "model", dtype=torch.float32), backbone, ModelSection(rank=3, alpha=1.5))
    state, _ = read_tensors(folder / "out" / "checkpoints" / "step_000001" / "student.safetensors")
    for name, parameter in base.adapters["student"].named_parameters():
        parameter.data.copy_(state[name])
    recipe = read_recipe(folder / "out" / "lora.safetensors")
    rule = recipe.boundary()
    if rule.learned_sha256 is not None:
        rule = replace(rule, learned=read_upsampler(folder / "upsampler.safetensors"))

    def sample(role):
        conditioning = backbone.conditioning(PromptCache(cache), [PROMPT])
        return sample_latents(
            backbone,
            base.with_adapter(role),
            recipe.plan(),
            conditioning=conditioning,
            noise=SeededNoise(5),
            boundary=rule,
            eta=recipe.eta,
        ).x0

    with torch.no_grad():
        return backbone, high, sample("student"), sample(None)


@pytest.mark.parametrize("key", ["SD3.5 Medium", "PixArt Sigma", "FLUX.2 klein"])
def test_a_lora_student_with_stacked_layers(comfy, pack, nodes, node_classes, tmp_path, monkeypatch, key):
    backbone, high, expected, teacher = trained(key, tmp_path)
    got = by_nodes(comfy, nodes, tmp_path, monkeypatch, backbone, high)
    scale = expected.abs().max()
    assert (got - expected).abs().max() / scale < 5e-6 < (teacher - expected).abs().max() / scale


def upsampler(path, channels, *, seed):
    """A file of an upsampler with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LatentUpsampler(channels=channels, width=8, blocks=1, latents="sd3")
        torch.nn.init.normal_(network.leave.weight, std=0.05)
    return network.save(path)


def test_a_student_with_a_learned_upsampler(comfy, pack, nodes, node_classes, tmp_path, monkeypatch, refused):
    path = upsampler(tmp_path / "upsampler.safetensors", 16, seed=1)
    upsampler(tmp_path / "other.safetensors", 16, seed=2)
    backbone, high, expected, _ = trained("SD3.5 Medium", tmp_path, f"method.upsampler={path}")
    recipe = read_recipe(tmp_path / "out" / "lora.safetensors")
    assert recipe.upsampler == f"upsampler.safetensors sha256:{read_upsampler(path).digest()}"
    got = by_nodes(comfy, nodes, tmp_path, monkeypatch, backbone, high, file="upsampler.safetensors")
    assert (got - expected).abs().max() / expected.abs().max() < 5e-6

    def run(**options):
        return by_nodes(comfy, nodes, tmp_path, monkeypatch, backbone, high, **options)

    refused(lambda: run(file="other.safetensors"), "upsampler.safetensors", "the connected one is other.safetensors")
    refused(run, "the connected one is none", "RMD Upsampler")


def offer(folders, monkeypatch):
    """Let ComfyUI find files in ``folders``, by kind."""
    import folder_paths

    for kind, path in folders.items():
        suffixes = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(path)], suffixes))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})


def by_nodes(comfy, nodes, folder, monkeypatch, backbone, high, *, file=None):
    """The latent of the LoRA student in ``folder`` by the real nodes, with an upsampler's ``file`` of that folder."""
    offer({"loras": folder / "out", "rmd_prompts": folder, "latent_upscale_models": folder}, monkeypatch)
    base_file = folder / "base.safetensors"
    backbone.export(backbone.load(folder / "model", dtype=torch.float32), base_file, dtype=torch.float32, metadata={})
    base = comfy.sd.load_diffusion_model(str(base_file))
    chosen = {"kind": "LoRA", "student": "lora.safetensors", "model": base, "strength": 1.0}
    model, recipe, _ = nodes("RMD_LoadStudent", kind=chosen)
    (positive,) = nodes("RMD_LoadPromptEmbeddings", file="prompts.safetensors", prompt=PROMPT)
    height, width = (backbone.pixels_per_cell * side for side in high)
    source = {"source": "student recipe", "recipe": recipe}
    plan, *_ = nodes("RMD_Schedule", model=model, width=width, height=height, source=source)
    inputs = {"model": model, "positive": positive, "plan": plan, "seed": 5, "cfg": plan.cfg}
    if file is not None:
        (inputs["learned_upsampler"],) = nodes("RMD_Upsampler", file=file)
    (out,) = nodes("RMD_Sampler", latent_image={"samples": torch.zeros(1, backbone.channels, *high)}, **inputs)
    return model.model.process_latent_in(out["samples"])


def test_the_two_loras_of_two_experts(comfy, pack, nodes, node_classes, tmp_path, monkeypatch):
    """With the levels 1 and 0.9375 at the small size, 0.8333 and 0.625 at the large one, and with 3+1 of them."""
    write_expert_world(tmp_path)
    bases = {name: tmp_path / f"base_{name}_noise.safetensors" for name in ("high", "low")}
    for split in ("2+2", "3+1"):
        sets = (f"output.folder={tmp_path}/{split}", f"backbone.base={bases['high']}", f"plan.split={split}")
        assert distill(tmp_path, *sets, "train.ema=null", "optimiser.student_lr=3e-2") == 0
        out = tmp_path / split
        offer({"loras": out, "rmd_prompts": tmp_path}, monkeypatch)
        students, models = {}, {name: comfy.sd.load_diffusion_model(str(path)) for name, path in bases.items()}
        for name, model in models.items():
            file = student_file(out, name).name
            chosen = {"kind": "LoRA", "student": file, "model": model, "strength": 1.0}
            students[name], recipe, report = nodes("RMD_LoadStudent", kind=chosen)
            assert f"expert: {name} noise" in report and "sigma 0.875" in report
            other = models["low" if name == "high" else "high"]
            with pytest.raises(pack.rmd_core.errors.RMDError, match=f"is for the {name}-noise model"):
                nodes("RMD_LoadStudent", kind=chosen | {"model": other})
        (positive,) = nodes("RMD_LoadPromptEmbeddings", file="prompts.safetensors", prompt=PROMPT)
        source = {"source": "student recipe", "recipe": recipe}
        plan, *_ = nodes("RMD_Schedule", model=students["high"], width=64, height=64, source=source)
        run = {"positive": positive, "latent_image": {"samples": torch.zeros(1, 16, 1, 8, 8)}, "plan": plan, "seed": 5}

        recipe = read_recipe(student_file(out, "low"))
        backbone = backbone_of(recipe)
        network = backbone.load(bases["low"], dtype=torch.float32)

        def sample(network, backbone=backbone, recipe=recipe):
            conditioning = backbone.conditioning(PromptCache(tmp_path / "prompts.safetensors"), [PROMPT])
            rules = {"boundary": recipe.boundary(), "eta": recipe.eta, "noise": SeededNoise(5)}
            with torch.no_grad():
                return sample_latents(backbone, network, recipe.plan(), conditioning=conditioning, **rules).x0

        teacher = sample(network)
        expected = sample(merge_lora(network, read_changes(student_file(out, "high"), backbone, network), "it"))
        scale, low = expected.abs().max(), {"second_model": students["low"], "second_model_sigma": 0.0}
        (image,) = nodes("RMD_Sampler", model=students["high"], cfg=plan.cfg, **run, **low)
        (alone,) = nodes("RMD_Sampler", model=students["high"], cfg=plan.cfg, **run)
        got, one = (students["high"].model.process_latent_in(latent["samples"]) for latent in (image, alone))
        assert (got - expected).abs().max() / scale < 5e-6 < (teacher - expected).abs().max() / scale
        assert (one - expected).abs().max() / scale > 1e-3

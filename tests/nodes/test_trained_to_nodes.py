"""From the trainer to the picture: a LoRA student's file through the real nodes gives what the trainer samples."""

import pytest
import torch

from backbone_world import random_network
from comfy_students import STUDENTS, TOKENS
from rmd_core.files import read_tensors
from rmd_core.noise import SeededNoise
from rmd_core.recipe import read_recipe
from training.backbones import make_backbone
from training.config import ModelSection
from training.networks import adapt
from training.prompts import PromptCache, write_prompt_cache
from training.sample import sample_latents
from training_world import distill

CONFIG = """
backbone: {{name: {name}, base: "{folder}/model"}}
model: {{mode: adapters, rank: 3, alpha: 1.5}}
plan: {{steps: 4, split: 2+2, sizes: [[{low[0]}, {low[1]}], [{high[0]}, {high[1]}]]}}
loss: {{cfg: 3.0}}
prompts: {{cache: "{folder}/prompts.safetensors", encoder: toy}}
optimiser: {{student_lr: 3e-2, fake_lr: 1e-3, weight_decay: 0.0}}
train: {{updates: 1, batch: 1, warmup_updates: 0, device: cpu}}
output: {{folder: "{folder}/out", name: lora, pictures: 1, trackers: [], dtype: float32}}
"""
PROMPT = "a red apple"
SIZES = {"pixart": ((34, 36), (40, 48)), "sd3": ((8, 12), (16, 24)), "flux2": ((4, 6), (8, 12))}


def trained(key, folder):
    """A LoRA student of a tiny network: its file, backbone and what the trainer samples with it, and without it."""
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
    assert distill(folder) == 0
    backbone = make_backbone(name)
    base = adapt(backbone.load(folder / "model", dtype=torch.float32), backbone, ModelSection(rank=3, alpha=1.5))
    state, _ = read_tensors(folder / "out" / "checkpoints" / "step_000001" / "student.safetensors")
    for name, parameter in base.adapters["student"].named_parameters():
        parameter.data.copy_(state[name])
    recipe = read_recipe(folder / "out" / "lora.safetensors")

    def sample(role):
        conditioning = backbone.conditioning(PromptCache(cache), [PROMPT])
        return sample_latents(
            backbone,
            base.with_adapter(role),
            recipe.plan(),
            conditioning=conditioning,
            noise=SeededNoise(5),
            boundary=recipe.boundary(),
            eta=recipe.eta,
        ).x0

    with torch.no_grad():
        return backbone, high, sample("student"), sample(None)


@pytest.mark.parametrize("key", ["SD3.5 Medium", "PixArt Sigma", "FLUX.2 klein"])
def test_a_lora_student_with_stacked_layers(comfy, pack, nodes, node_classes, tmp_path, monkeypatch, key):
    import folder_paths

    backbone, high, expected, teacher = trained(key, tmp_path)
    for kind, folder in (("loras", tmp_path / "out"), ("rmd_prompts", tmp_path)):
        suffixes = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(folder)], suffixes))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    base_file = tmp_path / "base.safetensors"
    backbone.export(backbone.load(tmp_path / "model", dtype=torch.float32), base_file, dtype=torch.float32, metadata={})
    base = comfy.sd.load_diffusion_model(str(base_file))
    chosen = {"kind": "LoRA", "student": "lora.safetensors", "model": base, "strength": 1.0}
    model, recipe, _ = nodes("RMD_LoadStudent", kind=chosen)
    (positive,) = nodes("RMD_LoadPromptEmbeddings", file="prompts.safetensors", prompt=PROMPT)
    height, width = (backbone.pixels_per_cell * side for side in high)
    source = {"source": "student recipe", "recipe": recipe}
    plan, *_ = nodes("RMD_Schedule", model=model, width=width, height=height, source=source)
    latent = {"samples": torch.zeros(1, backbone.channels, *high)}
    (out,) = nodes("RMD_Sampler", model=model, positive=positive, latent_image=latent, plan=plan, seed=5, cfg=plan.cfg)
    got = model.model.process_latent_in(out["samples"])
    scale = expected.abs().max()
    assert (got - expected).abs().max() / scale < 5e-6 < (teacher - expected).abs().max() / scale

"""A tiny pair of experts to train on: as a Diffusers-format folder and as two native files, with prompts."""

import json

import torch

from backbone_world import write_prompts
from rmd_core.experts import EXPERTS
from training.backbones.wan import WanBackbone
from training_world import tiny_wan

BOUNDARY = 0.875
CONFIG = """
backbone: {{name: wan22_a14b, base: "{folder}/model", shift: 5.0}}
model: {{mode: adapters, rank: 3, alpha: 1.5}}
plan: {{steps: 4, split: 2+2, sizes: [[4, 4], [8, 8]]}}
method: {{mapping: none}}
loss: {{cfg: 2.0}}
prompts: {{cache: "{folder}/prompts.safetensors", encoder: toy}}
optimiser: {{student_lr: 1e-2, fake_lr: 1e-2, weight_decay: 0.0}}
train: {{updates: 2, batch: 3, accumulation: 2, warmup_updates: 0, device: cpu, ema: 0.9}}
output: {{folder: "{folder}/out", checkpoint_every: 1, pictures: 1, trackers: [], dtype: float32}}
"""


def expert(name):
    """The tiny network of an expert."""
    return tiny_wan(seed=EXPERTS.index(name))


def write_pair(folder, *, boundary=BOUNDARY):
    """Write both experts as a Diffusers-format folder, and as ``base_high_noise.safetensors`` and so on beside it."""
    for name, part in zip(EXPERTS, ("transformer", "transformer_2")):
        expert(name).save_pretrained(folder / part)
        WanBackbone().export(expert(name), folder.parent / f"base_{name}_noise.safetensors", dtype=torch.float32)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", "boundary_ratio": boundary}))


def write_expert_world(folder):
    """Write a pair of experts, prompts and a configuration; returns the folder."""
    write_pair(folder / "model")
    write_prompts("wan", folder / "prompts.safetensors")
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return folder


def student_file(folder, name):
    """The file of an expert's student in an output folder."""
    return folder / f"student_{name}_noise.safetensors"

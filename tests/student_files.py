"""Student files for the tests of the loaders: the demo's with another recipe, and LoRAs of small rank."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from rmd_core.files import read_metadata, save_safetensors
from rmd_core.recipe import read_recipe, student_metadata

MODELS = Path(__file__).parents[1] / "demo" / "models"
TEACHER = MODELS / "diffusion_models" / "rmd_tiny_wan_teacher.safetensors"
STUDENT = MODELS / "diffusion_models" / "rmd_tiny_wan_student.safetensors"
PROMPTS = MODELS / "embeddings" / "rmd_tiny_prompts.safetensors"

ALPHA = 6.0
RANK = 3
TARGETS = ("blocks.0.self_attn.q", "blocks.5.ffn.0", "head.head")


def recipe(**changes):
    """The demo student's recipe with some fields changed."""
    return replace(read_recipe(STUDENT), **changes)


def metadata(**changes):
    """The metadata of a student file, which also says what ComfyUI needs to detect the demo's network."""
    config = {"config": read_metadata(STUDENT)["config"]}
    return config | student_metadata(recipe(**changes), title="test")


def write_student(path, *, drop=(), **changes):
    """The demo student with another recipe, and without the tensors named in `drop`."""
    weights = {name: tensor for name, tensor in load_file(STUDENT).items() if name not in drop}
    save_safetensors(path, weights, metadata(**changes))
    return path


def lora_pairs(targets=TARGETS, *, rank=RANK, seed=5):
    """{target: (up, down)} of random matrices that fit the demo teacher's weights."""
    weights, generator = load_file(TEACHER), torch.Generator().manual_seed(seed)
    shapes = {name: weights[f"{name}.weight"].shape for name in targets}
    return {
        name: (torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator))
        for name, (rows, columns) in shapes.items()
    }


def lora_tensors(pairs, *, alpha=ALPHA, prefix="diffusion_model."):
    """The tensors of a LoRA file in the common native naming; without alphas for None."""
    tensors = {}
    for name, (up, down) in pairs.items():
        tensors |= {f"{prefix}{name}.lora_B.weight": up, f"{prefix}{name}.lora_A.weight": down}
        if alpha is not None:
            tensors[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
    return tensors


def write_lora(path, tensors=None, **changes):
    """A LoRA student of the demo's teacher."""
    values = {"adapter_alpha": ALPHA} | changes
    save_safetensors(path, lora_tensors(lora_pairs()) if tensors is None else tensors, metadata(**values))
    return path

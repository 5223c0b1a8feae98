"""LoRA students of every image backbone through ComfyUI's loaders, against diffusers' forward with the adapter."""

import logging

import pytest
import torch

from backbone_world import random_network
from benchmarks.training_runs import CONFIGS
from comfy_students import STUDENTS, TOKENS, comfy_output, relative_error
from training.backbones import make_backbone
from training.config import ModelSection, load_config
from training.lora_files import native_factors, save_lora
from training.networks import adapt


@pytest.mark.parametrize("names", ["comfyui", "kohya"])
@pytest.mark.parametrize("name", STUDENTS)
def test_base_and_lora_at_strength_1_are_the_student(comfy, caplog, tmp_path, name, names):
    family, kind, config, width, pooled_width, _, sizes = STUDENTS[name]
    backbone, network = make_backbone(family), random_network(kind, config)
    backbone.export(network, tmp_path / "base.safetensors", dtype=torch.float32, metadata={})
    shipped = next(path for path in sorted(CONFIGS.glob("*.yaml")) if f"name: {family}\n" in path.read_text())
    base = adapt(network, backbone, ModelSection(rank=3, alpha=1.5, targets=load_config(shipped).model.targets))
    generator = torch.Generator().manual_seed(5)
    for parameter in base.adapters["student"].parameters():
        size = parameter[0].numel() ** -0.5
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * size)
    factors = base.factors("student")
    stacks = dict(backbone.native_layer(network, layer) for layer in factors)
    native = native_factors(factors, stacks)
    save_lora(tmp_path / "lora.safetensors", native, names=names, dtype=torch.float32, metadata={})

    caplog.set_level(logging.DEBUG)
    patcher = comfy.sd.load_diffusion_model(str(tmp_path / "base.safetensors"))
    lora = comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"), safe_load=True)
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 1.0)
    assert not [r for r in caplog.records if r.getMessage().startswith(("lora key not", "NOT LOADED"))]
    assert len(patched.patches) == len(native) == len(lora) // 3
    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    height, cells = sizes[0]
    x = torch.randn(1, backbone.channels, height, cells, generator=generator)
    conditioning = {"text": torch.randn(1, TOKENS[family], width, generator=generator)}
    conditioning["mask"] = torch.ones(1, TOKENS[family])
    pooled = conditioning["pooled"] = (
        None if pooled_width is None else torch.randn(1, pooled_width, generator=generator)
    )
    sigma = backbone.curve.table_sigma(375.0)
    level = torch.tensor([sigma], dtype=torch.float64)
    with torch.no_grad():
        got = comfy_output(patched.model, backbone, x, sigma, conditioning["text"], pooled)
        student = backbone.predict(base.with_adapter("student"), x, level, conditioning)
        teacher = backbone.predict(base.with_adapter(None), x, level, conditioning)
        merged = backbone.predict(base.merged("student", dtype=torch.float32), x, level, conditioning)
    print(f"{name}: {len(factors)} layers, {len(native)} native, difference {relative_error(got, student):.1e}")
    assert relative_error(got, student) < 1e-4 and relative_error(merged, student) < 1e-4
    assert relative_error(teacher, student) > 1e-2
    convolutions = [name for name, value in factors.items() if value.down.ndim == 4]
    assert bool(convolutions) == (family == "sdxl")

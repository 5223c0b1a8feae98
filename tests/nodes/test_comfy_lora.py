"""Students of adapter runs through ComfyUI's LoRA and model loaders, against diffusers' forward with the adapter."""

import logging

import pytest
import torch

from rmd_core.files import read_metadata, read_tensors, save_safetensors
from rmd_core.recipe import read_recipe
from training.backbones.wan import WanBackbone
from training.lora import AdaptedNetwork
from training_world import distill, tiny_wan, write_world

RUN = ("model.mode=adapters", "model.rank=3", "optimiser.student_lr=3e-2", "train.updates=3", "train.ema=null")
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")


@pytest.fixture(scope="module", params=[1.5, 6.0], ids=["alpha 1.5", "alpha 6"])
def run(request, tmp_path_factory):
    """(folder of a finished run and its LoRA and whole student, diffusers' network with that run's adapter)."""
    folder, alpha = tmp_path_factory.mktemp("world"), f"model.alpha={request.param}"
    write_world(folder)
    assert distill(folder, *RUN, alpha, "output.name=lora") == 0
    assert distill(folder, *RUN, alpha, "output.name=whole", "output.merge=true", flags=["--resume"]) == 0
    base = AdaptedNetwork(tiny_wan(), ("student",), rank=3, alpha=request.param, targets=TARGETS)
    state, _ = read_tensors(folder / "out" / "checkpoints" / "step_000003" / "student.safetensors")
    for name, parameter in base.adapters["student"].named_parameters():
        parameter.data.copy_(state[name])
    return folder, base


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def velocities(comfy, patcher, network):
    """The velocity of ComfyUI's model and of diffusers' network at a few states."""
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    generator = torch.Generator().manual_seed(7)
    pairs = []
    for height, width, sigma in ((8, 8, 1.0), (6, 10, 0.625)):
        x = torch.randn(2, 16, 1, height, width, generator=generator)
        text = torch.randn(2, 9, 16, generator=generator)
        with torch.no_grad():
            x0 = patcher.model.apply_model(x, torch.full((2,), sigma), c_crossattn=text)
            pairs.append(((x - x0) / sigma, network(x, torch.full((2,), 1000 * sigma), text, return_dict=False)[0]))
    return pairs


def test_base_and_lora_at_strength_1_are_the_trained_student(comfy, caplog, run):
    folder, base = run
    caplog.set_level(logging.DEBUG)
    lora = comfy.utils.load_torch_file(str(folder / "out" / "lora.safetensors"), safe_load=True)
    patcher = comfy.sd.load_diffusion_model(str(folder / "teacher.safetensors"))
    for got, teacher in velocities(comfy, patcher, base.with_adapter(None)):
        assert relative_error(got, teacher) < 1e-5
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 1.0)
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith(("lora key not", "NOT LOADED"))]
    assert lines == []
    assert len(patched.patches) == len(lora) // 3 == len(base.layers) == 10
    for got, student in velocities(comfy, patched, base.with_adapter("student")):
        assert relative_error(got, student) < 1e-4
    for got, teacher in velocities(comfy, patched, base.with_adapter(None)):
        assert relative_error(got, teacher) > 3e-2  # the adapter does something


def test_the_whole_student_is_the_trained_one_too(comfy, caplog, run):
    folder, base = run
    caplog.set_level(logging.DEBUG)
    patcher = comfy.sd.load_diffusion_model(str(folder / "out" / "whole.safetensors"))
    assert not [
        r for r in caplog.records if r.getMessage().startswith(("unet missing", "unet unexpected", "left over"))
    ]
    for got, student in velocities(comfy, patcher, base.with_adapter("student")):
        assert relative_error(got, student) < 1e-4


def test_the_files_say_what_they_are(run):
    folder, base = run
    lora, whole = (folder / "out" / f"{name}.safetensors" for name in ("lora", "whole"))
    assert read_recipe(lora).adapter_alpha == base.alpha and read_recipe(whole).adapter_alpha is None
    assert read_metadata(lora)["modelspec.architecture"] == "wan2.1/lora"
    assert read_metadata(whole)["modelspec.architecture"] == "wan2.1"
    assert read_recipe(lora).plan() == read_recipe(whole).plan()


def test_a_key_that_comfyui_does_not_know_is_noticed(comfy, caplog, run):
    folder, _ = run
    caplog.set_level(logging.DEBUG)
    lora = comfy.utils.load_torch_file(str(folder / "out" / "lora.safetensors"), safe_load=True)
    lora = {name.replace("self_attn.q.", "attn1.to_q."): tensor for name, tensor in lora.items()}
    comfy.sd.load_lora_for_models(
        comfy.sd.load_diffusion_model(str(folder / "teacher.safetensors")), None, lora, 1.0, 1.0
    )
    assert any("lora key not loaded" in record.getMessage() for record in caplog.records)


def test_a_lora_with_its_start_in_it_is_the_whole_student(comfy, caplog, tmp_path):
    """The start is of a larger rank and changes a norm and a bias, so the file has ``diff`` and ``diff_b`` too."""
    write_world(tmp_path)
    generator, start = torch.Generator().manual_seed(3), tmp_path / "start.safetensors"
    tensors = {
        f"diffusion_model.blocks.0.self_attn.q.{name}": 0.3 * torch.randn(shape, generator=generator)
        for name, shape in (("lora_down.weight", (4, 128)), ("lora_up.weight", (128, 4)), ("diff_b", (128,)))
    }
    tensors["diffusion_model.blocks.0.self_attn.norm_q.diff"] = 0.3 * torch.randn(128, generator=generator)
    save_safetensors(start, tensors, {})
    assert distill(tmp_path, *RUN, f"model.init_from={start}", "output.name=lora") == 0
    whole = ("output.name=whole", "output.merge=true")
    assert distill(tmp_path, *RUN, f"model.init_from={start}", *whole, flags=["--resume"]) == 0
    student = WanBackbone().load(tmp_path / "out" / "whole.safetensors")
    lora = comfy.utils.load_torch_file(str(tmp_path / "out" / "lora.safetensors"), safe_load=True)
    assert {"diff", "diff_b"} <= {name.rpartition(".")[2] for name in lora}
    caplog.set_level(logging.DEBUG)
    patcher = comfy.sd.load_diffusion_model(str(tmp_path / "teacher.safetensors"))
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 1.0)
    assert not [r for r in caplog.records if r.getMessage().startswith(("lora key not", "NOT LOADED"))]
    for got, expected in velocities(comfy, patched, student):
        assert relative_error(got, expected) < 1e-4
    for got, expected in velocities(comfy, patcher, student):
        assert relative_error(got, expected) > 3e-2

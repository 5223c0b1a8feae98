"""One run of each mode on each backbone: what moves, and what comes out."""

import math

import pytest

from backbone_world import NAMES, write_backbone_world
from training_world import distill, metrics, tensors


@pytest.mark.parametrize("mode", ["adapters", "three networks"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_each_mode(tmp_path, name, mode):
    write_backbone_world(name, tmp_path)
    settings = (f"model.mode={mode}", "model.rank=2", "train.updates=2")
    assert distill(tmp_path, *settings) == 0
    assert all(math.isfinite(value) for entry in metrics(tmp_path / "out") for value in entry.values())
    student = tensors(tmp_path / "out" / "student.safetensors")
    assert all(name.startswith("diffusion_model.") for name in student) == (mode == "adapters")
    again = ("output.merge=true", "output.name=whole", "backbone.gradient_checkpointing=true")
    assert distill(tmp_path, *settings, *again, flags=["--resume"]) == 0
    assert "diffusion_model." not in "".join(tensors(tmp_path / "out" / "whole.safetensors"))

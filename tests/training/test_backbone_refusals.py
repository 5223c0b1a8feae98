"""Bases that would be read as something else, and layers no LoRA file can hold: refused before anything is trained."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from backbone_world import TINY, backbone_setup, random_network, write_backbone_world
from encoder_world import write_model
from rmd_core.errors import RMDError
from training.backbones import make_backbone
from training.export import base_name
from training.text_encoders import TextEncoders
from training_world import tiny_wan


def weights(folder):
    (path,) = folder.glob("*.safetensors")
    return path, load_file(path)


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
    told = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.012}
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    with pytest.raises(RMDError, match="says {'beta_schedule': 'linear', 'beta_start': 0.0001}; .* scaled_linear"):
        backbone_setup("sdxl", tmp_path)


@pytest.mark.parametrize(
    ("name", "told", "warned"),
    [
        ("sd3", {"shift": 3.0}, None),
        ("sd3", {"shift": 1.5}, 1.5),
        ("sd3", {"shift": 1.5, "use_dynamic_shifting": True}, None),
        ("wan", {"flow_shift": 5}, 5.0),
        ("wan", {"flow_shift": "5"}, None),
        ("sdxl", {"shift": 2.0}, None),
    ],
)
def test_a_scheduler_of_another_shift_is_told_once(tmp_path, caplog, name, told, warned):
    write_backbone_world(name, tmp_path)
    (tmp_path / "model" / "scheduler").mkdir()
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    for base in ("model", f"model/{'unet' if name == 'sdxl' else 'transformer'}"):
        caplog.clear()
        backbone_setup(name, tmp_path, f"backbone.base={tmp_path / base}")
        warnings = [record.getMessage() for record in caplog.records if "shift" in record.getMessage()]
        assert len(warnings) == (warned is not None)
        assert not warnings or f"has shift {warned:g}, and backbone.shift is 3," in warnings[0]
    if warned:
        caplog.clear()
        backbone_setup(name, tmp_path, f"backbone.shift={warned}")
        assert "shift" not in caplog.text


@pytest.mark.parametrize("marker", ["v_pred", "ztsnr", "edm_mean"])
def test_marked_checkpoints_are_no_eps_models(tmp_path, marker):
    path = tmp_path / "model.safetensors"
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4), marker: torch.zeros(1)}, path)
    for load in (make_backbone("sdxl").outline, lambda p: make_backbone("sdxl").load(p, dtype=torch.float32)):
        with pytest.raises(RMDError, match=f"its tensor '{marker}' that it is no eps model"):
            load(path)


@pytest.mark.parametrize("name", ["wan", "sd3", "pixart_sigma"])
def test_a_foreign_tensor_of_a_long_name_is_told_in_one_short_line(tmp_path, name):
    path, backbone = tmp_path / "model.safetensors", make_backbone(name)
    heads = {"num_attention_heads": 1, "attention_head_dim": 72, "cross_attention_dim": 72}
    changes = heads if name == "pixart_sigma" else {}
    network = tiny_wan() if name == "wan" else random_network(TINY[name][0], TINY[name][1] | changes)
    backbone.export(network, path, dtype=torch.float32, metadata={})
    save_file({**load_file(path), "z\n" + "y" * 5000: torch.zeros(1)}, path)
    with pytest.raises(RMDError, match=r"first 'z\\nyyyy") as caught:
        backbone.load(path, dtype=torch.float32)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_in_a_folder(tmp_path, dtype):
    write_backbone_world("sd3", tmp_path)
    path, tensors = weights(tmp_path / "model" / "transformer")
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file({**tensors, name: tensors[name].to(dtype)}, path)
    with pytest.raises(RMDError, match="not quantised"):
        backbone_setup("sd3", tmp_path)


def test_a_folder_that_says_it_is_quantised(tmp_path):
    write_backbone_world("sd3", tmp_path)
    config = tmp_path / "model" / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": "x"}))
    with pytest.raises(RMDError, match="quantised model"):
        backbone_setup("sd3", tmp_path)


def test_layers_that_no_lora_file_can_hold(tmp_path):
    write_backbone_world("sd3", tmp_path)
    options = ["model.mode=adapters", "model.targets=[norm_out.linear]"]
    with pytest.raises(RMDError, match="model.targets: 'norm_out.linear' has its halves .* output.merge=true"):
        backbone_setup("sd3", tmp_path, *options)
    backbone_setup("sd3", tmp_path, *options, "output.merge=true")


@pytest.mark.parametrize("name", ["sdxl", "sd3", "wan"])
def test_a_text_encoder_that_lacks_weights(tmp_path, name):
    folder = write_model(name, tmp_path / "model")
    path, tensors = weights(folder / "text_encoder")
    lost = next(key for key in sorted(tensors) if "layer" in key and tensors[key].ndim == 2)
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, path, metadata={"format": "pt"})
    with pytest.raises(RMDError, match="its weights lack 1 tensors"):
        with TextEncoders(folder):
            pass


def test_the_name_of_a_base(tmp_path, monkeypatch):
    for part in ("stable-diffusion", "stable-diffusion/unet"):
        (tmp_path / part).mkdir()
        assert base_name(tmp_path / part) == "stable-diffusion"
    monkeypatch.chdir(tmp_path / "stable-diffusion")
    assert base_name(type(tmp_path)(".")) == "stable-diffusion"
    assert base_name(tmp_path / "sd_xl_base_1.0.safetensors") == "sd_xl_base_1.0"

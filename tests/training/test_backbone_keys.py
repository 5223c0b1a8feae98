"""Full-size students on the meta device: ComfyUI detects them and takes their keys, none missing or unexpected."""

import re
from pathlib import Path

import pytest
import torch

from full_size import STUDENTS, meta_student

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
PARAMETERS = {  # as published, in thousand millions; a few thousand of difference would show
    "SDXL": 2.567,
    "PixArt alpha": 0.611,
    "PixArt Sigma": 0.611,
    "SD3.5 Medium": 2.243,  # the 2.47 it is known by counts the position table
    "SD3.5 Large": 8.06,
    "Wan2.1 1.3B": 1.419,
    "Wan2.1 14B": 14.288,
}


@pytest.fixture(scope="module")
def detection(comfy):
    import comfy.model_detection

    return comfy.model_detection


def exported(backbone, network):
    """What `export` writes of a network on the meta device: half-precision tensors without data, and the metadata."""
    from training.backbones.wan import native_wan_metadata

    metadata = native_wan_metadata(network) if backbone.name == "wan" else {}
    return {name: tensor.to(torch.float16) for name, tensor in backbone.native_state(network).items()}, metadata


@pytest.mark.parametrize("name", STUDENTS)
def test_comfyui_detects_the_student_and_takes_every_key(detection, name):
    backbone, network, expected = meta_student(name)
    state, metadata = exported(backbone, network)
    assert detection.unet_prefix_from_state_dict(state) == "model."  # no prefix is taken off
    config = detection.model_config_from_unet(state, "", metadata=metadata)
    assert type(config).__name__ == expected
    config.set_inference_dtype(torch.float16, None)
    built = config.get_model(dict(state), "", device=torch.device("meta")).diffusion_model
    theirs = {key: tuple(tensor.shape) for key, tensor in built.state_dict().items()}
    ours = {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert sorted(theirs.keys() - ours.keys()) == [] and sorted(ours.keys() - theirs.keys()) == []
    assert {key: (ours[key], shape) for key, shape in theirs.items() if ours[key] != shape} == {}


@pytest.mark.parametrize("name", STUDENTS)
def test_the_page_tells_keys_and_parameters(name):
    backbone, network, expected = meta_student(name)
    state, _ = exported(backbone, network)
    count = backbone.parameters(network)
    assert count == pytest.approx(PARAMETERS[name] * 1e9, rel=0.01)
    row = re.search(rf"^\| {re.escape(name)} \|(.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert row, f"{PAGE} has no row for {name}"
    cells = [cell.strip(" `") for cell in row[1].split("|")]
    assert cells[:5] == [
        backbone.name,
        backbone.architecture_of(network),
        f"{count:,}",
        f"{len(state):,}",
        expected,
    ]


@pytest.mark.parametrize("name", STUDENTS)
def test_every_layer_that_a_lora_is_put_on_has_a_native_layer_of_its_shape(name):
    backbone, network, _ = meta_student(name)
    state = backbone.native_state(network)
    layers = [n for n, _ in network.named_modules() if n.endswith(tuple(f".{t}" for t in backbone.adapter_targets))]
    assert {target for target in backbone.adapter_targets if any(n.endswith(f".{target}") for n in layers)} == set(
        backbone.adapter_targets
    )
    for layer in layers:
        native, stacked = backbone.native_layer(network, layer)
        rows = sum(network.get_submodule(part).weight.shape[0] for part in stacked)
        assert layer in stacked and state[f"{native}.weight"].shape[0] == rows


@pytest.mark.parametrize("name", STUDENTS)
def test_native_names_go_back_to_diffusers_names(name):
    """A native file read back has the keys and shapes of the network it was written from."""
    from training.backbones.wan import wan_config

    backbone, network, _ = meta_student(name)
    state, metadata = exported(backbone, network)
    if backbone.name == "wan":
        arguments = wan_config(state, metadata, path="a file")
    else:
        arguments = backbone.native_config(state)
    with torch.device("meta"):
        again = type(network)(**arguments)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert {key: tuple(tensor.shape) for key, tensor in again.state_dict().items()} == shapes
    differing = {key for key, value in network.config.items() if again.config[key] != value}
    assert differing <= {"_use_default_values"}

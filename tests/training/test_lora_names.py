"""LoRA files under the names of ComfyUI, kohya and diffusers: written, read, converted, and loaded by diffusers."""

import json

import pytest
import torch

from backbone_world import backbone_setup
from benchmarks.training_runs import CONFIGS
from encoder_world import make_pipeline
from rmd_core.errors import RMDError
from rmd_core.files import read_header, read_metadata, read_tensors, save_safetensors
from rmd_core.recipe import read_recipe
from training.backbones.wan import WanBackbone
from training.config import load_config
from training.export import export_lora, main
from training.lora import Lora
from training.lora_files import LORA_NAMES, merge_lora, of_one_rank, read_lora
from training.networks import adapt
from training_world import equal, tiny_wan

FAMILIES = ("wan", "sdxl", "sd3", "pixart_alpha", "qwen_image", "z_image", "flux2_klein")
PATTERNS = {  # a layer of each family as each program writes it
    "wan": ("blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
    "sdxl": ("input_blocks.3.1.proj_in", "down_blocks.1.attentions.0.proj_in"),
    "sd3": ("joint_blocks.0.x_block.attn.qkv", "transformer_blocks.0.attn.to_q"),
    "pixart_alpha": ("blocks.0.attn.qkv", "transformer_blocks.0.attn1.to_q"),
    "qwen_image": ("transformer_blocks.1.attn.add_k_proj", "transformer_blocks.1.attn.add_k_proj"),
    "z_image": ("context_refiner.0.attention.qkv", "context_refiner.0.attention.to_q"),
    "flux2_klein": ("single_blocks.1.linear1", "single_transformer_blocks.1.attn.to_qkv_mlp_proj"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory):
    """(family, folder with a file under each of the names, backbone, its base, the merged network's weights)."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    options = ["model.mode=adapters", "model.rank=3", "model.alpha=1.5"]
    if name == "sdxl":  # its configuration adapts convolutions too
        options.append(f"model.targets={json.dumps(load_config(CONFIGS / 'sdxl.yaml').model.targets)}")
    base = None
    for names in LORA_NAMES:
        setup = backbone_setup(name, folder, *options, f"output.lora_names={names}")
        if base is None:
            base = adapt(setup.teacher, setup.backbone, setup.config.model)
            generator = torch.Generator().manual_seed(5)
            for parameter in base.adapters["student"].parameters():
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        export_lora(setup, base.network, base.lora("student"), folder / f"{names}.safetensors", update=1)
    merged = base.merged("student", dtype=torch.float32).state_dict()
    return name, folder, setup.backbone, merged


def student_of(path, folder, backbone):
    """The weights of the base with a LoRA file added."""
    network = backbone.load(folder / "model", dtype=torch.float32)
    return merge_lora(network, read_lora(read_tensors(path)[0], backbone.keys(network.config), path), path).state_dict()


def close(a, b):
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-6) for name in a)


@pytest.mark.parametrize("names", LORA_NAMES)
def test_a_file_under_any_names_is_the_student(trained, names):
    name, folder, backbone, merged = trained
    path = folder / f"{names}.safetensors"
    start = backbone.load(folder / "model", dtype=torch.float32).state_dict()
    assert close(student_of(path, folder, backbone), merged) and not close(start, merged)
    native, ours = PATTERNS[name]
    stem = {
        "comfyui": f"diffusion_model.{native}.lora_A.weight",
        "kohya": f"lora_unet_{native.replace('.', '_')}.lora_down.weight",
        "diffusers": f"{backbone.component}.{ours}.lora_A.weight",
    }[names]
    assert stem in read_header(path).tensors
    assert read_recipe(path).adapter_alpha == (3.0 if names == "diffusers" else 1.5)
    if names == "kohya":
        assert read_metadata(path)["ss_network_alpha"] == "1.5"


def test_converters_lead_back(trained, tmp_path, capsys):
    name, folder, backbone, merged = trained
    path = folder / "comfyui.safetensors"
    base = ("--base", str(folder / "model")) if name == "sdxl" else ()  # a tiny one has not SDXL's blocks
    for number, names in enumerate(("kohya", "diffusers", "comfyui", "diffusers", "kohya")):
        out = tmp_path / f"{number}.safetensors"
        assert main([str(path), "--names", names, "--out", str(out), *base]) == 0
        assert close(student_of(out, folder, backbone), merged)
        path = out
    assert read_recipe(path).plan() == read_recipe(folder / "kohya.safetensors").plan()
    assert main([str(path), "--names", "kohya", "--out", str(path)]) == 2
    assert "--out" in capsys.readouterr().err


READ_BY_DIFFUSERS = {  # the names that its own loader knows
    "wan": LORA_NAMES,
    "sdxl": ("kohya", "diffusers"),
    "sd3": ("diffusers",),
    "pixart_alpha": (),  # its pipeline has no loader of LoRAs
    "qwen_image": ("diffusers",),
    "z_image": ("diffusers",),
    "flux2_klein": ("kohya", "diffusers"),
}


def test_diffusers_loads_it_with_the_same_weights(trained):
    name, folder, backbone, merged = trained
    for names in READ_BY_DIFFUSERS[name]:
        pipeline = make_pipeline(name)
        network = getattr(pipeline, backbone.component)
        network.load_state_dict(backbone.load(folder / "model", dtype=torch.float32).state_dict())
        pipeline.load_lora_weights(str(folder), weight_name=f"{names}.safetensors")
        pipeline.fuse_lora(components=[backbone.component])
        fused = {key.replace(".base_layer", ""): value for key, value in network.state_dict().items()}
        fused = {key: value for key, value in fused.items() if ".lora_" not in key}
        assert close(fused, merged), names


def test_layers_of_several_ranks_get_one(trained):
    name, folder, backbone, _ = trained
    network = backbone.load(folder / "model", dtype=torch.float32)
    tensors, _ = read_tensors(folder / "comfyui.safetensors")
    factors = read_lora(tensors, backbone.keys(network.config), "it").factors
    first = next(iter(factors))
    narrow = type(factors[first])(factors[first].down[:2], factors[first].up[:, :2], 0.7)
    even = of_one_rank(factors | {first: narrow})
    assert {(len(v.down), v.alpha) for v in even.values()} == {(3, 3.0)}
    one, other = (
        merge_lora(backbone.load(folder / "model", dtype=torch.float32), Lora({first: value}, {}), "it").state_dict()
        for value in (narrow, even[first])
    )
    assert close(one, other) and not equal(one, network.state_dict())


@pytest.mark.parametrize(
    "name, words",
    [
        ("diffusion_model.blocks.0.self_attn.q.dora_scale", "not part of a LoRA pair"),
        ("diffusion_model.blocks.7.self_attn.q.lora_A.weight", "no layer of this network"),
    ],
)
def test_what_is_no_lora_of_the_network_is_named(name, words):
    shapes = {"A": (3, 128), "B": (128, 3)}
    pair = {f"diffusion_model.blocks.0.self_attn.q.lora_{x}.weight": torch.zeros(shapes[x]) for x in shapes}
    with pytest.raises(RMDError, match=words) as caught:
        read_lora(pair | {name: torch.zeros(3, 128)}, WanBackbone.keys(tiny_wan().config), "it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("down, up", [((3, 128), (128, 4)), ((0, 128), (128, 0)), ((128,), (128,))])
def test_a_pair_that_does_not_fit_is_named(down, up):
    stem = "diffusion_model.blocks.0.self_attn.q"
    pair = {f"{stem}.lora_A.weight": torch.zeros(down), f"{stem}.lora_B.weight": torch.zeros(up)}
    with pytest.raises(RMDError, match="make no LoRA"):
        read_lora(pair, WanBackbone.keys(tiny_wan().config), "it")
    with pytest.raises(RMDError, match="not part of a LoRA pair"):
        read_lora({f"{stem}.alpha": torch.ones(2)}, WanBackbone.keys(tiny_wan().config), "it")


@pytest.mark.parametrize(
    "stem", ["blocks.0.attn1.to_q", "lora_unet_blocks_0_self_attn_q", "transformer.blocks.0.attn1.to_q"]
)
def test_an_alpha_may_spell_its_layer_otherwise_and_is_never_left_over(stem):
    own, keys = "diffusion_model.blocks.0.self_attn.q", WanBackbone.keys(tiny_wan().config)
    pair = {f"{own}.lora_A.weight": torch.ones(3, 128), f"{own}.lora_B.weight": torch.ones(128, 3)}
    alike, other = (read_lora(pair | {f"{name}.alpha": torch.tensor(0.5)}, keys, "it").factors for name in (own, stem))
    assert [v.alpha for v in alike.values()] == [v.alpha for v in other.values()] == [0.5]
    for left_over in ("blocks.0.attn1.to_k", "blocks.7.attn1.to_q", "nothing"):
        with pytest.raises(RMDError, match=f"it: '{left_over}' has an alpha, but no LoRA pair"):
            read_lora(pair | {f"{left_over}.alpha": torch.tensor(0.5)}, keys, "it")
    both = {f"{name}.alpha": torch.tensor(value) for name, value in ((own, 0.5), (stem, 2.0))}
    with pytest.raises(RMDError, match="no LoRA pair of its own"):
        read_lora(pair | both, keys, "it")


def test_a_whole_student_is_not_converted(trained, tmp_path, capsys):
    _, folder, _, _ = trained
    tensors, metadata = read_tensors(folder / "comfyui.safetensors")
    recipe = json.loads(metadata["rmd.recipe"]) | {"adapter_alpha": None}
    save_safetensors(tmp_path / "whole.safetensors", tensors, {"rmd.recipe": json.dumps(recipe)})
    assert main([str(tmp_path / "whole.safetensors"), "--names", "kohya"]) == 2
    assert "whole student" in capsys.readouterr().err

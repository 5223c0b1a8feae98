"""What a student starts from: LoRAs under every spelling and whole networks, against weights merged by hand."""

import copy

import pytest
import torch

from backbone_world import backbone_setup
from process_world import distill_on
from rmd_core.errors import RMDError
from rmd_core.files import read_tensors, save_safetensors
from training.backbones.wan import WanBackbone
from training.export import export_lora
from training.lora_files import merge_lora, read_lora
from training.networks import make_networks
from training.objective import estimate_x0_eps
from training.parallel import Processes
from training.start import read_changes
from training_world import EPS, TOLERANCE, distance, distill, make_setup, refused, tensors, tiny_wan, write_world

RANK, ALPHA = 2, 3.0
LAYERS = ("blocks.0.attn1.to_q", "blocks.0.ffn.net.2", "blocks.0.attn2.to_out.0")  # all of them have adapters
NATIVE = ("blocks.0.self_attn.q", "blocks.0.ffn.2", "blocks.0.cross_attn.o")
OTHER, NATIVE_OTHER = "condition_embedder.text_embedder.linear_1", "text_embedding.0"  # has none
ADAPTERS = ("model.mode=adapters", "model.rank=3", "model.alpha=1.5", "train.ema=null")


def pairs(network, layers, *, seed=3):
    """{layer: (down, up)} of random matrices of RANK that fit a network."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for layer in layers:
        weight = network.get_submodule(layer).weight
        down, up = (
            torch.randn(RANK, weight[0].numel(), generator=generator),
            torch.randn(len(weight), RANK, generator=generator),
        )
        spread = weight.shape[2:] and (1,) * (weight.ndim - 2)
        found[layer] = 0.3 * down.reshape(RANK, *weight.shape[1:]), 0.3 * up.reshape(len(weight), RANK, *spread)
    return found


def merged_by_hand(network, made, *, scale=ALPHA / RANK, also=()):
    """A copy of the network with the products of the pairs, and other changes, added to its weights."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        for layer, (down, up) in made.items():
            weight = network.get_submodule(layer).weight
            weight += scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        for name, change in dict(also).items():
            network.get_parameter(name).add_(change)
    return network


STYLES = {  # (stem of a layer, endings of down and up, whether there is an alpha, whether layers are native)
    "comfyui": ("diffusion_model.{}", ("lora_A", "lora_B"), True, True),
    "lightx2v": ("diffusion_model.{}", ("lora_down", "lora_up"), False, True),
    "kohya": ("lora_unet_{_}", ("lora_down", "lora_up"), True, True),
    "kohya with the names of diffusers": ("lora_unet_{_}", ("lora_down", "lora_up"), True, False),
    "diffusers": ("transformer.{}", ("lora_A", "lora_B"), False, False),
    "diffusers before PEFT": ("transformer.{}", ("lora.down", "lora.up"), False, False),
    "peft": ("base_model.model.{}", ("lora_A.default", "lora_B.default"), False, False),
}


def spelled(made, style, names):
    """The tensors of a LoRA file in a style, and the scale of its products."""
    stem, ends, alpha, native = STYLES[style]
    found = {}
    for layer, own in made.items():
        name = names[layer] if native else layer
        name = stem.replace("{_}", name.replace(".", "_")).replace("{}", name)
        found |= {f"{name}.{end}.weight": tensor.contiguous() for end, tensor in zip(ends, own)}
        if alpha:
            found[f"{name}.alpha"] = torch.tensor(ALPHA)
    return found, ALPHA / RANK if alpha else 1.0


def first_outputs(setup, height=4):
    """What student, fake score and teacher predict at the start of a run, for one state."""
    networks = make_networks(setup, Processes(setup.config))
    generator, size = torch.Generator().manual_seed(2), (setup.backbone.channels, *[1] * setup.backbone.temporal)
    x = torch.randn(2, *size, height, height, generator=generator)
    sigma = torch.full((2,), 0.7 * float(setup.plan.curve.sigma_max), dtype=torch.float64)
    conditioning = setup.embed(setup.prompts[:2])

    def output(network):
        with torch.no_grad():
            return estimate_x0_eps(setup.backbone, network, x, sigma, conditioning, curve=setup.plan.curve)[0]

    return networks, output


def near(a, b, tolerance=1e-5):
    return (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("mode", ["adapters", "beside the adapters", "three networks"])
def test_the_first_output_is_that_of_the_base_with_the_lora_merged(tmp_path, mode):
    write_world(tmp_path)
    teacher, start = WanBackbone().load(tmp_path / "teacher.safetensors"), tmp_path / "start.safetensors"
    names = dict(zip((*LAYERS, OTHER), (*NATIVE, NATIVE_OTHER)))
    made = pairs(teacher, LAYERS if mode == "adapters" else (*LAYERS, OTHER))
    options = () if mode == "three networks" else ADAPTERS
    for style in STYLES:
        file, scale = spelled(made, style, names)
        save_safetensors(start, file, {})
        networks, output = first_outputs(make_setup(tmp_path, f"model.init_from={start}", *options))
        expected = output(merged_by_hand(teacher, made, scale=scale))
        assert near(output(networks.student), expected) and not near(expected, output(teacher), 1e-2), style
        assert near(output(networks.fake), output(teacher)) and near(output(networks.teacher), output(teacher))
        if options:
            assert networks.base.beside == (mode != "adapters")


@pytest.mark.parametrize("mode", [(), ADAPTERS])
def test_changes_in_full_count_too_and_the_fake_score_may_start_there(tmp_path, mode):
    """As in LightX2V's files: ``diff`` of norms, ``diff_b`` of biases."""
    write_world(tmp_path)
    teacher = WanBackbone().load(tmp_path / "teacher.safetensors")
    made = pairs(teacher, LAYERS)
    file, _ = spelled(made, "lightx2v", dict(zip(LAYERS, NATIVE)))
    also = {
        "blocks.0.attn1.norm_q.weight": ("blocks.0.self_attn.norm_q.diff", 0.5),
        "blocks.0.attn1.to_q.bias": ("blocks.0.self_attn.q.diff_b", 0.7),
        "blocks.0.norm2.weight": ("blocks.0.norm3.diff", -0.4),
        "blocks.0.norm2.bias": ("blocks.0.norm3.diff_b", 0.3),
        "proj_out.bias": ("head.head.diff_b", 0.2),
    }
    changes = {name: torch.full_like(teacher.get_parameter(name), size) for name, (_, size) in also.items()}
    file |= {f"diffusion_model.{spelling}": changes[name] for name, (spelling, _) in also.items()}
    save_safetensors(tmp_path / "start.safetensors", file, {})
    start = (f"model.init_from={tmp_path / 'start.safetensors'}", "model.init_fake=student", "model.init_strength=0.5")
    networks, output = first_outputs(make_setup(tmp_path, *start, *mode))
    half = {name: change / 2 for name, change in changes.items()}
    expected = output(merged_by_hand(teacher, made, scale=0.5, also=half))
    assert near(output(networks.student), expected) and near(output(networks.fake), expected)
    assert near(output(networks.teacher), output(teacher)) and not near(expected, output(teacher), 1e-2)


@pytest.mark.parametrize("mode", [(), ADAPTERS])
def test_a_modulation_is_changed_in_whole_networks_and_left_out_of_adapters(tmp_path, caplog, mode):
    write_world(tmp_path)
    teacher, path = WanBackbone().load(tmp_path / "teacher.safetensors"), tmp_path / "start.safetensors"
    made, name = pairs(teacher, LAYERS), "blocks.0.scale_shift_table"
    change = torch.full_like(teacher.get_parameter(name), 0.3)
    file = spelled(made, "lightx2v", dict(zip(LAYERS, NATIVE)))[0] | {"diffusion_model.blocks.0.diff_m": change}
    save_safetensors(path, file, {})
    networks, output = first_outputs(make_setup(tmp_path, f"model.init_from={path}", *mode))
    also = {} if mode else {name: change}
    assert near(output(networks.student), output(merged_by_hand(teacher, made, scale=1.0, also=also)))
    assert ("1 changes outside of layers" in caplog.text) == bool(mode)


@pytest.mark.parametrize(("rank", "changed"), [(3, False), (1, False), (3, True)])
def test_what_a_run_writes_is_its_start_and_what_it_learnt(tmp_path, rank, changed):
    """The LoRA, read back on the teacher, and the whole student are the student that was trained."""
    write_world(tmp_path)
    teacher = WanBackbone().load(tmp_path / "teacher.safetensors")
    file, _ = spelled(pairs(teacher, LAYERS), "lightx2v", dict(zip(LAYERS, NATIVE)))
    if changed:
        file["diffusion_model.blocks.0.self_attn.norm_q.diff"] = torch.full_like(
            teacher.get_parameter("blocks.0.attn1.norm_q.weight"), 0.5
        )
    save_safetensors(tmp_path / "start.safetensors", file, {})
    run = (*ADAPTERS, f"model.rank={rank}", f"model.init_from={tmp_path / 'start.safetensors'}", "train.updates=2")
    assert distill(tmp_path, *run, "output.name=lora") == 0
    assert distill(tmp_path, *run, "output.name=whole", "output.merge=true", flags=["--resume"]) == 0
    out, keys = tmp_path / "out", WanBackbone.keys(teacher.config)
    lora = read_lora(read_tensors(out / "lora.safetensors")[0], keys, "it")
    assert bool(lora.changes) == changed
    read = merge_lora(copy.deepcopy(teacher), lora, "it").state_dict()
    whole = WanBackbone().load(out / "whole.safetensors").state_dict()
    assert all(torch.allclose(read[name], whole[name], atol=1e-5) for name in whole)
    start = merge_lora(copy.deepcopy(teacher), read_lora(file, keys, "it"), "it").state_dict()
    assert any(not torch.allclose(whole[name], start[name], atol=1e-5) for name in whole)
    beside = rank < RANK or changed
    widths = {layer: len(value.down) for layer, value in lora.factors.items()}
    assert widths[LAYERS[0]] == (rank + RANK if beside else rank)
    setup = make_setup(tmp_path, *run, f"output.folder={tmp_path / 'again'}")
    networks, output = first_outputs(setup)
    for name, tensor in tensors(out / "checkpoints" / "step_000002" / "student.safetensors").items():
        dict(networks.trained["student"].named_parameters())[name].data.copy_(tensor)
    assert near(output(networks.student), output(WanBackbone().load(out / "whole.safetensors")))


@pytest.mark.parametrize("mode", [(), (*ADAPTERS, "model.rank=1")])
def test_two_processes_that_shard_start_like_one(tmp_path, mode):
    write_world(tmp_path)
    teacher, start = WanBackbone().load(tmp_path / "teacher.safetensors"), tmp_path / "start.safetensors"
    file, _ = spelled(pairs(teacher, LAYERS), "lightx2v", dict(zip(LAYERS, NATIVE)))
    file["diffusion_model.blocks.0.self_attn.norm_q.diff"] = torch.full((128,), 0.5)
    save_safetensors(start, file, {})
    run = (*mode, EPS, f"model.init_from={start}", "model.init_fake=student", "train.updates=2", "output.merge=true")
    assert distill(tmp_path, *run, "train.batch=2") == 0
    distill_on(2, tmp_path, *run, "train.batch=1", f"output.folder={tmp_path / 'two'}", sharded=True)
    one, two = (tensors(tmp_path / folder / "student.safetensors") for folder in ("out", "two"))
    begun = WanBackbone().native_state(
        merge_lora(teacher, read_lora(file, WanBackbone.keys(teacher.config), "it"), "it")
    )
    assert distance(one, two, begun) < TOLERANCE


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_stacked_and_convolutional_layers_start_as_merged(tmp_path, name):
    """SD3's native files stack q, k and v; SDXL's LoRAs change convolutions."""
    setup = backbone_setup(name, tmp_path)
    teacher, keys = setup.teacher, setup.backbone.keys(setup.teacher.config)
    if name == "sd3":
        layers = [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]
        native, down = "joint_blocks.0.x_block.attn.qkv", torch.randn(4, 128) * 0.2
        up = torch.randn(3 * 128, 4) * 0.2
        file = {f"diffusion_model.{native}.lora_A.weight": down, f"diffusion_model.{native}.lora_B.weight": up}
        made = {layer: (down, rows) for layer, rows in zip(layers, up.chunk(3))}
    else:
        layers = (
            "down_blocks.0.resnets.0.conv1",
            "down_blocks.0.downsamplers.0.conv",
            "mid_block.resnets.0.time_emb_proj",
        )
        made = pairs(teacher, layers)
        file, _ = spelled(made, "kohya with the names of diffusers", {})
    save_safetensors(tmp_path / "start.safetensors", file, {})
    assert keys.native_layer(layers[0])
    scale = 1.0 if name == "sd3" else ALPHA / RANK
    for mode in ("three networks", "adapters"):
        options = (f"model.mode={mode}", f"model.init_from={tmp_path / 'start.safetensors'}", "model.rank=2")
        networks, output = first_outputs(backbone_setup(name, tmp_path, *options), height=8)
        expected = output(merged_by_hand(teacher, made, scale=scale))
        assert near(output(networks.student), expected, 1e-4) and not near(output(networks.teacher), expected, 1e-3)


def test_a_change_of_one_part_of_a_stack_is_exported(tmp_path):
    """The bias of k alone, which SD3's native files stack with those of q and v."""
    name, path = "transformer_blocks.0.attn.to_k", tmp_path / "start.safetensors"
    change = torch.linspace(-1, 1, 128)
    save_safetensors(path, {f"transformer.{name}.diff_b": change}, {})
    options = ("model.mode=adapters", f"model.init_from={path}", "model.rank=2")
    setup = backbone_setup("sd3", tmp_path, *options)
    base, keys = make_networks(setup, Processes(setup.config)).base, setup.backbone.keys(setup.teacher.config)
    export_lora(setup, base.network, base.lora("student"), tmp_path / "student.safetensors", update=1)
    stored, _ = read_tensors(tmp_path / "student.safetensors")
    written = stored["diffusion_model.joint_blocks.0.x_block.attn.qkv.diff_b"].float()
    assert near(written, torch.cat([torch.zeros(128), change, torch.zeros(128)]), 1e-3)
    changes = read_lora(stored, keys, "it").changes
    assert {n: bool(tensor.any()) for n, tensor in changes.items()} == {
        f"transformer_blocks.0.attn.to_{part}.bias": part == "k" for part in "qkv"
    }
    with pytest.raises(RMDError, match="set output.lora_names to comfyui or kohya"):
        backbone_setup("sd3", tmp_path, *options, "output.lora_names=diffusers")


def test_one_file_with_the_names_of_diffusers_is_a_network(tmp_path):
    write_world(tmp_path)
    save_safetensors(tmp_path / "start.safetensors", dict(tiny_wan(seed=9).state_dict()), {})
    setup = make_setup(tmp_path, f"model.init_from={tmp_path / 'start.safetensors'}", "model.init_fake=student")
    networks, output = first_outputs(setup)
    assert near(output(networks.student), output(tiny_wan(seed=9)), 1e-6)
    assert near(output(networks.fake), output(tiny_wan(seed=9)), 1e-6)


def test_a_start_that_changed_is_not_resumed_and_what_does_not_fit_is_refused(tmp_path, capsys):
    write_world(tmp_path)
    teacher, path = WanBackbone().load(tmp_path / "teacher.safetensors"), tmp_path / "start.safetensors"
    names, run = dict(zip(LAYERS, NATIVE)), (*ADAPTERS, f"model.init_from={path}", "train.updates=1")
    save_safetensors(path, spelled(pairs(teacher, LAYERS), "comfyui", names)[0], {})
    assert distill(tmp_path, *run) == 0
    save_safetensors(path, spelled(pairs(teacher, LAYERS, seed=4), "comfyui", names)[0], {})
    assert distill(tmp_path, *run, "train.updates=2", flags=["--resume"]) == refused(
        capsys, 2, "started from", "changed"
    )
    other = {name: tensor[..., :5].contiguous() for name, tensor in read_tensors(path)[0].items() if tensor.ndim}
    save_safetensors(path, other, {})
    with pytest.raises(RMDError, match="it was trained on"):
        read_changes(path, WanBackbone(), teacher)
    WanBackbone().export(tiny_wan(seed=9), path, dtype=torch.float32)
    fresh = f"output.folder={tmp_path / 'fresh'}"
    assert distill(tmp_path, *run, fresh) == refused(capsys, 2, "is a whole network", "three networks")


def test_text_encoders_in_a_file_are_left_out_with_a_warning(tmp_path, caplog):
    teacher = tiny_wan()
    file, _ = spelled(pairs(teacher, LAYERS), "kohya", dict(zip(LAYERS, NATIVE)))
    keys = WanBackbone.keys(teacher.config)
    alone = read_lora(file, keys, "it")
    te = {f"lora_te1_layer.lora_{part}.weight": torch.zeros(2, 2) for part in ("up", "down")}
    assert read_lora(file | te, keys, "it").factors.keys() == alone.factors.keys()
    assert "2 tensors of text encoders are left out" in caplog.text

"""RMD Load Student: what it loads, what it says, every student it refuses; and the table of base models."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

import comfy_models
from rmd_core.files import save_safetensors
from rmd_core.schedule import FlowCurve, VPCurve
from student_files import (
    ALPHA,
    RANK,
    STUDENT,
    TARGETS,
    TEACHER,
    lora_pairs,
    lora_tensors,
    metadata,
    recipe,
    write_lora,
    write_student,
)

WAN_SMALL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


@pytest.fixture
def folder(pack, node_classes, tmp_path, monkeypatch):
    """models/diffusion_models and models/loras of the test's own."""
    import folder_paths

    for key in ("diffusion_models", "loras"):
        (tmp_path / key).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(tmp_path / key)], {".safetensors"}))
    return tmp_path


@pytest.fixture
def load(pack, node_classes, folder):
    """Run the node on a file of the test's folders: (MODEL, Recipe, report)."""
    node = node_classes["RMD_LoadStudent"]

    def call(path, model=None, *, weight_dtype="default", strength=1.0):
        if model is None:
            kind = {"kind": "full model", "student": path.name, "weight_dtype": weight_dtype}
        else:
            kind = {"kind": "LoRA", "student": path.name, "model": model, "strength": strength}
        return node.execute(kind=kind).result

    return call


@pytest.fixture
def refused(pack, load):
    """The one-line error of the node."""

    def call(*arguments, match):
        with pytest.raises(pack.rmd_core.errors.RMDError, match=match) as caught:
            load(*arguments)
        assert "\n" not in str(caught.value)

    return call


@pytest.fixture
def teacher(comfy, folder):
    """The demo's teacher as ComfyUI's own loader gives it."""
    return comfy.sd.load_diffusion_model(str(TEACHER))


def changed_weights(comfy, patcher):
    """{name: weight} of what a MODEL's patches change, as ComfyUI computes it, in float64."""
    import comfy.lora

    state = patcher.model.state_dict()
    return {
        key: comfy.lora.calculate_weight(patches, state[key].double(), key, intermediate_dtype=torch.float64)
        for key, patches in patcher.patches.items()
    }


def test_full_student(folder, load):
    shutil.copy(STUDENT, folder / "diffusion_models")
    model, found, report = load(folder / "diffusion_models" / STUDENT.name)
    state = model.model.diffusion_model.state_dict()
    assert all(torch.equal(state[name].float(), tensor.float()) for name, tensor in load_file(STUDENT).items())
    assert found.to_json() == recipe().to_json()
    for words in (
        "base: rmd_tiny_wan_teacher (wan2.1",
        "steps: 2+2 at 64x64 to 128x128 px",
        "sigmas: 1, 0.9, 0.75, 0.5",
        "flow, shift 3",
        "mapping: none",
        "eta 0.5",
        "nearest, exact noise, eta 0.5",
        "CFG: 1",
        "rmd-demo-words-3x64",
        "trained: 480 updates",
        "checked: the size of the network, WAN21 of width 128, depth 8",
        "checked: all 231 weights",
    ):
        assert words in report
    assert "NOT checked" not in report


def test_the_report_tells_every_field_apart(folder, load):
    path = write_student(
        folder / "diffusion_models" / "s.safetensors",
        base_model="my own",
        thresholds=(-2.5,),
        final_hw=(16, 24),
        cfg=1.5,
        size_conditioning="final",
    )
    report = load(path)[2]
    for words in ("96x64 to 192x128", "thresholds: -2.5", "CFG: 1.5", "size of the result"):
        assert words in report
    assert "NOT checked: the size of the network: my own is not in RMD's list" in report


@pytest.mark.parametrize("name", ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_weight_dtypes_are_those_of_the_core_loader(comfy, folder, load, name):
    import nodes

    shutil.copy(STUDENT, folder / "diffusion_models")
    ours = load(folder / "diffusion_models" / STUDENT.name, weight_dtype=name)[0]
    (theirs,) = nodes.UNETLoader().load_unet(STUDENT.name, name)
    assert list(nodes.UNETLoader.INPUT_TYPES()["required"]["weight_dtype"][0])[:4].count(name) == 1
    assert ours.model_dtype() == theirs.model_dtype() and ours.model_options == theirs.model_options
    ours, theirs = ours.model.diffusion_model.state_dict(), theirs.model.diffusion_model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours)


VP = VPCurve.scaled_linear(0.00085, 0.012)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "stable-diffusion-xl-v1-base"}, r"\(Stable Diffusion XL\), but the model is WAN21"),
        ({"base_model": WAN_SMALL}, "1.3B-Diffusers .WAN21 of width 1536, depth 30.*the model is WAN21 of width 128"),
        ({"curve": VP, "sigmas": VP.grid(4)}, "for variance preserving.*the model runs on flow, shift 8"),
        ({"prediction": "eps"}, "predicts eps, but the model is set to flow"),
        ({"pixels_per_cell": 16}, "16 px a cell, this model's have 8"),
        ({"adapter_alpha": 4.0}, "is a LoRA by its recipe; set kind to 'LoRA' and keep it in models/loras"),
    ],
)
def test_a_full_student_of_another_base_is_refused(folder, refused, changes, words):
    refused(write_student(folder / "diffusion_models" / "s.safetensors", **changes), match=words)


def test_damaged_and_foreign_files_are_refused(folder, refused):
    models = folder / "diffusion_models"
    shutil.copy(TEACHER, models)
    refused(models / TEACHER.name, match="no RMD recipe in this file.*use the original file, or set the plan by hand")
    refused(models / "gone.safetensors", match="no file 'gone.safetensors' in models/diffusion_models")
    (models / "cut.safetensors").write_bytes(STUDENT.read_bytes()[:3_000_000])
    refused(models / "cut.safetensors", match="truncated")
    part = write_student(models / "part.safetensors", drop=["blocks.3.ffn.0.weight", "blocks.3.ffn.0.bias"])
    refused(part, match="is missing 2 of the 231 weights of its network, first 'blocks.3.ffn.0.bias'")
    save_safetensors(models / "odd.safetensors", {"x": torch.zeros(2)}, metadata())
    refused(models / "odd.safetensors", match="ComfyUI recognises no diffusion model in this file")


@pytest.mark.parametrize("alpha", [ALPHA, None])
@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_lora_adds_what_it_was_trained_to_add(comfy, folder, load, teacher, alpha, strength):
    """W + strength alpha / rank up down, with the alpha of the file or, where it has none, of the recipe."""
    path = write_lora(folder / "loras" / "l.safetensors", lora_tensors(lora_pairs(), alpha=alpha))
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    model, found, report = load(path, teacher, strength=strength)
    assert found.adapter_alpha == ALPHA and not teacher.patches
    changed = changed_weights(comfy, model)
    assert changed.keys() == {f"diffusion_model.{name}.weight" for name in TARGETS}
    for name, (up, down) in lora_pairs().items():
        key = f"diffusion_model.{name}.weight"
        expected = before[key].double() + strength * ALPHA / RANK * (up.double() @ down.double())
        assert torch.allclose(changed[key], expected, rtol=0, atol=1e-10)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.model.state_dict().items())
    assert f"(LoRA, alpha 6, strength {strength:g}" in report and "NOT checked" not in report
    assert ("the student was trained at strength 1" in report) == (strength != 1.0)
    assert "checked: the model was loaded from rmd_tiny_wan_teacher.safetensors, the name of the base" in report


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "stable-diffusion-v3-medium"}, r"\(Stable Diffusion 3\), but the model is WAN21"),
        ({"base_model": WAN_SMALL}, "width 1536, depth 30.*the model is WAN21 of width 128.*the demo's rmd_tiny"),
        ({"curve": VP, "sigmas": VP.grid(4)}, "for variance preserving.*the model runs on flow"),
        ({"adapter_alpha": 2.0}, "holds the alphas 6, but its recipe says 2"),
        ({"adapter_alpha": None}, "is a full model by its recipe; set kind to 'full model'"),
    ],
)
def test_a_lora_of_another_base_is_refused(folder, refused, teacher, changes, words):
    refused(write_lora(folder / "loras" / "l.safetensors", **changes), teacher, match=words)


def test_a_lora_that_does_not_fit_is_refused(folder, refused, teacher):
    loras, whole = folder / "loras", lora_tensors(lora_pairs())
    unet = lora_tensors(lora_pairs(), prefix="unet.")
    refused(write_lora(loras / "a.safetensors", unet), teacher, match="none of its 9 tensors belongs to a LoRA pair")
    extra = whole | {"diffusion_model.blocks.9.self_attn.q.lora_A.weight": torch.zeros(3, 128)}
    refused(write_lora(loras / "b.safetensors", extra), teacher, match="1 of its 10 tensors match nothing in this")
    name = "diffusion_model.blocks.0.self_attn.q.lora_A.weight"
    wide = whole | {name: torch.zeros(RANK, 256)}
    refused(
        write_lora(loras / "c.safetensors", wide),
        teacher,
        match="128x128 in this model, but the LoRA is for one of 128x256",
    )
    ranks = whole | {name: torch.zeros(RANK + 1, 128)}
    refused(write_lora(loras / "d.safetensors", ranks), teacher, match="with matrices of rank 3 and 4")
    diffs = {"diffusion_model.head.head.diff": torch.zeros(64, 128)}
    refused(write_lora(loras / "f.safetensors", diffs), teacher, match="none of its 1 tensors belongs to a LoRA pair")
    refused(write_lora(loras / "g.safetensors", {}), teacher, match="none of its 0 tensors")
    save_safetensors(loras / "e.safetensors", whole, {})
    refused(loras / "e.safetensors", teacher, match="no RMD recipe in this file")


def test_the_models_file_is_held_against_the_base(comfy, folder, load, refused):
    path = write_lora(folder / "loras" / "l.safetensors")
    student = comfy.sd.load_diffusion_model(str(STUDENT))
    refused(path, student, match="the model is rmd_tiny_wan_student.safetensors, itself an RMD student")

    def named(name):
        shutil.copy(TEACHER, folder / "diffusion_models" / name)
        return comfy.sd.load_diffusion_model(str(folder / "diffusion_models" / name))

    other = named("wan2.1_t2v_1.3B_fp16.safetensors")
    refused(
        path, other, match="was loaded from wan2.1_t2v_1.3B_fp16.safetensors .Wan2.1 1.3B text-to-video.; load rmd_"
    )
    assert "checked: RMD-tiny-Wan-teacher_v2.sft".lower() in load(path, named("RMD-tiny-Wan-teacher_v2.sft"))[2].lower()
    assert "NOT checked: whether mine.safetensors is the base rmd_" in load(path, named("mine.safetensors"))[2]
    unknown = write_lora(folder / "loras" / "u.safetensors", base_model="my_wan")
    report = load(unknown, other)[2]
    assert (
        "NOT checked: whether wan2.1_t2v_1.3B_fp16.safetensors (Wan2.1 1.3B text-to-video) is the base my_wan" in report
    )


def test_a_model_of_unknown_origin_is_reported(comfy, folder, load, teacher):
    teacher.cached_patcher_init = None
    report = load(write_lora(folder / "loras" / "l.safetensors"), teacher)[2]
    assert "NOT checked: whether the model is the base rmd_tiny_wan_teacher: it does not say" in report


def test_a_lora_of_wan_small_on_wan_large_is_refused(comfy, pack, folder):
    """The large model without its weights: 14 billion of them on PyTorch's meta device."""
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy_models.tiny_wan().patcher.model.model_config.unet_config | {"dim": 5120, "num_heads": 40}
    config |= {"ffn_dim": 13824, "num_layers": 40, "text_dim": 4096, "freq_dim": 256}
    meta = torch.device("meta")
    model = comfy.supported_models.WAN21_T2V(config).get_model({}, device=meta)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=meta)
    path = write_lora(folder / "loras" / "l.safetensors", base_model=WAN_SMALL)
    read = pack.rmd_core.recipe.read_recipe(path)
    words = r"width 1536, depth 30.* is WAN21 of width 5120, depth 40, .*Wan2.1 14B text-to-video"
    with pytest.raises(pack.rmd_core.errors.RMDError, match=words):
        pack.nodes.bridge.student.StudentChecks(read, path.name).network(patcher)


def test_noise_tables_and_predictions_are_compared(comfy, pack, folder):
    """SDXL with eps and v prediction, PixArt with its linear betas."""
    checks, error = pack.nodes.bridge.student, pack.rmd_core.errors.RMDError
    kinds = {"architecture": "stable-diffusion-xl-v1-base", "base_model": "my sdxl", "prediction": "eps"}
    vp = {"curve": VP, "sigmas": VP.grid(4)}
    linear = VPCurve.linear(1e-4, 0.02)

    def check(model, **changes):
        path = write_student(folder / "s.safetensors", **(kinds | vp | changes))
        found = checks.StudentChecks(pack.rmd_core.recipe.read_recipe(path), "s")
        found.network(model.patcher)
        return found

    assert "the prediction, eps" in check(comfy_models.tiny_sdxl()).checked[-1]
    assert "the prediction, v" in check(comfy_models.tiny_sdxl_v(), prediction="v").checked[-1]
    with pytest.raises(error, match="predicts eps, but the model is set to v"):
        check(comfy_models.tiny_sdxl_v())
    with pytest.raises(error, match="linear.* betas .*, the model runs on scaled-linear betas"):
        check(comfy_models.tiny_sdxl(), curve=linear, sigmas=linear.grid(4))
    with pytest.raises(error, match="for flow, shift 3, but the model runs on variance preserving"):
        check(comfy_models.tiny_sdxl(), curve=FlowCurve(3.0), sigmas=(1.0, 0.9, 0.75, 0.5))
    with pytest.raises(error, match="Stable Diffusion XL., but the model is PixArt"):
        check(comfy_models.tiny_pixart())
    found = check(comfy_models.tiny_sdxl(), architecture="my-architecture")
    assert "'my-architecture' is not in RMD's list" in found.unchecked[0]


@pytest.mark.parametrize(
    ("prefix", "up", "down"),
    [
        ("lora_unet_", "lora_up.weight", "lora_down.weight"),
        ("diffusion_model.", "lora_up.weight", "lora_down.weight"),
        ("diffusion_model.", "lora_B.default.weight", "lora_A.default.weight"),
        ("diffusion_model.", "lora.up.weight", "lora.down.weight"),
        ("diffusion_model.", "lora_B", "lora_A"),
        ("diffusion_model.", "lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
    ],
)
def test_every_naming_gets_the_recipes_alpha(comfy, folder, load, teacher, prefix, up, down):
    """Files that ComfyUI knows under other names, none of them with an alpha."""
    expected = changed_weights(comfy, load(write_lora(folder / "loras" / "a.safetensors"), teacher)[0])
    tensors = {}
    for name, pair in lora_pairs().items():
        place = prefix + (name.replace(".", "_") if prefix == "lora_unet_" else name)
        tensors |= {f"{place}.{up}": pair[0], f"{place}.{down}": pair[1]}
    found = changed_weights(comfy, load(write_lora(folder / "loras" / "b.safetensors", tensors), teacher)[0])
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_pairs_without_an_alpha_among_others_and_alphas_in_half_precision(comfy, folder, load, teacher):
    whole = lora_tensors(lora_pairs(), alpha=None)
    whole["diffusion_model.head.head.alpha"] = torch.tensor(0.3).bfloat16()
    path = write_lora(folder / "loras" / "a.safetensors", whole, adapter_alpha=0.3)
    found = changed_weights(comfy, load(path, teacher)[0])
    full = write_lora(folder / "loras" / "b.safetensors", lora_tensors(lora_pairs(), alpha=0.3), adapter_alpha=0.3)
    expected = changed_weights(comfy, load(full, teacher)[0])
    assert all(torch.allclose(found[key], expected[key], rtol=2e-2, atol=2e-3) for key in expected)
    assert sum(torch.equal(found[key], expected[key]) for key in expected) == len(TARGETS) - 1


def test_patches_that_are_no_pairs_are_reported(comfy, folder, load, teacher):
    diff = {"diffusion_model.head.head.diff_b": torch.ones(64)}
    report = load(write_lora(folder / "loras" / "l.safetensors", lora_tensors(lora_pairs()) | diff), teacher)[2]
    assert "NOT checked: the shapes of 1 patches that are not plain LoRA pairs" in report


def test_a_changed_file_is_read_again(node_classes, folder):
    node, path = node_classes["RMD_LoadStudent"], folder / "loras" / "l.safetensors"
    kind = {"kind": "LoRA", "student": path.name, "strength": 1.0}
    absent = node.fingerprint_inputs(kind=kind)
    write_lora(path)
    before = node.fingerprint_inputs(kind=kind)
    os.utime(path, ns=(5, 5))
    assert len({absent, before, node.fingerprint_inputs(kind=kind)}) == 3
    assert node.fingerprint_inputs(kind=kind | {"kind": "full model"}) == node.fingerprint_inputs(kind={}) == absent


def test_a_weight_under_another_name_is_a_weight_that_is_missing(folder, refused):
    """ComfyUI would fill the weight with what was in memory; a packed format has other names in its layer."""
    weights = load_file(STUDENT)
    path = folder / "diffusion_models" / "s.safetensors"
    renamed = {("other" if name == "blocks.0.ffn.2.weight" else name): value for name, value in weights.items()}
    save_safetensors(path, renamed, metadata())
    refused(path, match="is missing 1 of the 231 weights of its network, first 'blocks.0.ffn.2.weight'")


def test_half_a_pair_and_a_network_without_its_first_layer(folder, refused, teacher):
    half = lora_tensors(lora_pairs())
    del half["diffusion_model.head.head.lora_A.weight"]
    refused(write_lora(folder / "loras" / "l.safetensors", half), teacher, match="does not find a tensor .*lora_A")
    part = write_student(folder / "diffusion_models" / "s.safetensors", drop=["patch_embedding.weight"])
    refused(part, match="does not find a tensor in this file .*patch_embedding.weight")


def test_tensors_of_other_shapes_are_refused_in_a_line(folder, refused):
    path = folder / "diffusion_models" / "s.safetensors"
    save_safetensors(path, load_file(STUDENT) | {"blocks.0.ffn.2.weight": torch.zeros(3, 5)}, metadata())
    refused(path, match="its tensors do not have the shapes of one network")


WAN_SIZES = {
    "Wan2.1 1.3B text-to-video": {"dim": 1536, "ffn_dim": 8960, "num_layers": 30, "in_dim": 16},
    "Wan2.1 14B text-to-video": {"dim": 5120, "ffn_dim": 13824, "num_layers": 40, "in_dim": 16},
    "Wan2.1 14B image-to-video": {"dim": 5120, "ffn_dim": 13824, "num_layers": 40, "in_dim": 36, "model_type": "i2v"},
}
SD3_SIZES = {
    "Stable Diffusion 3.5 Large": {"depth": 38, "qk_norm": "rms"},
    "Stable Diffusion 3.5 Medium": {"depth": 24, "qk_norm": "rms", "x_block_self_attn_layers": list(range(13))},
    "Stable Diffusion 3 Medium": {"depth": 24},
}
PIXART_SIZES = {"PixArt-alpha XL 1024": True, "PixArt-Sigma XL 1024": False}


@pytest.fixture
def bases(pack):
    return pack.nodes.bridge.student


def detected_structure(comfy, bases, network):
    """The Structure of what ComfyUI makes of a network's tensor names and shapes; the weights are never there."""
    import comfy.model_detection
    import comfy.model_patcher

    config, meta = comfy.model_detection.model_config_from_unet(network.state_dict(), ""), torch.device("meta")
    model = config.get_model({}, device=meta)
    return bases.structure_of(comfy.model_patcher.ModelPatcher(model, load_device=meta, offload_device=meta))


def entry(bases, title):
    (found,) = [base for base in bases.BASES if base.title == title]
    return found


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B", "Wan2.1 1.3B text-to-video"),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan2.1 1.3B text-to-video"),
        ("wan2.1_t2v_1.3B_fp16.safetensors", "Wan2.1 1.3B text-to-video"),
        ("Wan2_1-T2V-1_3B_bf16.safetensors", "Wan2.1 1.3B text-to-video"),
        ("Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan2.1 14B text-to-video"),
        ("sub/wan2.1_t2v_14B_fp8_scaled.safetensors", "Wan2.1 14B text-to-video"),
        ("wan2.1_i2v_720p_14B_fp16.safetensors", "Wan2.1 14B image-to-video"),
        ("wan2.2_t2v_low_noise_14B_fp8_scaled", "Wan2.2 A14B text-to-video"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "SDXL base 1.0"),
        ("sd_xl_base_1.0_0.9vae.safetensors", "SDXL base 1.0"),
        ("sd_xl_turbo_1.0_fp16.safetensors", "SDXL Turbo"),
        ("stabilityai/stable-diffusion-3-medium", "Stable Diffusion 3 Medium"),
        ("sd3_medium_incl_clips.safetensors", "Stable Diffusion 3 Medium"),
        ("stabilityai/stable-diffusion-3.5-medium", "Stable Diffusion 3.5 Medium"),
        ("sd3.5_large_fp8_scaled.safetensors", "Stable Diffusion 3.5 Large"),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "Stable Diffusion 3.5 Large Turbo"),
        ("PixArt-alpha/PixArt-XL-2-1024-MS", "PixArt-alpha XL 1024"),
        ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "PixArt-Sigma XL 1024"),
        ("black-forest-labs/FLUX.1-dev", "FLUX.1 dev"),
        ("flux1-dev-fp8.safetensors", "FLUX.1 dev"),
        ("flux1-dev-kontext_fp8_scaled.safetensors", "FLUX.1 Kontext dev"),
        ("flux1-schnell.safetensors", "FLUX.1 schnell"),
        ("C:\\models\\rmd_tiny_wan_teacher.safetensors", "the demo's rmd_tiny_wan_teacher"),
    ],
)
def test_names_of_known_bases(bases, name, title):
    assert bases.known_base(name).title == title


@pytest.mark.parametrize("name", ["me/My-Model-Diffusers", "my_model.safetensors", "a\\b\\My.Model.gguf", " mymodel "])
def test_ways_to_write_one_name(bases, name):
    assert bases.plain_name(name) == "mymodel"


@pytest.mark.parametrize("name", ["", "rmd_tiny_wan_student", "my_wan_1.3B", "juggernautXL_v9", "flux2-dev", "wan2.1"])
def test_names_of_no_known_base(bases, name):
    assert bases.known_base(name) is None


@pytest.mark.parametrize(
    ("architecture", "network"),
    [
        ("wan2.1", "WAN21"),
        ("wan2.1/lora", "WAN21"),
        ("stable-diffusion-xl-v1-base", "SDXL"),
        ("stable-diffusion-v3-medium", "SD3"),
        ("stable-diffusion-3.5-large", "SD3"),
        ("PixArt-Sigma", "PixArt"),
    ],
)
def test_families_are_classes_of_comfyui(comfy, pack, architecture, network):
    import comfy.model_base

    family = pack.nodes.bridge.model.family_of(architecture)
    assert family.network == network and hasattr(comfy.model_base, network)
    assert pack.nodes.bridge.model.family_of("stable-diffusion-v1") is None


@pytest.mark.parametrize("title", WAN_SIZES)
def test_structure_of_wan(comfy, bases, title):
    from comfy.ldm.wan.model import WanModel

    sizes = {"model_type": "t2v"} | WAN_SIZES[title]
    network = WanModel(**sizes, num_heads=sizes["dim"] // 128, **on_meta(comfy))
    assert detected_structure(comfy, bases, network) == entry(bases, title).structure


@pytest.mark.parametrize("title", SD3_SIZES)
def test_structure_of_sd3(comfy, bases, title):
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    sizes = SD3_SIZES[title]
    context = {"in_features": 4096, "out_features": 64 * sizes["depth"]}
    network = MMDiT(
        **sizes,
        input_size=None,
        in_channels=16,
        adm_in_channels=2048,
        num_patches=36864,
        pos_embed_max_size=192,
        context_embedder_config={"target": "torch.nn.Linear", "params": context},
        **on_meta(comfy),
    )
    assert detected_structure(comfy, bases, network) == entry(bases, title).structure


@pytest.mark.parametrize("title", PIXART_SIZES)
def test_structure_of_pixart(comfy, bases, title):
    from comfy.ldm.pixart.pixartms import PixArtMS

    network = PixArtMS(
        hidden_size=1152, depth=28, num_heads=16, input_size=128, micro_condition=PIXART_SIZES[title], **on_meta(comfy)
    )
    assert detected_structure(comfy, bases, network) == entry(bases, title).structure


def test_structure_of_sdxl(comfy, bases):
    import comfy.supported_models

    config = comfy.supported_models.SDXL.unet_config
    read = f"SDXL of width {config['model_channels']}, depth {sum(config['transformer_depth'])}"
    assert entry(bases, "SDXL base 1.0").structure == read


def on_meta(comfy):
    import comfy.ops

    return {"device": torch.device("meta"), "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}

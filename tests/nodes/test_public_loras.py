"""Public students without a recipe: LoRAs in PEFT's format through RMD Load Student, by profile, in a real ComfyUI."""

import re

import pytest
import torch
import yaml
from diffusers import FluxTransformer2DModel
from torch import nn

import zoo
from backbone_world import random_network
from benchmarks.models import outline
from comfy_students import STUDENTS, comfy_output, relative_error
from full_size import meta_student
from rmd_core.files import save_safetensors
from schedule_rig import by_profile
from student_files import write_lora
from training.backbones import make_backbone

RANK = 3
SWD_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")
FLUX = {"width": 48, "mlp": 4 * 48, "context": zoo.CONTEXT}


@pytest.fixture
def folders(pack, node_classes, tmp_path, monkeypatch):
    """models/loras, models/diffusion_models and user/rmd_profiles of the test's own."""
    import folder_paths

    for key in ("diffusion_models", "loras"):
        (tmp_path / key).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(tmp_path / key)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    (tmp_path / "rmd_profiles").mkdir()
    return tmp_path


@pytest.fixture
def load(node_classes, folders):
    """Run the node on a file of models/loras: (MODEL, Recipe, report)."""

    def call(file, model, profile, strength=1.0):
        kind = {"kind": "LoRA without recipe", "student": file, "model": model, "strength": strength}
        return node_classes["RMD_LoadStudent"].execute(kind=kind | {"profile": profile}).result

    return call


def own_profile(pack, folders, key, title="Mine, 4 steps (LoRA)"):
    """A shipped student's profile in a file of the user's own, for a base that nobody knows."""
    shipped = pack.nodes.profiles.SHIPPED / "0_swd.yaml"
    (entry,) = (one for one in yaml.safe_load(shipped.read_text(encoding="utf-8")) if one["key"] == key)
    entry |= {"key": "mine", "title": title, "base": "me/tiny"}
    (folders / "rmd_profiles" / "mine.yaml").write_text(yaml.safe_dump([entry]), encoding="utf-8")
    return title


def pairs(shapes, seed=3):
    """{module: (B, A)} of random matrices for weights of these shapes, as PEFT shapes them for a layer or a kernel."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for module, (rows, *columns) in shapes.items():
        kernel = (1,) * len(columns[1:])
        b = 0.05 * torch.randn(rows, RANK, *kernel, generator=generator)
        made[module] = b, torch.randn(RANK, *columns, generator=generator)
    return made


def save(path, made):
    """The file that PEFT writes: no alpha, no metadata of ours."""
    tensors = {f"base_model.model.{name}.lora_A.weight": a for name, (_, a) in made.items()}
    tensors |= {f"base_model.model.{name}.lora_B.weight": b for name, (b, _) in made.items()}
    save_safetensors(path, tensors, {"format": "pt"})
    return path.name


def product(b, a):
    """B @ A in the shape of the weight."""
    return (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])


def layers(network, targets=None):
    """{module: shape of its weight} of the linear layers and convolutions of a diffusers network."""
    kinds = (nn.Linear, nn.Conv2d)
    found = {name: tuple(m.weight.shape) for name, m in network.named_modules() if isinstance(m, kinds)}
    return {name: shape for name, shape in found.items() if targets is None or name.endswith(targets)}


@pytest.mark.parametrize(
    ("name", "profile", "targets"),
    [
        ("SD3.5 Medium", "swd-sd35-medium-6-lora", SWD_TARGETS),
        ("SD3.5 Large", "swd-sd35-large-4-lora", SWD_TARGETS),
        ("SDXL", "swd-sdxl-4-lora", None),
    ],
)
def test_base_and_lora_are_diffusers_network_with_the_adapter(pack, comfy, folders, load, name, profile, targets):
    """A forward of ComfyUI's network against diffusers' own with W + strength B @ A, computed by hand."""
    family, kind, config, width, pooled_width, _, sizes = STUDENTS[name]
    backbone, network = make_backbone(family), random_network(kind, config)
    backbone.export(network, folders / "diffusion_models" / "base.safetensors", dtype=torch.float32, metadata={})
    made = pairs(layers(network, targets))
    file, strength = save(folders / "loras" / "adapter_model.safetensors", made), 0.5
    base = comfy.sd.load_diffusion_model(str(folders / "diffusion_models" / "base.safetensors"))
    model, recipe, report = load(file, base, own_profile(pack, folders, profile), strength)
    assert f"all {2 * len(made)} tensors of the LoRA match the model" in report and not base.patches
    assert sum(map(len, model.patches.values())) == len(made)

    generator = torch.Generator().manual_seed(7)
    height, cells = sizes[0]
    x = torch.randn(1, backbone.channels, height, cells, generator=generator)
    conditioning = {"text": torch.randn(1, 5, width, generator=generator), "mask": torch.ones(1, 5)}
    pooled = conditioning["pooled"] = torch.randn(1, pooled_width, generator=generator)
    sigma = backbone.curve.table_sigma(375.0)
    level = torch.tensor([sigma], dtype=torch.float64)
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    with torch.no_grad():
        plain = backbone.predict(network, x, level, conditioning)
        for module, (b, a) in made.items():
            network.get_submodule(module).weight += strength * product(b, a)
        student = backbone.predict(network, x, level, conditioning)
        got = comfy_output(model.model, backbone, x, sigma, conditioning["text"], pooled)
    assert relative_error(got, student) < 1e-4 and relative_error(plain, student) > 1e-2


def flux_slices():
    """{PEFT's module: (ComfyUI's weight, first row, rows, columns)} of a FLUX.1 of one block of each kind, by hand."""
    width, mlp, context = FLUX["width"], FLUX["mlp"], FLUX["context"]
    places = {
        "x_embedder": ("img_in", 0, width, 64),
        "context_embedder": ("txt_in", 0, width, context),
        "time_text_embed.timestep_embedder.linear_1": ("time_in.in_layer", 0, width, 256),
        "time_text_embed.guidance_embedder.linear_2": ("guidance_in.out_layer", 0, width, width),
        "proj_out": ("final_layer.linear", 0, 64, width),
        "single_transformer_blocks.0.proj_mlp": ("single_blocks.0.linear1", 3 * width, mlp, width),
        "single_transformer_blocks.0.proj_out": ("single_blocks.0.linear2", 0, width, width + mlp),
        "single_transformer_blocks.0.norm.linear": ("single_blocks.0.modulation.lin", 0, 3 * width, width),
    }
    for place, letter in enumerate("qkv"):
        rows = (place * width, width, width)
        places[f"single_transformer_blocks.0.attn.to_{letter}"] = ("single_blocks.0.linear1", *rows)
        places[f"transformer_blocks.0.attn.to_{letter}"] = ("double_blocks.0.img_attn.qkv", *rows)
        places[f"transformer_blocks.0.attn.add_{letter}_proj"] = ("double_blocks.0.txt_attn.qkv", *rows)
    for theirs, ours, image in (("", "img", "to_out.0"), ("_context", "txt", "to_add_out")):
        places[f"transformer_blocks.0.attn.{image}"] = (f"double_blocks.0.{ours}_attn.proj", 0, width, width)
        places[f"transformer_blocks.0.ff{theirs}.net.0.proj"] = (f"double_blocks.0.{ours}_mlp.0", 0, mlp, width)
        places[f"transformer_blocks.0.ff{theirs}.net.2"] = (f"double_blocks.0.{ours}_mlp.2", 0, width, mlp)
        places[f"transformer_blocks.0.norm1{theirs}.linear"] = (f"double_blocks.0.{ours}_mod.lin", 0, 6 * width, width)
    return places


def tiny_flux():
    from comfy_models import TinyModel, patcher_of

    patcher = patcher_of("Flux", zoo.flux(guidance_embed=True, mlp_ratio=4.0))
    return TinyModel(patcher, 16, zoo.CONTEXT, zoo.CONTEXT)


@pytest.mark.parametrize("strength", [1.0, -0.25])
def test_every_flux_weight_is_base_and_strength_b_a(pack, comfy, folders, load, strength):
    """Each pair lands on its rows of ComfyUI's weight, and nothing else moves."""
    import comfy.lora

    base, slices = tiny_flux().patcher, flux_slices()
    made = pairs({name: tuple(shape) for name, (_, _, *shape) in slices.items()})
    file = save(folders / "loras" / "swd_flux.safetensors", made)
    model, _, report = load(file, base, own_profile(pack, folders, "swd-flux1-dev-4-lora"), strength)
    assert "NOT checked: the shapes" not in report
    state = model.model.state_dict()
    expected = {}
    for name, (weight, first, rows, _) in slices.items():
        key = f"diffusion_model.{weight}.weight"
        expected.setdefault(key, state[key].double().clone())
        expected[key][first : first + rows] += strength * product(*(m.double() for m in made[name]))
    assert model.patches.keys() == expected.keys() and sum(map(len, model.patches.values())) == len(made) == 25
    for key, patches in model.patches.items():
        got = comfy.lora.calculate_weight(patches, state[key].double(), key, intermediate_dtype=torch.float64)
        assert torch.allclose(got, expected[key], rtol=0, atol=1e-10), key


FULL_FLUX = zoo.flux(
    vec_in_dim=768,
    context_in_dim=4096,
    hidden_size=3072,
    mlp_ratio=4.0,
    num_heads=24,
    depth=19,
    depth_single_blocks=38,
    axes_dim=[16, 56, 56],
    guidance_embed=True,
)


def full_size(comfy, name):
    """(diffusers' full-size network, ComfyUI's of the same model), both without data."""
    import comfy.model_detection
    import comfy.supported_models

    if name == "FLUX.1 dev":
        theirs = outline(FluxTransformer2DModel, {"guidance_embeds": True})
        return theirs, comfy.supported_models.Flux(FULL_FLUX).get_model({}, device=torch.device("meta"))
    backbone, network, _ = meta_student(name)
    state = {key: tensor.to(torch.float16) for key, tensor in backbone.native_state(network).items()}
    config = comfy.model_detection.model_config_from_unet(state, "", metadata=backbone.native_metadata(network))
    config.set_inference_dtype(torch.float16, None)
    return network, config.get_model(dict(state), "", device=torch.device("meta"))


@pytest.mark.parametrize("name", ["SD3.5 Medium", "SD3.5 Large", "FLUX.1 dev", "SDXL"])
def test_every_layer_of_the_full_size_network_has_its_place(pack, comfy, name):
    """PEFT's name of each linear layer and convolution, against ComfyUI's weight: renamed, known, and of its shape."""
    import comfy.lora

    theirs, ours = full_size(comfy, name)
    known, state = comfy.lora.model_lora_keys_unet(ours, {}), ours.state_dict()
    found = layers(theirs)
    empty = torch.zeros(0)
    names = [f"base_model.model.{module}.lora_{part}.weight" for module in found for part in "AB"]
    renamed = pack.nodes.bridge.student.core_names(dict.fromkeys(names, empty), known)
    assert len(renamed) == len(names)
    for module, name in zip(found, list(renamed)[::2], strict=True):
        target = known[re.sub(r"\.lora_A\.weight$", "", name)]
        key, *part = (target,) if isinstance(target, str) else target
        shape = list(state[key].shape)
        if part and part[0] is not None:
            axis, _, shape[axis] = part[0]
        assert shape == list(found[module]), module


def test_every_students_base_is_known_by_name_and_structure(pack, comfy):
    """So a file on another base of the family is refused; the full-size networks are those that the profiles name."""
    import comfy.model_patcher

    student, device = pack.nodes.bridge.student, torch.device("meta")
    names = {"swd-sd35-medium-6-lora": "SD3.5 Medium", "swd-sd35-large-4-lora": "SD3.5 Large"}
    names |= {"swd-flux1-dev-4-lora": "FLUX.1 dev", "swd-sdxl-4-lora": "SDXL"}
    profiles = {one.key: one for one in pack.nodes.profiles.load_profiles().values()}
    for key, name in names.items():
        model = full_size(comfy, name)[1]
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
        assert student.known_base(profiles[key].base).structure == student.structure_of(patcher)


def test_the_recipe_gives_the_profiles_plan(pack, nodes, folders, load):
    title = own_profile(pack, folders, "swd-flux1-dev-4-lora")
    slices = flux_slices()
    file = save(folders / "loras" / "a.safetensors", pairs({name: tuple(place[2:]) for name, place in slices.items()}))
    model, recipe, report = load(file, tiny_flux().patcher, title)
    bridge = pack.nodes.bridge
    view, profile = bridge.model.ModelView.of(model), pack.nodes.profiles.load_profiles()[title]
    for size in ((128, 128), (96, 168), (16, 24)):
        by_recipe = bridge.plans.sampling_plan(view, size, {"source": "student recipe", "recipe": recipe})
        direct = bridge.plans.sampling_plan(view, size, by_profile(profile))
        assert str(by_recipe.stage_plan) == str(direct.stage_plan)
        for name in ("boundary", "eta", "cfg", "size_conditioning", "kind"):
            assert getattr(by_recipe, name) == getattr(direct, name)
        assert "not distilled" not in by_recipe.origin + direct.origin
    for words in (
        "base: me/tiny (flux-1, predicts flow)",
        "steps: 1+1+1+1 at 512x512 to 640x640 to 768x768 to 1024x1024 px",
        "sigmas: 1, 0.8959, 0.7371, 0.6022",
        "bicubic, fresh noise",
        "note: FluxGuidance is 4.5, the guidance inside the network; CFG stays 1",
        "NOT checked: whether the file is Mine, 4 steps (LoRA)",
    ):
        assert words in report


def test_wrong_files_bases_and_profiles_are_refused(pack, folders, load, refused):
    base, slices = tiny_flux().patcher, flux_slices()
    whole = pairs({name: tuple(place[2:]) for name, place in slices.items()})
    title, loras = own_profile(pack, folders, "swd-flux1-dev-4-lora"), folders / "loras"
    file = save(loras / "a.safetensors", whole)
    titles = {one.key: title for title, one in pack.nodes.profiles.load_profiles().items()}
    refused(lambda: load(file, base, "other"), "no student profile is called 'other'; use one of SwD SD3.5 Medium")
    refused(lambda: load(file, base, titles["sdxl-dmd2-lora"]), "no student profile is called")
    refused(lambda: load(file, base, titles["swd-sdxl-4-lora"]), "is for SDXL, the model is Flux")
    refused(
        lambda: load(file, base, titles["swd-flux1-dev-4-lora"]), "depth 19+38, guidance), but the model is Flux of"
    )
    extra = save(loras / "b.safetensors", whole | pairs({"transformer_blocks.1.attn.to_q": (48, 48)}))
    refused(lambda: load(extra, base, title), "2 of its 52 tensors match nothing in this model", "transformer_blocks.1")
    wide = save(loras / "c.safetensors", whole | pairs({"transformer_blocks.0.attn.to_q": (48, 96)}))
    refused(lambda: load(wide, base, title), "is 48x48 in this model, but the LoRA is for one of 48x96")
    refused(lambda: load("gone.safetensors", base, title), "no file 'gone.safetensors' in models/loras")


def test_a_changed_profile_is_read_again(pack, node_classes, folders):
    stamp = node_classes["RMD_LoadStudent"].fingerprint_inputs
    chosen = {"student": "a.safetensors", "kind": "LoRA without recipe"}
    own_profile(pack, folders, "swd-flux1-dev-4-lora")
    before = stamp(kind=chosen), stamp(kind=chosen | {"kind": "LoRA"})
    own_profile(pack, folders, "swd-flux1-dev-4-lora", title="Mine, with another title (LoRA)")
    assert stamp(kind=chosen) != before[0] and stamp(kind=chosen | {"kind": "LoRA"}) == before[1]


def test_each_list_has_its_own_files(node_classes, folders):
    save(folders / "loras" / "public.safetensors", pairs({"proj_out": (64, 48)}))
    write_lora(folders / "loras" / "mine.safetensors")
    (kind,) = node_classes["RMD_LoadStudent"].GET_SCHEMA().inputs
    listed = {option.key: option.inputs[0].options for option in kind.options}
    assert listed["LoRA"] == ["mine.safetensors"] and listed["LoRA without recipe"] == ["public.safetensors"]
    (profile,) = (entry for entry in kind.options[2].inputs if entry.id == "profile")
    assert len(profile.options) == 5 and all(title.startswith("SwD ") for title in profile.options)


def test_cores_lora_node_gives_the_same_weights_on_sd3(pack, comfy, folders, load):
    """LoraLoaderModelOnly and RMD Load Student on one SD3.5 file."""
    import comfy.lora

    import nodes as core

    width = 64
    names = [f"transformer_blocks.0.{part}" for part in ("attn.to_q", "attn.to_v", "attn.to_out.0", "ff.net.2")]
    shapes = {name: (width, 4 * width if name.endswith("ff.net.2") else width) for name in names}
    file, base = save(folders / "loras" / "sd3.safetensors", pairs(shapes)), zoo.tiny_model("SD3").patcher
    ours, _, _ = load(file, base, own_profile(pack, folders, "swd-sd35-medium-4-lora"), 0.75)
    theirs = core.LoraLoaderModelOnly().load_lora_model_only(base, file, 0.75)[0]
    state = base.model.state_dict()
    assert ours.patches.keys() == theirs.patches.keys() and len(ours.patches) == 3  # q and v are in one weight
    for key, weight in ((key, state[key]) for key in ours.patches):
        changed = [comfy.lora.calculate_weight(one.patches[key], weight.clone(), key) for one in (ours, theirs)]
        assert torch.equal(*changed) and not torch.equal(changed[0], weight)


def test_cores_lora_node_knows_the_names_for_sd3_alone(comfy, pack):
    """What the page says of LoraLoaderModelOnly: the files of FLUX and SDXL need other names."""
    import comfy.lora

    module = {"SD3": "transformer_blocks.0.attn.to_q", "Flux": "transformer_blocks.0.attn.to_q"}
    module["SDXL"] = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    for name, part in module.items():
        known = comfy.lora.model_lora_keys_unet(zoo.tiny_model(name).patcher.model, {})
        assert (f"base_model.model.{part}" in known) == (name == "SD3")

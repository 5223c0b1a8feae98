"""The pack's folders in ComfyUI, and RMD Load Prompt Embeddings."""

import os
import shutil

import pytest
import torch

from student_files import MODELS, PROMPTS, STUDENT, TEACHER
from training.backbones import make_backbone
from training.prompts import PromptCache, write_prompt_cache


@pytest.fixture
def folder(pack, node_classes, tmp_path, monkeypatch):
    """A folder of the test's own, before the demo's, for each kind of file that the pack offers."""
    import folder_paths

    for key in ("diffusion_models", "vae", "rmd_prompts"):
        paths, suffixes = folder_paths.folder_names_and_paths[key]
        (tmp_path / key).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(tmp_path / key), *paths], suffixes))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.fixture
def load(node_classes):
    """The CONDITIONING of a prompt."""
    node = node_classes["RMD_LoadPromptEmbeddings"]
    return lambda file, prompt: node.execute(file=file, prompt=prompt).result[0]


def test_core_loaders_list_the_demo_files(node_classes):
    import nodes

    assert nodes.UNETLoader.INPUT_TYPES()["required"]["unet_name"][0] == [
        "rmd_tiny_wan_few_step.safetensors",
        "rmd_tiny_wan_student.safetensors",
        "rmd_tiny_wan_teacher.safetensors",
    ]
    assert "rmd_tiny_wan_vae.safetensors" in nodes.VAELoader.INPUT_TYPES()["required"]["vae_name"][0]
    assert node_classes["RMD_LoadPromptEmbeddings"].INPUT_TYPES()["required"]["file"][1]["options"] == [PROMPTS.name]


def test_the_users_folders_come_first(pack, node_classes, folder):
    import folder_paths

    for key, file in (("diffusion_models", TEACHER), ("rmd_prompts", PROMPTS)):
        assert folder_paths.get_full_path(key, file.name) == str(file)
        shutil.copy(file, folder / key)
        assert folder_paths.get_full_path(key, file.name) == str(folder / key / file.name)
        assert folder_paths.get_folder_paths(key)[-1] == str(file.parent)
        assert folder_paths.get_filename_list(key).count(file.name) == 1
    models = pack.nodes.folders.folder_paths.models_dir
    assert os.path.join(models, "rmd_prompts") in folder_paths.get_folder_paths("rmd_prompts")


def test_offering_twice_or_without_a_demo_changes_nothing(pack, node_classes, tmp_path):
    import folder_paths

    before = {key: list(paths) for key, (paths, _) in folder_paths.folder_names_and_paths.items()}
    pack.nodes.folders.register_folders()
    pack.nodes.folders.register_folders(tmp_path / "absent")
    assert {key: list(paths) for key, (paths, _) in folder_paths.folder_names_and_paths.items()} == before


def test_a_pack_without_a_demo_still_registers(pack, node_classes, monkeypatch):
    import folder_paths

    for key in ("rmd_prompts", "diffusion_models"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(MODELS / "absent")], set()))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for name in ("RMD_LoadPromptEmbeddings", "RMD_LoadStudent"):
        assert node_classes[name].INPUT_TYPES()
    assert node_classes["RMD_LoadPromptEmbeddings"].INPUT_TYPES()["required"]["file"][1]["options"] == []
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "rmd_prompts")
    assert node_classes["RMD_LoadPromptEmbeddings"].INPUT_TYPES()["required"]["file"][1]["options"] == []


def test_only_safetensors_are_listed(pack, folder):
    for name in ("a.SAFETENSORS", "b.sft", "c.pt", "d.txt", "sub/e.safetensors"):
        path = folder / "rmd_prompts" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    listed = pack.nodes.folders.safetensors_files("rmd_prompts")
    assert listed == ["a.SAFETENSORS", "b.sft", PROMPTS.name, os.path.join("sub", "e.safetensors")]


def test_only_students_are_offered(pack, folder, node_classes):
    """Of a folder full of models, those whose header has a recipe; a damaged file is none."""
    models = folder / "diffusion_models"
    shutil.copy(STUDENT, models / "mine.safetensors")
    shutil.copy(TEACHER, models / "base.safetensors")
    (models / "broken.safetensors").write_bytes(b"nothing")
    listed = pack.nodes.folders.student_files("diffusion_models")
    assert "mine.safetensors" in listed and not {"base.safetensors", "broken.safetensors"} & set(listed)
    shutil.copy(TEACHER, models / "mine.safetensors")  # the header is read again when the file changes
    assert "mine.safetensors" not in pack.nodes.folders.student_files("diffusion_models")


def test_embeddings_are_the_trainers(load):
    cache = PromptCache(PROMPTS)
    for text in ("", "apple", "apple noto on-blue"):
        ((tensor, extra),) = load(PROMPTS.name, text)
        assert tensor.dtype == torch.float32 and torch.equal(tensor, cache.batch([text]))
        assert extra == {"pooled_output": None}
    assert torch.equal(load(PROMPTS.name, "  apple noto on-blue\n")[0][0], cache.batch(["apple noto on-blue"]))


def test_pooled_and_masked_embeddings(folder, load):
    """A network that masks the padding gets the prompt alone; a pooled part goes where SDXL and SD3 look for it."""
    made = {text: torch.full((count, 6), float(count)) for text, count in (("", 1), ("red", 4), ("blue", 2))}
    pooled = {text: torch.full((5,), float(len(text))) for text in made}
    path = folder / "rmd_prompts" / "own.safetensors"
    write_prompt_cache(path, made, encoder="toy", pooled=pooled, masked=True)
    ((tensor, extra),) = load(path.name, "blue")
    assert torch.equal(tensor, made["blue"][None]) and torch.equal(extra["pooled_output"], pooled["blue"][None])


def test_the_network_gets_what_the_trainers_sampler_gives_it(comfy, folder, load):
    """Prompts of unequal lengths are padded alike for the positive, the negative and the trainer."""
    import comfy.samplers

    generator = torch.Generator().manual_seed(1)
    made = {text: torch.randn(count, 64, generator=generator) for text, count in (("", 1), ("red", 4), ("blue", 2))}
    path = folder / "rmd_prompts" / "own.safetensors"
    write_prompt_cache(path, made, encoder="toy", tokens=7)
    expected = make_backbone("wan").conditioning(PromptCache(path), ["blue", ""])["text"]
    assert torch.equal(expected[0], torch.cat((made["blue"].half().float(), torch.zeros(5, 64))))

    seen = []

    def see(apply_model, arguments):
        for place, context in zip(arguments["cond_or_uncond"], arguments["c"]["c_crossattn"]):
            seen.append((place, context.clone()))
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    patcher = comfy.sd.load_diffusion_model(str(TEACHER))
    patcher.set_model_unet_function_wrapper(see)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(load("own.safetensors", "blue"), load("own.safetensors", ""))
    guider.set_cfg(2.0)
    noise, sampler = torch.zeros(1, 16, 1, 8, 8), comfy.samplers.sampler_object("euler")
    guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor([1.0, 0.0]), seed=0, disable_pbar=True)
    assert sorted(place for place, _ in seen) == [0, 1]
    for place, context in seen:
        assert torch.equal(context, expected[place])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("aple noto on-blue", "'aple noto on-blue' is not one of the 252 in .*; the closest are 'apple noto on-blue'"),
        ("Apple", "the closest are 'apple"),
        ("0123456789", "; one is 'apple': use one of them"),
        ("a\nb" + "y" * 300, r"'a\\nbyyy"),
    ],
)
def test_a_missing_prompt_names_those_that_look_alike(pack, load, prompt, words):
    with pytest.raises(pack.rmd_core.errors.RMDError, match=words) as caught:
        load(PROMPTS.name, prompt)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_cache_of_the_null_prompt_alone_says_so(pack, folder, load):
    write_prompt_cache(folder / "rmd_prompts" / "null.safetensors", {"": torch.ones(1, 6)}, encoder="toy")
    assert load("null.safetensors", "")[0][0].shape == (1, 1, 6)
    with pytest.raises(pack.rmd_core.errors.RMDError, match="null.safetensors only has the null prompt, not 'red'"):
        load("null.safetensors", "red")


def test_files_that_are_no_caches_are_refused(pack, folder, load):
    error = pack.rmd_core.errors.RMDError
    shutil.copy(TEACHER, folder / "rmd_prompts" / "teacher.safetensors")
    (folder / "rmd_prompts" / "cut.safetensors").write_bytes(PROMPTS.read_bytes()[:100_000])
    with pytest.raises(error, match="is not a prompt cache: it has no 'rmd.prompt_cache' metadata"):
        load("teacher.safetensors", "apple")
    with pytest.raises(error, match="truncated"):
        load("cut.safetensors", "apple")
    with pytest.raises(error, match="no file 'gone.safetensors' in models/rmd_prompts"):
        load("gone.safetensors", "apple")


def test_a_folder_of_shards_is_one_cache(pack, node_classes, folder, load):
    node, generator = node_classes["RMD_LoadPromptEmbeddings"], torch.Generator().manual_seed(3)
    made = {text: torch.randn(4, 6, generator=generator) for text in ("", "red", "blue")}
    own = folder / "rmd_prompts" / "sub" / "own"
    own.mkdir(parents=True)
    for number, text in enumerate(("red", "blue")):
        kept = {key: made[key] for key in ("", text)}
        write_prompt_cache(own / f"prompts-0000{number}.safetensors", kept, encoder="toy", tokens=5)
        before = node.fingerprint_inputs(file=os.path.join("sub", "own"))
    name = os.path.join("sub", "own")
    assert pack.nodes.folders.prompt_caches() == [PROMPTS.name, name]
    for text in made:
        assert torch.equal(load(name, text)[0][0], PromptCache(own).batch([text]))
    assert before == node.fingerprint_inputs(file=name)
    write_prompt_cache(own / "prompts-00002.safetensors", {"": made[""], "green": made["red"]}, encoder="toy", tokens=5)
    assert before != node.fingerprint_inputs(file=name)
    with pytest.raises(pack.rmd_core.errors.RMDError, match="no file '../own' in models/rmd_prompts"):
        load("../own", "red")


def test_a_changed_file_is_read_again(node_classes, folder):
    path = folder / "rmd_prompts" / "own.safetensors"
    node = node_classes["RMD_LoadPromptEmbeddings"]
    absent = node.fingerprint_inputs(file="own.safetensors", prompt="a")
    write_prompt_cache(path, {"": torch.zeros(1, 2)}, encoder="toy")
    before = node.fingerprint_inputs(file="own.safetensors", prompt="a")
    assert node.fingerprint_inputs(file="own.safetensors", prompt="b") == before != absent
    os.utime(path, ns=(5, 5))
    assert node.fingerprint_inputs(file="own.safetensors", prompt="a") != before
    assert node.fingerprint_inputs(file=None, prompt="a") == absent

"""The pack in a real ComfyUI server: what it registers, the demo through POST /prompt, and every shipped prompt."""

import copy
import json
import re
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch

from browser.layouts import TITLE_OF, read_prompt
from comfy_prompts import complaints, missing_files
from comfy_server import Refused
from demo import files
from demo.classifier import classify, load_classifier
from demo.sampling import make_latents, student_setup
from demo.world import CONCEPTS, ENCODER
from rmd_core.recipe import read_recipe
from training.backbones import make_backbone
from training.prompts import PromptCache

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "example_workflows"
NOTES = {"MarkdownNote", "Note"}
NODE_IDS = {
    "RMD_Guider",
    "RMD_LoadPromptEmbeddings",
    "RMD_LoadStudent",
    "RMD_Noise",
    "RMD_Sampler",
    "RMD_SamplerAdvanced",
    "RMD_Schedule",
    "RMD_StageOverride",
    "RMD_StageSigmas",
    "RMD_StageUpscale",
    "RMD_StepSampler",
    "RMD_Upsampler",
}


def the(prompt, kind):
    """The id of the one node of a kind."""
    (node,) = [node for node, entry in prompt.items() if entry["class_type"] == kind]
    return node


def pixels(server, run, prompt, kind="SaveImage"):
    """The images (N, 3, H, W) in 0..1 that the output node of a kind shows."""
    images = run.outputs[the(prompt, kind)]["images"]
    assert all(image["type"] in ("output", "temp") for image in images)
    arrays = [np.asarray(server.view(image).convert("RGB"), np.float32) / 255.0 for image in images]
    return torch.from_numpy(np.stack(arrays)).movedim(-1, 1)


@pytest.fixture(scope="module")
def info(server):
    """What the server says of its nodes."""
    return server.object_info()


@pytest.fixture(scope="module")
def demo(server):
    """(prompt, Run, images) of the demo's shipped prompt, run once."""
    prompt = read_prompt("rmd_wired")
    run = server.run(prompt)
    assert run.errors == []
    return prompt, run, pixels(server, run, prompt)


def test_every_node_is_registered_and_described(info):
    ours = {name: entry for name, entry in info.items() if name.startswith("RMD_")}
    assert ours.keys() == NODE_IDS
    for name, entry in ours.items():
        assert entry["category"] == "RMD" and entry["display_name"].startswith("RMD ") and entry["description"], name
        assert entry["python_module"] == "custom_nodes.ComfyUI-RMD"
        for group in ("required", "optional"):
            assert all(options["tooltip"] for _, options in entry["input"].get(group, {}).values()), name
        assert all(entry["output_tooltips"]), name


def test_the_log_tells_of_no_failure(server):
    lines = server.printed().splitlines()
    assert not [line for line in lines if "ComfyUI-RMD" in line and ("FAILED" in line or "Cannot import" in line)]
    assert not [line for line in lines if line.startswith("Traceback")]
    assert [line for line in lines if re.search(r"seconds: .*ComfyUI-RMD", line)]


def test_the_demos_files_are_offered(server, info):
    def offered(node, name):
        kind, *options = info[node]["input"]["required"][name]
        return kind if isinstance(kind, list) else options[0]["options"]

    assert {files.TEACHER.name, files.STUDENT.name} <= set(offered("UNETLoader", "unet_name"))
    assert files.VAE.name in offered("VAELoader", "vae_name")
    assert offered("RMD_LoadPromptEmbeddings", "file") == [files.PROMPTS.name]


def test_the_templates_are_listed_and_served(server, info):
    shipped = {path.stem for path in TEMPLATES.glob("*.json")}
    assert set(server.json("/workflow_templates").get("ComfyUI-RMD", [])) == shipped
    for name in shipped:
        workflow = server.json(f"/api/workflow_templates/ComfyUI-RMD/{quote(name)}.json")
        assert set(kinds(workflow)) <= info.keys()


def kinds(workflow):
    """The types of a workflow's nodes, with those inside a blueprint in place of its node."""
    inside = {one["id"]: one for one in workflow.get("definitions", {}).get("subgraphs", [])}
    found = []
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            found += kinds(inside[node["type"]]) if node["type"] in inside else [node["type"]]
    return found


def test_every_template_is_tested_as_a_prompt_of_the_same_nodes():
    for name, title in TITLE_OF.items():
        template = json.loads((TEMPLATES / f"{title}.json").read_text("utf-8"))
        assert sorted(kinds(template)) == sorted(entry["class_type"] for entry in read_prompt(name).values())


@pytest.mark.parametrize("name", TITLE_OF)
def test_a_shipped_prompt_fits_the_servers_nodes(server, info, name):
    """Our own check of names and types, and ComfyUI's validation: only files that are not there may be missed."""
    prompt = read_prompt(name)
    assert complaints(prompt, info) == []
    missing = missing_files(prompt, info)
    if missing:
        with pytest.raises(Refused) as caught:
            server.post(prompt)
        errors = [error for node in caught.value.node_errors.values() for error in node]
        assert {error["type"] for error in errors} == {"value_not_in_list"}, errors
        assert {error["extra_info"]["received_value"] for error in errors} == missing


DEMOS = [name for name in TITLE_OF if name.startswith("rmd_") and name != "rmd_wired"]  # that one is `demo`


@pytest.mark.parametrize("name", DEMOS)
def test_a_prompt_over_the_demos_files_runs(server, name):
    run = server.run(read_prompt(name))
    assert run.errors == [] and run.of("execution_success")
    assert all(entry for entry in run.outputs.values())


def test_the_demos_image_is_the_one_that_the_trainers_code_makes(demo):
    prompt, _, images = demo
    recipe = read_recipe(files.STUDENT)
    backbone = make_backbone("wan", shift=recipe.curve.shift)
    cache = PromptCache(files.PROMPTS, encoder=ENCODER)
    text = prompt[the(prompt, "RMD_LoadPromptEmbeddings")]["inputs"]["prompt"]
    seed = prompt[the(prompt, "RMD_Sampler")]["inputs"]["seed"]
    setup = student_setup("student", files.STUDENT, backbone)
    latents, _ = make_latents(setup, backbone, cache, [text], seed=seed)
    expected = backbone.decode(backbone.load_vae(files.VAE), latents)[:, :, 0] * 2 - 1
    assert images.shape == expected.shape == (1, 3, 128, 128)
    apart = (images * 255 - (expected.clamp(-1, 1) + 1) * 127.5).abs()
    assert apart.max() <= 1.01 and apart.mean() < 0.6  # the file holds whole numbers


def test_the_judge_names_what_the_demo_drew(demo):
    prompt, _, images = demo
    text = prompt[the(prompt, "RMD_LoadPromptEmbeddings")]["inputs"]["prompt"]
    label = classify(load_classifier(), images * 2 - 1).labels["concept"].item()
    assert list(CONCEPTS)[label] == text.split()[0]


def test_a_preview_came_of_every_step(demo):
    _, run, _ = demo
    shown = [np.asarray(preview.convert("RGB"), np.float32) for preview in run.previews]
    assert len(shown) == 4  # ComfyUI enlarges them all to one size
    assert all(np.abs(one - other).mean() > 1.0 for one, other in zip(shown, shown[1:]))


def test_progress_counts_over_both_stages(demo):
    prompt, run, _ = demo
    sampler = the(prompt, "RMD_Sampler")
    progress = [(data["value"], data["max"]) for data in run.of("progress") if data["node"] == sampler]
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_same_prompt_again_is_cached(server, demo):
    prompt, _, _ = demo
    again = server.run(prompt)
    assert again.cached == set(prompt)
    assert not [data for data in again.of("executing") if data["node"] is not None]


def test_a_new_seed_samples_again_and_loads_nothing_again(server, demo):
    prompt, _, images = demo
    other = copy.deepcopy(prompt)
    other[the(other, "RMD_Sampler")]["inputs"]["seed"] += 1
    run = server.run(other)
    ran = {data["node"] for data in run.of("executing") if data["node"] is not None}
    assert ran == {the(prompt, kind) for kind in ("RMD_Sampler", "VAEDecode", "SaveImage")}
    assert (pixels(server, run, other) - images).abs().mean() > 0.01


def test_the_hand_built_graph_samples_the_demos_image(server, demo):
    _, _, images = demo
    prompt = read_prompt("rmd_hand_built")
    run = server.run(prompt)
    assert run.errors == []
    assert (pixels(server, run, prompt) - images).abs().max() <= 1.01 / 255


@pytest.mark.parametrize(
    ("node", "name", "value", "kind"),
    [
        ("RMD_Sampler", "cfg", -1.0, "value_smaller_than_min"),
        ("RMD_Sampler", "seed", -1, "value_smaller_than_min"),
        ("RMD_Schedule", "width", 0, "value_smaller_than_min"),
        ("RMD_Schedule", "denoise", 1.5, "value_bigger_than_max"),
        ("RMD_LoadPromptEmbeddings", "file", "no.safetensors", "value_not_in_list"),
        ("RMD_LoadStudent", "kind.student", "no.safetensors", "value_not_in_list"),
        ("RMD_LoadStudent", "kind.student", files.TEACHER.name, "value_not_in_list"),
    ],
)
def test_comfyuis_own_checks_still_act(server, demo, node, name, value, kind):
    prompt = copy.deepcopy(demo[0])
    prompt[the(prompt, node)]["inputs"][name] = value
    with pytest.raises(Refused) as caught:
        server.run(prompt)
    ((_, errors),) = caught.value.node_errors.items()
    assert [error["type"] for error in errors] == [kind]


@pytest.mark.parametrize(
    ("node", "change", "words"),
    [
        ("RMD_LoadPromptEmbeddings", {"prompt": "mushrom noto"}, ("mushrom noto", "closest")),
        ("RMD_Sampler", {"cfg": 2.0}, ("cfg is 2", "negative")),
        ("RMD_Schedule", {"width": 1004}, ("1004x128", "multiples of 8 px")),
        ("EmptyHunyuanLatentVideo", {"width": 256}, ("256x128 px", "128x128 px")),
    ],
)
def test_what_cannot_run_says_why_in_one_line(server, demo, node, change, words):
    prompt = copy.deepcopy(demo[0])
    prompt[the(prompt, node)]["inputs"].update(change)
    (message,) = server.run(prompt).errors
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_methods_that_are_not_offered_still_run_from_a_saved_workflow(server, info, demo):
    source = {"source": "split", "source.split": "2+2", "source.sigmas": "", "source.earlier_sizes": "0.5"}
    source |= {"source.mapping": "auto", "source.base_shift": 0.0, "source.method": "official-7gpu"}
    prompt = copy.deepcopy(demo[0])
    prompt[the(prompt, "RMD_Schedule")]["inputs"].update(source)
    assert server.run(prompt).errors == []
    prompt[the(prompt, "RMD_Schedule")]["inputs"]["source.method"] = "official-8gpu"
    with pytest.raises(Refused, match="official-8gpu|value_not_in_list"):
        server.run(prompt)
    (choice,) = (
        one for one in info["RMD_Schedule"]["input"]["required"]["source"][1]["options"] if one["key"] == "split"
    )
    assert not any("official-7gpu" in str(group) for group in choice["inputs"].values())


def test_a_cfg_of_0_is_the_plans(server, demo):
    prompt = copy.deepcopy(demo[0])
    prompt[the(prompt, "RMD_Sampler")]["inputs"]["cfg"] = 0.0
    run = server.run(prompt)
    assert run.errors == [] and run.texts == []
    assert (pixels(server, run, prompt) - demo[2]).abs().max() == 0


def test_a_warning_is_shown_on_its_node(server, demo):
    prompt = copy.deepcopy(demo[0])
    prompt[the(prompt, "RMD_Schedule")]["inputs"]["denoise"] = 0.5
    run = server.run(prompt)
    assert run.errors == [] and demo[1].texts == []
    ((node, text),) = run.texts
    assert node == the(prompt, "RMD_Sampler") and "the latent is empty" in text


def test_the_sigmas_of_a_scheduler_come_over_a_link(server, demo):
    prompt = copy.deepcopy(demo[0])
    schedule = prompt[the(prompt, "RMD_Schedule")]["inputs"]
    settings = {"scheduler": "simple", "steps": 4, "denoise": 1.0}
    prompt["scheduler"] = {"class_type": "BasicScheduler", "inputs": {"model": schedule["model"], **settings}}
    del schedule["source.recipe"]
    source = {"scheduler_sigmas": ["scheduler", 0], "split": "auto", "thresholds": "", "earlier_sizes": "0.5"}
    schedule |= {"source": "scheduler sigmas"} | {f"source.{name}": value for name, value in source.items()}
    schedule["source.mapping"] = "auto"
    assert server.run(prompt).errors == []
    prompt["scheduler"]["inputs"] |= {"denoise": 0.0}
    (message,) = server.run(prompt).errors
    assert "the SIGMAS have no level above 0" in message


def test_a_second_model_and_a_prompt_of_the_small_size_come_over_links(server, demo):
    prompt = copy.deepcopy(demo[0])
    inputs = prompt[the(prompt, "RMD_Sampler")]["inputs"]
    inputs |= {"second_model": inputs["model"], "second_model_sigma": 0.95, "small_positive": inputs["positive"]}
    run = server.run(prompt)
    assert run.errors == [] and (pixels(server, run, prompt) - demo[2]).abs().max() == 0
    del inputs["second_model_sigma"]  # 0, and the demo's model is made as Wan's is
    assert server.run(prompt).errors == []

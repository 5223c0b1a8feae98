"""Templates and subgraph blueprints as files: complete, laid out, as they were meant, and run by the server."""

import json
from pathlib import Path

import pytest

from browser.blueprints import BLUEPRINTS, SAVED_BY, SMALL
from browser.layouts import API_FORMAT, LAYOUTS, TITLE_OF, read_prompt
from browser.real_models import FILES, SHIPPED, TEMPLATES, files_named
from comfy_prompts import complaints
from comfy_server import PACK

SUBGRAPHS = Path(__file__).parents[2] / "subgraphs"
AROUND = {
    "positive": {
        "class_type": "RMD_LoadPromptEmbeddings",
        "inputs": {"file": "rmd_tiny_prompts.safetensors", "prompt": "mushroom noto on-green"},
    },
    "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "rmd_tiny_wan_vae.safetensors"}},
}


def in_use(name):
    """The prompt that a blueprint becomes when the demo's prompt and VAE are connected and its result is saved."""
    blueprint = BLUEPRINTS[name]
    prompt = {node: {**entry, "inputs": dict(entry["inputs"])} for node, entry in blueprint.prompt.items()}
    for label, node, key in blueprint.inputs:
        if label in AROUND:
            prompt[node]["inputs"][key] = [label, 0]
        elif label in SMALL:
            prompt[node]["inputs"][key] = SMALL[label]
    label, node, slot = blueprint.outputs[0]
    kind, inputs, key = SAVED_BY[label]
    return prompt | AROUND | {"save": {"class_type": kind, "inputs": {**inputs, key: [node, slot]}}}


def read(name):
    return json.loads((SUBGRAPHS / f"{name}.json").read_text(encoding="utf-8"))


def test_there_is_a_file_for_every_blueprint():
    assert {path.name for path in SUBGRAPHS.iterdir()} == {f"{name}.json" for name in BLUEPRINTS}


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_the_file_is_one_node_over_the_graph_that_was_meant(name):
    blueprint, file = BLUEPRINTS[name], read(name)
    (node,), (subgraph,) = file["nodes"], file["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"] and node["title"] == subgraph["name"] == name and not file["links"]
    assert subgraph["description"] == file["extra"]["BlueprintDescription"] == blueprint.description
    assert file["extra"]["BlueprintSearchAliases"] == list(blueprint.words)
    at = {tuple(place): id for id, place in blueprint.places.items()}
    inside = {one["id"]: at[tuple(one["pos"])] for one in subgraph["nodes"]}
    kinds = {inside[one["id"]]: one["type"] for one in subgraph["nodes"]}
    assert kinds == {id: entry["class_type"] for id, entry in blueprint.prompt.items()}
    slots = {inside[one["id"]]: [slot["name"] for slot in one.get("inputs", [])] for one in subgraph["nodes"]}
    named = {**inside, subgraph["inputNode"]["id"]: "in", subgraph["outputNode"]["id"]: "out"}
    found = {
        (named[link["origin_id"]], link["origin_slot"], named[link["target_id"]], link["target_slot"])
        for link in subgraph["links"]
    }
    wanted = {
        (value[0], value[1], id, slots[id].index(key))
        for id, entry in blueprint.prompt.items()
        for key, value in entry["inputs"].items()
        if isinstance(value, list)
    }
    wanted |= {("in", place, id, slots[id].index(key)) for place, (_, id, key) in enumerate(blueprint.inputs)}
    wanted |= {(id, slot, "out", place) for place, (_, id, slot) in enumerate(blueprint.outputs)}
    assert found == wanted
    for outside in (node, subgraph):
        assert [slot["name"] for slot in outside["inputs"]] == [label for label, _, _ in blueprint.inputs]
        assert [slot["name"] for slot in outside["outputs"]] == [label for label, _, _ in blueprint.outputs]


def test_the_server_lists_and_gives_them(server):
    listed = server.json("/global_subgraphs")
    ours = {entry["name"]: id for id, entry in listed.items() if entry["info"]["node_pack"] == f"custom_nodes.{PACK}"}
    assert ours.keys() == BLUEPRINTS.keys()
    for name, id in ours.items():
        assert json.loads(server.json(f"/global_subgraphs/{id}")["data"]) == read(name)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_its_nodes_exist_and_run_on_the_demos_models(server, name):
    prompt = in_use(name)
    assert complaints(prompt, server.object_info()) == []
    run = server.run(prompt)
    assert run.errors == [] and run.of("execution_success")
    assert run.outputs["save"]


WORKFLOWS = Path(__file__).parents[2] / "example_workflows"
WIDEST, HIGHEST = 1750, 1020  # of a graph whose text the page still shows when it opens at 1366 x 768


def workflow(name):
    return json.loads((WORKFLOWS / f"{TITLE_OF[name]}.json").read_text(encoding="utf-8"))


def test_there_is_a_layout_a_workflow_and_a_thumbnail_for_every_prompt():
    assert {path.stem for path in API_FORMAT.glob("*.json")} | TEMPLATES.keys() == LAYOUTS.keys() == TITLE_OF.keys()
    assert {path.stem for path in WORKFLOWS.glob("*.json")} == set(TITLE_OF.values())
    assert {path.stem for path in WORKFLOWS.glob("*.jpg")} == set(TITLE_OF.values())
    assert len({path.read_bytes() for path in WORKFLOWS.glob("*.jpg")}) == len(TITLE_OF)


def test_names_sort_and_search():
    """The demo comes first wherever names sort, those that need no download before the others; `rmd` finds all."""
    listed = sorted(TITLE_OF.values())
    assert listed == list(TITLE_OF.values()) and listed[0] == TITLE_OF["rmd_demo"]
    assert all(name.startswith("RMD ") for name in listed)
    for key, name in TITLE_OF.items():
        assert name.endswith("(runs anywhere)") == (set(files_named(read_prompt(key))) <= SHIPPED)


@pytest.mark.parametrize("name", TITLE_OF)
def test_every_file_is_shipped_or_says_where_it_is_public(name):
    files = set(files_named(read_prompt(name)))
    assert files <= SHIPPED | FILES.keys()
    note = next(node for node in workflow(name)["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0]
    assert all(FILES[file].url in note and FILES[file].folder in note for file in files - SHIPPED)


@pytest.mark.parametrize("name", TITLE_OF)
def test_nodes_do_not_overlap_and_lie_in_groups(name):
    graph = workflow(name)
    boxes = {}
    for node in graph["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        height = 0 if node["flags"].get("collapsed") else height
        boxes[node["id"]] = (x, y - 30, x + width, y + height)
    frames = [(x, y, x + width, y + height) for x, y, width, height in (group["bounding"] for group in graph["groups"])]
    assert max(frame[2] for frame in frames) - min(frame[0] for frame in frames) <= WIDEST
    assert max(frame[3] for frame in frames) - min(frame[1] for frame in frames) <= HIGHEST
    for one, (left, top, right, bottom) in boxes.items():
        assert any(f[0] < left and f[1] < top and right < f[2] and bottom < f[3] for f in frames), one
        for other, box in boxes.items():
            apart = right <= box[0] or box[2] <= left or bottom <= box[1] or box[3] <= top
            assert one == other or apart, f"{one} and {other} overlap"


@pytest.mark.parametrize("name", TITLE_OF)
def test_no_wire_passes_behind_a_node_of_another_column(name):
    graph = workflow(name)
    nodes = {node["id"]: (*node["pos"], *node["size"], node["flags"].get("collapsed")) for node in graph["nodes"]}
    knots = {knot["id"]: knot for knot in graph["extra"].get("reroutes", [])}
    last = {entry["id"]: entry["parentId"] for entry in graph["extra"].get("linkExtensions", [])}
    for link, origin, _, target, *_ in graph["links"]:
        points, knot = [], knots.get(last.get(link))
        while knot:
            points.insert(0, knot["pos"])
            knot = knots.get(knot.get("parentId"))
        (x, _, width, *_), (end, *_) = nodes[origin], nodes[target]
        stops = [(x + width, None), *points, (end, None)]
        for (begin, one), (stop, other) in zip(stops, stops[1:]):
            heights = [y for y in (one, other) if y is not None]
            for node, (left, top, wide, high, folded) in nodes.items():
                between = begin <= left and left + wide <= stop and node not in (origin, target)
                bottom = top if folded else top + high
                clear = heights and (max(heights) < top - 30 or min(heights) > bottom)
                assert clear or not between, f"the wire from {origin} to {target} passes behind {node}"

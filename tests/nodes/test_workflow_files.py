"""The example workflows as files: complete, laid out, and clear about the model files they name."""

import json
from pathlib import Path

import pytest

from browser.layouts import LAYOUTS
from browser.model_files import FILES, SHIPPED, files_named

API_FORMAT = Path(__file__).with_name("workflows")
WORKFLOWS = Path(__file__).parents[2] / "workflows"
NAMES = sorted(LAYOUTS)


def prompt(name):
    return json.loads((API_FORMAT / f"{name}.json").read_text(encoding="utf-8"))


def workflow(name):
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def test_there_is_a_layout_a_workflow_and_a_thumbnail_for_every_prompt():
    assert {path.stem for path in API_FORMAT.glob("*.json")} == set(NAMES)
    assert {path.stem for path in WORKFLOWS.glob("*.json")} == set(NAMES)
    assert {path.stem for path in WORKFLOWS.glob("*.jpg")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_shipped_or_says_where_it_is_public(name):
    files = set(files_named(prompt(name)))
    assert files <= SHIPPED | FILES.keys()
    note = next(node for node in workflow(name)["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0]
    assert all(FILES[file][1] in note and FILES[file][0] in note for file in files - SHIPPED)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap_and_lie_in_groups(name):
    graph = workflow(name)
    boxes = {}
    for node in graph["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes[node["id"]] = (x, y - 30, x + width, y + height)
    frames = [(x, y, x + width, y + height) for x, y, width, height in (group["bounding"] for group in graph["groups"])]
    for one, (left, top, right, bottom) in boxes.items():
        assert any(f[0] < left and f[1] < top and right < f[2] and bottom < f[3] for f in frames), one
        for other, box in boxes.items():
            apart = right <= box[0] or box[2] <= left or bottom <= box[1] or box[3] <= top
            assert one == other or apart, f"{one} and {other} overlap"

"""Makes subgraphs/*.json, the blueprints that ComfyUI offers beside its nodes, with the real frontend.

PYTHONPATH=tests python -m browser.make_subgraphs [name ...]
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import uuid
from pathlib import Path

from browser.blueprints import BLUEPRINTS, Blueprint
from browser.session import Frontend, open_frontend

SUBGRAPHS = Path(__file__).parents[2] / "subgraphs"
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FOLD = """([name, places, inputs, outputs]) => {
  for (const [id, place] of Object.entries(places)) app.graph.getNodeById(id).pos = place;
  const before = Object.fromEntries(Object.entries(places).map(([id, place]) => [place.join(), id]));
  const {subgraph, node} = app.graph.convertToSubgraph(new Set(app.graph._nodes));
  const inside = {};
  for (const one of subgraph._nodes) inside[before[[...one.pos].join()]] = one;
  while (subgraph.inputs.length) subgraph.removeInput(subgraph.inputs[0]);
  while (subgraph.outputs.length) subgraph.removeOutput(subgraph.outputs[0]);
  for (const [label, id, key] of inputs) {
    const slot = inside[id].inputs.find(input => input.name === key);
    subgraph.addInput(label, slot.type).connect(slot, inside[id]);
  }
  for (const [label, id, number] of outputs) {
    const slot = inside[id].outputs[number];
    subgraph.addOutput(label, slot.type).connect(slot, inside[id]);
  }
  const bounds = subgraph._nodes.map(one => one.boundingRect);
  subgraph.inputNode.pos = [Math.min(...bounds.map(box => box[0])) - 240, 0];
  subgraph.outputNode.pos = [Math.max(...bounds.map(box => box[0] + box[2])) + 120, 0];
  subgraph.name = node.title = name;
  node.size = [320, node.computeSize()[1]];
  const {nodes, subgraphs} = app.canvas._serializeItems([node]);
  return JSON.stringify({nodes, subgraphs});
}"""


def make(frontend: Frontend, name: str, blueprint: Blueprint) -> dict:
    """The file of a blueprint: one node, and the subgraph that it stands for."""
    frontend.load_api(name, blueprint.prompt)
    arguments = [name, blueprint.places, blueprint.inputs, blueprint.outputs]
    found = json.loads(frontend.page.evaluate(FOLD, arguments))
    (node,), (subgraph,) = found["nodes"], found["subgraphs"]
    subgraph["description"] = blueprint.description
    extra = {"BlueprintDescription": blueprint.description, "BlueprintSearchAliases": list(blueprint.words)}
    file = {
        "revision": 0,
        "last_node_id": node["id"],
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": extra,
    }
    return _with_lasting_ids(file, name)


def _with_lasting_ids(file: dict, name: str) -> dict:
    """The same with the ids that the frontend drew at random replaced by ones that the name gives."""
    text, numbers = json.dumps(file), {}
    for found in UUID.findall(text):
        numbers.setdefault(found, str(uuid.uuid5(uuid.NAMESPACE_URL, f"ComfyUI-RMD/{name}/{len(numbers)}")))
    return json.loads(UUID.sub(lambda match: numbers[match[0]], text))


def main() -> None:
    names = sys.argv[1:] or list(BLUEPRINTS)
    SUBGRAPHS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_frontend(Path(folder, "comfyui")) as frontend:
        for name in names:
            text = json.dumps(make(frontend, name, BLUEPRINTS[name]), indent=2)
            (SUBGRAPHS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
            print(f"subgraphs/{name}.json")
        for error in frontend.errors:
            print(f"console: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()

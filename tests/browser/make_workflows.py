"""Makes example_workflows/*.json and their thumbnails with the real frontend.

Their sources: tests/workflows/*.json, notes/, layouts.py and real_models.py.

PYTHONPATH=tests python -m browser.make_workflows [name ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from browser.blueprints import BLUEPRINTS
from browser.canvas import arrange
from browser.layouts import BLUEPRINT_OF, LAYOUTS, TITLE_OF, read_note, read_prompt
from browser.make_subgraphs import SUBGRAPHS
from browser.real_models import FILES, SHIPPED, files_named
from browser.session import Frontend, open_frontend
from browser.thumbnails import picture_thumbnail, title_thumbnail

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "example_workflows"


def workflow_file(name: str, kind: str = "json") -> Path:
    """The file of a workflow in example_workflows/, or its thumbnail where kind is `jpg`."""
    return WORKFLOWS / f"{TITLE_OF[name]}.{kind}"


def load(frontend: Frontend, name: str, prompt: dict) -> None:
    """Open a workflow in API format, with the node of its blueprint for the nodes that have a colon in their id."""
    if name not in BLUEPRINT_OF:
        frontend.load_api(name, prompt)
        return
    blueprint = BLUEPRINTS[BLUEPRINT_OF[name]]
    box = next(id.split(":")[0] for id in prompt if ":" in id)
    file = json.loads((SUBGRAPHS / f"{BLUEPRINT_OF[name]}.json").read_text(encoding="utf-8"))
    file["nodes"][0]["id"] = file["last_node_id"] = int(box)
    frontend.load(name, file)
    outputs = {f"{box}:{id}.{slot}": label for label, id, slot in blueprint.outputs}
    inside = {label: prompt[f"{box}:{id}"]["inputs"].get(key) for label, id, key in blueprint.inputs}
    outside = {id: entry for id, entry in prompt.items() if ":" not in id}
    frontend.page.evaluate(AROUND_BOX, [int(box), inside, outside, outputs])
    frontend.page.wait_for_timeout(500)


AROUND_BOX = """([box, inside, outside, outputs]) => {
  const named = (slots, name) => slots.findIndex(slot => slot.name === name);
  const put = (node, inputs) => {
    for (const widget of node.widgets ?? []) {
      const value = inputs[widget.name];
      if (value !== undefined && value !== null && !Array.isArray(value)) widget.value = value;
    }
  };
  const wire = (node, inputs) => {
    for (const [key, value] of Object.entries(inputs)) {
      if (!Array.isArray(value)) continue;
      const label = outputs[value.join(".")], from = app.graph.getNodeById(label ? box : Number(value[0]));
      from.connect(label ? named(from.outputs, label) : value[1], node, named(node.inputs, key));
    }
  };
  for (const [id, entry] of Object.entries(outside)) {
    const node = LiteGraph.createNode(entry.class_type);
    node.id = Number(id);
    if (entry._meta?.title) node.title = entry._meta.title;
    app.graph.add(node);
    put(node, entry.inputs);
  }
  put(app.graph.getNodeById(box), inside);
  wire(app.graph.getNodeById(box), inside);
  for (const [id, entry] of Object.entries(outside)) wire(app.graph.getNodeById(Number(id)), entry.inputs);
}"""


def make(frontend: Frontend, name: str) -> None:
    """Write the JSON file and the thumbnail of a workflow."""
    prompt = read_prompt(name)
    load(frontend, name, prompt)
    arrange(frontend, name, prompt=prompt, rows=LAYOUTS[name], note=read_note(name))
    frontend.show_all()
    text = json.dumps(frontend.serialised(), indent=2, ensure_ascii=False)
    workflow_file(name).write_text(text + "\n", encoding="utf-8")
    if set(files_named(prompt)) <= SHIPPED:
        with ThreadPoolExecutor(1) as own_thread:  # Playwright's event loop occupies this one
            run = own_thread.submit(frontend.server.run, prompt).result()
        shown = {node: frontend.server.view(out["images"][0]) for node, out in run.outputs.items() if "images" in out}
        picture_thumbnail(name, shown).save(workflow_file(name, "jpg"), quality=85)
    else:
        title_thumbnail(name).save(workflow_file(name, "jpg"), quality=80)


def main() -> None:
    names = sys.argv[1:] or list(LAYOUTS)
    WORKFLOWS.mkdir(exist_ok=True)
    models = [(file.folder, name) for name, file in FILES.items()]
    with tempfile.TemporaryDirectory() as folder, open_frontend(Path(folder, "comfyui"), models=models) as frontend:
        for name in names:
            make(frontend, name)
            print(workflow_file(name).relative_to(ROOT))
        for error in frontend.errors:
            print(f"console: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()

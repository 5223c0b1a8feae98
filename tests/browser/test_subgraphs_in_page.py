"""The subgraph blueprints in the real frontend: found by searching, added, wired to the demo's models, and run."""

import pytest

from browser.blueprints import BLUEPRINTS, SAVED_BY, SMALL
from browser.test_workflows import press_run

AROUND = """([result, saved]) => {
  const box = app.graph._nodes[0];
  const add = (kind, x, y) => { const n = LiteGraph.createNode(kind); n.pos = [x, y]; app.graph.add(n); return n; };
  const set = (node, name, value) => { node.widgets.find(widget => widget.name === name).value = value; };
  box.pos = [420, 0];
  const prompt = add("RMD_LoadPromptEmbeddings", 0, 0), vae = add("VAELoader", 0, 260);
  set(prompt, "prompt", "mushroom noto on-green");
  set(vae, "vae_name", "rmd_tiny_wan_vae.safetensors");
  prompt.connect(0, box, box.inputs.findIndex(input => input.name === "positive"));
  vae.connect(0, box, box.inputs.findIndex(input => input.name === "vae"));
  const save = add(saved, 900, 0);
  box.connect(0, save, save.inputs.findIndex(input => input.name === result));
  return box.widgets.map(widget => widget.name);
}"""
SET = "([name, value]) => { app.graph._nodes[0].widgets.find(widget => widget.name === name).value = value; }"


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_found_added_and_run(frontend, keep_picture, name):
    page, blueprint = frontend.page, BLUEPRINTS[name]
    frontend.load("empty", {"nodes": [], "links": [], "version": 0.4})
    frontend.errors.clear()
    page.mouse.move(800, 500)
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.wait_for_timeout(1000)  # the search box opens and takes the keyboard
    page.keyboard.type(name, delay=20)
    page.wait_for_timeout(1000)
    page.keyboard.press("Enter")
    page.wait_for_function("app.graph._nodes.length === 1", timeout=10_000)
    page.wait_for_timeout(500)
    page.mouse.move(820, 520)
    page.mouse.click(820, 520)  # it hangs on the mouse until a click puts it down
    page.wait_for_function("!app.graph._nodes[0].flags.ghost", timeout=10_000)
    kind, _, key = SAVED_BY[blueprint.outputs[0][0]]
    widgets = page.evaluate(AROUND, [key, kind])
    assert [label for label, _, _ in blueprint.inputs if label in widgets] == widgets
    for label in widgets:
        if label in SMALL:
            page.evaluate(SET, [label, SMALL[label]])
    frontend.show_all()
    press_run(frontend)
    assert frontend.errors == []
    page.evaluate("app.canvas.deselectAll()")
    keep_picture(name.replace(" ", "_").lower(), frontend.graph_picture())

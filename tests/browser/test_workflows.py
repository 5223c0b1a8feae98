"""Every example workflow and blueprint in the real frontend: opened, compared, run by the Run button, found."""

import base64
import io
import json

import pytest
from PIL import Image, ImageChops, ImageStat

from browser.blueprints import BLUEPRINTS, SAVED_BY, SMALL
from browser.layouts import LAYOUTS, TITLE_OF, read_prompt
from browser.make_screenshots import IMAGES
from browser.make_workflows import workflow_file
from browser.real_models import SHIPPED, files_named
from browser.session import SET, WINDOW, Frontend

NAMES = sorted(LAYOUTS)
RUNNABLE = [name for name in NAMES if set(files_named(read_prompt(name))) <= SHIPPED]
PREVIEWS = {
    "rmd_demo": ["13"],
    "rmd_wired": ["8"],
    "rmd_hand_built": ["31", "33"],
    "rmd_few_step_and_rmd": ["23", "33", "43"],
    "rmd_three_sizes": ["8"],
}
"""The nodes that show an image when a run is done: of 128 px, 64 after the first stage, 512 where it is enlarged."""


def workflow(name):
    return json.loads(workflow_file(name).read_text(encoding="utf-8"))


def open_workflow(frontend, name):
    frontend.errors.clear()
    frontend.load(name, workflow(name))


def press_run(frontend):
    """Press Run and wait for the end of the run; returns (node id, preview image) of every preview."""
    return [(node, Image.open(io.BytesIO(file))) for node, file in frontend.run()]


def detail(image, cells):
    """How far a preview is from a image of cells x cells points: near 0 where it has no more than those."""
    image = image.convert("L")
    coarse = image.resize((cells, cells), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
    return ImageStat.Stat(ImageChops.difference(image, coarse)).rms[0]


NOTE_HEIGHTS = "one => [one.scrollHeight, one.clientHeight]"


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_as_it_was_meant(frontend, keep_image, name):
    open_workflow(frontend, name)
    assert frontend.unknown_types() == []
    sent, meant = frontend.api_format(), read_prompt(name)
    assert {id: node["class_type"] for id, node in sent.items()} == {id: n["class_type"] for id, n in meant.items()}
    for id, node in meant.items():
        values = sent[id]["inputs"]
        assert {key: values.get(key) for key in node["inputs"]} == node["inputs"], f"{id} {node['class_type']}"
    image = frontend.graph_image()
    needed, there = frontend.page.locator(".comfy-markdown .tiptap").evaluate(NOTE_HEIGHTS)
    assert needed <= there, "the note scrolls"
    assert frontend.errors == []
    keep_image(name, image)


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_workflow_of_shipped_files_runs_by_pressing_run(frontend, keep_image, name):
    open_workflow(frontend, name)
    frontend.show_all()
    previews = press_run(frontend)
    for node in PREVIEWS[name]:
        frontend.page.wait_for_function("id => app.graph.getNodeById(id).imgs?.length", arg=node, timeout=20_000)
        size = frontend.page.evaluate("id => app.graph.getNodeById(id).imgs.map(i => i.naturalWidth)", node)
        assert size == [{"13": 512, "31": 64}.get(node, 128)]
    assert frontend.errors == []
    assert previews == []  # off unless the user turns them on
    assert overlapping(frontend) == []
    frontend.page.mouse.move(5, 500)
    keep_image(f"{name}_done", frontend.graph_image())


SHOW_PLAN = """() => {
  const preview = LiteGraph.createNode("PreviewImage");
  app.graph.add(preview);
  app.graph._nodes.find(node => node.type === "RMD_Schedule").connect(2, preview, 0);
}"""


def test_a_workflow_with_the_older_name_of_an_output_keeps_its_link(frontend):
    """The plan's image was called picture."""
    open_workflow(frontend, "rmd_wired")
    frontend.page.evaluate(SHOW_PLAN)
    sent, saved = frontend.api_format(), json.dumps(frontend.serialised())
    assert saved.count('"plan_image"') == 2  # name and localized_name
    frontend.load("older", json.loads(saved.replace('"plan_image"', '"picture"')))
    assert frontend.api_format() == sent
    plan = next(node for node in frontend.serialised()["nodes"] if node["type"] == "RMD_Schedule")
    assert plan["outputs"][2]["name"] == "plan_image" and len(plan["outputs"][2]["links"]) == 1
    frontend.run()
    assert frontend.errors == []


def overlapping(frontend):
    """The titles of nodes of the open graph that cover each other, as large as they are now."""
    boxes = frontend.page.evaluate("app.graph._nodes.map(node => [node.title, ...node.boundingRect])")
    found = []
    for number, (one, x, y, width, height) in enumerate(boxes):
        for other, left, top, wide, high in boxes[:number]:
            if x < left + wide and left < x + width and y < top + high and top < y + height:
                found.append((one, other))
    return found


def test_previews_come_at_both_sizes(frontend):
    open_workflow(frontend, "rmd_wired")
    frontend.page.evaluate("app.graph.getNodeById(6).widgets.find(w => w.name === 'seed').value = 8")
    frontend.page.evaluate(SET, ["Comfy.Execution.PreviewMethod", "latent2rgb"])
    try:
        nodes, images = zip(*press_run(frontend))
    finally:
        frontend.page.evaluate(SET, ["Comfy.Execution.PreviewMethod", "none"])
    assert nodes == ("6",) * 4
    points = [detail(image, 8) for image in images]
    assert min(points[2:]) > 1.5 * max(points[:2])  # 8x8 cells at 64 px, 16x16 at 128 px


def test_the_template_browser_offers_them_and_opens_one(frontend, keep_image):
    page = frontend.page
    frontend.errors.clear()
    page.get_by_role("button", name="Templates").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("ComfyUI-RMD").click()
    for name in TITLE_OF.values():
        card = dialog.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        card.locator("img").wait_for()  # it is loaded when its card comes into view
        assert card.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 480
    shown = dialog.locator("[data-testid^=template-workflow-]").evaluate_all(
        "cards => cards.map(one => one.dataset.testid)"
    )
    assert shown == [f"template-workflow-{name}" for name in TITLE_OF.values()]
    dialog.get_by_test_id(f"template-workflow-{TITLE_OF['rmd_demo']}").scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    keep_image("templates", page.screenshot())
    dialog.get_by_text(TITLE_OF["rmd_wired"], exact=True).click()
    page.wait_for_function("app.graph._nodes.some(n => n.type === 'RMD_LoadStudent')", timeout=20_000)
    dialog.wait_for(state="hidden")
    assert page.evaluate("app.graph._nodes.length") == len(workflow("rmd_wired")["nodes"])
    assert frontend.errors == []


DROP = """([data, name]) => app.handleFile(
  new File([Uint8Array.from(atob(data), one => one.charCodeAt(0))], name, {type: "image/png"})
)"""


@pytest.mark.parametrize("image, name", [("demo_result", "rmd_demo"), ("rmd_hand_built", "rmd_hand_built")])
def test_an_image_of_the_pages_opens_its_workflow(frontend, image, name):
    """One that Save Image wrote, and a screenshot."""
    frontend.load("empty", {"nodes": [], "links": [], "version": 0.4})
    data = base64.b64encode((IMAGES / f"{image}.png").read_bytes()).decode()
    frontend.page.evaluate(DROP, [data, f"{image}.png"])
    frontend.page.wait_for_function("count => app.graph._nodes.length === count", arg=len(workflow(name)["nodes"]))
    sent, meant = frontend.api_format(), read_prompt(name)
    assert {id: node["class_type"] for id, node in sent.items()} == {id: n["class_type"] for id, n in meant.items()}
    assert frontend.errors == []


LOD = "LiteGraph.Canvas.MinFontSizeForLOD"
SMALL_WINDOW = {"width": 1366, "height": 768}
READABLE = """() => {
  const {scale} = app.canvas.ds, smallest = LiteGraph.NODE_TEXT_SIZE * scale;
  return [scale, smallest >= app.extensionManager.setting.get("LiteGraph.Canvas.MinFontSizeForLOD")];
}"""


@pytest.mark.parametrize("name", NAMES)
def test_a_template_opens_with_readable_text(frontend, keep_image, name):
    """As a new user has it: default settings, a small window; Nodes 1 hides all text below a zoom."""
    frontend.page.evaluate(SET, [LOD, 8])
    page = frontend.page.context.browser.new_page(viewport=SMALL_WINDOW)
    try:
        opened = Frontend(page, frontend.server)
        page.get_by_role("button", name="Templates").first.click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_text("ComfyUI-RMD").click()
        dialog.get_by_text(TITLE_OF[name], exact=True).click()
        dialog.wait_for(state="hidden")
        page.wait_for_timeout(1500)
        scale, readable = page.evaluate(READABLE)
        keep_image(f"{name}_opens", page.screenshot())
        assert readable, scale
        assert opened.errors == []
    finally:
        page.close()
        frontend.page.evaluate(SET, [LOD, 0])


@pytest.mark.parametrize("kind", ["RMD_Schedule", "RMD_Sampler"])
def test_the_help_of_a_node_opens(frontend, keep_image, kind):
    page = frontend.page
    open_workflow(frontend, "rmd_wired")
    frontend.show_all()
    page.mouse.click(*frontend.place_of(kind))
    page.get_by_test_id("info-button").click()
    inputs = frontend.server.object_info()[kind]["input_order"]["required"]
    panel = page.locator(".node-help-content")
    panel.get_by_text(inputs[0]).first.wait_for()
    assert all(name in panel.inner_text() for name in inputs)
    page.mouse.move(5, 500)
    page.wait_for_timeout(1500)
    below_tabs = {"x": 0, "y": 40, "width": WINDOW["width"], "height": WINDOW["height"] - 100}
    keep_image(f"help_{kind}", page.screenshot(clip=below_tabs))
    page.get_by_role("button", name="Toggle properties panel").first.click()
    assert frontend.errors == []


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_in_nodes_2(frontend, keep_image, name):
    """The frontend's newer drawing of nodes, which measures them otherwise."""
    setting = "value => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', value)"
    frontend.page.evaluate(setting, True)
    try:
        open_workflow(frontend, name)
        frontend.page.wait_for_timeout(1000)
        assert frontend.api_format().keys() == read_prompt(name).keys()
        assert overlapping(frontend) == []
        assert frontend.errors == []
        keep_image(f"{name}_nodes_2", frontend.graph_image())
    finally:
        frontend.page.evaluate(setting, False)


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
SET_WIDGET = "([name, value]) => { app.graph._nodes[0].widgets.find(widget => widget.name === name).value = value; }"


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_found_added_and_run(frontend, keep_image, name):
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
            page.evaluate(SET_WIDGET, [label, SMALL[label]])
    frontend.show_all()
    press_run(frontend)
    assert frontend.errors == []
    page.evaluate("app.canvas.deselectAll()")
    keep_image(name.replace(" ", "_").lower(), frontend.graph_image())

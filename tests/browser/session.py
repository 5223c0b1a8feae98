"""A page of headless Chromium with the real frontend in it, open on a real ComfyUI server with the pack."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from comfy_server import ComfyServer
from comfyui_checkout import find_comfyui

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
WINDOW = {"width": 1600, "height": 1000}
# What the console says on every machine: files a new user has not got, and the models of ComfyUI's own first workflow.
HARMLESS = re.compile(r"404|user\.css|userdata|favicon|net::ERR_|Content Security Policy|before initialization")
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}


def find_chromium() -> str | None:
    """Return the browser of the variable CHROMIUM, else the first Chromium or Chrome on the path, else None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def open_frontend(
    folder: Path, *, models: list[tuple[str, str]] = (), pixels: int = 1, **settings
) -> Iterator[Frontend]:
    """A server with an empty base folder of its own, and a page on it, both closed at the end.

    models: (folder, file name) of empty files to put under models/, so that drop-downs offer them. pixels: of a
    screenshot for one of the page. settings: of the frontend, with `_` for the dots of their names. Raises
    FileNotFoundError without a ComfyUI or a Chromium.
    """
    comfyui, chromium = find_comfyui(), find_chromium()
    if comfyui is None or chromium is None:
        raise FileNotFoundError("needs a ComfyUI (COMFYUI_PATH) and a Chromium (CHROMIUM)")
    user = folder / "user" / "default"
    user.mkdir(parents=True)
    named = {key.replace("_", "."): value for key, value in settings.items()}
    (user / "comfy.settings.json").write_text(json.dumps(SETTINGS | named))
    for kind, name in models:
        (folder / "models" / kind).mkdir(parents=True, exist_ok=True)
        (folder / "models" / kind / name).touch()
    with ComfyServer(comfyui, folder) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        try:
            yield Frontend(browser.new_page(viewport=WINDOW, device_scale_factor=pixels), server)
        finally:
            browser.close()


class Frontend:
    """A page with the frontend ready in it; `errors` collects what its console complained about since then."""

    def __init__(self, page: Page, server: ComfyServer) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(server.url, wait_until="domcontentloaded")
        page.wait_for_function("window.app?.canvas && app.extensionManager", timeout=120_000)
        page.wait_for_function("!!LiteGraph.registered_node_types.RMD_Sampler", timeout=120_000)
        page.wait_for_timeout(1500)
        self.close_dialogs()
        self.errors.clear()

    def close_dialogs(self) -> None:
        """Close what a first start shows."""
        for _ in range(3):
            if not self.page.locator("[role=dialog]").count():
                return
            self.page.keyboard.press("Escape")
            self.page.wait_for_timeout(400)

    def load_api(self, name: str, prompt: dict) -> None:
        """Open a workflow in API format, in a tab of its own."""
        self.page.evaluate("([prompt, name]) => app.loadApiJson(prompt, name)", [prompt, name])
        self.page.wait_for_timeout(500)

    def load(self, name: str, workflow: dict) -> None:
        """Open a workflow in the frontend's own format, in a tab of its own."""
        self.page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [workflow, name])
        self.page.wait_for_timeout(500)
        self.page.wait_for_function("count => app.graph._nodes.length === count", arg=len(workflow["nodes"]))

    def run(self) -> list[tuple[str, bytes]]:
        """Press Run and wait for the end; (node id, file) of each preview. Raises RuntimeError where the run fails."""
        self.page.evaluate(WATCH)
        self.page.get_by_test_id("queue-button").click()
        self.page.wait_for_function("seen.done || seen.errors.length", timeout=120_000)
        if errors := self.page.evaluate("seen.errors"):
            raise RuntimeError("; ".join(errors))
        self.page.wait_for_timeout(1500)  # the images of the output nodes are fetched after the last event
        return [(node, base64.b64decode(data)) for node, data in self.page.evaluate("seen.previews")]

    @contextmanager
    def in_language(self, language: str) -> Iterator[Frontend]:
        """Another page on the same server, in a language; this one keeps its own."""
        setting = f"{self.server.url}/settings/Comfy.Locale"
        self.page.request.post(setting, data=json.dumps(language))
        pixels = self.page.evaluate("devicePixelRatio")
        page = self.page.context.browser.new_page(viewport=WINDOW, device_scale_factor=pixels)
        try:
            yield Frontend(page, self.server)
        finally:
            page.close()
            self.page.request.post(setting, data=json.dumps("en"))

    def add_in_columns(self, kinds: list[str]) -> list:
        """Empty the canvas and add a node of each type; [title, input names shown, output names shown] of each."""
        self.load("empty", {"nodes": [], "links": [], "version": 0.4})
        return self.page.evaluate(ADD_IN_COLUMNS, kinds)

    def serialised(self) -> dict:
        """The open workflow as the frontend saves it."""
        return json.loads(self.page.evaluate("JSON.stringify(app.graph.serialize())"))

    def api_format(self) -> dict:
        """The open workflow as the frontend would send it to the server."""
        return json.loads(self.page.evaluate("app.graphToPrompt().then(p => JSON.stringify(p.output))"))

    def unknown_types(self) -> list[str]:
        """The types of nodes in the open graph that the frontend does not know."""
        types = "[...new Set(app.graph._nodes.map(n => n.type))]"
        return self.page.evaluate(f"{types}.filter(t => !LiteGraph.registered_node_types[t])")

    def show_all(self) -> None:
        """Bring the whole graph between the bars of the page."""
        self.page.evaluate(SHOW_ALL)
        self.page.wait_for_timeout(800)

    def place_of(self, kind: str) -> tuple[float, float]:
        """A point of the page on the title of the first node of a type."""
        return tuple(self.page.evaluate(TITLE_ON_PAGE, kind))

    def graph_image(self) -> bytes:
        """A PNG of the whole graph without the bars around it."""
        self.show_all()
        self.page.add_style_tag(content=NO_POPUPS)
        self.page.wait_for_timeout(300)
        return self.page.screenshot(clip=self.page.evaluate(BOX_ON_PAGE))

    def _console(self, message) -> None:
        text = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and not HARMLESS.search(text):
            self.errors.append(text)


SET = "([name, value]) => app.extensionManager.setting.set(name, value)"
WATCH = """() => {
  const listening = Boolean(window.seen);
  window.seen = {previews: [], errors: [], done: false};
  if (listening) return;
  const base64 = async blob => btoa(String.fromCharCode(...new Uint8Array(await blob.arrayBuffer())));
  const on = (name, call) => app.api.addEventListener(name, call);
  on("b_preview_with_metadata", async ({detail}) => seen.previews.push([detail.nodeId, await base64(detail.blob)]));
  on("execution_error", event => seen.errors.push(event.detail.exception_message));
  on("execution_success", () => { seen.done = true; });
}"""
ADD_IN_COLUMNS = """kinds => {
  const bottoms = [0, 0, 0, 0];  // of four columns; each node goes to the shortest
  return kinds.map(kind => {
    const node = LiteGraph.createNode(kind);
    app.graph.add(node);
    const column = bottoms.indexOf(Math.min(...bottoms)), size = node.computeSize();
    node.setSize([Math.max(node.size[0], size[0]), Math.max(node.size[1], size[1])]);
    node.pos = [column * 420, bottoms[column]];
    bottoms[column] += node.size[1] + LiteGraph.NODE_TITLE_HEIGHT + 40;
    const widgets = (node.widgets ?? []).map(widget => [widget.name, widget.label]);
    const sockets = node.inputs.filter(input => !input.widget).map(one => [one.name, one.label ?? one.localized_name]);
    const outputs = node.outputs.map(output => output.localized_name);
    return [node.title, Object.fromEntries([...sockets, ...widgets]), outputs];
  });
}"""
POPUPS = '[data-testid="queue-notification-banner"], [data-testid="toast-viewport"], .p-toast, .p-tooltip'
NO_POPUPS = f"{POPUPS} {{ display: none }}"
BOUNDS = """() => {
  const boxes = [...app.graph._nodes, ...app.graph._groups].map(item => item.boundingRect ?? item._bounding);
  const low = axis => Math.min(...boxes.map(box => box[axis]));
  const high = axis => Math.max(...boxes.map(box => box[axis] + box[axis + 2]));
  return [low(0), low(1), high(0), high(1)];
}"""
SHOW_ALL = f"""() => {{
  const [x0, y0, x1, y1] = ({BOUNDS})(), view = app.canvas.ds;
  const left = 75, top = 105, width = innerWidth - left - 25, height = innerHeight - top - 75;
  view.scale = Math.min(width / (x1 - x0), height / (y1 - y0));
  view.offset[0] = (left + width / 2) / view.scale - (x0 + x1) / 2;
  view.offset[1] = (top + height / 2) / view.scale - (y0 + y1) / 2;
  app.canvas.setDirty(true, true);
}}"""
BOX_ON_PAGE = f"""() => {{
  const [x0, y0, x1, y1] = ({BOUNDS})(), {{scale, offset}} = app.canvas.ds;
  const x = (x0 + offset[0]) * scale, y = (y0 + offset[1]) * scale;
  return {{x: x - 6, y: y - 6, width: (x1 - x0) * scale + 12, height: (y1 - y0) * scale + 12}};
}}"""
TITLE_ON_PAGE = """kind => {
  const node = app.graph._nodes.find(node => node.type === kind), {scale, offset} = app.canvas.ds;
  return [(node.pos[0] + 60 + offset[0]) * scale, (node.pos[1] - 15 + offset[1]) * scale];
}"""

"""Makes the screenshots of the pages, and an image of the demo, in docs/images/ with the real frontend.

Graphs carry their workflow as ComfyUI's own images do: drop one on ComfyUI's page to open it.

PYTHONPATH=tests python -m browser.make_screenshots [name ...]
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from browser.layouts import TITLE_OF
from browser.make_workflows import workflow_file
from browser.real_models import FILES
from browser.session import Frontend, open_frontend
from english_locale import locale

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PIXELS = 2  # px of a screenshot for one of the page
COLOURS = 256  # of a screenshot: a third of the bytes of full colour
FULL_COLOUR = {"rmd_demo_done"}  # its image is large


def save(name: str, png: bytes, frontend: Frontend | None = None) -> None:
    """Write a screenshot, with the open graph of ``frontend`` in it where one is given."""
    about = PngInfo()
    if frontend:
        about.add_text("workflow", json.dumps(frontend.serialised()))
        about.add_text("prompt", json.dumps(frontend.api_format()))
    shot = Image.open(io.BytesIO(png)).convert("RGB")
    if name not in FULL_COLOUR:
        shot = shot.quantize(COLOURS, Image.Quantize.FASTOCTREE)
    shot.save(IMAGES / f"{name}.png", pnginfo=about, optimize=True)


SEEDS = "app.graph._nodes.flatMap(node => (node.widgets ?? []).filter(widget => widget.name.includes('seed')))"


def template(frontend: Frontend, name: str, file: str, *, run: bool = True) -> None:
    """A template, after a run if asked for."""
    frontend.load(name, json.loads(workflow_file(name).read_text(encoding="utf-8")))
    frontend.show_all()
    if run:
        seeds = frontend.page.evaluate(f"{SEEDS}.map(widget => widget.value)")
        frontend.run()
        frontend.page.evaluate(f"seeds => {SEEDS}.forEach((widget, at) => {{ widget.value = seeds[at]; }})", seeds)
        frontend.page.mouse.move(5, 500)
    save(file, frontend.graph_image(), frontend)


def demo(frontend: Frontend) -> None:
    """The demo template after a run, and the file that its Save Image node wrote."""
    template(frontend, "rmd_demo", "rmd_demo_done")
    (saved,) = (frontend.server.folder / "output").glob("rmd_demo_*.png")
    (IMAGES / "demo_result.png").write_bytes(saved.read_bytes())


def template_browser(frontend: Frontend) -> None:
    """The templates of the pack in the browser of templates."""
    page = frontend.page
    page.get_by_role("button", name="Templates").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("ComfyUI-RMD").click()
    for name in TITLE_OF.values():
        card = dialog.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        card.locator("img").wait_for()
    dialog.get_by_test_id(f"template-workflow-{TITLE_OF['rmd_demo']}").scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    save("templates", page.screenshot())
    frontend.close_dialogs()


def chinese(frontend: Frontend) -> None:
    """Every node in Chinese, for which the machine needs a Chinese font."""
    with frontend.in_language("zh") as opened:
        opened.add_in_columns(list(locale("zh")))
        save("nodes_zh", opened.graph_image())


SCREENSHOTS = {
    "templates": template_browser,
    "rmd_demo_done": demo,
    "rmd_wired_done": lambda frontend: template(frontend, "rmd_wired", "rmd_wired_done"),
    "rmd_hand_built": lambda frontend: template(frontend, "rmd_hand_built", "rmd_hand_built"),
    "wan21_480p_to_720p": lambda frontend: template(frontend, "wan21_480p_to_720p", "wan21_480p_to_720p", run=False),
    "nodes_zh": chinese,
}


def main() -> None:
    models = [(file.folder, name) for name, file in FILES.items()]
    settings = {"models": models, "pixels": PIXELS, "Comfy_Execution_PreviewMethod": "none"}
    with tempfile.TemporaryDirectory() as folder, open_frontend(Path(folder, "comfyui"), **settings) as frontend:
        for name in sys.argv[1:] or SCREENSHOTS:
            SCREENSHOTS[name](frontend)
            print(f"docs/images/{name}.png")
        for error in frontend.errors:
            print(f"console: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()

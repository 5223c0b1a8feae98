"""Makes workflows/*.json and their thumbnails from tests/workflows/*.json with the real frontend.

PYTHONPATH=tests python -m browser.make_workflows [name ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from browser.canvas import arrange
from browser.layouts import LAYOUTS
from browser.model_files import FILES, SHIPPED, files_named
from browser.session import Frontend, open_frontend
from browser.thumbnails import graph_thumbnail, picture_thumbnail

ROOT = Path(__file__).parents[2]
API_FORMAT = ROOT / "tests" / "workflows"
NOTES = Path(__file__).parent / "notes"
WORKFLOWS = ROOT / "workflows"


def read_prompt(name: str) -> dict:
    """A workflow in API format."""
    return json.loads((API_FORMAT / f"{name}.json").read_text(encoding="utf-8"))


def make(frontend: Frontend, name: str) -> None:
    """Write workflows/NAME.json and NAME.jpg."""
    prompt = read_prompt(name)
    frontend.load_api(name, prompt)
    note = (NOTES / f"{name}.md").read_text(encoding="utf-8")
    arrange(frontend, name, prompt=prompt, rows=LAYOUTS[name], note=note)
    frontend.show_all()
    text = json.dumps(frontend.serialised(), indent=2, ensure_ascii=False)
    (WORKFLOWS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    graph = frontend.graph_picture()
    if set(files_named(prompt)) <= SHIPPED:
        with ThreadPoolExecutor(1) as own_thread:  # Playwright's event loop occupies this one
            run = own_thread.submit(frontend.server.run, prompt).result()
        shown = {node: frontend.server.view(out["images"][0]) for node, out in run.outputs.items() if "images" in out}
        picture_thumbnail(name, shown).save(WORKFLOWS / f"{name}.jpg", quality=85)
    else:
        graph_thumbnail(name, graph).save(WORKFLOWS / f"{name}.jpg", quality=80)


def main() -> None:
    names = sys.argv[1:] or list(LAYOUTS)
    WORKFLOWS.mkdir(exist_ok=True)
    models = [(folder, name) for name, (folder, _) in FILES.items()]
    with tempfile.TemporaryDirectory() as folder, open_frontend(Path(folder, "comfyui"), models=models) as frontend:
        for name in names:
            make(frontend, name)
            print(f"workflows/{name}.json")
        for error in frontend.errors:
            print(f"console: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()

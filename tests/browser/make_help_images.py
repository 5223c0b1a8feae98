"""Makes web/docs/images/NODE.png, the images of the help pages: each node as the real frontend draws it.

PYTHONPATH=tests python -m browser.make_help_images
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from browser.session import BOX_ON_PAGE, Frontend, open_frontend

IMAGES = Path(__file__).parents[2] / "web" / "docs" / "images"
SCALE = 1.5  # px of the image for one of the canvas
COLOURS = 64  # enough for text on plain grey, and a fifth of the bytes
ALONE = """([kind, scale]) => {
  const node = LiteGraph.createNode(kind), view = app.canvas.ds;
  app.graph.add(node);
  const size = node.computeSize();
  node.setSize([Math.max(node.size[0], size[0]), Math.max(node.size[1], size[1])]);
  view.scale = scale;
  [view.offset[0], view.offset[1]] = [100 / scale - node.pos[0], 150 / scale - node.pos[1]];
  app.canvas.setDirty(true, true);
}"""


def node_image(frontend: Frontend, kind: str) -> Image.Image:
    """A node of a type alone on the canvas, with its defaults."""
    frontend.load("empty", {"nodes": [], "links": [], "version": 0.4})
    frontend.page.evaluate(ALONE, [kind, SCALE])
    frontend.page.wait_for_timeout(800)
    png = frontend.page.screenshot(clip=frontend.page.evaluate(BOX_ON_PAGE))
    return Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_frontend(Path(folder, "comfyui")) as frontend:
        for kind in sorted(kind for kind in frontend.server.object_info() if kind.startswith("RMD_")):
            node_image(frontend, kind).save(IMAGES / f"{kind}.png", optimize=True)
            print(f"web/docs/images/{kind}.png")


if __name__ == "__main__":
    main()

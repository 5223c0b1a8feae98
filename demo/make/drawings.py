"""Draw the demo's emoji from Iconify's SVG packages into demo/data/drawings.npz.

    npm install @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 \\
        @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/twemoji@1.2.5 @iconify-json/emojione@1.2.3
    pip install resvg-py==0.5.0
    python -m demo.make.drawings node_modules
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from ..world import CONCEPTS, DRAWINGS_FILE, MORE_CONCEPTS, SIDE, STYLES


def svg(package, name):
    """The SVG text of one icon of an Iconify package (an ``icons.json`` as a dict)."""
    while name not in package["icons"]:
        name = package["aliases"][name]["parent"]
    icon = package["icons"][name]
    width, height = (icon.get(side, package.get(side)) for side in ("width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )


def main(node_modules):
    drawings = {}
    for style, package_name in STYLES.items():
        package = json.loads(Path(node_modules, "@iconify-json", package_name, "icons.json").read_text())
        for concept, icon in (CONCEPTS | MORE_CONCEPTS).items():
            png = resvg_py.svg_to_bytes(svg_string=svg(package, icon), width=SIDE, height=SIDE)
            image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
            square = Image.new("RGBA", (SIDE, SIDE))
            square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
            drawings[f"{style}/{concept}"] = np.asarray(square)
    DRAWINGS_FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(DRAWINGS_FILE, **drawings)


if __name__ == "__main__":
    main(sys.argv[1])

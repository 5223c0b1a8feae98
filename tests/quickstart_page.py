"""The files that docs/use/quickstart.md lists for a template. They are made from tests/browser/real_models.py.

Run as a program (python tests/quickstart_page.py) it writes them into the page.
"""

import re
from pathlib import Path

from browser.real_models import TEMPLATES, words_of

PAGE = Path(__file__).parents[1] / "docs" / "use" / "quickstart.md"
BLOCK = re.compile(r"(<!-- (\w+): made by tests/quickstart_page.py -->\n).*?(<!-- end -->)", re.DOTALL)


def block(template):
    """What the page says of a template: its name, its steps and its files."""
    stages = ", ".join(f"{steps} at {words_of(size)}" for steps, size in zip(template.steps, template.sizes))
    rows = "\n".join(f"| [{file.name}]({file.url}) | {file.gb:.3g} | {file.folder} |" for file in template.files)
    frames = f", {template.frames} frames" if template.frames else ""
    return (
        f"\n**Template**: *{template.name}*. Steps: {stages}{frames}.\n\n"
        f"| file | GB | folder in `ComfyUI/models` |\n|---|---:|---|\n{rows}\n\n"
    )


def page(text):
    """The page with the block of every template that it names made again."""
    return BLOCK.sub(lambda found: found[1] + block(TEMPLATES[found[2]]) + found[3], text)


def main():
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

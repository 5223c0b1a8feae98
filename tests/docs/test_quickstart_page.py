"""docs/use/quickstart.md has the files that the templates load, and every template that docs/use names exists."""

import re

from quickstart_page import BLOCK, PAGE, page

ROOT = PAGE.parents[2]


def test_the_files_are_those_of_the_templates():
    text = PAGE.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) > 5
    assert page(text) == text, "run python tests/quickstart_page.py"


def test_templates_that_are_named_exist():
    names = [path.stem for path in ROOT.glob("example_workflows/*.json")]
    named = {
        name for path in PAGE.parent.glob("*.md") for name in re.findall(r"\*(RMD \d[^*|]*)\*", path.read_text("utf-8"))
    }
    assert named and [one for one in named if not any(name.startswith(one) for name in names)] == []

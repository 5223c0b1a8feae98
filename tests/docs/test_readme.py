"""README.md: its figures of quality are rows of the quality page, and nothing generated stands in it twice."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PRINTED = re.search(r"```\n(.*?)```\n<!-- end -->", (ROOT / "docs" / "quality.md").read_text("utf-8"), re.DOTALL)[1]


def rows():
    """(label, figures) of README's table of quality."""
    lines = README.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("|") and "| FD |" in line)
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        label, *figures = (cell.strip().replace("*", "") for cell in line.strip("|").split("|"))
        yield label, figures


def test_each_row_of_quality_is_one_of_the_printed_tables():
    """With its figures in the order of the printed row; which rows the README shows is its own affair."""
    printed = [re.split(r"\s{2,}|(?<=\)) (?=\S)", line.strip()) for line in PRINTED.split("\n")]
    shown = list(rows())
    assert len(shown) > 4
    unknown = [
        label for label, figures in shown if not any(cells[1 : 1 + len(figures)] == figures for cells in printed)
    ]
    assert unknown == []


def test_nothing_stands_twice():
    headings = Counter(re.findall(r"^#+ .+$", README, re.MULTILINE))
    marks = Counter(re.findall(r"^<!-- .+ -->$", README, re.MULTILINE))
    assert [text for text, count in (headings + marks).items() if count > 1] == []

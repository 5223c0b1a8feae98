"""The help pages and how they are read: their sections, tables, quoted messages and blocks."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
TEMPLATES = {path.stem: path for path in (ROOT / "workflows").glob("*.json")}
SECTIONS = ["Inputs", "Outputs", "What goes wrong", "Template"]


def sections(page):
    """Heading (without its marks) -> the text below it, in the page's order; the title's is the introduction."""
    parts = re.split(r"^#+ (.+)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def rows(text):
    """The cells of a table's body; its first cell is the bold name."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert all(len(line) == len(lines[0]) for line in lines), lines
    return [[cells[0].strip("*"), *cells[1:]] for cells in lines[2:]]


@cache
def messages(*folders):
    """Every text in the code of some folders, with `...` for what is filled in."""
    found = []
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                values = node.values
                found.append("".join(v.value if isinstance(v, ast.Constant) else "..." for v in values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%\w", "...", node.value))
    return found


def unknown(told, *folders):
    """Those of the quoted messages that no text in the code of some folders holds."""
    known = messages(*folders)
    patterns = {text: ".*".join(map(re.escape, text.split("..."))) for text in told}
    return [text for text in told if not any(re.search(patterns[text], message) for message in known)]


def quoted(text):
    """Everything between backticks, on one line each."""
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", text)]


def blocks(path):
    """(kind, text on one line) of each heading, paragraph, item of a list and row of a table, from top to bottom."""
    found = []
    for chunk in path.read_text(encoding="utf-8").strip().split("\n\n"):
        if chunk.startswith("|"):
            found += [("row", line) for line in chunk.split("\n")]
        elif chunk.startswith("- "):
            found += [("item", " ".join(item.split())) for item in re.split(r"\n(?=- )", chunk)]
        else:
            marks = re.match("#*", chunk)[0]
            found.append((marks or "paragraph", " ".join(chunk.split())))
    return found


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]

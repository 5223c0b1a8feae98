"""The help pages and how they are read: their sections, entries, quoted messages and blocks."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
TEMPLATES = {path.stem.split(" (")[0]: path for path in (ROOT / "example_workflows").glob("*.json")}
"""Template by its name without the brackets, behind which some languages cannot end bold text."""
SECTIONS = ["Inputs", "Outputs", "Template"]


def sections(page):
    """Heading (without its marks) -> the text below it, in the page's order; the title's is the introduction."""
    parts = re.split(r"^#+ (.+)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


ENTRY = re.compile(r"(\*\*[^*]+\*\*(?: \([^)]*\))?)(?:: |\uff1a)(.+)")
"""How a paragraph of an input or output begins: its bold name, in translations with the English one, and a colon."""


def entry(text, parts):
    """The name and the `parts` (3 of an input: default, what it takes, meaning; 2 of an output) of an entry.

    An input's is `**name**: default (takes). Meaning.`, an output's `**name**: type. Meaning.`; Chinese has
    its own marks.
    """
    name, rest = ENTRY.fullmatch(text).groups()
    ascii_marks, wide_marks = (r"(.+?) \((.+?)\)\. (.+)", r"(.+?)\uff08(.+?)\uff09\u3002(.+)")
    if parts == 2:
        ascii_marks, wide_marks = r"(.+?)\. (.+)", r"(.+?)\u3002(.+)"
    found = re.fullmatch(wide_marks if "\uff1a" in text[: len(name) + 1] else ascii_marks, rest)
    assert found, f"no entry of {parts} parts: {text}"
    return (name, *found.groups())


def entries(text, parts):
    """(name, *parts) of every entry of a section of an English page, names without their marks."""
    chunks = [" ".join(chunk.split()) for chunk in text.strip().split("\n\n")]
    return [(name.strip("*"), *rest) for name, *rest in (entry(chunk, parts) for chunk in chunks if chunk)]


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


def unknown(quotes, *folders):
    """Those of the quoted messages that no text in the code of some folders holds."""
    known = messages(*folders)
    patterns = {text: ".*".join(map(re.escape, text.split("..."))) for text in quotes}
    return [text for text in quotes if not any(re.search(patterns[text], message) for message in known)]


def quoted(text):
    """Everything between backticks, on one line each."""
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", text)]


def blocks(path):
    """(kind, text on one line) of each heading, paragraph, entry and item of a list, from top to bottom."""
    found = []
    for chunk in path.read_text(encoding="utf-8").strip().split("\n\n"):
        if chunk.startswith("- "):
            found += [("item", " ".join(item.split())) for item in re.split(r"\n(?=- )", chunk)]
        else:
            marks, text = re.match("#*", chunk)[0], " ".join(chunk.split())
            found.append((marks or ("entry" if ENTRY.fullmatch(text) else "paragraph"), text))
    return found

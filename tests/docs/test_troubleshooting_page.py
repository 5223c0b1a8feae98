"""docs/use/troubleshooting.md: its messages are those of the code, and everything it names exists."""

import re

import pytest

from help_pages import ROOT, quoted, sections, unknown

PAGE = ROOT / "docs" / "use" / "troubleshooting.md"
TABLES = {name: text for name, text in sections(PAGE).items() if "\n|" in text}


def rows(text):
    """The cells of a table's body; its first cell is the bold name."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert all(len(line) == len(lines[0]) for line in lines), lines
    return [[cells[0].strip("*"), *cells[1:]] for cells in lines[2:]]


@pytest.mark.parametrize("name", TABLES)
def test_messages_are_those_of_the_code(name):
    folders = ("training", "rmd_core") if name == "Training" else ("nodes", "rmd_core")
    quotes = [quoted(message)[0] for message, _ in rows(TABLES[name])]
    assert len(quotes) > 5 and unknown(quotes, *folders) == []


def test_bold_names_are_inputs_or_choices(node_classes):
    known = {"few-step profile"}
    for kind in node_classes.values():
        for field in kind.GET_SCHEMA().inputs:
            known |= {field.id} | {one.id for option in getattr(field, "options", None) or () for one in inner(option)}
    bold = {name for text in TABLES.values() for name in re.findall(r"\*\*(.+?)\*\*", text)}
    assert bold - known == set()


def inner(option):
    return getattr(option, "inputs", ())

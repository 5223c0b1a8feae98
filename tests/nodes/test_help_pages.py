"""The help pages: every input, value, default and output of the schemas, and messages that the code really gives."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
TEMPLATES = {path.stem: path for path in (ROOT / "workflows").glob("*.json")}
SECTIONS = ["Inputs", "Outputs", "What goes wrong", "Template"]
FIRST = "the first"  # the default of a drop-down that names none, as of files


def sections(page):
    """Heading (without its marks) -> the text below it, in the page's order; the title's is the introduction."""
    parts = re.split(r"^#+ (.+)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def rows(text):
    """The cells of a table's body; its first cell is the bold name."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert all(len(line) == len(lines[0]) for line in lines), lines
    return [[cells[0].strip("*"), *cells[1:]] for cells in lines[2:]]


def options(field):
    """The values that a drop-down allows as it stands in the code; none where they come from a folder or a list."""
    found = list(getattr(field, "options", None) or ())
    if found and hasattr(found[0], "inputs"):
        return [option.key for option in found]
    return found if getattr(field, "default", None) is not None else []


def default(field):
    """What the default's cell says of an input."""
    kind = field.get_io_type()
    if kind == "COMFY_DYNAMICCOMBO_V3":
        return f"`{field.options[0].key}`"
    if kind == "COMBO":
        return f"`{field.default}`" if field.default is not None else FIRST
    if kind == "STRING":
        return f"`{field.default}`" if field.default else "empty"
    if kind in ("INT", "FLOAT"):
        return f"{field.default:g}"
    return "optional" if field.optional else "required"


def takes(field):
    """What the cell of allowed values must hold."""
    kind = field.get_io_type()
    if kind in ("INT", "FLOAT"):
        least, most = (value if isinstance(value, int) else f"{value:g}" for value in (field.min, field.max))
        return [f"{least} to {most}"]
    if kind in ("COMFY_DYNAMICCOMBO_V3", "COMBO", "STRING"):
        return [", ".join(f"`{value}`" for value in options(field))]
    return [kind]


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


@pytest.fixture(scope="module")
def schemas(node_classes):
    return {node: kind.GET_SCHEMA() for node, kind in node_classes.items()}


def test_every_node_has_a_page_and_every_page_a_node(schemas):
    assert {page.stem for page in PAGES} == schemas.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
class TestPage:
    def test_is_plain_and_whole(self, page):
        text = page.read_bytes()
        assert text.isascii() and b"\r" not in text and len(text) < 9000
        title, *found = (heading for heading in sections(page) if ": " not in heading)
        assert found == SECTIONS and "RMD" in title

    def test_begins_with_the_picture_of_the_node(self, page, schemas):
        text = next(iter(sections(page).values())).lstrip()
        assert text.startswith(f"![{schemas[page.stem].display_name}](images/{page.stem}.png)\n")

    def test_the_title_is_the_name_of_the_node(self, page, schemas):
        assert next(iter(sections(page))) == schemas[page.stem].display_name

    def test_inputs_are_those_of_the_schema(self, page, schemas):
        found = {name: text for name, text in sections(page).items() if name == "Inputs" or ": " in name}
        wanted = {"Inputs": schemas[page.stem].inputs}
        for field in schemas[page.stem].inputs:
            if field.get_io_type() == "COMFY_DYNAMICCOMBO_V3":
                wanted |= {f"{field.id}: {option.key}": option.inputs for option in field.options}
        assert found.keys() == wanted.keys()
        for section, fields in wanted.items():
            table = rows(found[section])
            assert [row[0] for row in table] == [field.id for field in fields], section
            for (_, allowed, usual, meaning), field in zip(table, fields):
                assert usual == default(field), field.id
                assert all(value in allowed for value in takes(field)), field.id
                assert len(meaning) > 8, field.id

    def test_outputs_are_those_of_the_node(self, page, node_classes):
        table = rows(sections(page)["Outputs"])
        told = node_classes[page.stem].GET_NODE_INFO_V1()
        assert [row[0] for row in table] == told["output_name"]
        assert [row[1] for row in table] == told["output"]

    def test_bold_names_exist(self, page, schemas, node_classes):
        """An input, output or choice of any node, a node, or a template: nothing else is bold."""
        names = {schema.display_name for schema in schemas.values()} | TEMPLATES.keys()
        for node, schema in schemas.items():
            fields = [*schema.inputs]
            names |= set(node_classes[node].GET_NODE_INFO_V1()["output_name"])
            for field in schema.inputs:
                names |= set(options(field))
                if field.get_io_type() == "COMFY_DYNAMICCOMBO_V3":
                    fields += [inner for option in field.options for inner in option.inputs]
            names |= {field.id for field in fields}
        bold = set(re.findall(r"\*\*(.+?)\*\*", page.read_text(encoding="utf-8")))
        assert bold - names == set()

    def test_messages_are_those_of_the_code(self, page):
        told = [text for text in quoted(sections(page)["What goes wrong"]) if " " in text]
        assert told
        assert unknown(told, "nodes", "rmd_core") == []

    def test_the_template_shows_the_node(self, page):
        text = sections(page)["Template"]
        named = [name for name in re.findall(r"\*\*(.+?)\*\*", text) if name in TEMPLATES]
        assert named
        shows = {name for name, path in TEMPLATES.items() if page.stem in kinds(path)}
        assert set(named) <= shows if shows else text.strip().startswith("None has this node.")


def kinds(template):
    return {node["type"] for node in json.loads(template.read_text(encoding="utf-8"))["nodes"]}


def test_the_server_gives_the_pages(server):
    from comfy_server import PACK

    for page in PAGES:
        for path in (page, page.parent / "images" / f"{page.stem}.png"):
            inside = path.relative_to(page.parent).as_posix()
            assert server.get(f"/extensions/{PACK}/docs/{inside}") == path.read_bytes()

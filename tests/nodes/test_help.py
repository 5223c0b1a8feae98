"""The help pages and the translations: what they say is what the schemas and the code say, in every language."""

import json
import re
from collections import Counter
from urllib.error import HTTPError

import pytest

from english_locale import HAN, LANGUAGES, LOCALES, SCRIPTS, english, locale
from help_pages import PAGES, ROOT, SECTIONS, TEMPLATES, blocks, entries, entry, quoted, sections

TRANSLATED = ["zh"]
"""Languages with help pages of their own. The page shows the English ones in all others."""
FIRST = "the first"  # the default of a drop-down that names none, as of files


def options(field):
    """The values that the code lists for a drop-down; none where they come from a folder or a list."""
    found = list(getattr(field, "options", None) or ())
    if found and hasattr(found[0], "inputs"):
        return [option.key for option in found]
    return found if getattr(field, "default", None) is not None else []


def default(field):
    """What the page says of an input's default."""
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
    """What the page's words on allowed values must hold."""
    kind = field.get_io_type()
    if kind in ("INT", "FLOAT"):
        least, most = (value if isinstance(value, int) else f"{value:g}" for value in (field.min, field.max))
        return [f"{least} to {most}"]
    if kind in ("COMFY_DYNAMICCOMBO_V3", "COMBO", "STRING"):
        return [", ".join(f"`{value}`" for value in options(field))]
    return [kind]


def test_every_node_has_a_page_and_every_page_a_node(schemas):
    assert {page.stem for page in PAGES} == schemas.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
class TestPage:
    def test_is_plain_and_whole(self, page):
        text = page.read_bytes()
        assert text.isascii() and b"\r" not in text and len(text) < 9000
        title, *found = (heading for heading in sections(page) if ": " not in heading)
        assert found == SECTIONS and "RMD" in title

    def test_begins_with_the_image_of_the_node(self, page, schemas):
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
            listed = entries(found[section], 3) if fields else []
            assert [name for name, *_ in listed] == [field.id for field in fields], section
            for (_, usual, allowed, meaning), field in zip(listed, fields):
                assert usual == default(field), field.id
                assert all(value in allowed for value in takes(field)), field.id
                assert len(meaning) > 8, field.id

    def test_outputs_are_those_of_the_node(self, page, node_classes):
        listed = entries(sections(page)["Outputs"], 2)
        info = node_classes[page.stem].GET_NODE_INFO_V1()
        assert [(name, kind) for name, kind, _ in listed] == list(zip(info["output_name"], info["output"]))

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

    def test_the_template_shows_the_node(self, page):
        text = sections(page)["Template"]
        named = [name for name in re.findall(r"\*\*(.+?)\*\*", text) if name in TEMPLATES]
        assert named
        shows = {name for name, path in TEMPLATES.items() if page.stem in kinds(path)}
        assert set(named) <= shows if shows else text.strip().startswith("None has this node.")


def kinds(template):
    graph = json.loads(template.read_text(encoding="utf-8"))
    inside = (subgraph["nodes"] for subgraph in graph.get("definitions", {}).get("subgraphs", []))
    return {node["type"] for nodes in (graph["nodes"], *inside) for node in nodes}


@pytest.mark.parametrize("path", sorted((ROOT / "web" / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_nothing_is_wider_than_the_panel(path):
    """The panel opens 285 px wide: a table of more than two columns, or HTML with a width, is cut there."""
    text = path.read_text(encoding="utf-8")
    assert max((line.count("|") for line in text.splitlines() if line.startswith("|")), default=0) <= 3
    assert not re.search(r"<[a-z]", prose(text))


def test_the_server_gives_the_pages(server):
    from comfy_server import PACK

    for page in PAGES:
        for path in (page, page.parent / "images" / f"{page.stem}.png"):
            inside = path.relative_to(page.parent).as_posix()
            assert server.get(f"/extensions/{PACK}/docs/{inside}") == path.read_bytes()


MESSAGE_SYNTAX = set("{}@|$")
"""What the page's message format gives a meaning to; a name or description with one of these would be cut up."""


def texts(entry, path=()):
    """Path of keys -> text, for every text of a locale."""
    if isinstance(entry, str):
        return {path: entry}
    found = {}
    for key, value in entry.items():
        found |= texts(value, (*path, key))
    return found


@pytest.fixture(scope="module")
def meant(node_classes):
    return english(node_classes)


def test_there_are_these_languages_and_no_other_file():
    assert sorted(path.relative_to(LOCALES).as_posix() for path in LOCALES.rglob("*.*")) == [
        f"{language}/nodeDefs.json" for language in LANGUAGES
    ]


def test_english_is_what_the_nodes_say(meant):
    assert locale("en") == meant, "run python tests/english_locale.py, then translate what changed"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_has_its_texts_and_nothing_is_left_over(meant, language):
    found, wanted = texts(locale(language)), texts(meant)
    assert found.keys() == wanted.keys()
    assert not [path for path, text in found.items() if not text.strip() or text != text.strip()]
    assert not [path for path, text in found.items() if MESSAGE_SYNTAX & set(text)]


@pytest.mark.parametrize("language", SCRIPTS)
def test_sentences_are_in_the_language(language):
    for path, text in texts(locale(language)).items():
        if path[-1] in ("tooltip", "description", "display_name"):
            assert re.search(SCRIPTS[language], text) or (language == "ja" and re.search(HAN, text)), path
        others = [script for name, script in SCRIPTS.items() if name != language and (language, name) != ("ja", "zh")]
        assert not any(re.search(script, text) for script in others), path


@pytest.mark.parametrize("language", SCRIPTS)
def test_nodes_are_called_by_their_translated_names(language):
    english_texts, translated = locale("en"), locale(language)
    names = {entry["display_name"]: translated[node]["display_name"] for node, entry in english_texts.items()}
    mine = texts(translated)
    for path, text in texts(english_texts).items():
        for name, own in names.items():
            assert name not in mine[path], path
            assert name not in text or own in mine[path], (path, own)


def test_the_server_gives_them(server):
    served = server.json("/i18n")
    assert served == {language: {"nodeDefs": locale(language)} for language in LANGUAGES}


BOLD = re.compile(r"\*\*(.+?)\*\*")
TARGET = re.compile(r"\]\(([^)\s]+)|\ssrc=[\"']([^\"']+)")
"""Where an image or a link points to. The page resolves relative images from docs/ in every language."""


def names(language):
    """English name -> the one that the interface shows, for every node, input and output."""
    found = {}
    mine = locale(language)
    for node, texts_of in locale("en").items():
        found[texts_of["display_name"]] = mine[node]["display_name"]
        for part in ("inputs", "outputs"):
            found |= {one["name"]: mine[node][part][key]["name"] for key, one in texts_of[part].items()}
    return found


def english_blocks(page):
    """The blocks of an English page, with choices of a drop-down in code marks, as the translations write them."""
    shown = names("zh").keys() | TEMPLATES.keys()
    return [
        (kind, BOLD.sub(lambda name: name[0] if name[1] in shown else f"`{name[1]}`", text))
        for kind, text in blocks(page)
    ]


def pairs(page, language, *kinds):
    """(English, translated) of the blocks of some kinds; of all but headings where none is named."""
    both = zip(english_blocks(page), blocks(page.with_suffix("") / f"{language}.md"))
    return [(text, mine) for (kind, text), (_, mine) in both if (kind in kinds if kinds else kind[0] != "#")]


def prose(text):
    """A text without what is in code marks."""
    return re.sub(r"`[^`]*`", "", text)


def beside(name, own):
    """A name as an entry gives it: the interface's, with the English one beside it where that is another."""
    return f"**{own}**" if name == own else f"**{own}** ({name})"


def test_every_page_is_there_in_each_language_with_its_image_and_no_other_file():
    folder = ROOT / "web" / "docs"
    wanted = [page.name for page in PAGES]
    wanted += [f"{page.stem}/{language}.md" for page in PAGES for language in TRANSLATED]
    wanted += [f"images/{page.stem}.png" for page in PAGES]
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == set(wanted)


@pytest.mark.parametrize("language", TRANSLATED)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
class TestTranslation:
    def test_has_the_same_blocks_in_the_same_order(self, page, language):
        path = page.with_suffix("") / f"{language}.md"
        assert [kind for kind, _ in blocks(path)] == [kind for kind, _ in english_blocks(page)]
        text = path.read_bytes()
        assert b"\r" not in text and text.endswith(b"\n") and len(text) < 12000
        written = [line for line in text.decode().split("\n") if line]
        assert len(written) == len(blocks(path)), "a line break inside a paragraph shows as a blank"

    def test_headings_name_the_node_and_the_choices(self, page, language):
        known, ((title, own), *rest) = names(language), pairs(page, language, "#", "##", "###")
        name = title.removeprefix("# ")
        assert own == f"# {known[name]} ({name})"
        for heading, mine in rest:
            marks, text = heading.split(" ", 1)
            field, _, option = text.partition(": ")
            assert not option or mine == f"{marks} {known[field]} ({field}): `{option}`"

    def test_code_and_messages_are_the_same(self, page, language):
        for text, mine in pairs(page, language):
            assert Counter(quoted(mine)) == Counter(quoted(text))

    def test_names_are_those_of_the_interface(self, page, language):
        known = names(language)
        for text, mine in pairs(page, language):
            wanted = [known.get(name, name) for name in BOLD.findall(text)]
            assert Counter(BOLD.findall(mine)) == Counter(wanted), text

    def test_entries_keep_names_and_values(self, page, language):
        known, parts = names(language), 3
        for text, mine in pairs(page, language, "##", "entry"):
            if text.startswith("#"):
                parts = 2 if text == "## Outputs" else 3
                continue
            (name, *values, _), (own, *others, _) = entry(text, parts), entry(mine, parts)
            assert own == beside(name.strip("*"), known[name.strip("*")])
            for value, other in zip(values, others):
                assert quoted(value) == quoted(other)
                assert re.search("[a-z]", prose(value)) or other == value

    def test_images_and_links_are_the_same(self, page, language):
        for text, mine in pairs(page, language):
            assert TARGET.findall(mine) == TARGET.findall(text)

    def test_is_written_in_the_language(self, page, language):
        for text, mine in pairs(page, language, "paragraph", "item"):
            if re.search("[a-z]", BOLD.sub("", prose(text))):
                assert re.search(SCRIPTS[language], mine) or (language == "ja" and re.search(HAN, mine)), mine
        text = (page.with_suffix("") / f"{language}.md").read_text(encoding="utf-8")
        others = [script for name, script in SCRIPTS.items() if name != language and (language, name) != ("ja", "zh")]
        assert not any(re.search(script, text) for script in others)


def test_the_server_gives_them_and_nothing_for_another_language(server):
    """The frontend asks for <node>/<language>.md first, and for <node>.md where that is not found."""
    from comfy_server import PACK

    for page in PAGES:
        for language in TRANSLATED:
            path = page.with_suffix("") / f"{language}.md"
            assert server.get(f"/extensions/{PACK}/docs/{page.stem}/{path.name}") == path.read_bytes()
        for language in ("en", "ja", "ko", "zh-TW"):
            with pytest.raises(HTTPError, match="404"):
                server.get(f"/extensions/{PACK}/docs/{page.stem}/{language}.md")

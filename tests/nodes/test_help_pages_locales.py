"""The translated help pages: block by block what the English ones hold, in the names that the interface shows."""

import re
from collections import Counter
from urllib.error import HTTPError

import pytest
from test_help_pages import PAGES, ROOT, SECTIONS, TEMPLATES, quoted
from test_locales import HAN, SCRIPTS, locale

COLUMNS = {"input", "takes", "default", "what it does", "output", "type", "what it is"}
FIXED = {"required", "optional", "the first", "empty"}
"""Cells, besides the names of columns, that are the same wherever they stand."""
WIDE = '<span style="display:block;padding-left:14em"></span>'
"""Behind the last column's name: these scripts break at any letter, and a narrow panel would leave one on a line. The
frontend's sanitizer leaves few properties of a style, these two among them."""
BOLD = re.compile(r"\*\*(.+?)\*\*")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
TARGET = re.compile(r"\]\(([^)\s]+)|\ssrc=[\"']([^\"']+)")
"""Where a picture or a link points to. The page resolves relative pictures from docs/ in every language."""
NODES = [entry["display_name"] for entry in locale("en").values()]


def names(language):
    """English name -> the one that the interface shows, for every node, input and output."""
    found = {}
    mine = locale(language)
    for node, entry in locale("en").items():
        found[entry["display_name"]] = mine[node]["display_name"]
        for part in ("inputs", "outputs"):
            found |= {one["name"]: mine[node][part][key]["name"] for key, one in entry[part].items()}
    return found


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


def english(page):
    """The blocks of an English page, with choices of a drop-down in code marks, as the translations write them."""
    shown = names("zh").keys() | TEMPLATES.keys()
    return [
        (kind, BOLD.sub(lambda name: name[0] if name[1] in shown else f"`{name[1]}`", text))
        for kind, text in blocks(page)
    ]


def pairs(page, language, *kinds):
    """(English, translated) of the blocks of some kinds; of all but headings where none is named."""
    both = zip(english(page), blocks(page.with_suffix("") / f"{language}.md"))
    return [(text, mine) for (kind, text), (_, mine) in both if (kind in kinds if kinds else kind[0] != "#")]


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def prose(text):
    """A text without what is in code marks."""
    return re.sub(r"`[^`]*`", "", text)


def beside(name, own):
    """A name as a table gives it: the interface's, with the English one beside it where that is another."""
    return f"**{own}**" if name == own else f"**{own}** ({name})"


def test_every_page_is_there_in_every_language_with_its_picture_and_no_other_file():
    folder = ROOT / "web" / "docs"
    wanted = [page.name for page in PAGES]
    wanted += [f"{page.stem}/{language}.md" for page in PAGES for language in SCRIPTS]
    wanted += [f"images/{page.stem}.png" for page in PAGES]
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == set(wanted)


@pytest.mark.parametrize("language", SCRIPTS)
def test_headings_and_fixed_cells_are_the_same_on_every_page(language):
    found = {}
    for page in PAGES:
        both = [(a, b) for a, b in pairs(page, language, "##", "###") if ": " not in a]
        for row, mine in pairs(page, language, "row"):
            words = COLUMNS if cells(row)[0] in COLUMNS else FIXED
            both += [(a, b.removesuffix(WIDE)) for a, b in zip(cells(row), cells(mine)) if a in words]
        for text, mine in both:
            assert found.setdefault(text, mine) == mine != text, page
    assert found.keys() == {f"## {section}" for section in SECTIONS} | COLUMNS | FIXED
    assert len({found[word] for word in FIXED}) == len(FIXED)


@pytest.mark.parametrize("language", SCRIPTS)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
class TestTranslation:
    def test_has_the_same_blocks_in_the_same_order(self, page, language):
        path = page.with_suffix("") / f"{language}.md"
        assert [kind for kind, _ in blocks(path)] == [kind for kind, _ in english(page)]
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

    def test_tables_keep_names_and_values(self, page, language):
        known = names(language)
        for row, mine in pairs(page, language, "row"):
            (name, *values), (own, *others) = cells(row), cells(mine)
            assert len(values) == len(others)
            if name.startswith("**"):
                assert own == beside(name.strip("*"), known[name.strip("*")])
            assert [quoted(value) for value in values[:-1]] == [quoted(other) for other in others[:-1]]
            assert others[-1].endswith(WIDE) == (name in COLUMNS)
            for value, other in zip(values, others):
                assert re.search("[a-z]", prose(value)) or other == value

    def test_numbers_are_kept(self, page, language):
        for text, mine in pairs(page, language):
            lost = Counter(NUMBER.findall(prose(text))) - Counter(NUMBER.findall(prose(mine)))
            assert not lost, text

    def test_pictures_and_links_are_the_same(self, page, language):
        for text, mine in pairs(page, language):
            assert TARGET.findall(mine) == TARGET.findall(text)

    def test_a_name_has_the_english_one_beside_it_where_it_comes_first(self, page, language):
        text = (page.with_suffix("") / f"{language}.md").read_text(encoding="utf-8")
        title, spoken = names(language)[blocks(page)[0][1].removeprefix("# ")], {}
        for name, own in names(language).items():
            spoken.setdefault(own, []).append(name)
        for own in set(BOLD.findall(text)) & spoken.keys():
            if own != title and own.lower() not in map(str.lower, spoken[own]):
                first = text.split(f"**{own}**", 1)[1]
                assert any(first.startswith(f" ({name})") for name in spoken[own]), own
        for name in NODES:
            assert not re.search(rf"(?<![(\w]){re.escape(name)}(?!\w)", prose(text)), name

    def test_is_written_in_the_language(self, page, language):
        for text, mine in pairs(page, language, "paragraph", "item"):
            if re.search("[a-z]", BOLD.sub("", prose(text))):
                assert re.search(SCRIPTS[language], mine) or (language == "ja" and re.search(HAN, mine)), mine
        text = (page.with_suffix("") / f"{language}.md").read_text(encoding="utf-8")
        others = [script for name, script in SCRIPTS.items() if name != language and (language, name) != ("ja", "zh")]
        assert not any(re.search(script, text) for script in others)

    def test_bold_is_drawn_bold(self, page, language):
        """Markdown leaves the marks standing between a bracket or the like inside and a letter outside."""
        for _, mine in pairs(page, language):
            for name in BOLD.finditer(mine):
                before, after = mine[: name.start()][-1:], mine[name.end() :][:1]
                assert name[1][0].isalnum() or not before.isalnum(), mine
                assert name[1][-1].isalnum() or not after.isalnum(), mine


def test_the_server_gives_them_and_nothing_for_another_language(server):
    """The frontend asks for <node>/<language>.md first, and for <node>.md where that is not found."""
    from comfy_server import PACK

    for page in PAGES:
        for language in SCRIPTS:
            path = page.with_suffix("") / f"{language}.md"
            assert server.get(f"/extensions/{PACK}/docs/{page.stem}/{path.name}") == path.read_bytes()
        for language in ("en", "fr", "zh-TW"):
            with pytest.raises(HTTPError, match="404"):
                server.get(f"/extensions/{PACK}/docs/{page.stem}/{language}.md")

"""What the pages point at is there: links, headings, images, and files and folders named between backticks."""

import re

import pytest

from documented_commands import FENCE, ROOT, pages
from profiles_page import BLOCK, QUICKSTART, quickstart

HELP = sorted((ROOT / "web" / "docs").glob("*.md"))
LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")
MADE = {"outputs", "tensorboard"}  # folders that commands make


def slug(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


def broken(page):
    """The links of a page that lead nowhere in this repository; addresses of the web are not asked."""
    found = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            found.append(link)
        elif anchor and anchor not in map(
            slug, re.findall(r"^#+ (.+)$", FENCE.sub("", target.read_text(encoding="utf-8")), re.MULTILINE)
        ):
            found.append(link)
    return found


def missing(page):
    """The files and folders that a page names and that are not there, by a path from the root or from the page."""
    found = []
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.fullmatch(r"\w+\.(?:py|yaml)", span):
            if not any(path.name == span for folder in SOURCES for path in (ROOT / folder).rglob(span)):
                found.append(span)
        elif re.fullmatch(r"[\w.*-]+(?:/[\w.*<>-]*)+", span) and "<" not in span:
            top = span.split("/")[0]
            places = [place for place in (ROOT, page.parent) if (place / top).is_dir() and top not in MADE]
            if places and not any(any(place.glob(span.rstrip("/"))) for place in places):
                found.append(span)
    return found


SOURCES = ("rmd_core", "nodes", "training", "demo", "benchmarks", "tests")
OTHERS = {"config.yaml", "run.yaml"}  # what a run writes, or a reader's own


@pytest.mark.parametrize("page", [*pages(), *HELP], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken(page) == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    assert set(missing(page)) <= OTHERS


def test_what_is_broken_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b` (c)\n[x](#a-b-c) [y](#a) [z](none.md) ![p](none.png) [w](https://none) `nodes/none.py`\n")
    assert broken(page) == ["#a", "none.md", "none.png"] and missing(page) == ["nodes/none.py"]


def test_the_files_of_a_quickstart_are_those_of_its_template():
    text = QUICKSTART.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) > 5
    assert quickstart(text) == text, "run python tests/profiles_page.py"


def test_templates_that_are_named_exist():
    names = [path.stem for path in ROOT.glob("example_workflows/*.json")]
    pages_of_use = QUICKSTART.parent.glob("*.md")
    named = {name for path in pages_of_use for name in re.findall(r"\*(RMD \d[^*|]*)\*", path.read_text("utf-8"))}
    assert named and [one for one in named if not any(name.startswith(one) for name in names)] == []

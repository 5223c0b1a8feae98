"""The help panel in the real frontend: the page in the user's language, and the English one where there is none."""

import re

import pytest
from test_help_pages import ROOT
from test_help_pages_locales import blocks, cells
from test_locales import locale

from browser.session import WINDOW, Frontend
from browser.test_locales_in_page import ADD, SET_LANGUAGE

KIND = "RMD_StageOverride"


def seen(path):
    """What a reader sees of a page, from top to bottom: its texts without the marks, a table cell by cell."""
    texts = [text.lstrip("#- ") for _, text in blocks(path) if not re.fullmatch(r"[|-]+|!\[.*", text)]
    parts = [part for text in texts for part in (cells(text) if text[0] == "|" else [text])]
    return [re.sub(r"\*\*|`|<[^>]+>", "", part) for part in parts]


@pytest.mark.parametrize("language, name", [("zh", f"{KIND}/zh.md"), ("fr", f"{KIND}.md")])
def test_the_help_is_in_the_users_language(frontend, keep_picture, language, name):
    frontend.page.evaluate(SET_LANGUAGE, language)
    page = frontend.page.context.browser.new_page(viewport=WINDOW)
    try:
        opened = Frontend(page, frontend.server)
        opened.load("empty", {"nodes": [], "links": [], "version": 0.4})
        page.evaluate(ADD, list(locale("en")))
        opened.show_all()
        page.mouse.click(*opened.place_of(KIND))
        page.get_by_test_id("info-button").click()
        wanted, panel = seen(ROOT / "web" / "docs" / name), page.locator(".node-help-content")
        panel.get_by_text(wanted[1]).first.wait_for()
        shown = " ".join(panel.inner_text().split())
        for text in wanted:
            assert text in shown
            shown = shown.split(text, 1)[1]
        assert panel.locator("img").evaluate_all("pictures => pictures.map(one => one.naturalWidth > 200)") == [True]
        widths = panel.locator("th:last-child").evaluate_all("cells => cells.map(cell => cell.offsetWidth)")
        assert min(widths) > (200 if language == "zh" else 0), widths
        assert opened.errors == []
        keep_picture(f"help_{language}", page.screenshot())
    finally:
        page.close()
        frontend.page.evaluate(SET_LANGUAGE, "en")

"""The nodes in the real frontend: added with every choice, in the user's language, and their help panel."""

import re
from itertools import combinations

import pytest

from browser.session import SET
from english_locale import SCRIPTS, locale
from help_pages import ROOT, blocks

ADD = """() => Object.keys(LiteGraph.registered_node_types).filter(type => type.startsWith("RMD_")).map(type => {
  const node = LiteGraph.createNode(type);
  app.graph.add(node);
  const choices = {}, width = node.size[0];
  for (const widget of node.widgets ?? []) {
    const options = widget.options?.values;
    if (!Array.isArray(options)) continue;
    for (const option of options) {
      widget.value = option;
      const names = [...node.inputs, ...node.widgets].map(item => item.name);
      choices[`${widget.name}: ${option}`] = names.filter(name => name.startsWith(widget.name + "."));
    }
  }
  return [type, [choices, width]];
})"""
WIDE = {"RMD_LoadPromptEmbeddings", "RMD_LoadStudent", "RMD_Schedule"}


def test_every_node_can_be_added_with_every_choice(frontend):
    frontend.load("empty", {"nodes": [], "links": [], "version": 0.4})
    frontend.errors.clear()
    added = dict(frontend.page.evaluate(ADD))
    described = {kind: entry for kind, entry in frontend.server.object_info().items() if kind.startswith("RMD_")}
    assert added.keys() == described.keys()
    for kind, entry in described.items():
        choices, width = added[kind]
        assert (width >= 360) == (kind in WIDE), (kind, width)
        for name, (socket, options) in entry["input"]["required"].items():
            if socket != "COMFY_DYNAMICCOMBO_V3":
                continue
            for option in options["options"]:
                inside = {f"{name}.{key}" for group in option["inputs"].values() for key in group}
                assert set(choices[f"{name}: {option['key']}"]) == inside
    assert frontend.errors == []


BOXES = "() => app.graph._nodes.map(node => [node.title, ...node.boundingRect])"


def overlapping(boxes):
    """The pairs of titles whose boxes (left, top, width, height) meet."""
    return [
        (one[0], other[0])
        for one, other in combinations(boxes, 2)
        if all(one[1 + i] < other[1 + i] + other[3 + i] and other[1 + i] < one[1 + i] + one[3 + i] for i in (0, 1))
    ]


@pytest.mark.parametrize("language", SCRIPTS)
def test_every_node_is_in_the_users_language(frontend, keep_image, language):
    wanted = locale(language)
    with frontend.in_language(language) as opened:
        for (kind, texts), (title, inputs, outputs) in zip(wanted.items(), opened.add_in_columns(list(wanted))):
            assert title == texts["display_name"]
            for name, shown in inputs.items():
                if name != "control_after_generate":  # the frontend's own
                    assert shown == texts["inputs"][name.replace(".", "_")]["name"], (kind, name)
            named = [output["name"] for output in texts["outputs"].values()]
            assert outputs == named or kind == "RMD_LoadPromptEmbeddings"  # the frontend names bare types itself
        assert opened.errors == []
        keep_image(f"nodes_{language}", opened.graph_image())
        assert overlapping(opened.page.evaluate(BOXES)) == []


KIND = "RMD_StageOverride"


def seen(path):
    """What a reader sees of a page, from top to bottom: its texts without the marks."""
    return [re.sub(r"\*\*|`", "", text.lstrip("#- ")) for _, text in blocks(path) if not text.startswith("![")]


@pytest.mark.parametrize("language, name", [("zh", f"{KIND}/zh.md"), ("fr", f"{KIND}.md")])
def test_the_help_is_in_the_users_language(frontend, keep_image, language, name):
    with frontend.in_language(language) as opened:
        page = opened.page
        opened.add_in_columns(list(locale("en")))
        opened.show_all()
        page.mouse.click(*opened.place_of(KIND))
        page.get_by_test_id("info-button").click()
        wanted, panel = seen(ROOT / "web" / "docs" / name), page.locator(".node-help-content")
        panel.get_by_text(wanted[1]).first.wait_for()
        shown = " ".join(panel.inner_text().split())
        for text in wanted:
            assert text in shown
            shown = shown.split(text, 1)[1]
        assert panel.locator("img").evaluate_all("images => images.map(one => one.naturalWidth > 200)") == [True]
        wide = "panel => [panel.clientWidth, ...[...panel.querySelectorAll('*')].map(one => one.scrollWidth)]"
        room, *widths = panel.evaluate(wide)
        assert max(widths) <= room < 400, (room, max(widths))
        assert opened.errors == []
        keep_image(f"help_{language}", page.screenshot())
        page.evaluate(SET, ["Comfy.RightSidePanel.IsOpen", False])  # it would cover nodes of the next page

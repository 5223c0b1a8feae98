"""The translations in the real frontend: titles, inputs and outputs of every node in each language."""

from itertools import combinations

import pytest
from test_locales import SCRIPTS, locale

from browser.session import WINDOW, Frontend

SET_LANGUAGE = "language => app.extensionManager.setting.set('Comfy.Locale', language)"
ADD = """kinds => {
  const bottoms = [0, 0, 0, 0];  // of four columns; each node goes to the shortest
  return kinds.map(kind => {
    const node = LiteGraph.createNode(kind);
    app.graph.add(node);
    const column = bottoms.indexOf(Math.min(...bottoms)), size = node.computeSize();
    node.setSize([Math.max(node.size[0], size[0]), Math.max(node.size[1], size[1])]);
    node.pos = [column * 420, bottoms[column]];
    bottoms[column] += node.size[1] + LiteGraph.NODE_TITLE_HEIGHT + 40;
    const widgets = (node.widgets ?? []).map(widget => [widget.name, widget.label]);
    const sockets = node.inputs.filter(input => !input.widget).map(one => [one.name, one.label ?? one.localized_name]);
    const outputs = node.outputs.map(output => output.localized_name);
    return [node.title, Object.fromEntries([...sockets, ...widgets]), outputs];
  });
}"""
BOXES = "() => app.graph._nodes.map(node => [node.title, ...node.boundingRect])"


def overlapping(boxes):
    """The pairs of titles whose boxes (left, top, width, height) meet."""
    return [
        (one[0], other[0])
        for one, other in combinations(boxes, 2)
        if all(one[1 + i] < other[1 + i] + other[3 + i] and other[1 + i] < one[1 + i] + one[3 + i] for i in (0, 1))
    ]


@pytest.mark.parametrize("language", SCRIPTS)
def test_every_node_is_in_the_users_language(frontend, keep_picture, language):
    frontend.page.evaluate(SET_LANGUAGE, language)
    page = frontend.page.context.browser.new_page(viewport=WINDOW)
    try:
        opened = Frontend(page, frontend.server)
        opened.load("empty", {"nodes": [], "links": [], "version": 0.4})
        wanted = locale(language)
        for (kind, texts), (title, inputs, outputs) in zip(wanted.items(), page.evaluate(ADD, list(wanted))):
            assert title == texts["display_name"]
            for name, shown in inputs.items():
                if name != "control_after_generate":  # the frontend's own
                    assert shown == texts["inputs"][name.replace(".", "_")]["name"], (kind, name)
            named = [output["name"] for output in texts["outputs"].values()]
            assert outputs == named or kind == "RMD_LoadPromptEmbeddings"  # the frontend names bare types itself
        assert opened.errors == []
        keep_picture(f"nodes_{language}", opened.graph_picture())
        assert overlapping(page.evaluate(BOXES)) == []
    finally:
        page.close()
        frontend.page.evaluate(SET_LANGUAGE, "en")

"""The translations in the real frontend: titles, inputs and outputs of every node in each language."""

import pytest

from browser.session import WINDOW, Frontend
from test_locales import SCRIPTS, locale

SET_LANGUAGE = "language => app.extensionManager.setting.set('Comfy.Locale', language)"
ADD = """kinds => kinds.map((kind, number) => {
  const node = LiteGraph.createNode(kind);
  node.pos = [number % 4 * 420, Math.floor(number / 4) * 320];
  app.graph.add(node);
  const widgets = (node.widgets ?? []).map(widget => [widget.name, widget.label]);
  const sockets = node.inputs.filter(input => !input.widget).map(one => [one.name, one.label ?? one.localized_name]);
  return [node.title, Object.fromEntries([...sockets, ...widgets]), node.outputs.map(output => output.localized_name)];
})"""


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
    finally:
        page.close()
        frontend.page.evaluate(SET_LANGUAGE, "en")

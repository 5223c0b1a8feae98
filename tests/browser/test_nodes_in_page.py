"""Every node of the pack in the real frontend: it can be added, with every option of its dynamic choices."""

ADD = """() => Object.keys(LiteGraph.registered_node_types).filter(type => type.startsWith("RMD_")).map(type => {
  const node = LiteGraph.createNode(type);
  app.graph.add(node);
  const choices = {};
  for (const widget of node.widgets ?? []) {
    const options = widget.options?.values;
    if (!Array.isArray(options)) continue;
    for (const option of options) {
      widget.value = option;
      const names = [...node.inputs, ...node.widgets].map(item => item.name);
      choices[`${widget.name}: ${option}`] = names.filter(name => name.startsWith(widget.name + "."));
    }
  }
  return [type, choices];
})"""


def test_every_node_can_be_added_with_every_choice(frontend):
    frontend.load("empty", {"nodes": [], "links": [], "version": 0.4})
    frontend.errors.clear()
    added = dict(frontend.page.evaluate(ADD))
    described = {kind: entry for kind, entry in frontend.server.object_info().items() if kind.startswith("RMD_")}
    assert added.keys() == described.keys()
    for kind, entry in described.items():
        for name, (socket, options) in entry["input"]["required"].items():
            if socket != "COMFY_DYNAMICCOMBO_V3":
                continue
            for option in options["options"]:
                inside = {f"{name}.{key}" for group in option["inputs"].values() for key in group}
                assert set(added[kind][f"{name}: {option['key']}"]) == inside
    assert frontend.errors == []

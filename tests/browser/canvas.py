"""Puts a loaded workflow in order on the canvas: positions, sizes, groups, colours and the note."""

from __future__ import annotations

import uuid
from dataclasses import asdict

from browser.layouts import SHOWN, Rows
from browser.model_files import FILES, files_named, files_note
from browser.session import Frontend


def arrange(frontend: Frontend, name: str, *, prompt: dict, rows: Rows, note: str) -> None:
    """Lay out the workflow that is open in the page; raises RuntimeError for a node that no group holds."""
    page = frontend.page
    models = {}
    for file in files_named(prompt):
        if file in FILES:
            folder, url = FILES[file]
            models[file] = {"name": file, "directory": folder, "url": url}
    table = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"ComfyUI-RMD/{name}")),
        "rows": [[asdict(group) for group in row] for row in rows],
        "note": note + files_note(prompt),
        "models": models,
        "shown": SHOWN.get(name, {}),
    }
    left_out = page.evaluate(ARRANGE, table)
    if left_out:
        raise RuntimeError(f"{name}: no group of its layout holds {', '.join(left_out)}")
    page.wait_for_timeout(500)


ARRANGE = """table => {
  const gap = 30, below = 56, pad = 14, head = 34, title = LiteGraph.NODE_TITLE_HEIGHT, graph = app.graph;
  graph.id = table.id;
  const note = LiteGraph.createNode("MarkdownNote");
  note.title = "Read me";
  note.color = "#432";
  note.bgcolor = "#101010";
  graph.add(note);
  note.widgets[0].value = table.note;
  const placed = new Set();
  let y = 0;
  for (const row of table.rows) {
    let x = 0, bottom = y;
    const groups = [];
    for (const frame of row) {
      const start = x;
      x += pad;
      for (const column of frame.columns) {
        let top = y + head + pad;
        for (const entry of column.nodes) {
          const [id, height] = Array.isArray(entry) ? entry : [entry, 0];
          const node = id === "note" ? note : graph.getNodeById(id);
          const least = node.computeSize();
          node.pos = [x, top + title];
          node.setSize([Math.max(column.width, id === "note" ? 0 : least[0]), Math.max(height, least[1])]);
          if (height < 0) node.flags.collapsed = true;
          top += title + (height < 0 ? 0 : node.size[1]) + below;
          bottom = Math.max(bottom, top - below + pad);
          placed.add(node);
        }
        x += column.width + gap;
      }
      x += pad - gap;
      groups.push([frame, start, x - start]);
      x += gap;
    }
    for (const [frame, start, width] of groups) {
      const group = new LiteGraph.LGraphGroup(frame.title);
      group.color = frame.colour;
      group.pos = [start, y];
      group.size = [width, bottom - y];
      graph.add(group);
    }
    y = bottom + gap;
  }
  for (const node of graph._nodes) {
    for (const widget of node.widgets ?? []) {
      const shown = table.shown[node.id]?.[widget.name];
      if (shown) widget.value = shown;
      if (widget.name === "control_after_generate") widget.value = "fixed";
      const file = table.models[widget.value];
      if (file) node.properties.models = [...(node.properties.models ?? []), file];
    }
    if (node.type.startsWith("RMD_")) [node.color, node.bgcolor] = ["#1c3a52", "#22303c"];
  }
  app.canvas.setDirty(true, true);
  return graph._nodes.filter(node => !placed.has(node)).map(node => `${node.id} (${node.type})`);
}"""

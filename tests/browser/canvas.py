"""Puts a loaded workflow in order on the canvas: positions, sizes, groups, colours and the note."""

from __future__ import annotations

import uuid
from dataclasses import asdict

from browser.layouts import SHOWN, Rows, groups_of
from browser.real_models import FILES, files_named
from browser.session import Frontend


def arrange(frontend: Frontend, name: str, *, prompt: dict, rows: Rows, note: str) -> None:
    """Lay out the workflow that is open in the page; raises RuntimeError for a node that no group holds."""
    page = frontend.page
    models = {}
    for file in files_named(prompt):
        if file in FILES and FILES[file].url:
            models[file] = {"name": file, "directory": FILES[file].folder, "url": FILES[file].url}
    table = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"ComfyUI-RMD/{name}")),
        "rows": [[[asdict(group) for group in groups_of(entry)] for entry in row] for row in rows],
        "note": note,
        "models": models,
        "shown": SHOWN.get(name, {}),
    }
    left_out = page.evaluate(f"table => {{ {ROUTE} {RETURN} return ({ARRANGE})(table); }}", table)
    if left_out:
        raise RuntimeError(f"{name}: no group of its layout holds {', '.join(left_out)}")
    page.wait_for_timeout(500)


ROUTE = """
// Wires that would pass behind the nodes of other columns go through the gaps between those nodes.
// used: of each gap, how many wires it holds; done: the ids of the wires that have their way.
function route(graph, columns, used, done) {
  const title = LiteGraph.NODE_TITLE_HEIGHT, apart = 18;
  const top = node => node.pos[1] - title, bottom = node => node.pos[1] + (node.flags.collapsed ? 0 : node.size[1]);
  const columnOf = new Map(columns.flatMap((stack, index) => stack.map(node => [node.id, index])));
  const left = columns.map(stack => stack[0].pos[0]);
  const right = columns.map(stack => Math.max(...stack.map(node => node.pos[0] + node.size[0])));
  const gaps = columns.map(stack => stack.gaps ??= stack.map((node, place) => {
    const next = stack[place + 1];
    return [bottom(node), next ? top(next) : bottom(node) + Math.max(70, node.room)];
  }));
  const lane = (index, wanted) => {
    const away = ([low, high]) => Math.max(low - wanted, wanted - high, 0);
    const next = gap => {
      const taken = used.get(gap) ?? 0;
      return (gap[0] + gap[1]) / 2 - 6 + apart * Math.ceil(taken / 2) * (taken % 2 ? 1 : -1);
    };
    const free = gaps[index].filter(gap => gap[0] < next(gap) && next(gap) < gap[1]);
    const gap = (free.length ? free : gaps[index]).reduce((best, one) => away(one) < away(best) ? one : best);
    const y = next(gap);
    used.set(gap, (used.get(gap) ?? 0) + 1);
    return y;
  };
  const outputs = new Map();
  for (const link of graph._links.values()) {
    const from = columnOf.get(link.origin_id), to = columnOf.get(link.target_id);
    if (from === undefined || to === undefined || to <= from + 1 || done.has(link.id)) continue;
    done.add(link.id);
    const key = `${link.origin_id}.${link.origin_slot}`;
    outputs.set(key, [...(outputs.get(key) ?? []), {link, from, to}]);
  }
  const height = ({link}) => {
    const node = graph.getNodeById(link.target_id);
    return node.flags.collapsed ? node.pos[1] - title / 2 : node.getInputPos(link.target_slot)[1];
  };
  for (const wires of outputs.values()) {
    wires.sort((one, other) => other.to - one.to);
    let before = graph.getNodeById(wires[0].link.origin_id).getOutputPos(wires[0].link.origin_slot)[1];
    for (let index = wires[0].from + 1; index < wires[0].to; index++) {
      const beyond = wires.filter(({to}) => to > index);
      const wanted = (before + beyond.reduce((sum, wire) => sum + height(wire), 0) / beyond.length) / 2;
      const y = lane(index, wanted);
      const [roomBefore, roomAfter] = [left[index] - right[index - 1], left[index + 1] - right[index]];
      for (const x of [left[index] - 0.45 * roomBefore, right[index] + 0.45 * roomAfter]) {
        if (x < left[index] && before === y) continue;
        const knot = graph.createReroute([x, y], beyond[0].link);
        for (const {link} of beyond.slice(1)) {
          link.parentId = knot.id;
          knot.linkIds.add(link.id);
        }
      }
      before = y;
    }
  }
}
"""

RETURN = """
// Wires from a group of a stack to the next one go back through the room between them.
function comeBack(graph, [frame, columns], [, later]) {
  const columnOf = (stacks, id) => stacks.find(stack => stack.some(node => node.id === id));
  let y = frame.pos[1] + frame.size[1];
  for (const link of graph._links.values()) {
    const from = columnOf(columns, link.origin_id), to = columnOf(later, link.target_id);
    if (!from || !to) continue;
    y += 13;
    graph.createReroute([Math.max(...from.map(node => node.pos[0] + node.size[0])) + 13, y], link);
    graph.createReroute([to[0].pos[0] - 26, y], link);
  }
}
"""

ARRANGE = """table => {
  const gap = 30, between = 52, below = 56, pad = 14, head = 34, title = LiteGraph.NODE_TITLE_HEIGHT, graph = app.graph;
  graph.id = table.id;
  const note = LiteGraph.createNode("MarkdownNote");
  note.title = "Read me";
  note.color = "#432";
  note.bgcolor = "#101010";
  graph.add(note);
  note.widgets[0].value = table.note;
  const placed = new Set();
  let ways = [[]];  // the columns from left to right, once for each group of a stack
  let y = 0;
  for (const row of table.rows) {
    let x = 0, bottom = y;
    const open = [];
    for (const entry of row) {
      const start = x, found = [];
      let from = y;
      for (const group of entry) {
        const frame = new LiteGraph.LGraphGroup(group.title), columns = [];
        let right = start + pad, low = from;
        for (const column of group.columns) {
          let top = from + head + pad;
          const stack = [];
          for (const entry of column.nodes) {
            const [id, height, room = below] = Array.isArray(entry) ? entry : [entry, 0];
            const node = id === "note" ? note : graph.getNodeById(id);
            const least = node.computeSize();
            node.pos = [right, top + title];
            node.room = room;
            node.setSize([Math.max(column.width, id === "note" ? 0 : least[0]), Math.max(height, least[1])]);
            if (height < 0) node.flags.collapsed = true;
            top += title + (height < 0 ? 0 : node.size[1]) + room;
            low = Math.max(low, top - room + pad);
            placed.add(node);
            stack.push(node);
          }
          columns.push(stack);
          right += column.width + gap;
        }
        frame.color = group.colour;
        frame.pos = [start, from];
        frame.size = [right + pad - gap - start, low - from];
        graph.add(frame);
        found.push([frame, columns]);
        x = Math.max(x, right + pad);
        from = low + between;
      }
      for (const [frame] of found) frame.size[0] = x - gap - start;
      found.slice(1).forEach((entry, above) => comeBack(graph, found[above], entry));
      bottom = Math.max(bottom, from - between);
      open.push(found.at(-1)[0]);
      ways = found.flatMap(([, columns]) => ways.map(way => [...way, ...columns]));
    }
    for (const frame of open) frame.size[1] = bottom - frame.pos[1];
    y = bottom + gap;
  }
  const used = new Map(), done = new Set();
  for (const columns of ways) route(graph, columns, used, done);
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

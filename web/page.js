// What the nodes change on ComfyUI's page.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const WIDTH = 360;
const WIDE = new Set(["RMD_LoadPromptEmbeddings", "RMD_LoadStudent", "RMD_Schedule"]);

// New nodes whose labels and file names need more room than the page gives a node. Saved workflows keep their sizes.
app.registerExtension({
  name: "ComfyUI-RMD.NodeWidths",
  nodeCreated(node) {
    if (WIDE.has(node.comfyClass)) node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]);
  },
});

// The server lists templates as the disk does, in no order, and the page keeps that: put ours in that of their numbers.
const list = api.getWorkflowTemplates;
api.getWorkflowTemplates = async function () {
  const packs = await list.call(this);
  for (const names of Object.values(packs)) if (names.every((name) => name.startsWith("RMD "))) names.sort();
  return packs;
};

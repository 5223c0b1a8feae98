// New nodes whose labels and file names need more room than the page gives a node. Saved workflows keep their sizes.
import { app } from "../../scripts/app.js";

const WIDTH = 360;
const WIDE = new Set(["RMD_LoadPromptEmbeddings", "RMD_LoadStudent", "RMD_Schedule"]);

app.registerExtension({
  name: "ComfyUI-RMD.NodeWidths",
  nodeCreated(node) {
    if (WIDE.has(node.comfyClass)) node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]);
  },
});

"""Makes web/docs/images/NODE.png, the images of the help pages: each node as the real frontend draws it, connected.

PYTHONPATH=tests python -m browser.make_help_images [node ...]
"""

from __future__ import annotations

import io
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from browser.session import BOX_ON_PAGE, Frontend, open_frontend

IMAGES = Path(__file__).parents[2] / "web" / "docs" / "images"
SCALE = 1.5  # px of the image for one of the canvas
COLOURS = 64  # enough for text on plain grey, and a fifth of the bytes


@dataclass(frozen=True)
class Around:
    """A node and its neighbours, which are folded.

    inputs: its inputs with the (node, output) that each comes from. outputs: (its output, node, input). width: of the
    node on the canvas, as narrow as its texts allow: the help panel shows the whole image 280 px wide until you widen
    it. values: of its widgets, where they are not the defaults.
    """

    inputs: dict[str, tuple[str, str]] = field(default_factory=dict)
    outputs: tuple[tuple[str, str, str], ...] = ()
    width: int = 236
    values: dict[str, object] = field(default_factory=dict)


QUIET = {"Comfy_NodeBadge_NodeSourceBadgeMode": "None", "Comfy_Graph_LinkMarkers": 0}  # no marks beside the nodes
TITLES = {
    "CLIPTextEncode": "Prompt",
    "EmptyLatentImage": "Empty latent",
    "LatentUpscaleModelLoader": "Load Latent Up...",
    "SamplerCustomAdvanced": "SamplerCustom...",
    "RMD_SamplerAdvanced": "RMD Sampler (...",
}
"""Short titles of neighbours."""
_PLAN = ("RMD_Schedule", "plan")
GRAPHS = {
    "RMD_Guider": Around(
        {"guider": ("BasicGuider", "GUIDER"), "plan": _PLAN},
        (("guider", "SamplerCustomAdvanced", "guider"), ("sigmas", "SamplerCustomAdvanced", "sigmas")),
    ),
    "RMD_LoadPromptEmbeddings": Around(outputs=(("CONDITIONING", "RMD_Sampler", "positive"),), width=300),
    "RMD_LoadStudent": Around(
        outputs=(
            ("model", "RMD_Schedule", "model"),
            ("recipe", "RMD_Schedule", "source.recipe"),
            ("model", "RMD_Sampler", "model"),
        ),
        width=300,
        values={"kind.student": "rmd_tiny_wan_student.safetensors"},
    ),
    "RMD_Noise": Around(outputs=(("noise", "SamplerCustomAdvanced", "noise"),)),
    "RMD_Sampler": Around(
        {
            "model": ("RMD_LoadStudent", "model"),
            "positive": ("CLIPTextEncode", "CONDITIONING"),
            "latent_image": ("EmptyLatentImage", "LATENT"),
            "plan": _PLAN,
            "cfg": ("RMD_Schedule", "cfg"),
        },
        (("latent", "VAEDecode", "samples"),),
    ),
    "RMD_SamplerAdvanced": Around(
        {
            "guider": ("BasicGuider", "GUIDER"),
            "sampler": ("RMD_StepSampler", "sampler"),
            "latent_image": ("EmptyLatentImage", "LATENT"),
            "plan": _PLAN,
        },
        (("output", "VAEDecode", "samples"),),
    ),
    "RMD_Schedule": Around(
        {"model": ("RMD_LoadStudent", "model"), "source.recipe": ("RMD_LoadStudent", "recipe")},
        (
            ("plan", "RMD_Sampler", "plan"),
            ("cfg", "RMD_Sampler", "cfg"),
            ("width", "EmptyLatentImage", "width"),
            ("height", "EmptyLatentImage", "height"),
        ),
        values={"source": "student recipe"},
    ),
    "RMD_StageOverride": Around(
        {"guider": ("BasicGuider", "GUIDER")}, (("overrides", "RMD_SamplerAdvanced", "overrides"),)
    ),
    "RMD_StageSigmas": Around({"plan": _PLAN}, (("sigmas", "SamplerCustomAdvanced", "sigmas"),)),
    "RMD_StageUpscale": Around(
        {
            "output": ("SamplerCustomAdvanced", "output"),
            "denoised_output": ("SamplerCustomAdvanced", "denoised_output"),
            "sigmas": ("RMD_StageSigmas", "sigmas"),
            "model": ("RMD_LoadStudent", "model"),
            "noise": ("RMD_Noise", "noise"),
            "plan": _PLAN,
        },
        (("latent", "SamplerCustomAdvanced", "latent_image"), ("noise", "SamplerCustomAdvanced", "noise")),
    ),
    "RMD_StepSampler": Around({"plan": _PLAN}, (("sampler", "SamplerCustomAdvanced", "sampler"),)),
    "RMD_Upsampler": Around(
        {"upscale_model": ("LatentUpscaleModelLoader", "LATENT_UPSCALE_MODEL"), "vae": ("VAELoader", "VAE")},
        (("learned_upsampler", "RMD_Sampler", "learned_upsampler"),),
        width=270,
    ),
}

BUILD = """([kind, around, titles]) => {
  const add = type => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
  const index = (slots, name) => {
    const found = slots.findIndex(slot => slot.name === name);
    if (found < 0) throw new Error(`no ${name} among ${slots.map(slot => slot.name)}`);
    return found;
  };
  const node = add(kind), before = new Map(), after = new Map();
  node.color = "#1c3a52";
  node.bgcolor = "#22303c";
  const values = {control_after_generate: "fixed", ...around.values};
  for (const [name, value] of Object.entries(values)) {
    const widget = node.widgets?.find(one => one.name === name);
    if (widget) widget.value = value;
  }
  const folded = (nodes, type) => {
    if (!nodes.has(type)) {
      const one = add(type);
      one.flags.collapsed = true;
      one.title = titles[type] ?? one.title;
      nodes.set(type, one);
    }
    return nodes.get(type);
  };
  for (const [input, [type, output]] of Object.entries(around.inputs)) {
    const from = folded(before, type);
    from.connect(index(from.outputs, output), node, index(node.inputs, input));
  }
  for (const [output, type, input] of around.outputs) {
    const to = folded(after, type);
    if (input.includes(".")) to.widgets.find(one => one.name === "source").value = "student recipe";
    node.connect(index(node.outputs, output), to, index(to.inputs, input));
  }
  node.setSize([around.width, node.computeSize()[1]]);
  window.columns = [[...before.values()], node, [...after.values()]];
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [300, 300];
  app.canvas.setDirty(true, true);
}"""
PLACE = """scale => {
  // What comes before is on the left, what comes after below: side by side they would be too small in the panel.
  const [before, node, after] = columns, graph = app.graph, view = app.canvas.ds, apart = 40, lane = 7;
  const [width, height] = node.size, links = [...graph._links.values()].filter(link => link.origin_id === node.id);
  node.pos = [0, 0];
  for (const one of [...before, ...after]) one.size[0] = one.boundingRect[2] - 4;  // less room behind the title
  before.forEach((one, place) => { one.pos = [-24 - one.size[0], apart * place]; });
  const below = height + 52 + lane * links.length, x = width / 3;
  after.forEach((one, place) => { one.pos = [x, below + apart * place]; });
  links.forEach((link, turn) => {
    for (const end of [width + 18, x - 12 - lane * turn]) {
      graph.createReroute([end, height + 12 + lane * turn], link).constructor.radius = 2;  // px, of all of them
    }
  });
  view.scale = scale;
  const left = Math.min(...graph._nodes.map(one => one.pos[0]));
  view.offset = [100 / scale - left, 150 / scale];
  app.canvas.setDirty(true, true);
}"""


def help_image(frontend: Frontend, kind: str) -> Image.Image:
    """A node of a type with its neighbours."""
    frontend.load("empty", {"nodes": [], "links": [], "version": 0.4})
    around = GRAPHS[kind]
    frontend.page.evaluate(BUILD, [kind, vars(around), TITLES])
    frontend.page.wait_for_timeout(500)  # the widths of folded nodes are those that they were drawn with
    frontend.page.evaluate(PLACE, SCALE)
    frontend.page.wait_for_timeout(800)
    clip = frontend.page.evaluate(BOX_ON_PAGE)
    clip["width"] += 36 * SCALE if around.outputs else 0  # for the links beside the node
    png = frontend.page.screenshot(clip=clip)
    return Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_frontend(Path(folder, "comfyui"), **QUIET) as frontend:
        for kind in sys.argv[1:] or GRAPHS:
            image = help_image(frontend, kind)
            image.save(IMAGES / f"{kind}.png", optimize=True)
            print(f"web/docs/images/{kind}.png", *image.size)


if __name__ == "__main__":
    main()

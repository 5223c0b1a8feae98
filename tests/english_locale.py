"""What the English locale must say: the names and tooltips of the schemas, in the form that ComfyUI's page reads.

Run as a program it writes locales/en/nodeDefs.json again, after a schema was changed; the other languages are by hand.
"""

import json
import sys
from pathlib import Path

from comfyui_checkout import find_comfyui

LOCALES = Path(__file__).parents[1] / "locales"
LANGUAGES = ["en", "ja", "ko", "zh"]
HAN, KANA, HANGUL = r"[\u4e00-\u9fff]", r"[\u3040-\u30ff]", r"[\uac00-\ud7af]"
SCRIPTS = {"zh": HAN, "ja": KANA, "ko": HANGUL}


def locale(language):
    """The texts of a language, as ComfyUI's page reads them."""
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def english(node_classes):
    """Node id -> its display name, description, inputs and outputs.

    The page names an input inside a dynamic choice `source.steps` and looks for the key `source_steps`.
    """
    return {node: _described(kind) for node, kind in node_classes.items()}


def _described(kind):
    schema = kind.GET_SCHEMA()
    inputs = {}
    for field in schema.inputs:
        inputs[field.id] = _named(field.display_name or field.id, field)
        for option in getattr(field, "options", None) or ():
            for inner in getattr(option, "inputs", ()):
                inputs[f"{field.id}_{inner.id}"] = _named(inner.display_name or inner.id, inner)
    names = kind.GET_NODE_INFO_V1()["output_name"]
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": inputs,
        "outputs": {str(slot): _named(names[slot], output) for slot, output in enumerate(schema.outputs)},
    }


def _named(name, field):
    return {"name": name, "tooltip": field.tooltip}


def main():
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("no ComfyUI found (COMFYUI_PATH, ~/comfy/ComfyUI): the schemas need one")
    sys.path.insert(0, str(comfyui))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy_pack

    text = json.dumps(english(comfy_pack.node_classes(comfy_pack.import_pack())), indent=2)
    (LOCALES / "en" / "nodeDefs.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes the tables of docs/train/config.md: every key of a configuration, from the fields in training/config.py.

python tests/config_page.py
"""

import re
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.results import ROOT, markdown_table, replace_block
from training.config import Config

PAGE, MARK = ROOT / "docs" / "train" / "config.md", "configuration keys"
REQUIRED = "required"


def tables():
    """The tables, one for each section, in the order of the code."""
    schema = Config.model_json_schema()
    blocks = []
    for name, field in Config.model_fields.items():
        section = schema["$defs"][field.annotation.__name__]
        rows = [
            (f"`{name}.{key}`", _default(entry), _values(entry, schema["$defs"]), _linked(entry["description"]))
            for key, entry in section["properties"].items()
        ]
        table = markdown_table(["key", "default", "values", "meaning"], rows, left=4)
        blocks.append(f"## {name}\n\n{_linked(section['description'].replace('``', '`'))}\n\n{table}")
    return "\n\n".join(blocks)


def _linked(text):
    """A description with links to the pages it names, and keys as code."""
    text = re.sub(rf"(?<![/\w])((?:{'|'.join(Config.model_fields)})\.\w+)", r"`\1`", text)
    return re.sub(r"docs/(\w+/([\w-]+\.md))", r"[\2](../\1)", text)


def _yaml(value):
    if isinstance(value, float):
        return f"{value:g}"
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()


def _default(entry):
    return f"`{_yaml(entry['default'])}`" if "default" in entry else REQUIRED


def _values(entry, definitions):
    """What a key takes, in words."""
    if "anyOf" in entry:
        return ", ".join(_values(one, definitions) for one in entry["anyOf"] if one.get("type") != "null")
    if "$ref" in entry:
        (key, of), *_ = definitions[entry["$ref"].rsplit("/", 1)[1]]["properties"].items()
        return f"`{{{key}: {'[LOW, HIGH]' if of['type'] == 'array' else 'NUMBER'}}}`"
    if "enum" in entry:
        return ", ".join(f"`{_yaml(one)}`" for one in entry["enum"])
    if "enum" in entry.get("items", ()):
        return "list of " + _values(entry["items"], definitions)
    kind = {"string": "text", "array": "list", "boolean": "`false`, `true`"}.get(entry["type"], entry["type"])
    kind = "path" if entry.get("format") == "path" else kind
    bounds = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}"}
    return " ".join([kind, *(words.format(entry[name]) for name, words in bounds.items() if name in entry)])


if __name__ == "__main__":
    replace_block(PAGE, MARK, tables())

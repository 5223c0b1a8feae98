"""Read a configuration file, apply ``--set a.b=c`` overrides, and say in one line what is wrong with it."""

import json
import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from rmd_core.errors import RMDError, one_line

from .config import Config


class _Loader(yaml.SafeLoader):
    """YAML with 1e-4 as a number (YAML 1.2), and repeated keys refused."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path, overrides=()):
    """The ``Config`` of a YAML file with overrides such as ``train.batch=8``; values are YAML.

    Raises RMDError, in one line, for a missing file, broken YAML, an unknown key or a value of the wrong kind.
    """
    path = Path(path)
    try:
        tree = _parse(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise RMDError(f"the configuration {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RMDError(f"the configuration {path} cannot be read ({error})") from None
    if not isinstance(tree, dict):
        raise RMDError(f"the configuration {path} is no mapping of sections; see training/configs/demo.yaml")
    for override in overrides:
        _apply(tree, override)
    try:
        text = json.dumps(tree, default=str, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RMDError(f"{path}: keys must be text, texts Unicode, and no value may contain itself ({error})") from None
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        raise RMDError(f"{path}: " + "; ".join(_lines(error.errors())[:5])) from None


def _parse(text, source):
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        # The reader passes on what Python says of a date that is none (2020-13-45) or a number without digits (0b_).
        raise RMDError(f"{source}: no valid YAML ({one_line(error)})") from None


def _apply(tree, override):
    name, equals, value = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise RMDError(f"--set {override}: write it as section.key=value, such as --set train.batch=8")
    for key in keys[:-1]:
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise RMDError(f"--set {override}: '{key}' is a value, not a section")
    tree[keys[-1]] = _parse(value, f"--set {override}")


def _lines(errors):
    """Validation errors in words, the several complaints about one mapping as one."""
    mapping = [error for error in errors if error["loc"][:2] == ("method", "mapping")]
    lines = [_line(error) for error in errors if error not in mapping]
    if mapping:
        lines.append(
            "'method.mapping': it is area, none, {shift: [LOW, HIGH]} or {ratio: NUMBER}, with numbers above 0"
        )
    return lines


def _line(error):
    """One validation error in words."""
    place, kind = ".".join(str(part) for part in error["loc"]), error["type"]
    if kind == "extra_forbidden":
        return f"unknown key '{place}'; allowed there: {', '.join(_fields(error['loc'][:-1]))}"
    if kind == "missing":
        return f"'{place}' is missing"
    if kind == "string_pattern_mismatch":
        return f"'{place}' is {json.dumps(error['input'])[:80]}; use letters, digits, '_', '-', and '.' but in front"
    message = error["msg"].removeprefix("Value error, ")
    return f"'{place}': {message[:1].lower()}{message[1:]} (given: {json.dumps(error['input'], default=str)[:80]})"


def _fields(path):
    """The keys allowed in the section at ``path``."""
    section = Config
    for key in path:
        inner = section.model_fields[key].annotation if key in section.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        section = inner
    return section.model_fields

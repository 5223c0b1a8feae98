"""Prompt lists: one a line, or objects with a prompt."""

import json
from pathlib import Path

from rmd_core.errors import RMDError


def read_prompts(path):
    """The prompts of a ``.txt`` file (one a line) or a ``.jsonl`` file (objects with a ``prompt``), as a tuple.

    Blank lines are skipped. Raises RMDError for a missing, empty or malformed file.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise RMDError(f"{path}: a prompt file ends in .txt or .jsonl")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise RMDError(f"the prompt file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RMDError(f"the prompt file {path} cannot be read as UTF-8 text ({error})") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix == ".jsonl":
        prompts = tuple(_prompt_of(line, number, path) for number, line in numbered)
    else:
        prompts = tuple(line for _, line in numbered)
    if not prompts:
        raise RMDError(f"the prompt file {path} is empty; write one prompt a line")
    return prompts


def _prompt_of(line, number, path):
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        prompt = None
    if not isinstance(prompt, str) or not prompt.strip():
        raise RMDError(f'{path}, line {number}: expected an object like {{"prompt": "a red apple"}}')
    return prompt.strip()

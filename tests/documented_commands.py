"""The commands that the pages give a reader: in fences, one a line, and between backticks in the text."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = {"accelerate", "comfy", "git", "hf", "make", "pip", "pre-commit", "python", "torchrun"}
OPTIONAL = re.compile(r"\[(--[^\[\]]*?)(?: \.\.\.)?\]")  # [--dry-run], [--set section.key=value ...]
ASSIGNMENT = re.compile(r"[A-Z][A-Z_]*=")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a page: its words without the assignments before them, with the program's bare name first."""

    page: str
    words: tuple[str, ...]

    def __str__(self):
        return f"{self.page}: {shlex.join(self.words)}"


def pages():
    """Every page of the repository but the nodes' help, which has no commands."""
    folders = ("", "docs/**/", "demo/**/", "training/**/", "benchmarks/**/", "tests/**/", ".github/**/")
    return sorted({path for folder in folders for path in ROOT.glob(f"{folder}*.md")})


def fences(page):
    """(language, text) of every fence of a page."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def spans(page):
    """The texts between backticks on a page, each on one line."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", text)]


def commands(page):
    """Every command of a page; raises AssertionError for a fence that mixes commands with something else."""
    name = page.relative_to(ROOT).as_posix()
    found = [_command(name, span) for span in spans(page)]
    for _, text in fences(page):
        lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
        here = [_command(name, line) for line in lines]
        assert all(here) or not any(here), f"{name}: a fence of commands holds a line that is none:\n{text}"
        found += here
    return [command for command in found if command]


def _command(page, text):
    """The command in a piece of text, or None: a program of PROGRAMS with at least one word behind it."""
    first = ASSIGNMENT.split(text)[-1].split()
    if not any(Path(word).name in PROGRAMS for word in (text.split()[:1] + first[1:2])):
        return None
    words = shlex.split(OPTIONAL.sub(r"\1", text), comments=True)
    while words and ASSIGNMENT.match(words[0]):
        del words[0]
    if "|" in words:
        words = words[: words.index("|")]
    words = [word.removesuffix("...") for word in words if word != "..."]
    words = [Path(words[0]).name, *words[1:]]
    if words[:3] == ["python", "-m", "pip"]:
        words = words[2:]
    return Command(page, tuple(words)) if len(words) > 1 and words[0] in PROGRAMS else None

"""Every command, option, configuration key and file that a page names: the program's own parser takes it."""

import argparse
import importlib
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from documented_commands import ROOT, Command, commands, pages, spans
from rmd_core.errors import RMDError
from training.config import Config, load_config

COMMANDS = [command for page in pages() for command in commands(page)]
PLACEHOLDERS = {"run.yaml", "prompts.txt", "section.key=value", "a.b=c"}


class Parsed(Exception):
    """Raised in place of what a program would do once it has read its arguments."""


def read_by(parser, arguments):
    """What a parser of argparse makes of the arguments; raises AssertionError with its complaint."""
    try:
        return parser.parse_args([str(argument) for argument in arguments])
    except SystemExit as refused:
        raise AssertionError(f"{parser.prog} refuses {list(arguments)}") from refused


@cache
def parser_of(module):
    """The argparse parser of one of our programs, None for one that takes no arguments: its main, left at once."""
    program = importlib.import_module(module)
    if not hasattr(program, "argparse"):
        return None

    def leave(parser, *_):
        raise Parsed(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", leave)
        with pytest.raises(Parsed) as left:
            program.main()
    parser = left.value.args[0]
    parser.allow_abbrev = False  # a page has whole names
    return parser


def module_of(words):
    """(module, arguments) of a `python` command: `-m benchmarks.speed ...` or `training/distill.py ...`."""
    if words[0] == "-m":
        name, arguments = words[1], words[2:]
        is_package = importlib.util.find_spec(name).submodule_search_locations is not None
        return name + ".__main__" * is_package, arguments
    path = Path(words[0])
    assert (ROOT / path).is_file(), f"{path} does not exist"
    return ".".join(path.with_suffix("").parts).removeprefix("tests."), words[1:]


def check_python(words):
    if words[:2] == ("-m", "pytest"):
        check_pytest(words[2:])
        return
    module, arguments = module_of(words)
    parser = parser_of(module)
    if parser is None:
        assert not arguments, f"{module} takes no arguments"
        return
    if not arguments:  # the program's name in a sentence
        return
    given = read_by(parser, arguments)
    if module == "training.distill" and given.config not in PLACEHOLDERS:
        check_overrides(given.set, ROOT / given.config)


def check_overrides(overrides, config=ROOT / "training" / "configs" / "sdxl.yaml"):
    """The configuration takes them; sdxl.yaml, of adapters, takes every key."""
    load_config(config, [override for override in overrides if override not in PLACEHOLDERS])


def check_pytest(words):
    options = {word.rstrip("P") if word.startswith("-r") else word for word in words if word.startswith("-")}
    assert options <= {"-k", "-m", "-r", "-s", "-q", "-x"}, "say here what the option is"
    paths = [word for word in words if word.endswith(".py")]
    assert (paths or "-m" in options) and all((ROOT / path).is_file() for path in paths)


def check_launched(words, parser):
    given = read_by(parser, words)
    if getattr(given, "config_file", None):
        assert (ROOT / given.config_file).is_file()
    check_python((given.training_script, *given.training_script_args))


def check_make(words):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
    variables = {"COMFYUI_PATH", "CHROMIUM", "SCREENSHOTS", *re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE)}
    for word in words:
        assert word.split("=")[0] in (variables if "=" in word else targets), word


def check_hf(words):
    program = shutil.which("hf", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("this huggingface_hub has no hf")
    verbs = [word for word in words if re.fullmatch(r"[a-z]+", word)][: 2 if words[0] == "auth" else 1]
    run = subprocess.run([program, *verbs, "--help"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", run.stdout))


def check_pip(words):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1], re.MULTILINE)
    assert words[0] == "install"
    for named in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(named.split(",")) <= set(extras)
    assert not [word for word in words if word.startswith("rmd")], "rmd is not on PyPI; install it from its folder"


def check(command):
    program, *words = command.words
    if program == "python":
        check_python(tuple(words))
    elif program == "make":
        check_make(words)
    elif program == "hf":
        check_hf(words)
    elif program == "pip":
        check_pip(words)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert words[0] == "launch"
        if words[1:]:
            check_launched(words[1:], launch_command_parser())
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        check_launched(words, get_args_parser())


def test_the_pages_are_read():
    assert len(pages()) > 12 and len(COMMANDS) > 40
    assert {command.words[0] for command in COMMANDS} >= {"python", "make", "torchrun", "accelerate", "hf", "comfy"}


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS), ids=str)
def test_a_command_is_one_that_its_program_takes(command):
    check(command)


@pytest.mark.parametrize(
    "words",
    [
        "python training/distill.py --config training/configs/none.yaml",
        "python training/distill.py --config training/configs/demo.yaml --set train.update=3",
        "python training/distill.py --config training/configs/demo.yaml --dry",
        "python -m benchmarks.quality --job 2",
        "python tests/english_locale.py --all",
        "python -m pytest tests/test_none.py",
        "torchrun --nproc-per-knot 2 training/distill.py --config run.yaml",
        "accelerate launch --config_file none.yaml training/distill.py --config run.yaml",
        "make tests",
        "make TORHC=torch test",
        "pip install rmd[quantised]",
    ],
)
def test_a_wrong_one_is_found(words, capsys):
    with pytest.raises((AssertionError, RMDError)):
        check(Command("a page", tuple(words.split())))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_options_in_the_text_are_those_of_a_program(page):
    """Between backticks, `--only rmd_2+2` or `--resume --set output.merge=true`: of our programs or their launchers."""
    known = set()
    for command in {one for one in COMMANDS if one.words[0] == "python" and one.words[1:3] != ("-m", "pytest")}:
        parser = parser_of(module_of(command.words[1:])[0])
        known |= set(parser._option_string_actions) if parser else set()
    known |= {"--cpu", "--num_processes"}  # of `accelerate launch`
    found = [span for span in spans(page) if span.startswith("--")]
    for span in found:
        assert {word for word in span.split() if word.startswith("--")} <= known, span
        check_overrides(re.findall(r'--set "?([\w.]+=(?:\[.*\]|[^\s"]+))', span))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_configuration_keys_in_the_text_exist(page):
    """`train.batch`, `train.share_forward: false`, `loss.cfg=1`: the key is there and takes the value."""
    for span in spans(page):
        key = re.fullmatch(rf"({'|'.join(Config.model_fields)})\.(\w+)(?:(?:=|: )(.+))?", span)
        if key is None or key[2] in ("py", "yaml") or "..." in span:
            continue
        section, name, value = key.groups()
        assert name in Config.model_fields[section].annotation.model_fields, span
        if value is not None:
            check_overrides([f"{section}.{name}={value}"])

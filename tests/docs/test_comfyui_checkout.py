"""Finding a ComfyUI, what is installed for it, and how a run without one goes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from comfyui_checkout import find_comfyui, needed_requirements

HERE = Path(__file__).parents[1]


def checkout(folder):
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "sd.py").touch()
    return folder


def test_the_named_comfyui_comes_before_the_one_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert find_comfyui() is None
    home = checkout(tmp_path / "comfy" / "ComfyUI")
    assert find_comfyui() == home
    named = checkout(tmp_path / "named")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert find_comfyui() == named


def test_a_named_folder_without_comfyui_is_an_error_not_a_skip(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no ComfyUI"):
        find_comfyui()


def test_needed_requirements_keep_specifiers_and_drop_the_web_page():
    text = """
    comfyui-frontend-package==1.49.6
    torch
    av>=16.0.0  # video
    PyOpenGL>=3.1.8
    #non essential dependencies:
    pydantic~=2.0
    pydantic-settings~=2.0
    comfy_kitchen==0.2.31
    """
    assert needed_requirements(text) == ["torch", "av>=16.0.0", "pydantic~=2.0", "comfy_kitchen==0.2.31"]


def test_the_last_line_says_how_many_tests_had_no_comfyui(tmp_path):
    """Also that the pack's own __init__.py, beside tests/, is not imported by pytest."""
    (tmp_path / "__init__.py").write_text("raise RuntimeError('this needs ComfyUI')\n")
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("conftest.py", "comfyui_checkout.py"):
        shutil.copy(HERE / name, tests)
    (tests / "test_some.py").write_text("def test_a(comfy): pass\ndef test_b(comfy): pass\ndef test_c(): pass\n")
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(tests)}
    environment.pop("COMFYUI_PATH", None)
    options = ["-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir", str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *options, str(tests)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    *_, summary, last = run.stdout.strip().split("\n")
    assert "1 passed, 2 skipped" in summary
    assert last == "2 tests were skipped because no ComfyUI was found (COMFYUI_PATH, ~/comfy/ComfyUI)"

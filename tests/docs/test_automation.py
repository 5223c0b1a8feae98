"""What runs by itself: the workflows of GitHub, the hooks of a commit, and the type checker."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def workflow(name):
    return yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))


def commands(name):
    """Every shell command of a workflow, one text."""
    return "\n".join(step.get("run", "") for job in workflow(name)["jobs"].values() for step in job["steps"])


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_a_workflow_is_whole(name):
    """YAML reads the key `on` as true; every job has a machine and steps, and no more rights than it names."""
    found = workflow(name)
    assert found["name"] == name and found[True] and found["permissions"]["contents"] == "read"
    for job in found["jobs"].values():
        assert job["runs-on"] and all(("run" in step) != ("uses" in step) for step in job["steps"])
        assert all("@" in step["uses"] for step in job["steps"] if "uses" in step)


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_make_has_what_a_workflow_asks_for(name):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = {line.split()[-1] for line in commands(name).splitlines() if line.startswith("make ")}
    assert asked <= targets


def test_the_oldest_python_and_comfyui_that_are_promised_are_tried():
    oldest = re.search(r'requires-python = ">=([\d.]+)"', PROJECT)[1]
    assert workflow("test")["jobs"]["test"]["strategy"]["matrix"]["python"][0] == oldest
    oldest = re.search(r'requires-comfyui = ">=([\d.]+)"', PROJECT)[1]
    assert workflow("comfyui")["jobs"]["nodes"]["strategy"]["matrix"]["comfyui"] == [oldest, "nightly"]


def test_the_lint_job_takes_the_ruff_of_the_project():
    assert re.search(r'"(ruff>=[\d.]+)"', PROJECT)[1] in commands("test")


def test_the_hooks_call_what_make_lint_calls():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    own = {hook["id"]: hook["entry"] for repo in hooks["repos"] if repo["repo"] == "local" for hook in repo["hooks"]}
    lint = re.search(r"^LINT = (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    called = [command.strip().split()[0].replace("$(BIN)", ".venv/bin") for command in lint.split("&&")]
    assert [entry.split()[0] for entry in own.values()] == called


def test_the_type_checker_reads_types(tmp_path):
    """`make lint` passes because the types fit, not because nothing is looked at: a wrong one is found."""
    if shutil.which("mypy", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("mypy is not installed (the extra `test`)")
    (tmp_path / "wrong.py").write_text('def half(value: int) -> int:\n    return "half"\n')
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "wrong.py")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1 and "Incompatible return value" in ran.stdout, ran.stdout + ran.stderr

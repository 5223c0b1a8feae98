"""The package for ComfyUI's registry: metadata, files, comfy-cli's own check. The tests of the server run it."""

import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from comfy_server import PACK

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same parser
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
MOST_BYTES = 20 * 2**20
TOP = {
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "README.md",
    "__init__.py",
    "demo",
    "example_workflows",
    "locales",
    "nodes",
    "pyproject.toml",
    "requirements.txt",
    "rmd_core",
    "subgraphs",
    "web",
}
"""The root of the package; anything new is either meant for ComfyUI's users or named in .comfyignore."""


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_metadata_is_complete(project):
    about, comfy = project["project"], project["tool"]["comfy"]
    assert re.fullmatch(r"[a-z](?:[._-]?[a-z0-9])*", about["name"]) and "comfyui" not in about["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
    assert about["description"] and about["license"] == "Apache-2.0" and about["requires-python"]
    assert "Operating System :: OS Independent" in about["classifiers"]
    assert comfy["PublisherId"] and comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])


def test_every_address_is_of_one_repository(project):
    urls, comfy = project["project"]["urls"], project["tool"]["comfy"]
    owner, name = re.fullmatch(r"https://github\.com/([\w-]+)/([\w-]+)", urls["Repository"]).groups()
    assert name == PACK and comfy["PublisherId"] == owner
    assert all(url.startswith(urls["Repository"]) for url in urls.values())
    raw = f"https://raw.githubusercontent.com/{owner}/{name}/main/"
    assert all((ROOT / comfy[key].removeprefix(raw)).is_file() for key in ("Icon", "Banner"))
    publish = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    assert f"github.repository_owner == '{owner}'" in publish


def test_comfy_cli_validates_the_pack(tmp_path):
    program = shutil.which("comfy", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("comfy-cli is not installed (the extra `dev`)")
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([program, "--skip-prompt", "tracking", "disable"], env=environment, check=True, capture_output=True)
    ran = subprocess.run(
        [program, "--skip-prompt", "node", "validate"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0 and "passed" in ran.stdout + ran.stderr, ran.stdout + ran.stderr


def test_icon_and_banner_have_the_registrys_form():
    for name, ratio, widest in (("icon", 1, 400), ("banner", 21 / 9, 1680)):
        width, height = Image.open(ROOT / "docs" / "images" / f"{name}.png").size
        assert width == height * ratio and width <= widest


def test_the_changelog_begins_with_this_version(project):
    versions = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [name for name in versions if name != "Unreleased"]
    assert released[0] == project["project"]["version"] and len(set(versions)) == len(versions)


def test_what_goes_in_is_what_comfyui_needs(shipped):
    assert {Path(name).parts[0] for name in shipped} == TOP
    code = {name for name in shipped if name.endswith(".py")}
    assert {Path(name).parts[0] for name in code} == {"__init__.py", "nodes", "rmd_core"}
    demo = [name for name in shipped if name.startswith("demo/")]
    weights = [name for name in demo if name.endswith(".safetensors")]
    assert set(demo) - set(weights) == {"demo/data/LICENSES.md"} and len(weights) == 5


def test_it_is_small_enough(shipped):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in shipped:
            archive.write(ROOT / name, name)
    assert len(target.getvalue()) < MOST_BYTES

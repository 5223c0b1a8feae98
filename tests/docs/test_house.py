"""The rules of the house (CONTRIBUTING.md) that a program can check, over every file that git tracks."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 400  # lines of one source file

# A registry linter refuses these in any .py: devices, precision and layers are to be handled through ComfyUI,
# accelerate or an imported class. Written in two halves, because this file is checked too.
REFUSED = [
    head + tail
    for head, tail in [
        (".cu", "da("),
        ('.to("cu', "da"),
        (".to('cu", "da"),
        ("torch.auto", "cast("),
        ("torch.amp.auto", "cast"),
        ("nn.Lin", "ear("),
        ("nn.Con", "v1d("),
        ("nn.Con", "v2d("),
        ("nn.Con", "v3d("),
        ("nn.Layer", "Norm("),
        ("nn.Group", "Norm("),
        ("nn.Embed", "ding("),
    ]
]
CITATION = re.compile(r"(docs/\w+\.md), ([^.;]+)")
# Import name -> project name, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}
OWN_SETUP = {"resvg_py"}  # for one program that says so in its first lines: demo/make/drawings.py
# Folders that only one person's machine has.
OWN_MACHINE = ["/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/", "/Us" + "ers/"]
PICKLE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# What each package of ours may not import; `nodes` and `training` meet only in rmd_core.
FORBIDDEN_IMPORTS = {
    "rmd_core": {"comfy", "diffusers", "accelerate", "training", "nodes", "demo", "benchmarks"},
    "training": {"comfy", "nodes", "demo", "benchmarks"},
    "nodes": {"diffusers", "accelerate", "training", "demo", "benchmarks"},
    "demo": {"comfy", "nodes"},
}


def tracked():
    """Every file that git tracks or would track; every file of a folder that is no git checkout."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return sorted(path for path in paths if path.is_file())


def sources(folder="."):
    return [path for path in tracked() if path.suffix == ".py" and path.is_relative_to(ROOT / folder)]


def text_files():
    binary = {".safetensors", ".npz", ".png", ".jpg", ".webp", ".gif", ".mp4", ".ico"}
    return [path for path in tracked() if path.suffix not in binary]


def where(path, line):
    return f"{path.relative_to(ROOT)}:{line}"


def nodes_of(path, *kinds):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def imported(path):
    """(line, top-level package) of each absolute import; relative ones stay inside their own package."""
    for node in nodes_of(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif not node.level:
            yield node.lineno, node.module.split(".")[0]


def test_the_lists_are_not_empty():
    assert len(sources("rmd_core")) > 5 and len(sources("training")) > 5 and len(text_files()) > 20


def test_sources_are_ascii():
    found = []
    for path in sources():
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if not line.isascii():
                found.append(where(path, number))
    assert not found


def test_sources_are_short():
    lengths = {where(path, 1): path.read_text(encoding="utf-8").count("\n") for path in sources()}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_every_source_says_what_it_is():
    assert not [where(path, 1) for path in sources() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]


@pytest.mark.parametrize("package", ["rmd_core", "nodes", "nodes/bridge", "training"])
def test_the_first_file_of_a_package_names_every_other(package):
    named = set(re.findall(r"`([a-z_0-9]+)", (ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    files = {path.stem for path in sources(package) if path.parent == ROOT / package}
    assert files - {"__init__"} - named == set()


@pytest.mark.parametrize("package", FORBIDDEN_IMPORTS)
def test_packages_import_only_what_they_may(package):
    forbidden = FORBIDDEN_IMPORTS[package]
    assert not [
        f"{where(path, line)} imports {name}"
        for path in sources(package)
        for line, name in imported(path)
        if name in forbidden
    ]


@pytest.mark.parametrize("package", ["rmd_core", "nodes"])
def test_imports_inside_a_package_are_relative(package):
    ours = {package, "rmd_core"}
    assert not [where(path, line) for path in sources(package) for line, name in imported(path) if name in ours]


def test_rmd_core_needs_only_torch_and_the_standard_library():
    allowed = {*sys.stdlib_module_names, "torch"}
    found = [
        f"{where(path, line)} imports {name}"
        for path in sources("rmd_core")
        for line, name in imported(path)
        if name not in allowed
    ]
    assert not found


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^(?:train|quantised) = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL)
    assert len(extras) == 2
    declared = {name for extra in extras for name in re.findall(r'"([a-z0-9-]+)', extra)}
    found = {}
    for package in ("rmd_core", "training", "demo", "benchmarks"):
        for path in sources(package):
            found |= {DISTRIBUTIONS.get(name, name): where(path, line) for line, name in imported(path)}
    known = {*sys.stdlib_module_names, *OWN_SETUP, "rmd_core", "training", "demo", "benchmarks"}
    foreign = {name: place for name, place in found.items() if name not in known}
    assert {name: place for name, place in foreign.items() if name not in declared} == {}
    assert declared - foreign.keys() == set()


def test_library_code_does_not_print():
    found = []
    for package in ("rmd_core", "nodes"):
        for path in sources(package):
            calls = nodes_of(path, ast.Call)
            found += [where(path, call.lineno) for call in calls if getattr(call.func, "id", "") == "print"]
    assert not found


def test_nothing_is_unpickled():
    found = []
    for package in ("rmd_core", "training", "nodes"):
        for path in sources(package):
            found += [where(path, line) for line, name in imported(path) if name in PICKLE]
            for call in nodes_of(path, ast.Call):
                if ast.unparse(call.func) in ("torch.load", "load_state", "accelerator.load_state"):
                    found.append(where(path, call.lineno))
    assert not found


def test_sources_hold_nothing_that_a_registry_linter_refuses():
    found = []
    for path in sources():
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            found += [f"{where(path, number)}: {text}" for text in REFUSED if text in line]
    assert not found


def test_no_file_names_a_folder_of_one_machine():
    found = []
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            found += [f"{where(path, number)}: {text}" for text in OWN_MACHINE if text in line]
    assert not found


def test_cited_sections_exist():
    """A docstring that says "docs/method.md, the sampler" names a heading of that page, whatever the case."""
    found = []
    for path in sources():
        words = " ".join(path.read_text(encoding="utf-8").split())
        for page, section in CITATION.findall(words):
            headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8").lower(), re.MULTILINE)
            if not any(section.lower().startswith(heading) for heading in headings):
                found.append(f"{path.relative_to(ROOT)} cites {page}, {section}")
    assert not found


def test_requirements_match_the_project_file():
    """ComfyUI's manager installs requirements.txt, the registry shows pyproject.toml; torch is in neither."""
    listed = [line for line in (ROOT / "requirements.txt").read_text().split("\n") if line and not line.startswith("#")]
    project = (ROOT / "pyproject.toml").read_text().split("dependencies = [", 1)[1].split("]", 1)[0]
    assert listed == [entry.strip().strip('",') for entry in project.split("\n") if entry.strip()]
    assert not [line for line in listed if line.startswith("torch")]

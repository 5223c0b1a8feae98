"""The rules of CONTRIBUTING.md that a program can check, over every file that git tracks."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A registry linter refuses these in any .py: devices, precision and layers go through ComfyUI, accelerate or imported
# classes. Written in two halves, because this file is checked too.
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
CITATION = re.compile(r"(docs/[\w/]+\.md), ([^.;]+)")
# Import name -> project name, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}
OWN_SETUP = {"resvg_py"}  # for one program that says so in its first lines: demo/make/drawings.py
# Folders that only one person's machine has.
OWN_MACHINE = ["/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/", "/Us" + "ers/"]
PICKLE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LAYERS = {"rmd_core", "nodes", "training", "demo", "benchmarks"}
# What each layer may not import.
FORBIDDEN = {
    "rmd_core": {"comfy", "diffusers", "accelerate", *LAYERS - {"rmd_core"}},
    "nodes": {"diffusers", "accelerate", *LAYERS - {"rmd_core"}},
    "training": {"comfy", "nodes", "demo", "benchmarks"},
    "demo": {"comfy", "nodes", "benchmarks"},
    "benchmarks": {"comfy", "nodes", "tests"},
}


def tracked(folder="."):
    """Every file under a folder that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", folder]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return sorted(path for path in paths if path.is_file())


def sources(*folders):
    return [path for folder in folders or ["."] for path in tracked(folder) if path.suffix == ".py"]


def where(path, line):
    return f"{path.relative_to(ROOT)}:{line}"


@cache
def every_node(path):
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def nodes_of(path, *kinds):
    return [node for node in every_node(path) if isinstance(node, kinds)]


def imported(path):
    """(line, module) of each absolute import."""
    for node in nodes_of(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif not node.level:
            yield node.lineno, node.module


def lines_with(paths, words):
    """Where one of some words is found."""
    return [
        f"{where(path, number)}: {word}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        for word in words
        if word in line
    ]


def test_sources_are_ascii():
    assert [path for path in sources() if not path.read_bytes().isascii()] == []


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_a_layer_imports_only_what_it_may(layer):
    found = [
        f"{where(path, line)} imports {name}"
        for path in sources(layer)
        for line, name in imported(path)
        if name.split(".")[0] in FORBIDDEN[layer] and not (layer == "nodes" and name == "nodes")  # ComfyUI's own module
    ]
    assert sources(layer) and found == []


def test_no_module_imports_itself_through_others():
    """Imports at the head of a module, inside one layer: following them never leads back."""
    modules = {module_name(path): path for path in sources(*LAYERS)}
    graph = {name: {target for target in targets(name, path) if target in modules} for name, path in modules.items()}

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in graph[name] - {name}:
                visit(target, [*trail, name])
            done.add(name)

    done = set()
    for name in graph:
        visit(name, [])


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def targets(name, path):
    """The modules that a module names in its top-level imports."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


@pytest.mark.parametrize("package", ["rmd_core", "nodes"])
def test_imports_of_the_node_pack_are_relative(package):
    assert not [where(path, line) for path in sources(package) for line, name in imported(path) if "rmd_core" in name]


def test_rmd_core_needs_only_torch_einops_and_safetensors():
    allowed = {*sys.stdlib_module_names, "torch", "einops", "safetensors", "numpy"}
    used = {name.split(".")[0] for path in sources("rmd_core") for _, name in imported(path)}
    assert used <= allowed


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^(?:train|quantised|evaluate|captions) = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL)
    declared = set(re.findall(r'"([a-z0-9-]+)', "".join(extras)))
    used = {name.split(".")[0] for path in sources(*LAYERS - {"nodes"}) for _, name in imported(path)}
    foreign = {DISTRIBUTIONS.get(name, name) for name in used - sys.stdlib_module_names - LAYERS - OWN_SETUP}
    assert foreign == declared


def test_library_code_does_not_print():
    calls = [(path, call) for path in sources("rmd_core", "nodes") for call in nodes_of(path, ast.Call)]
    assert [where(path, call.lineno) for path, call in calls if getattr(call.func, "id", "") == "print"] == []


def test_nothing_is_unpickled():
    found = []
    for path in sources("rmd_core", "training", "nodes"):
        found += [where(path, line) for line, name in imported(path) if name.split(".")[0] in PICKLE]
        for call in nodes_of(path, ast.Call):
            if ast.unparse(call.func) in ("torch.load", "load_state", "accelerator.load_state"):
                found.append(where(path, call.lineno))
    assert found == []


def test_sources_hold_nothing_that_a_registry_linter_refuses():
    assert lines_with(sources(), REFUSED) == []


def test_no_file_names_a_folder_of_one_machine():
    binary = {".safetensors", ".npz", ".png", ".jpg", ".webp", ".gif", ".mp4", ".ico"}
    assert lines_with([path for path in tracked() if path.suffix not in binary], OWN_MACHINE) == []


def test_cited_sections_exist():
    """A docstring that says "docs/method/method.md, the sampler" names a heading of that page, whatever the case."""
    found = []
    for path in sources():
        words = " ".join(path.read_text(encoding="utf-8").split())
        for page, section in CITATION.findall(words):
            headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8").lower(), re.MULTILINE)
            if not any(section.lower().startswith(heading) for heading in headings):
                found.append(f"{path.relative_to(ROOT)} cites {page}, {section}")
    assert found == []


def test_requirements_match_the_project_file():
    """ComfyUI's manager installs requirements.txt, the registry shows pyproject.toml; torch is in neither."""
    listed = [line for line in (ROOT / "requirements.txt").read_text().split("\n") if line and not line.startswith("#")]
    project = (ROOT / "pyproject.toml").read_text().split("dependencies = [", 1)[1].split("]", 1)[0]
    assert listed == [entry.strip().strip('",') for entry in project.split("\n") if entry.strip()]
    assert not [line for line in listed if line.startswith("torch")]

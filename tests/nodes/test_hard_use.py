"""Every input of every node at and beyond its limits, and mutated and hostile files: a result or one clear line.

RMD_HARD_USE=25 python -m pytest tests/nodes/test_hard_use.py -s    tries 25 times as much, and prints the table
"""

import json
import os
import resource
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from cascade_rig import TINY
from hard_use import EFFORT
from hard_use_contracts import check_plan, contract
from hard_use_files import FILES, Folder, held
from hard_use_world import World, made
from mutations import joined, mutated_files, mutated_recipes, split_file
from rmd_core.files import read_header
from rmd_core.recipe import RECIPE_KEY
from student_files import TEACHER

NODES = {
    "RMD_Guider": 30,
    "RMD_LoadPromptEmbeddings": 30,
    "RMD_LoadStudent": 20,
    "RMD_Noise": 20,
    "RMD_Sampler": 40,
    "RMD_SamplerAdvanced": 60,
    "RMD_Schedule": 60,
    "RMD_StageOverride": 20,
    "RMD_StageSigmas": 20,
    "RMD_StageUpscale": 40,
    "RMD_StepSampler": 20,
    "RMD_Upsampler": 20,
}
"""Node id -> tries in the suite."""

LARGEST = 1024
"""Sides in pixels above which nothing is really enlarged here: it would only take long."""


@pytest.fixture(scope="module")
def world(nodes, tiny, comfy):
    return World(nodes, tiny, comfy)


def tries(count):
    return settings(
        max_examples=count * EFFORT,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # the first try that fails is reported as it was
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("node_id", NODES)
def test_a_node_with_inputs_at_and_beyond_their_limits(world, hard_use, node_id):
    """Inputs that fit one model, but for some of them, which are anything at all."""
    node = world.nodes.classes[node_id]
    entries = node.GET_SCHEMA().inputs

    @tries(NODES[node_id])
    @given(st.data())
    def attempt(data):
        fitting = world.usual_of(node_id, data.draw(st.sampled_from(sorted(TINY))))
        odd = data.draw(st.sets(st.sampled_from([entry.id for entry in entries]), max_size=2))
        shown = {}
        for entry in entries:
            if entry.id in odd:
                shown[entry.id] = data.draw(world.values(entry, None), label=entry.id)
            elif not entry.optional or data.draw(st.booleans()):
                own = fitting.get(entry.id)
                shown[entry.id] = data.draw(own if own is not None else world.values(entry, fitting), label=entry.id)
        if node_id == "RMD_StageUpscale":
            sides = [shown[name] for name in ("width", "height")]
            assume(not any(isinstance(side, int) and LARGEST < side <= 16384 for side in sides))
        inputs = made(shown)

        def action():
            if "fingerprint_inputs" in vars(node):
                node.fingerprint_inputs(**inputs)
            try:
                return node.execute(**inputs).args
            except (RuntimeError, TypeError) as error:
                if world.is_cores(error, inputs):
                    return None
                raise

        hard_use.attempt(node_id, shown, action, lambda outputs: outputs is None or contract(node_id)(inputs, outputs))

    attempt()


def test_every_node_is_tried(world):
    assert NODES.keys() == world.nodes.classes.keys()


RECIPES = 200


@pytest.fixture(scope="module")
def folder(pack, node_classes, nodes, comfy, tmp_path_factory):
    import folder_paths

    path = tmp_path_factory.mktemp("hard_use")
    with pytest.MonkeyPatch.context() as patch:
        for key in ("diffusion_models", "loras", "rmd_prompts"):
            patch.setitem(folder_paths.folder_names_and_paths, key, ([str(path / key)], {".safetensors"}))
        yield Folder(path, nodes, comfy.sd.load_diffusion_model(str(TEACHER)))


def reference(path):
    """{name: float tensor} as the safetensors library reads a file; None for a file that it refuses."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except Exception:
        return None


def same(got, expected):
    return got.shape == expected.shape and torch.equal(got.float().nan_to_num(), expected.nan_to_num())


def judge(kind, path, loaded):
    """What was loaded is what the safetensors library reads in the same file."""
    expected = reference(path)
    assert expected is not None, "the safetensors library refuses this file"
    if kind == "prompt cache":
        prompts = json.loads(read_header(path).metadata["rmd.prompt_cache"])["prompts"]
        for key, text in prompts.items():
            if text in loaded:
                own = loaded[text][0]
                assert same(own[: len(expected[key])], expected[key]) and not own[len(expected[key]) :].any()
        return
    found = held(kind, loaded)
    missing = [name for name in found if name not in expected and not name.startswith(("rope", "head."))]
    assert found and not missing, missing
    assert all(same(tensor, expected[name]) for name, tensor in found.items() if name in expected)


@pytest.mark.parametrize("kind", FILES)
def test_good_files_load(folder, hard_use, kind):
    folder.place(kind).write_bytes(folder.good[kind])
    judge(kind, folder.place(kind), folder.load(kind))


@pytest.mark.parametrize("kind", FILES)
def test_mutated_files(folder, hard_use, kind):
    path = folder.place(kind)
    for words, data in mutated_files(folder.good[kind], FILES[kind] * EFFORT):
        path.write_bytes(data)
        hard_use.attempt(kind, words, lambda: folder.load(kind), lambda loaded: judge(kind, path, loaded))


def test_mutated_recipes(folder, hard_use):
    """In the header of a LoRA student: what loads is what the recipe says, and makes a plan or a clear error."""
    path = folder.place("LoRA student")
    header, body = split_file(folder.good["LoRA student"])
    schedule = folder.nodes.classes["RMD_Schedule"]
    for words, text in mutated_recipes(header["__metadata__"][RECIPE_KEY], RECIPES * EFFORT):
        path.write_bytes(joined({**header, "__metadata__": {**header["__metadata__"], RECIPE_KEY: text}}, body))
        loaded = []

        def right(result, text=text, loaded=loaded):
            assert json.loads(result[1].to_json()) == json.loads(text)
            assert "\n" in result[2] and result[1].base_model in result[2]
            loaded.append(result)

        hard_use.attempt("recipe", words, lambda: folder.load("LoRA student"), right)
        for _, came, _ in loaded:
            source = {"source": "student recipe", "recipe": came}
            run = {"model": folder.base, "width": 128, "height": 128, "source": source}
            hard_use.attempt("recipe to plan", words, lambda run=run: schedule.execute(**run).args[0], check_plan)


HOSTILE = {
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"\x08"),
    "folder": lambda path: path.mkdir(),
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to(path.with_name("gone")),
    "link to a folder": lambda path: path.symlink_to(path.parent),
    "pipe": os.mkfifo,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "silent device": lambda path: path.symlink_to("/dev/null"),
    "pickle": lambda path: torch.save({"a": torch.zeros(2)}, path),
    "old pickle": lambda path: path.write_bytes(b"\x80\x02}q\x00."),
    "zip": lambda path: zipfile.ZipFile(path, "w").close(),
    "pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "web page": lambda path: path.write_text("<!DOCTYPE html><html></html>"),
    "zeros": lambda path: path.write_bytes(b"\0" * 5000),
    "ones": lambda path: path.write_bytes(b"\xff" * 5000),
    "text": lambda path: path.write_text("hello " * 1000),
    "huge header": lambda path: sparse(path, (10**8).to_bytes(8, "little"), 10**8 + 8),
    "huge tensor": lambda path: path.write_bytes(joined(huge(10**15), b"")),
    "huge and empty": lambda path: path.write_bytes(
        joined({"a": {"dtype": "F32", "shape": [10**15, 0], "data_offsets": [0, 0]}}, b"")
    ),
    "very many names": lambda path: path.write_bytes(
        joined({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}, b"")
    ),
    "sparse terabyte": lambda path: sparse(path, joined(huge(10**12), b""), 10**12 + 400),
}


def huge(size):
    return {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}


def sparse(path, start, size):
    """A file that says it is `size` bytes long and takes none of them on the disk."""
    path.write_bytes(start)
    os.truncate(path, size)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", FILES)
def test_hostile_files(folder, hard_use, kind, name):
    """Nothing hangs, and nothing takes the memory that a file claims to need."""
    path = folder.place(kind)
    if path.is_symlink() or path.exists():
        path.unlink()
    HOSTILE[name](path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        hard_use.attempt(
            "hostile file", (kind, name), lambda: folder.load(kind), lambda loaded: pytest.fail("it loaded")
        )
    finally:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kB: headers may be 100 MB long

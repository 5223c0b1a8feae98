"""The finished student as one file that ComfyUI loads, a network or a LoRA, with its recipe in the header.

As a command it writes a LoRA student again under the names of another program:

    python training/export.py student.safetensors --names kohya

Exit codes: 0 done, 2 bad input or no place to write.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

if __name__ == "__main__":  # run as a file: the repository takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmd_core.errors import RMDError, one_line
from rmd_core.experts import expert_files
from rmd_core.files import read_tensors
from rmd_core.recipe import Recipe, read_recipe, student_metadata
from training.backbones import backbone_of
from training.hub import NETWORK, fetched, hub_id, is_folder
from training.lora_files import LORA_NAMES, native_factors, of_one_rank, read_lora, save_lora
from training.plans import sampling_boundary


def base_name(base):
    """What a recipe calls its base: the file's or the folder's own name, the model's where its network was given.

    A model on the hub has its name there, without the revision.
    """
    hub = hub_id(base)
    if hub is not None:
        return hub.name
    if not is_folder(base):
        return base.stem
    folder = base.resolve()
    return folder.parent.name if folder.name in ("unet", "transformer") else folder.name


def student_files(path, backbone):
    """``{part of the network: file}`` of a student: ``{None: path}``, or a file for each expert."""
    if not backbone.experts:
        return {None: path}
    return {name: path.with_name(f"{path.stem}_{name}_noise{path.suffix}") for name in backbone.experts}


def student_recipe(setup, *, update, adapter_alpha=None, expert=None):
    """The Recipe of a student after ``update`` updates: everything the sampler needs. ``expert``: whose file it is."""
    config, backbone, base = setup.config, setup.backbone, setup.config.backbone.base
    if expert is not None and not is_folder(base):
        base = dict(zip(backbone.experts, expert_files(base)))[expert]
    return Recipe.from_plan(
        setup.plan,
        boundary=sampling_boundary(config.method),
        eta=config.method.eta,
        base_model=base_name(base),
        architecture=backbone.architecture_of(setup.teacher),
        prediction=backbone.prediction,
        thresholds=config.plan.thresholds,
        multiple=backbone.multiple,
        pixels_per_cell=backbone.pixels_per_cell,
        size_conditioning=backbone.size_conditioning,
        prompt_encoder=setup.cache.encoder,
        adapter_alpha=adapter_alpha,
        training_step=update,
        config_digest=config.digest(),
        expert=expert,
        expert_sigma=None if expert is None else setup.teacher.config.boundary,
    )


def export_student(setup, network, path, *, update):
    """Write the student as a file that ComfyUI loads, recipe and ModelSpec fields in its header. Raises RMDError.

    Of a network of experts it is one of the ``student_files`` of ``path`` for each.
    """
    for expert, file in student_files(path, setup.backbone).items():
        metadata = student_metadata(student_recipe(setup, update=update, expert=expert), title=_title(setup, expert))
        part = network if expert is None else network.get_submodule(expert)
        setup.backbone.export(part, file, dtype=_dtype(setup), metadata=metadata)


def export_lora(setup, network, lora, path, *, update):
    """Write the student as a Lora for the base ``network``, as ``export_student`` does."""
    config, backbone = setup.config, setup.backbone
    kind = {"backbone": backbone, "keys": backbone.keys(network.config), "dtype": _dtype(setup)}
    for expert, file in student_files(path, backbone).items():
        recipe = student_recipe(setup, update=update, adapter_alpha=config.model.alpha, expert=expert)
        names, title = config.output.lora_names, _title(setup, expert)
        write_lora_student(file, lora.of(expert), recipe, names=names, title=title, **kind)


def write_lora_student(path, lora, recipe, *, backbone, keys, names, title, dtype):
    """Write a Lora under the ``names`` of one of LORA_NAMES. ``keys``: the KeyMap of its network."""
    factors, changes = lora
    if names == "diffusers":
        factors = of_one_rank(factors)
        recipe = replace(recipe, adapter_alpha=max(value.alpha for value in factors.values()))
    else:
        factors = native_factors(factors, dict(keys.native_layer(layer) for layer in factors))
        changes = keys.to_native(_whole_stacks(changes, keys))
    metadata = student_metadata(recipe, title=title)
    save_lora(path, factors, changes, names=names, component=backbone.component, dtype=dtype, metadata=metadata)


def _whole_stacks(changes, keys):
    """The changes of tensors, and zeros for those that are stacked with one of them in a native file."""
    zeros = {}
    for names in keys.sources.values():
        there = next((changes[name] for name in names if name in changes), None)
        if there is not None:  # all of a stack have one size
            zeros |= {name: torch.zeros_like(there) for name in names}
    return zeros | changes


def _title(setup, expert):
    return setup.config.output.name if expert is None else f"{setup.config.output.name}, {expert} noise"


def _dtype(setup):
    return getattr(torch, setup.config.output.dtype)


def convert(path, out, *, names, base=None):
    """Write the LoRA student ``path`` under other ``names`` as ``out``, with the same recipe and in the same type.

    ``base``: a checkpoint of its base, for a network of unusual size; None takes the family's own. Raises RMDError for
    a file without a recipe, a whole student, or a layer that the names have no room for.
    """
    recipe = read_recipe(path)
    if recipe.adapter_alpha is None:
        raise RMDError(f"{path} is a whole student, not a LoRA; give a LoRA")
    tensors, metadata = read_tensors(path)
    backbone = backbone_of(recipe)
    if base is None:
        keys = backbone.keys_of_file(tensors)
    else:
        keys = backbone.keys(backbone.outline(fetched(base, NETWORK)).config)
    write_lora_student(
        out,
        read_lora(tensors, keys, path),
        recipe,
        backbone=backbone,
        keys=keys,
        names=names,
        title=metadata.get("modelspec.title", Path(path).stem),
        dtype=next(t.dtype for name, t in tensors.items() if not name.endswith(".alpha")),
    )


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    parser = argparse.ArgumentParser(description="Write a LoRA student again under the names of another program.")
    parser.add_argument("file", type=Path, metavar="FILE", help="LoRA file of a student")
    parser.add_argument("--names", choices=LORA_NAMES, required=True, help="naming scheme of the new file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the new file; default: FILE_NAMES.safetensors")
    parser.add_argument(
        "--base", metavar="BASE", help="the base model, if its blocks are not the usual ones of the family"
    )
    given = parser.parse_args(argv)
    out = given.out or given.file.with_name(f"{given.file.stem}_{given.names}.safetensors")
    try:
        if out.exists():
            raise RMDError(f"{out} already exists; delete it, or give another --out")
        convert(given.file, out, names=given.names, base=given.base)
    except RMDError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{out}: the same LoRA and recipe under the names of {given.names}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The finished student as one file, with its recipe in the header."""

import torch

from rmd_core.recipe import Recipe, write_metadata

from .backbones.network_files import is_folder
from .hub import hub_id
from .lora_file import native_factors, save_lora
from .plans import sampling_boundary


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


def student_recipe(setup, *, update, adapter_alpha=None):
    """The Recipe of a student after ``update`` updates: everything the sampler needs."""
    config, backbone, base = setup.config, setup.backbone, setup.config.backbone.base
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
    )


def export_student(setup, network, path, *, update):
    """Write the student as one file that ComfyUI loads, recipe and ModelSpec fields in its header. Raises RMDError."""
    metadata = write_metadata(student_recipe(setup, update=update), title=setup.config.output.name)
    setup.backbone.export(network, path, dtype=_dtype(setup), metadata=metadata)


def export_lora(setup, network, factors, path, *, update):
    """Write the student as a LoRA ``{layer name: Factors}`` for the base ``network``, as ``export_student`` does."""
    recipe = student_recipe(setup, update=update, adapter_alpha=setup.config.model.alpha)
    metadata = write_metadata(recipe, title=setup.config.output.name)
    stacks = dict(setup.backbone.native_layer(network, layer) for layer in factors)
    save_lora(path, native_factors(factors, stacks, network), dtype=_dtype(setup), metadata=metadata)


def _dtype(setup):
    return getattr(torch, setup.config.output.dtype)

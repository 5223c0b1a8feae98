"""The finished student as one file that ComfyUI loads, a network or a LoRA, with its recipe in the header."""

import torch

from rmd_core.files import cast_weight, save_safetensors
from rmd_core.recipe import Recipe, student_metadata

from .hub import hub_id, is_folder
from .lora import Factors
from .plans import sampling_boundary

PREFIX = "diffusion_model."


def native_factors(factors, stacks, network):
    """``{layer: Factors}`` of a network as ``{native layer: Factors}``.

    ``stacks``: for each native layer the layers of the network that are stacked in it, from its first row; a layer
    among them without an adapter stays as it is.
    """
    native = {}
    for name, layers in stacks.items():
        if len(layers) == 1:
            native[name] = factors[layers[0]]
        else:
            rows = [network.get_submodule(layer).out_features for layer in layers]
            native[name] = _stacked([factors.get(layer) for layer in layers], rows)
    return native


def _stacked(parts, rows):
    """Several layers over the same inputs as one: all ``down`` below each other, each ``up`` in a block of its own."""
    there = [part for part in parts if part is not None]
    down = torch.cat([part.down for part in there])
    up, top, left = down.new_zeros(sum(rows), len(down)), 0, 0
    for part, height in zip(parts, rows):
        if part is not None:
            width = part.up.shape[1]
            up[top : top + height, left : left + width] = part.up
            left += width
        top += height
    # The rank grows, so alpha / rank falls; up makes up for it, and every layer keeps the one alpha of the recipe.
    return Factors(down, up * len(there), there[0].alpha)


def save_lora(path, factors, *, dtype, metadata):
    """Write ``{native layer: Factors}`` with ``.lora_A.weight``, ``.lora_B.weight`` and ``.alpha`` for each.

    The alpha, always written and in float32, makes strength 1.0 the strength of training. Raises RMDError when the file
    cannot be written, or when a weight is not finite, in training or in ``dtype``.
    """
    tensors = {}
    for layer, value in factors.items():
        for name, tensor in ((f"{layer}.lora_A.weight", value.down), (f"{layer}.lora_B.weight", value.up)):
            tensors[PREFIX + name] = cast_weight(name, tensor, dtype, path)
        tensors[f"{PREFIX}{layer}.alpha"] = torch.tensor(value.alpha, dtype=torch.float32)
    save_safetensors(path, tensors, metadata)


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
    metadata = student_metadata(student_recipe(setup, update=update), title=setup.config.output.name)
    setup.backbone.export(network, path, dtype=_dtype(setup), metadata=metadata)


def export_lora(setup, network, factors, path, *, update):
    """Write the student as a LoRA ``{layer name: Factors}`` for the base ``network``, as ``export_student`` does."""
    recipe = student_recipe(setup, update=update, adapter_alpha=setup.config.model.alpha)
    metadata = student_metadata(recipe, title=setup.config.output.name)
    stacks = dict(setup.backbone.native_layer(network, layer) for layer in factors)
    save_lora(path, native_factors(factors, stacks, network), dtype=_dtype(setup), metadata=metadata)


def _dtype(setup):
    return getattr(torch, setup.config.output.dtype)

"""Students as the demo samples them: by the recipe in their own file."""

import torch

from rmd_core.recipe import read_recipe

from .sampling import Way


def student_way(title, path, backbone):
    """The Way that the recipe of a student's file asks for. Raises RMDError for a file without a recipe."""
    recipe = read_recipe(path)
    return Way(
        title=title,
        network=backbone.load(path, dtype=torch.float32),
        plan=recipe.plan(),
        boundary=recipe.boundary(),
        eta=recipe.eta,
        guidance=recipe.cfg,
    )

"""The types of our own that travel on wires."""

from comfy_api.latest import io

Plan = io.Custom("RMD_PLAN")
"""A `SamplingPlan`: what runs at which size and level, and by which rules."""

Recipe = io.Custom("RMD_RECIPE")
"""A `Recipe`, read from a student's file."""

Overrides = io.Custom("RMD_OVERRIDES")
"""A tuple of `StageOverride`s: what one stage does otherwise than the plan."""

CATEGORY = "RMD"

"""Nodes that were renamed or whose inputs moved, so that ComfyUI mends older workflows when it opens or runs them."""

from collections.abc import Iterable

from comfy_api.latest import ComfyAPI, io

RENAMES: tuple[io.NodeReplace, ...] = ()
"""One entry for each old node id, never taken out again. None yet: no node has changed since the first version.

An entry names the old and the new id, the old widgets in their order, and which old input and output is which new one:

    io.NodeReplace(
        new_node_id="RMD_Sampler",
        old_node_id="RMD_CascadeSampler",
        old_widget_ids=["seed", "cfg"],
        input_mapping=[{"new_id": "latent_image", "old_id": "latent"}, {"new_id": "cfg", "set_value": 1.0}],
        output_mapping=[{"new_idx": 0, "old_idx": 0}],
    )
"""


async def register_renames(renames: Iterable[io.NodeReplace] = RENAMES) -> None:
    """Tell ComfyUI of every entry."""
    for rename in renames:
        await ComfyAPI().node_replacement.register(rename)

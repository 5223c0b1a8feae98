"""The extension that ComfyUI loads: every node of the pack, and the folders it reads from."""

from comfy_api.latest import ComfyExtension, io

from .folders import offer_folders
from .load_prompts import LoadPromptEmbeddings
from .load_student import LoadStudent

NODES: list[type[io.ComfyNode]] = [LoadStudent, LoadPromptEmbeddings]


class RMDExtension(ComfyExtension):
    """The node pack as ComfyUI sees it."""

    async def on_load(self) -> None:
        offer_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


async def comfy_entrypoint() -> RMDExtension:
    """What ComfyUI calls once at its start."""
    return RMDExtension()

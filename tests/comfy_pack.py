"""The repository imported as ComfyUI imports a custom node pack, in this process and without its server."""

import asyncio
import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = "rmd_pack"  # ComfyUI makes a name from the folder's path; any name that no other module has will do


class Package:
    """A package whose submodules are imported when they are asked for: `pack.nodes.plan_nodes`."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        try:
            found = getattr(self._module, name)
        except AttributeError:
            found = importlib.import_module(f"{self._module.__name__}.{name}")
        return Package(found) if hasattr(found, "__path__") else found


def import_pack():
    """The Package of the repository's root, as `nodes.load_custom_node` of ComfyUI imports a folder."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        if (ROOT / "__init__.py").exists():
            spec.loader.exec_module(module)
    return Package(sys.modules[NAME])


def node_classes(pack):
    """Every node class by its id, after the extension's `on_load`, as ComfyUI collects them."""

    async def collect():
        extension = await pack.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(collect())}

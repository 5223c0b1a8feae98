"""Few-step, multi-resolution sampling in ComfyUI: the entry point of the node pack."""

from .nodes.extension import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

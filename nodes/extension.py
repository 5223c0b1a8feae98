"""The extension that ComfyUI loads: every node of the pack, and the folders it reads from."""

from comfy_api.latest import ComfyExtension, io

from .folders import register_folders
from .loader_nodes import RMDLoadPromptEmbeddings, RMDLoadStudent
from .plan_nodes import RMDSchedule
from .sampler_nodes import (
    RMDGuider,
    RMDSampler,
    RMDSamplerAdvanced,
    RMDStageOverride,
    RMDStepSampler,
    RMDUpsampler,
)
from .stage_nodes import RMDNoise, RMDStageSigmas, RMDStageUpscale

NODES: tuple[type[io.ComfyNode], ...] = (
    RMDLoadStudent,
    RMDLoadPromptEmbeddings,
    RMDSchedule,
    RMDSampler,
    RMDSamplerAdvanced,
    RMDGuider,
    RMDStageOverride,
    RMDStepSampler,
    RMDUpsampler,
    RMDStageSigmas,
    RMDStageUpscale,
    RMDNoise,
)


class RMDExtension(ComfyExtension):
    """The node pack as ComfyUI sees it."""

    async def on_load(self) -> None:
        register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


async def comfy_entrypoint() -> RMDExtension:
    """What ComfyUI calls once at its start."""
    return RMDExtension()

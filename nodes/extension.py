"""The extension that ComfyUI loads: every node of the pack, and the folders it reads from."""

from comfy_api.latest import ComfyExtension, io

from .folders import offer_folders
from .guider import RMDGuider
from .load_prompts import RMDLoadPromptEmbeddings
from .load_student import RMDLoadStudent
from .noise import RMDNoise
from .renames import register_renames
from .sampler import RMDSampler
from .sampler_advanced import RMDSamplerAdvanced
from .schedule import RMDSchedule
from .stage_override import RMDStageOverride
from .stage_sigmas import RMDStageSigmas
from .stage_upscale import RMDStageUpscale
from .step_sampler import RMDStepSampler

NODES: tuple[type[io.ComfyNode], ...] = (
    RMDLoadStudent,
    RMDLoadPromptEmbeddings,
    RMDSchedule,
    RMDSampler,
    RMDSamplerAdvanced,
    RMDGuider,
    RMDStageOverride,
    RMDStepSampler,
    RMDStageSigmas,
    RMDStageUpscale,
    RMDNoise,
)


class RMDExtension(ComfyExtension):
    """The node pack as ComfyUI sees it."""

    async def on_load(self) -> None:
        offer_folders()
        await register_renames()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


async def comfy_entrypoint() -> RMDExtension:
    """What ComfyUI calls once at its start."""
    return RMDExtension()

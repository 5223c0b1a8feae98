"""What a ComfyUI MODEL is to RMD: how it writes noisy states, its noise curve, its latents, the sizes it takes."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from ...rmd_core.errors import RMDError
from ...rmd_core.schedule import FlowCurve, LogFlowCurve, NoiseCurve, VPCurve


def class_names(value: Any) -> tuple[str, ...]:
    """The name of an object's class, then of those it derives from, the nearest first."""
    return _names_of(type(value))


@lru_cache(maxsize=64)
def _names_of(kind: type) -> tuple[str, ...]:
    return tuple(base.__name__ for base in kind.__mro__)


@dataclass(frozen=True)
class NoiseForm:
    """States and predicted noise in ComfyUI's own terms, at its sigma.

    Flow: `x = sigma s eps + (1 - sigma) x0` with the model's noise scale s (1 for almost all). Others, and Cosmos' flow
    too, in ComfyUI's variance-exploding form: `x = x0 + sigma eps`. All tensors are in the model's own latent space, of
    any rank.
    """

    flow: bool
    scale: float = 1.0

    @classmethod
    def of(cls, model: Any) -> NoiseForm:
        """The form of a MODEL."""
        return cls.of_sampling(model.get_model_object("model_sampling"))

    @classmethod
    def of_sampling(cls, sampling: Any) -> NoiseForm:
        """The form of a MODEL's `model_sampling`."""
        flow = "CONST" in class_names(sampling)
        return cls(flow, float(getattr(sampling, "noise_scale", 1.0)) if flow else 1.0)

    def state(self, x0: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The state at sigma of a clean image and noise."""
        noise = eps if self.scale == 1.0 else self.scale * eps
        return (1.0 - sigma) * x0 + sigma * noise if self.flow else x0 + sigma * noise

    def eps(self, x: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The noise in a state at sigma > 0, given its clean image."""
        return (x - (1.0 - sigma) * x0) / (sigma * self.scale) if self.flow else (x - x0) / sigma

    def unscaled(self, output: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The state at sigma < 1 that a sampler node put out: core divides a flow's last state by 1 - sigma."""
        return output * (1.0 - sigma) if self.flow else output


RMD_SHIFTS = {"WAN21": 3.0}
"""Flow shift of the first size that RMD uses for a family: Wan's own at 480p (docs/method/method.md, noise levels)."""

FLOW = "flow"
SCALED_LINEAR = "scaled-linear betas"
LINEAR = "linear betas"


@cache
def vp_tables() -> dict[str, VPCurve]:
    """The noise tables of SDXL and of PixArt, by name; made when first asked for."""
    return {SCALED_LINEAR: VPCurve.scaled_linear(0.00085, 0.012), LINEAR: VPCurve.linear(1e-4, 0.02)}


@dataclass(frozen=True)
class ModelKind:
    """What a plan must fit: a model's family, its noise table (`flow`, or the name of a VP table) and its latents.

    `name` is ComfyUI's class of the model; the family is what it says before an underscore, so that a plan for WAN21
    also runs WAN21_Vace, and one for Wan does not run Qwen-Image, which shares its latents. shift is the flow shift
    of its loader, None without one: it tells apart models of one class, such as Flux dev and schnell.
    """

    name: str = field(compare=False)
    table: str
    latents: str
    shift: float | None = None
    family: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.name.partition("_")[0])

    def __str__(self) -> str:
        shift = "" if self.shift is None else f" of shift {self.shift:.4g}"
        return f"{self.name} ({self.latents} latents, {self.table}{shift})"


class Family(NamedTuple):
    """How ModelSpec architectures of a family begin, and ComfyUI's class of the same models."""

    title: str
    architectures: tuple[str, ...]
    network: str


FAMILIES = (
    Family("Wan2.1", ("wan2.1", "wan-2.1"), "WAN21"),
    Family("Wan2.2 A14B", ("wan2.2-a14b",), "WAN21"),
    Family("Wan2.2 5B", ("wan2.2-5b",), "WAN22"),
    Family("Stable Diffusion XL", ("stable-diffusion-xl",), "SDXL"),
    Family("Stable Diffusion 3", ("stable-diffusion-v3", "stable-diffusion-3"), "SD3"),
    Family("PixArt", ("pixart",), "PixArt"),
    Family("Flux", ("flux-1", "flux.1"), "Flux"),
    Family("FLUX.2", ("flux.2", "flux-2"), "Flux2"),
    Family("Qwen-Image", ("qwen-image",), "QwenImage"),
    Family("Z-Image", ("z-image",), "Lumina2"),
)


def family_of(architecture: str) -> Family | None:
    """The family of a ModelSpec architecture such as `wan2.1` or `stable-diffusion-xl-v1-base/lora`."""
    name = architecture.lower()
    return next((family for family in FAMILIES if name.startswith(family.architectures)), None)


@dataclass(frozen=True)
class ModelView:
    """Facts about one loaded model, read from it and never written to it.

    curve is the model's own, with the shift of its loader or of a node that `patched` its noise. dimensions (2 for
    images, 3 with time) and cell_px describe its latents; multiple is the patch size in cells to which stages are
    rounded. rmd_shift is the flow shift RMD uses for the family, None where it knows none and for VP models.
    """

    kind: ModelKind
    curve: NoiseCurve
    dimensions: int
    cell_px: int
    multiple: int
    rmd_shift: float | None
    patched: bool
    network: Any

    @classmethod
    def of(cls, model: Any) -> ModelView:
        """Read a MODEL; RMDError for a kind of noise that has no curve here."""
        sampling = model.get_model_object("model_sampling")
        latents = model.get_model_object("latent_format")
        name = type(model.model).__name__
        if name == "BaseModel":  # core's first models have no class of their own
            name = type(model.model.model_config).__name__
        if latents.latent_dimensions not in (2, 3) or "Audio" in type(latents).__name__:
            raise RMDError(f"{name} has latents without height and width; use a model for images or videos")
        curve, table = _curve(sampling, name)
        network = model.get_model_object("diffusion_model")
        flow = curve.kind == "flow"
        kind = ModelKind(name, table, type(latents).__name__, _loader_shift(model.model) if flow else None)
        return cls(
            kind=kind,
            curve=curve,
            dimensions=latents.latent_dimensions,
            cell_px=int(getattr(latents, "spacial_downscale_ratio", 8)),
            multiple=_multiple(model.model.model_config.unet_config, network),
            rmd_shift=RMD_SHIFTS.get(kind.family) if flow else None,
            patched="model_sampling" in getattr(model, "object_patches", {}),
            network=network,
        )

    def check_size(self, size_hw: tuple[int, int]) -> None:
        """Raise RMDError for a stage size (height, width in cells) at which ComfyUI's network would fail."""
        height, width = size_hw
        px = self.cell_px
        shown = f"{width * px}x{height * px}"
        if self.kind.name.startswith("PixArt") and (height % 2 or width % 2 or (height + width) / 2 <= 32):
            raise RMDError(
                f"PixArt cannot run a stage of {shown} px in ComfyUI; sides must be multiples of "
                f"{2 * px} px and their mean above {32 * px} px: choose larger stages, such as 512x512 before 1024x1024"
            )
        patches = getattr(self.network, "patch_embed", None)
        if getattr(patches, "use_learned_positional_embeddings", False):  # CogVideoX-5b-I2V, at others silently wrong
            own = patches.sample_height, patches.sample_width
            if size_hw != own:
                raise RMDError(
                    f"a stage of {shown} px is not {own[1] * px}x{own[0] * px} px, the one size that this model has "
                    "learned positions for; run it in one stage of that size, or take a model with rotary positions"
                )
        table = getattr(self.network, "pos_embed_max_size", None)
        if table is None or getattr(self.network, "pos_embed", None) is None:
            return
        if math.ceil(max(size_hw) / self.multiple) > table:
            raise RMDError(
                f"a stage of {shown} px is beyond this model's position table; "
                f"use at most {table * self.multiple * px} px a side"
            )

    def relative_cost(self, height: int, width: int, frames: int = 1) -> float:
        """Cost of a call in arbitrary units: linear layers and attention by tokens, or the area for a UNet.

        Per token and block a transformer of width d spends about 12 d^2 multiplications in linear layers and 2 n d in
        attention over n tokens.
        """
        tokens = frames * math.ceil(height / self.multiple) * math.ceil(width / self.multiple)
        hidden = _hidden_width(self.network)
        return float(height * width * frames) if hidden is None else tokens * (6.0 * hidden + tokens)


def with_video_shift(guider: Any, shift: float) -> Any:
    """A guider whose model's video has this flow shift while its sound keeps its own; others as they are.

    MiniMax H3 has a shift for each, and reads the level of the sound off that of the video and both shifts. The shift
    of the video follows the stage's size; so the sound stays on its own levels.
    """
    model = guider.model_patcher
    sampling = model.get_model_object("model_sampling")
    audio_shift = getattr(sampling, "audio_shift", None)
    if not audio_shift or math.isclose(sampling.shift, shift, rel_tol=1e-9):
        return guider
    own = copy.deepcopy(sampling)
    own.set_parameters(shift=shift, audio_shift=audio_shift, multiplier=sampling.multiplier)
    patched = model.clone()
    patched.add_object_patch("model_sampling", own)
    shifts = {"minimax_h3_sigma_shift_video": shift, "minimax_h3_sigma_shift_audio": audio_shift}
    changed = copy.copy(guider)
    changed.model_patcher = patched
    options = getattr(guider, "model_options", model.model_options)
    changed.model_options = {**options, "transformer_options": {**options.get("transformer_options", {}), **shifts}}
    return changed


def references_on_grid(model: Any) -> bool:
    """Whether a MODEL puts reference latents on the grid of its own latents, as Wan does; others take any size."""
    return "WAN21" in class_names(model.model)


_LOADER_SHIFTS: WeakKeyDictionary[Any, float] = WeakKeyDictionary()


def _loader_shift(network: Any) -> float:
    """The flow shift from a model's loader, ignoring the patches of later nodes."""
    import comfy.model_base  # not at the top: the page of profiles is made without a ComfyUI

    if network not in _LOADER_SHIFTS:  # ComfyUI makes a whole table for it
        sampling = comfy.model_base.model_sampling(network.model_config, network.model_type)
        _LOADER_SHIFTS[network] = _flow_shift(sampling)
    return _LOADER_SHIFTS[network]


def _flow_shift(sampling: Any) -> float:
    shift = float(getattr(sampling, "shift", 1.0))
    return math.exp(shift) if "ModelSamplingFlux" in class_names(sampling) else shift


def _curve(sampling: Any, name: str) -> tuple[NoiseCurve, str]:
    kinds = set(class_names(sampling))
    if "CONST" in kinds and "IMG_TO_IMG_FLOW" not in kinds:
        return FlowCurve(_flow_shift(sampling), NoiseForm.of_sampling(sampling).scale), "flow"
    if {"COSMOS_RFLOW", "ModelSamplingCosmosRFlow"} <= kinds:
        curve = LogFlowCurve(float(sampling.sigma_min), float(sampling.sigma_max))
        return curve, f"flow of sigma {curve.least:.4g} to {curve.most:.4g}"
    discrete = "ModelSamplingDiscrete" in kinds and "ModelSamplingDiscreteEDM" not in kinds
    if discrete and kinds & {"EPS", "V_PREDICTION", "V_PREDICTION_DDPM"} and not kinds & {"X0", "EDM"}:
        try:
            return _vp_curve(sampling.sigmas)
        except RMDError:  # a schedule without betas, such as Stable Cascade's
            pass
    own = " and ".join(base.__name__ for base in type(sampling).__bases__)
    raise RMDError(
        f"the noise of {name} is {own}, for which RMD has no logSNR curve; use a model of rectified flow (CONST or "
        "COSMOS_RFLOW), or one that predicts EPS or V_PREDICTION on a ModelSamplingDiscrete table"
    )


def _vp_curve(comfy_sigmas: torch.Tensor) -> tuple[VPCurve, str]:
    """The curve of a table of sigma / alpha; a well-known table is recognised, and then exact in float64."""
    table = -2.0 * torch.log(comfy_sigmas.cpu().double())
    for name, curve in vp_tables().items():
        if curve.table_size == len(table) and torch.allclose(curve.table_logsnr, table, atol=1e-4, rtol=0.0):
            return curve, name
    alpha_bar = torch.sigmoid(table)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    betas = (1.0 - alpha_bar / before).tolist()
    return VPCurve(tuple(betas)), f"own table of {len(betas)} ending at logSNR {table[-1]:.3f}"


def same_noise(curve: NoiseCurve, other: NoiseCurve) -> bool:
    """Whether two curves are of one kind and, for VP models, of one table (flow shifts may differ)."""
    if isinstance(curve, VPCurve) and isinstance(other, VPCurve):
        mine, theirs = curve.table_logsnr, other.table_logsnr
        return len(mine) == len(theirs) and torch.allclose(mine, theirs, atol=1e-3, rtol=0.0)
    return curve.kind == other.kind


def _multiple(config: dict[str, Any], network: Any) -> int:
    for name in ("patch_size", "patch_spatial", "patch"):
        patch = getattr(network, name, None)
        patch = patch[-1] if isinstance(patch, (tuple, list)) else patch
        if isinstance(patch, int):
            return patch
    return 2 ** (len(config["channel_mult"]) - 1) if "channel_mult" in config else 1


def _hidden_width(network: Any) -> int | None:
    for name in ("dim", "hidden_size", "inner_dim"):
        width = getattr(network, name, None)
        if isinstance(width, int):
            return width
    return None

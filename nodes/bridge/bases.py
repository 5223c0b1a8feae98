"""Base models that students come from: the families ComfyUI knows, and the sizes by which one is told from another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .class_names import class_names


@dataclass(frozen=True)
class Family:
    """A ModelSpec architecture (its beginning) and ComfyUI's class of the same models."""

    title: str
    architectures: tuple[str, ...]
    network: str


@dataclass(frozen=True)
class Structure:
    """What tells models of one family apart; `variant` is what width and depth leave open, and may be empty."""

    network: str
    width: int
    depth: int
    variant: str = ""

    def __str__(self) -> str:
        tail = f", {self.variant}" if self.variant else ""
        return f"{self.network} of width {self.width}, depth {self.depth}{tail}"


@dataclass(frozen=True)
class Base:
    """A published base: its structure, and the words of which one set, all together, is in its file's or id's name."""

    title: str
    structure: Structure
    words: tuple[tuple[str, ...], ...]


FAMILIES = (
    Family("Wan2.1", ("wan2.1", "wan-2.1"), "WAN21"),
    Family("Stable Diffusion XL", ("stable-diffusion-xl",), "SDXL"),
    Family("Stable Diffusion 3", ("stable-diffusion-v3", "stable-diffusion-3"), "SD3"),
    Family("PixArt", ("pixart",), "PixArt"),
    Family("Flux", ("flux-1", "flux.1"), "Flux"),
)

_SD3 = ("stablediffusion3", "sd3")
_SD35 = ("stablediffusion35", "sd35")

# The more specific of two bases whose words could both match stands first.
BASES = (
    Base("the demo's rmd_tiny_wan_teacher", Structure("WAN21", 128, 8, "16 channels in"), (("rmdtinywanteacher",),)),
    Base("Wan2.2 A14B text-to-video", Structure("WAN21", 5120, 40, "16 channels in"), (("wan22", "t2v"),)),
    Base("Wan2.2 A14B image-to-video", Structure("WAN21", 5120, 40, "36 channels in"), (("wan22", "i2v"),)),
    Base("Wan2.1 14B image-to-video", Structure("WAN21", 5120, 40, "36 channels in"), (("wan21", "i2v"),)),
    Base("Wan2.1 1.3B text-to-video", Structure("WAN21", 1536, 30, "16 channels in"), (("wan21", "t2v", "13b"),)),
    Base("Wan2.1 14B text-to-video", Structure("WAN21", 5120, 40, "16 channels in"), (("wan21", "t2v", "14b"),)),
    Base("SDXL Turbo", Structure("SDXL", 320, 24), (("sdxlturbo",),)),
    Base("SDXL base 1.0", Structure("SDXL", 320, 24), (("sdxlbase",), ("stablediffusionxlbase",))),
    Base(
        "Stable Diffusion 3.5 Large Turbo",
        Structure("SD3", 2432, 38, "query-key norm"),
        tuple((name, "largeturbo") for name in _SD35),
    ),
    Base(
        "Stable Diffusion 3.5 Large", Structure("SD3", 2432, 38, "query-key norm"), tuple((n, "large") for n in _SD35)
    ),
    Base(
        "Stable Diffusion 3.5 Medium",
        Structure("SD3", 1536, 24, "query-key norm, dual attention"),
        tuple((n, "medium") for n in _SD35),
    ),
    Base("Stable Diffusion 3 Medium", Structure("SD3", 1536, 24), tuple((f"{name}medium",) for name in _SD3)),
    Base("PixArt-Sigma XL 1024", Structure("PixArt", 1152, 28, "sigma"), (("pixartsigmaxl21024",),)),
    Base("PixArt-Sigma XL 512", Structure("PixArt", 1152, 28, "sigma"), (("pixartsigmaxl2512",),)),
    Base("PixArt-alpha XL 1024", Structure("PixArt", 1152, 28, "alpha"), (("pixartxl21024",),)),
)


def family_of(architecture: str) -> Family | None:
    """The family of a ModelSpec architecture such as `wan2.1` or `stable-diffusion-xl-v1-base/lora`."""
    name = architecture.lower()
    return next((family for family in FAMILIES if name.startswith(family.architectures)), None)


def known_base(name: str) -> Base | None:
    """The base that a Hugging Face id or a file name means, None for one that is not in the table."""
    plain = plain_name(name)
    return next((base for base in BASES if any(all(word in plain for word in words) for words in base.words)), None)


def bases_of(structure: Structure) -> str:
    """The titles of all bases of one structure, for a message; empty when none is in the table."""
    return " or ".join(base.title for base in BASES if base.structure == structure)


def plain_name(name: str) -> str:
    """A model's name without owner, ending, case and punctuation, so that the ways of writing it compare as equal."""
    last = re.split(r"[/\\]", name.strip())[-1].lower()
    last = re.sub(r"\.(safetensors|sft|gguf)$", "", last)
    return re.sub(r"[^a-z0-9]", "", last.removesuffix("-diffusers"))


def is_a(model: Any, network: str) -> bool:
    """Whether a MODEL is of ComfyUI's model class of that name, or of one derived from it."""
    return network in class_names(model.model)


def structure_of(model: Any) -> Structure | None:
    """The structure of a MODEL as its loader detected it; None for a family without a reader here."""
    config = model.model.model_config.unet_config
    for network, read in _READERS.items():
        if is_a(model, network):
            try:
                return Structure(network, *read(config))
            except (KeyError, TypeError):
                return None
    return None


def _wan(config: dict[str, Any]) -> tuple[int, int, str]:
    return config["dim"], config["num_layers"], f"{config['in_dim']} channels in"


def _sdxl(config: dict[str, Any]) -> tuple[int, int]:
    return config["model_channels"], sum(config["transformer_depth"])


def _sd3(config: dict[str, Any]) -> tuple[int, int, str]:
    marks = [("query-key norm", config.get("qk_norm")), ("dual attention", config.get("x_block_self_attn_layers"))]
    return 64 * config["depth"], config["depth"], ", ".join(name for name, there in marks if there)


def _pixart(config: dict[str, Any]) -> tuple[int, int, str]:
    return config["hidden_size"], config["depth"], config["image_model"].removeprefix("pixart_")


_READERS = {"WAN21": _wan, "SDXL": _sdxl, "SD3": _sd3, "PixArt": _pixart}

"""The inputs that several nodes ask for, written once."""

from comfy_api.latest import io

from ..rmd_core.boundary import Boundary
from ..rmd_core.renoise import SWITCH_NOISES
from ..rmd_core.upsample import UPSAMPLERS
from .sockets import Overrides

USUAL = Boundary()


def boundary_inputs(*, advanced: bool | None = None) -> list[io.Input]:
    """Widgets whose values are the arguments of `Boundary`, with its defaults; folded away where `advanced`."""
    return [
        io.Combo.Input(
            "upsampler",
            options=list(UPSAMPLERS),
            default=USUAL.upsampler,
            advanced=advanced,
            tooltip="How the clean estimate is enlarged. A student wants the one it was trained with.",
        ),
        io.Combo.Input(
            "switch_noise",
            options=list(SWITCH_NOISES),
            default=USUAL.switch_noise,
            advanced=advanced,
            tooltip=(
                "Noise at the larger size. exact: predicted and fresh noise, white at any ratio. "
                "mix: interpolated predicted noise and fresh noise. fresh: new noise alone."
            ),
        ),
        io.Float.Input(
            "eta_switch",
            default=USUAL.eta_switch,
            min=0.0,
            max=1.0,
            step=0.05,
            advanced=advanced,
            tooltip="Share of predicted noise at the switch: 0 is all fresh, 1 all predicted. Not used by fresh.",
        ),
    ]


def seed_input(name: str, tooltip: str) -> io.Int.Input:
    """The seed of a cascade, as core's sampler nodes ask for theirs."""
    return io.Int.Input(name, default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip)


def size_inputs(picture: str, condition: str = "") -> list[io.Int.Input]:
    """Width and height of a `picture` in pixels; `condition` is a sentence on when they count."""
    return [
        io.Int.Input(
            side,
            default=1024,
            min=16,
            max=16384,
            step=8,
            tooltip=f"{side.capitalize()} of the {picture} in pixels.{condition}",
        )
        for side in ("width", "height")
    ]


def latent_image_input() -> io.Latent.Input:
    """The latent that a cascade is sampled into."""
    return io.Latent.Input(
        "latent_image", tooltip="A latent of the final size: empty, or a picture to start from or to paint into."
    )


def stage_inputs() -> list[io.Input]:
    """What single stages do otherwise; both are optional."""
    return [
        io.Guider.Input(
            "later_guider",
            optional=True,
            tooltip=(
                "For every stage but the first, such as another model, LoRA or conditioning with full-size pictures. "
                "Without it one guider does all stages."
            ),
        ),
        Overrides.Input("overrides", optional=True, tooltip="Settings of single stages, from RMD Stage Override."),
    ]

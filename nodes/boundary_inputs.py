"""The inputs of a boundary rule, the same on every node that asks for one."""

from comfy_api.latest import io

from ..rmd_core.boundary import Boundary
from ..rmd_core.renoise import SWITCH_NOISES
from ..rmd_core.upsample import UPSAMPLERS

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

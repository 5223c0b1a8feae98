"""The dynamic choice of RMD Schedule: what each plan source asks for."""

from comfy_api.latest import io

from ..rmd_core.presets import PRESETS
from .plan_sources import PROFILE, RECIPE, SPLIT, THRESHOLDS, profile_titles
from .plan_widgets import AUTO, MAPPINGS
from .sockets import Recipe


def source_input() -> io.DynamicCombo.Input:
    """The input `source`; the values of an option are the keyword arguments of its function in `plan_sources`."""
    # ComfyUI's page (1.49.6) cannot make the node if its first option holds a socket and no widget.
    options = [
        io.DynamicCombo.Option(THRESHOLDS, [*_thresholds(), _earlier_sizes(), *_method()]),
        io.DynamicCombo.Option(SPLIT, [_split("2+2"), _sigmas(), _earlier_sizes(), *_method()]),
        io.DynamicCombo.Option(RECIPE, [Recipe.Input("recipe", tooltip="The recipe of RMD Load Student.")]),
        io.DynamicCombo.Option(PROFILE, [*_profile(), _earlier_sizes()]),
    ]
    return io.DynamicCombo.Input(
        "source",
        options=options,
        tooltip=(
            "Where the plan comes from: a student's own recipe, logSNR thresholds, a split given outright, "
            "or the settings of a public few-step model."
        ),
    )


def _split(default: str) -> io.String.Input:
    return io.String.Input(
        "split",
        default=default,
        tooltip="Steps at each size, smallest first, such as 2+2 or 1+1+2. A profile also takes auto: its own split.",
    )


def _earlier_sizes() -> io.String.Input:
    return io.String.Input(
        "earlier_sizes",
        default="0.5",
        tooltip=(
            "Sizes of the stages before the last, with commas: factors of the final sides (0.5) or "
            "width x height in pixels (832x480). Empty for a plan of one size."
        ),
    )


def _sigmas() -> io.String.Input:
    return io.String.Input(
        "sigmas",
        default="",
        advanced=True,
        tooltip="ComfyUI's sigma of each step, as the first size names it, falling. Empty: the curve's own grid.",
    )


def _thresholds() -> list[io.Input]:
    return [
        io.Int.Input("steps", default=4, min=1, max=1000, tooltip="Network calls in all."),
        io.String.Input(
            "thresholds",
            default="-2.5",
            tooltip=(
                "logSNR at which the next size takes over, rising, one for each earlier size. "
                "-2.5 gives 2+2 for SDXL, PixArt and SD3.5 at 4 steps and 3+3 for Wan at 6."
            ),
        ),
    ]


def _profile() -> list[io.Input]:
    return [
        io.Combo.Input(
            "profile",
            options=profile_titles(),
            tooltip="A public few-step model with its own levels. These models were not distilled for the cascade.",
        ),
        _split("auto"),
    ]


def _method() -> list[io.Input]:
    return [
        io.Combo.Input(
            "mapping",
            options=list(MAPPINGS),
            default=AUTO,
            advanced=True,
            tooltip=(
                "How levels move with the size. auto: as the method says; Wan from 480p to 720p by its native shifts, "
                "else by the area."
            ),
        ),
        io.Float.Input(
            "base_shift",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip=(
                "Flow shift of the first size. 0: RMD's 3 for Wan and SD3.5, whatever the loader says; the "
                "model's own for other families. Must be 0 for models without a shift (SDXL, PixArt)."
            ),
        ),
        io.Combo.Input(
            "method",
            options=list(PRESETS),
            default="default",
            advanced=True,
            tooltip="Settings that published variants disagree on: mapping, noise at the switch, eta, upsampler.",
        ),
    ]

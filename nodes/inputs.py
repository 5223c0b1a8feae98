"""What the nodes share: the types of our own, inputs that several nodes have, and the check of values over links."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from numbers import Integral, Real
from typing import Any

import torch
from comfy_api.latest import io

from ..rmd_core.boundary import SWITCH_NOISES, UPSAMPLERS, Boundary
from ..rmd_core.errors import RMDError, short_repr
from ..rmd_core.recipe import Recipe
from .bridge.plans import SamplingPlan
from .bridge.sampling import StageOverride
from .bridge.upsampling import Upsampler

Plan = io.Custom("RMD_PLAN")
"""A `SamplingPlan`: what runs at which size and level, and by which rules."""

RecipeSocket = io.Custom("RMD_RECIPE")
"""A `Recipe`, read from a student's file."""

Overrides = io.Custom("RMD_OVERRIDES")
"""A tuple of `StageOverride`s: settings of one stage that differ from the plan's."""

UpsamplerSocket = io.Custom("RMD_UPSAMPLER")
"""An `Upsampler`: a learned way to enlarge the clean estimate at a switch."""

UpscaleModel = io.Custom("LATENT_UPSCALE_MODEL")
"""Core's latent upscale model; its class is in `io` only since core has some."""

CATEGORY = "RMD"


# Widgets and sockets that several nodes have


def boundary_inputs(*, advanced: bool | None = None) -> list[io.Input]:
    """Widgets whose values are the arguments of `Boundary`, with its defaults; folded away where `advanced`."""
    default = Boundary()
    return [
        io.Combo.Input(
            "upsampler",
            options=list(UPSAMPLERS),
            default=default.upsampler,
            advanced=advanced,
            tooltip="How to enlarge the clean estimate. Use the one the student was trained with.",
        ),
        io.Combo.Input(
            "switch_noise",
            options=list(SWITCH_NOISES),
            default=default.switch_noise,
            advanced=advanced,
            tooltip=(
                "Noise at the larger size. exact: predicted and fresh, white. mix: interpolated predicted and fresh. "
                "fresh: new noise alone."
            ),
        ),
        io.Float.Input(
            "eta_switch",
            default=default.eta_switch,
            min=0.0,
            max=1.0,
            step=0.05,
            advanced=advanced,
            tooltip="Share of predicted noise at the switch: 0 is all fresh, 1 all predicted. fresh ignores it.",
        ),
    ]


def seed_input(name: str, tooltip: str) -> io.Int.Input:
    """The seed of a cascade, as core's sampler nodes have it."""
    return io.Int.Input(name, default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip)


def size_inputs(subject: str, condition: str = "") -> list[io.Int.Input]:
    """Width and height of a `subject` in pixels; `condition` is a sentence on when they count."""
    return [
        io.Int.Input(
            side,
            default=1024,
            min=16,
            max=16384,
            step=8,
            tooltip=f"{side.capitalize()} of the {subject} in pixels.{condition}",
        )
        for side in ("width", "height")
    ]


def latent_image_input() -> io.Latent.Input:
    """The latent that a cascade is sampled into."""
    return io.Latent.Input(
        "latent_image", tooltip="A latent of the final size: empty, or an image to start from or inpaint."
    )


def stage_inputs() -> list[io.Input]:
    """Settings of single stages that differ from the plan's; both are optional."""
    return [
        io.Guider.Input(
            "later_guider",
            optional=True,
            tooltip=(
                "For every stage but the first: another model, LoRA or conditioning. "
                "Without it, one guider runs all stages."
            ),
        ),
        Overrides.Input("overrides", optional=True, tooltip="Settings of single stages, from RMD Stage Override."),
    ]


def upsampler_input() -> io.Input:
    """A learned upsampler in place of the plan's."""
    return UpsamplerSocket.Input(
        "learned_upsampler",
        optional=True,
        tooltip="Connect RMD Upsampler. It replaces the plan's upsampler at each switch.",
    )


def second_model_inputs() -> list[io.Input]:
    """A second model and where it takes over; both are optional."""
    return [
        io.Model.Input(
            "second_model",
            optional=True,
            tooltip="Runs the low noise steps, such as Wan2.2's low noise model. Load its LoRA separately.",
        ),
        io.Float.Input(
            "second_model_sigma",
            default=0.0,
            min=0.0,
            max=100000.0,
            step=0.005,
            round=0.0001,
            optional=True,  # saved workflows from before it have none
            advanced=True,
            tooltip="The second model runs steps below this sigma. 0: Wan2.2's value, 0.875 for text, 0.9 for images.",
        ),
    ]


# The check of values over links


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Decorate a node's `execute` (below `classmethod`): values over links are checked as ComfyUI checks widgets.

    Numbers are passed on as int and float within the limits of their widgets (not NaN), what is required is not None,
    and each socket holds an object of its kind, with finite numbers in it. Inputs that the schema does not name pass
    as they are. Raises RMDError that names the input. Warnings that RMD logs meanwhile are shown on the node.
    """

    @wraps(execute)
    def checked_execute(cls: type[io.ComfyNode], **inputs: Any) -> io.NodeOutput:
        schema = cls.SCHEMA or cls.GET_SCHEMA()
        with _warnings_on_node():
            return execute(cls, **_check_all(schema.inputs, inputs, schema.display_name))

    return checked_execute


class _Warnings(logging.Handler):
    """Keeps the warnings of one thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.texts.append(record.getMessage())


@contextmanager
def _warnings_on_node() -> Iterator[None]:
    """A block whose warnings by this package are also shown as text on the node that ComfyUI is running."""
    handler, package = _Warnings(), logging.getLogger(__package__)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        context = getattr(sys.modules.get("comfy_execution.utils"), "get_executing_context", lambda: None)()
        if handler.texts and server is not None and context is not None:
            server.send_progress_text("\n".join(handler.texts), context.node_id)


def _check_all(entries: list[Any], inputs: dict[str, Any], node: str) -> dict[str, Any]:
    """A copy of the inputs with every one that has an entry checked."""
    result = dict(inputs)
    for entry in entries:
        value = inputs.get(entry.id)
        if value is not None:
            result[entry.id] = _check(entry, value, node)
        elif isinstance(entry, io.DynamicCombo.Input):  # ComfyUI leaves out a choice that it does not know
            choices = ", ".join(repr(option.key) for option in entry.options)
            raise RMDError(f"{entry.id} is not one of the choices of {node}; use {choices}")
        elif entry.id in inputs and not entry.optional:
            raise RMDError(f"{entry.id} of {node} is empty; connect a node that gives one, or type it in")
    return result


def _check(entry: Any, value: Any, node: str) -> Any:
    if isinstance(entry, io.DynamicCombo.Input):
        options = {option.key: option.inputs for option in entry.options}
        chosen = value.get(entry.id) if isinstance(value, dict) else value
        if not isinstance(value, dict) or not isinstance(chosen, str) or chosen not in options:
            raise RMDError(f"{entry.id} of {node} is {_shown(chosen)}; use one of {', '.join(map(repr, options))}")
        for inner in options[chosen]:
            if not inner.optional and value.get(inner.id) is None:
                raise RMDError(f"{entry.id} is {chosen!r}, for which {node} also needs {inner.id}; give it a value")
        return _check_all(options[chosen], value, node)
    if isinstance(entry, (io.Int.Input, io.Float.Input)):
        whole = isinstance(entry, io.Int.Input)
        number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        if not number or not entry.min <= value <= entry.max:
            kind = "a whole number" if whole else "a number"
            raise RMDError(f"{entry.id} is {_shown(value)}; {node} takes {kind} from {entry.min:g} to {entry.max:g}")
        return int(value) if whole else float(value)
    if entry.io_type in _SOCKETS:
        fits, advice = _SOCKETS[entry.io_type]
        if not fits(value):
            raise RMDError(
                f"{entry.id} is {_shown(value)}, which {node} cannot take as {entry.io_type}; "
                f"{advice or f'connect a {entry.io_type}'}"
            )
    return value


def _shown(value: Any) -> str:
    """A value in a message: on one line, cut if it is long; only the type of an object."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a number of more than 60 digits"
    if value is not None and not isinstance(value, (str, bool, int, float)):
        return f"of type {type(value).__name__}"
    return short_repr(value)


def _has(value: Any, *names: str) -> bool:
    return not isinstance(value, type) and all(hasattr(value, name) for name in names)


def _is_model(value: Any) -> bool:
    return _has(value, "get_model_object", "model", "clone")


def _is_conditioning(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or not value:
        return False
    tensors = []
    for entry in value:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2 or not isinstance(entry[1], dict):
            return False
        pooled = entry[1].get("pooled_output")
        for tensor, axes in ((entry[0], 3), *([] if pooled is None else [(pooled, 2)])):
            if not isinstance(tensor, torch.Tensor) or tensor.ndim != axes or not tensor.numel():
                return False
            if not tensor.is_floating_point():
                return False
            tensors.append(tensor)
    return _are_finite(tensors)


def _are_finite(tensors: list[torch.Tensor]) -> bool:
    """Whether all values of all tensors are finite; a device is waited for once.

    No sum with NaN or an infinity in it is finite, and a sum takes a tenth of the time that looking at every value
    does. Where a sum is not, it may have overflown, and every value is looked at.
    """
    sums: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        sums.setdefault(tensor.device, []).append(tensor.sum().float())
    if all(bool(torch.isfinite(torch.stack(parts).sum())) for parts in sums.values()):
        return True
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _is_latent(value: Any) -> bool:
    samples = value.get("samples") if isinstance(value, dict) else None
    return isinstance(samples, torch.Tensor) or getattr(samples, "is_nested", False)


def _is_sigmas(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 1 and bool(torch.isfinite(value).all())


def _is_upscale_model(value: Any) -> bool:
    return _has(value, "model") and (hasattr(value, "resample_latent") or _has(value, "model_dtype", "load_device"))


def _are_overrides(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, StageOverride) for one in value)


_SOCKETS: dict[str, tuple[Callable[[Any], bool], str]] = {
    io.String.io_type: (lambda value: isinstance(value, str), "connect text, or type it in"),
    io.Combo.io_type: (lambda value: isinstance(value, str), "choose one of the list"),
    io.Model.io_type: (_is_model, ""),
    io.Conditioning.io_type: (_is_conditioning, "connect at least one prompt, encoded to finite numbers"),
    io.Latent.io_type: (_is_latent, "connect an empty latent or an encoded image"),
    io.Sigmas.io_type: (_is_sigmas, "connect a list of finite sigmas, such as that of RMD Stage Sigmas"),
    io.Noise.io_type: (lambda one: _has(one, "generate_noise", "seed") and isinstance(one.seed, Integral), ""),
    io.Guider.io_type: (lambda one: _has(one, "sample", "model_patcher") and _is_model(one.model_patcher), ""),
    io.Sampler.io_type: (lambda one: _has(one, "sample") and not hasattr(one, "model_patcher"), ""),
    Plan.io_type: (lambda value: isinstance(value, SamplingPlan), "connect the plan of RMD Schedule"),
    RecipeSocket.io_type: (lambda value: isinstance(value, Recipe), "connect the recipe of RMD Load Student"),
    Overrides.io_type: (_are_overrides, "connect RMD Stage Override"),
    UpsamplerSocket.io_type: (lambda value: isinstance(value, Upsampler), "connect RMD Upsampler"),
    UpscaleModel.io_type: (_is_upscale_model, "connect Load Latent Upscale Model"),
    io.Vae.io_type: (lambda one: _has(one, "decode", "encode", "first_stage_model"), ""),
}
"""ComfyUI's type -> the check of a linked value, and the advice on what to connect."""

"""The network calls of a sampler: which of two models makes them, their record, and a change of model inside a stage.

Experts by noise level, such as those of Wan2.2 A14B, are two networks for one path: one above a sigma, one below it.
"""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.sampler_helpers
import torch

from ...rmd_core.errors import RMDError
from ...rmd_core.experts import is_low
from .model import ModelView

WAN22_SIGMAS = {16: 0.875, 36: 0.9}
"""Channels that Wan2.2 A14B takes, for text and for an image -> the sigma below which its second model takes over.

Source: `boundary` in wan/configs/wan_t2v_A14B.py and wan_i2v_A14B.py of github.com/Wan-Video/Wan2.2.
"""


@dataclass(frozen=True)
class SecondModel:
    """A MODEL that makes every network call below `sigma`: ComfyUI's own, at the size of the call."""

    model: Any
    sigma: float

    @classmethod
    def of(cls, model: Any, sigma: float, first: Any) -> SecondModel:
        """The second MODEL beside `first`; at sigma 0 it takes over where Wan2.2's does.

        Raises RMDError where sigma is 0 and the models are not Wan2.2's, or where the two are of different kinds.
        """
        kind, other = ModelView.of(first).kind, ModelView.of(model).kind
        config, others = (one.model.model_config.unet_config for one in (first, model))
        if kind != other:
            raise RMDError(f"the first model is {kind}, the second {other}; connect two models of one kind")
        if config.get("in_dim") != others.get("in_dim"):
            raise RMDError(
                f"the first model takes {config.get('in_dim')} channels, the second {others.get('in_dim')}; "
                "connect two models of one kind, both for text to video or both for image to video"
            )
        if not sigma:
            wan = kind.name == "WAN21" and kind.latents == "Wan21" and config.get("model_type") == "t2v"
            sigma = WAN22_SIGMAS.get(config.get("in_dim"), 0.0) if wan else 0.0
            if not sigma:
                raise RMDError(
                    f"RMD does not know where a second model of {kind.name} takes over; set second_model_sigma to the "
                    "sigma below which it does"
                )
        return cls(model, sigma)

    def takes(self, sigma: float) -> bool:
        """Whether this model makes a call at `sigma`; at exactly its own sigma the first one still does."""
        return is_low(sigma, self.sigma)

    def guider(self, guider: Any) -> Any:
        """A copy of a GUIDER that asks this model; its prompts and its cfg stay."""
        model, changed = self.model, copy.copy(guider)
        conds = getattr(guider, "original_conds", {}).values()
        # ComfyUI cannot change weights within a run where it loads them piece by piece, and changes the MODEL as here
        if model.is_dynamic() and any(comfy.sampler_helpers.cond_has_hooks([(None, one) for one in c]) for c in conds):
            model = model.get_non_dynamic_delegate()
        changed.model_patcher, changed.model_options = model, self.model.model_options
        return changed


class NetworkCall(NamedTuple):
    """What a sampler function gave the network, a state at a sigma, and the clean estimate that came back."""

    x: torch.Tensor
    sigma: torch.Tensor
    x0: torch.Tensor


class CalledModel:
    """The model that a sampler function calls, with all that it has; its calls are those of `call`."""

    def __init__(self, model: Any, call: Callable[..., torch.Tensor]) -> None:
        self._model, self._call = model, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **options: Any) -> torch.Tensor:
        return self._call(x, sigma, **options)


def with_function(sampler: Any, run: Callable[..., torch.Tensor]) -> Any:
    """A copy of a SAMPLER that runs `run(function, model, x, sigmas, ...)` in place of its sampler function."""
    changed = copy.copy(sampler)
    function = sampler.sampler_function
    changed.sampler_function = functools.wraps(function)(functools.partial(run, function))
    return changed


def watched(sampler: Any, calls: deque[NetworkCall]) -> Any:
    """A copy of a SAMPLER whose network calls are added to `calls`; one without a sampler function as it is."""
    if getattr(sampler, "sampler_function", None) is None:
        return sampler

    def run(function: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        def call(x: torch.Tensor, sigma: torch.Tensor, **call_options: Any) -> torch.Tensor:
            given = x.clone()  # a sampler may go on in the same memory
            x0 = model(x, sigma, **call_options)
            calls.append(NetworkCall(given, sigma, x0))
            return x0

        return function(CalledModel(model, call), *arguments, **options)

    return with_function(sampler, run)


class _Stop(Exception):
    """Leaves a sampler function at the first call of the second model."""


class HandOver:
    """A change of model inside a stage, after which the sampler goes on as if there were one model.

    The first model's run stops at the first call that the second one `takes`. The second model's run starts the sampler
    again from the same state: calls that were made are answered from memory, all after them reach the second network.
    So the state, the history and the random numbers of any sampler are those of a single run.
    """

    def __init__(self, second: SecondModel) -> None:
        self._second = second
        self._start: torch.Tensor | None = None
        self._made: deque[torch.Tensor] = deque()
        self._state: torch.Tensor | None = None

    @property
    def stopped(self) -> bool:
        """Whether the first run stopped for the second model."""
        return self._state is not None

    def first(self, sampler: Any) -> Any:
        """A SAMPLER for the first model; its output has no meaning if it `stopped`."""
        return with_function(sampler, self._record)

    def second(self, sampler: Any) -> Any:
        """The same SAMPLER for the second model, after the first run."""
        return with_function(sampler, self._go_on)

    def _record(self, function: Any, model: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        self._start = x.clone()

        def call(x: torch.Tensor, sigma: torch.Tensor, **call_options: Any) -> torch.Tensor:
            if self._second.takes(sigma.max().item()):
                self._state = x.clone()
                raise _Stop
            x0 = model(x, sigma, **call_options)
            self._made.append(x0.clone())
            return x0

        try:
            return function(CalledModel(model, call), x, *arguments, **options)
        except _Stop:
            return self._start

    def _go_on(self, function: Any, model: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        def call(x: torch.Tensor, sigma: torch.Tensor, **call_options: Any) -> torch.Tensor:
            if self._made:
                return self._made.popleft()
            if self._state is not None and not torch.allclose(x, self._state, rtol=0.0, atol=0.0, equal_nan=True):
                raise RMDError(
                    f"the sampler {getattr(function, '__name__', 'of this node')} does not repeat its steps with the "
                    "same seed, so a second model cannot go on inside a stage; use RMD Step Sampler or euler"
                )
            self._state = None
            return model(x, sigma, **call_options)

        return function(CalledModel(model, call), self._start, *arguments, **options)

"""The activations of an update: one pass of each kind through the networks, on tensors without data."""

import math
from collections import Counter
from dataclasses import dataclass

import torch

from rmd_core.losses import fake_score_loss

from .dry_calls import DryCalls
from .estimate import Guidance, estimate_x0_eps
from .live_memory import LiveMemory
from .networks import adapt, adapted_layers
from .quantised import is_quantised, quantise
from .recomputing import Recomputing
from .waiting import page_locked


@dataclass(frozen=True)
class DryNetworks:
    """Fake score and teacher on the meta device, in the precision of their calls, and one role's parameters."""

    fake: object
    teacher: object
    trained: list
    recomputing: Recomputing
    calls: DryCalls


@dataclass(frozen=True)
class Activations:
    """Bytes on the device beyond weights and gradients; ``parked``: most bytes of main memory for block inputs.

    ``peak``: the most that an update holds. ``waiting``: what the student's pass holds while the fake score trains.
    """

    peak: int
    waiting: int
    parked: int


def dry_networks(config, backbone, outline):
    """The DryNetworks of a resolved configuration."""
    calls, whole = DryCalls(config), config.model.mode == "three networks"
    calls_in = config.train.precision
    if not whole and calls_in == "float32" and not is_quantised(config.model.base_dtype):
        calls_in = config.model.base_dtype
    recomputing = Recomputing(config.backbone.gradient_checkpointing, calls.wrap)
    with torch.device("meta"):
        network = type(outline).from_config(outline.config).eval()
        torch.nn.Module.to(network, getattr(torch, calls_in))
        if config.backbone.gradient_checkpointing:
            network.enable_gradient_checkpointing(recomputing)
        if whole:
            return DryNetworks(network, network, list(network.requires_grad_(True).parameters()), recomputing, calls)
        if is_quantised(config.model.base_dtype):
            quantise(network, config.model.base_dtype, targets=adapted_layers(config.model, backbone), device="meta")
        adapted = adapt(network, backbone, config.model)
        trained = list(adapted.adapters["fake"].parameters())
        if calls.autocast:  # by which adapters are cast
            adapted.leave_casts_to_autocast()
            for parameter in trained:
                parameter.data = parameter.data.to(torch.bfloat16)
    return DryNetworks(adapted.seen_with("fake"), adapted.seen_with(None), trained, recomputing, calls)


def measure_activations(config, backbone, networks, *, size, tokens):
    """The Activations of an update at the latent ``size`` (height, width), with prompts of ``tokens``."""
    batch, curve = config.train.batch, backbone.curve
    blank = backbone.blank_conditioning(networks.teacher, tokens, "meta")
    conditioning = {name: row.expand(batch, *row.shape[1:]) for name, row in blank.items()}
    sigma = torch.full((batch,), 0.5, dtype=torch.float64)
    levels = {"alpha": curve.alpha(sigma), "sigma": sigma}
    state = torch.empty(*backbone.latent_shape(batch, config.plan.frames), *size, device="meta")

    def x0_of(network, guidance=None):
        return estimate_x0_eps(backbone, network, state, sigma, conditioning, curve=curve, guidance=guidance)[0]

    hooks = [parameter.register_post_accumulate_grad_hook(_drop) for parameter in networks.trained]
    with networks.calls.entered(), LiveMemory() as both_ways:
        x0 = x0_of(networks.fake)
        held = both_ways.live
        fake_score_loss(x0, state, **levels, weighting=config.loss.fake_weighting).backward()
        del x0
    for hook in hooks:
        hook.remove()
    guidance = Guidance(config.loss.cfg, conditioning, config.train.guidance_calls)
    with torch.no_grad(), networks.calls.entered(), LiveMemory() as one_way:
        x0_of(networks.teacher, None if config.loss.cfg == 1.0 else guidance)
    # The student's pass waits while the fake score trains, or else while the teacher is asked.
    waiting, passes = (held, 2) if holds_both(config) else (0, 1)
    peak = max(held + one_way.peak, waiting + both_ways.peak)
    shares = [math.prod(smaller) / math.prod(size) for smaller in config.plan.sizes]
    return Activations(peak, waiting, _page_locked_inputs(networks.recomputing.parked, shares) * passes)


def holds_both(config):
    """Whether the student's activations are held while the fake score trains."""
    return config.train.share_forward and config.train.accumulation == 1


def _page_locked_inputs(parked, shares):
    """The most bytes for ``parked`` inputs and for them at every stage, whose tensors are ``shares`` as large.

    What a stage is done with is kept for others of the same rounded size alone. Inputs that are as large at every
    stage (text, times) are small, and counted as if they were not.
    """
    most = Counter()
    for share in shares:
        asked = Counter()
        for count, number in parked.items():
            asked[page_locked(math.ceil(count * share))] += number
        most |= asked
    return sum(count * number for count, number in most.items())


def _drop(parameter):
    parameter.grad = None

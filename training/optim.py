"""AdamW, plain or with moments in 8 bits, with its state as plain tensors for safetensors files."""

import torch

from rmd_core.errors import RMDError

from .quantised import bitsandbytes_for
from .sharding import like

_TABLES = ("qmap1", "qmap2")  # of the 8-bit moments: the same 256 values for all


def make_optimiser(network, *, lr, settings):
    """The optimiser of a network's trainable parameters, by the configuration's optimiser section.

    Raises RMDError where 8-bit moments are asked for and bitsandbytes is not there.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    common = {"lr": lr, "betas": settings.betas, "weight_decay": settings.weight_decay, "eps": settings.eps}
    if settings.kind == "adamw8bit":
        return bitsandbytes_for("optimiser.kind: adamw8bit").optim.AdamW8bit(parameters, **common)
    return torch.optim.AdamW(parameters, **common, fused=True)


def optimiser_bytes(parameters, kind):
    """The bytes of the state of an optimiser of this ``kind`` over parameters, shapes given on any device."""
    tables = 2 * 4 * 256 if kind == "adamw8bit" else 0
    return tables + sum(state_sizes(parameters, kind))


def state_sizes(parameters, kind):
    """The bytes of each tensor of such a state, without the tables that all parameters share."""
    if kind == "adamw":
        return [count for p in parameters for count in (4 * p.numel(), 4 * p.numel(), 4)]  # two moments, a step count
    return [count for p in parameters for count in 2 * _moment_in_8_bits(p.numel())]


def optimiser_tensors(optimiser):
    """The state of an optimiser as ``{"<parameter number>.<entry>": tensor}``, without its hyper-parameters."""
    return {
        f"{number}.{entry}": torch.as_tensor(value)
        for number, parameter in enumerate(_parameters(optimiser))
        for entry, value in optimiser.state.get(parameter, {}).items()
        if entry not in _TABLES
    }


def load_optimiser_tensors(optimiser, tensors, source):
    """Put a state made by ``optimiser_tensors`` back. Raises RMDError, naming ``source``, if it does not fit."""
    parameters = _parameters(optimiser)
    in_8_bits = hasattr(optimiser, "init_state")
    wanted = _shapes_8bit(optimiser, parameters) if in_8_bits and tensors else _shapes(parameters)
    if tensors and (tensors.keys() != wanted.keys() or any(tensors[n].shape != s for n, s in wanted.items())):
        raise RMDError(f"{source}: its optimiser state belongs to another network; start in a new output folder")
    if in_8_bits:
        for name, value in tensors.items():
            number, _, entry = name.partition(".")
            entries = optimiser.state[parameters[int(number)]]
            entries[entry] = int(value) if entry == "step" else entries[entry].copy_(value)
        return
    state = {}
    for name, value in tensors.items():
        number, _, entry = name.partition(".")
        state.setdefault(int(number), {})[entry] = like(parameters[int(number)], value)
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _parameters(optimiser):
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _shapes(parameters):
    wanted = {}
    for number, parameter in enumerate(parameters):
        wanted |= {f"{number}.exp_avg": parameter.shape, f"{number}.exp_avg_sq": parameter.shape, f"{number}.step": ()}
    return wanted


def _shapes_8bit(optimiser, parameters):
    """The same for moments in 8 bits, whose state is made here, empty."""
    for number, parameter in enumerate(parameters):
        optimiser.init_state(optimiser.param_groups[0], parameter, 0, number)
    return {name: tensor.shape for name, tensor in optimiser_tensors(optimiser).items()}


def _moment_in_8_bits(numel):
    """Bytes of a moment and its scales; bitsandbytes keeps those with fewer than 4096 values in float32."""
    return (4 * numel,) if numel < 4096 else (numel, 4 * -(-numel // 256))

"""AdamW, with its state as plain tensors for safetensors files."""

import torch

from rmd_core.errors import RMDError

from .sharding import like


def make_adamw(network, *, lr, settings):
    """AdamW over a network's trainable parameters, with the configuration's optimiser section."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        parameters, lr=lr, betas=settings.betas, weight_decay=settings.weight_decay, eps=settings.eps, fused=True
    )


def optimiser_tensors(optimiser):
    """The state of an optimiser as ``{"<parameter number>.<entry>": tensor}``, without its hyper-parameters."""
    state = optimiser.state_dict()["state"]
    return {f"{number}.{entry}": value for number, entries in state.items() for entry, value in entries.items()}


def load_optimiser_tensors(optimiser, tensors, source):
    """Put a state made by ``optimiser_tensors`` back. Raises RMDError, naming ``source``, if it does not fit."""
    current = optimiser.state_dict()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    wanted = {}
    for number, parameter in enumerate(parameters):
        wanted |= {f"{number}.exp_avg": parameter.shape, f"{number}.exp_avg_sq": parameter.shape, f"{number}.step": ()}
    if tensors and (tensors.keys() != wanted.keys() or any(tensors[n].shape != s for n, s in wanted.items())):
        raise RMDError(f"{source}: its optimiser state belongs to another network; start in a new output folder")
    state = {}
    for name, value in tensors.items():
        number, _, entry = name.partition(".")
        state.setdefault(int(number), {})[entry] = like(parameters[int(number)], value)
    optimiser.load_state_dict({"state": state, "param_groups": current["param_groups"]})

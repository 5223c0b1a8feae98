"""AdamW, with its state as plain tensors for safetensors files."""

import torch

from rmd_core.errors import RMDError


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


def load_optimiser_tensors(optimiser, tensors):
    """Put a state made by ``optimiser_tensors`` back. Raises RMDError if it belongs to other parameters."""
    state = {}
    for name, value in tensors.items():
        number, _, entry = name.partition(".")
        state.setdefault(int(number), {})[entry] = value
    current = optimiser.state_dict()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    fits = not state or (
        set(state) == set(range(len(parameters)))
        and all(state[i]["exp_avg"].shape == p.shape for i, p in enumerate(parameters))
    )
    if not fits:
        raise RMDError("the optimiser state of the checkpoint belongs to another network; start in a new output folder")
    optimiser.load_state_dict({"state": state, "param_groups": current["param_groups"]})

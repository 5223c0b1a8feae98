"""An exponential average of the student's weights."""

import contextlib

import torch

from rmd_core.errors import RMDError

from .sharding import fits, local, put


class WeightAverage:
    """The average ``decay * average + (1 - decay) * weights`` in float32, starting from the weights at hand."""

    def __init__(self, network, decay):
        self.decay = decay
        self.tensors = {name: p.detach().to(torch.float32, copy=True) for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network):
        """Take in the network's present weights."""
        weights = [local(p.detach()).float() for p in network.parameters()]
        torch._foreach_lerp_([local(tensor) for tensor in self.tensors.values()], weights, 1 - self.decay)

    def load(self, tensors, source):
        """Continue from a saved average. Raises RMDError, naming ``source``, if it is that of another network."""
        if not fits(tensors, self.tensors):
            raise RMDError(f"{source}: its weight average belongs to another network; start in a new output folder")
        for name, tensor in self.tensors.items():
            put(tensor, tensors[name])

    @contextlib.contextmanager
    def applied_to(self, network):
        """Within the block the network has the averaged weights."""
        parameters = dict(network.named_parameters())
        own = {name: p.detach().clone() for name, p in parameters.items()}
        self._copy(self.tensors, parameters)
        try:
            yield network
        finally:
            self._copy(own, parameters)

    @staticmethod
    @torch.no_grad()
    def _copy(source, parameters):
        for name, parameter in parameters.items():
            local(parameter).copy_(local(source[name]))

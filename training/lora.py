"""LoRA adapters with roles: one frozen network with several of them on it, of which each call sees one or none.

These are forty lines of our own in place of peft: which adapter a call sees changes several times in an update, all of
them keep their gradients meanwhile, and a recomputed block must see the adapter that its forward pass saw.
"""

import math
from dataclasses import dataclass

import torch

from rmd_core.errors import RMDError
from rmd_core.noise import derive_seed

from .backbones.files import build
from .offload import HookedNetwork, Recomputing
from .parallel import gather_full

F = torch.nn.functional
_CONVOLUTIONS = {torch.nn.Conv1d: F.conv1d, torch.nn.Conv2d: F.conv2d, torch.nn.Conv3d: F.conv3d}


@dataclass(frozen=True)
class Factors:
    """A LoRA of one layer: its weight moves by ``alpha / rank * up @ down``; ``down`` is (rank, ...)."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float


class Role:
    """Which adapter the layers of a network see now: its ``name``, or None."""

    name = None


class LoraLayer(torch.nn.Module):
    """A frozen linear layer or convolution plus ``alpha / rank * up(down(x))`` of the adapter that ``role`` names.

    All layers of a network share one Role, so that a change of adapter is one assignment.
    """

    def __init__(self, base_layer, names, role, *, rank, alpha):
        super().__init__()
        self.base_layer = base_layer
        self.role = role
        self.scale = alpha / rank
        self.cast_inputs = True
        if isinstance(base_layer, torch.nn.Linear):  # a quantised weight has another shape
            self.out_features = base_layer.out_features
            shapes = (rank, base_layer.in_features), (self.out_features, rank)
        else:
            self.out_features = base_layer.out_channels
            shapes = (rank, *base_layer.weight.shape[1:]), (self.out_features, rank, *[1] * len(base_layer.kernel_size))
        device = "cpu" if base_layer.weight.is_meta else base_layer.weight.device
        self.down, self.up = (
            torch.nn.ParameterDict({name: torch.zeros(shape, device=device) for name in names}) for shape in shapes
        )

    @property
    def weight(self):
        """The weight of the frozen layer, which networks look at for its type."""
        return self.base_layer.weight

    @property
    def bias(self):
        """The bias of the frozen layer."""
        return self.base_layer.bias

    def forward(self, x):
        """The output in the type of the frozen layer's."""
        result = self.base_layer(x)
        name = self.role.name
        if name is None:
            return result
        down, up = self.down[name], self.up[name]
        if self.cast_inputs:
            x = x.to(down.dtype)
        if isinstance(self.base_layer, torch.nn.Linear):
            added = F.linear(F.linear(x, down), up)
        else:
            added = _CONVOLUTIONS[type(self.base_layer)](self.base_layer._conv_forward(x, down, None), up)
        return (result + added * self.scale).to(result.dtype)

    def delta(self, name):
        """What an adapter adds to the weight, in its shape."""
        down, up = self.down[name], self.up[name]
        return (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:]) * self.scale


def adapted_layers(network, targets):
    """The layers that get an adapter, ``{name: layer}``; ``targets`` are endings of their names.

    Raises RMDError where no layer ends like that, or where one is of a kind that takes no LoRA.
    """
    named = [(name, layer) for name, layer in network.named_modules() if name]
    found = {}
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name, _ in named):
            raise RMDError(
                f"model.targets: no layer's name ends in '{target}'; a layer is, for example, '{named[-1][0]}'"
            )
    for name, layer in named:
        if f".{name}".endswith(tuple(f".{target}" for target in targets)):
            plain = type(layer) in _CONVOLUTIONS and layer.groups == 1
            if not plain and not isinstance(layer, torch.nn.Linear):
                raise RMDError(
                    f"model.targets: '{name}' is a {type(layer).__name__}; only linear layers and convolutions take "
                    "an adapter"
                )
            found[name] = layer
    return found


class AdaptedNetwork:
    """A network with one LoRA for each of ``names``, in float32; the network itself is frozen and stays as it is.

    ``targets``: endings of the names of the layers that get one. ``seed``: of the adapters' first values, which are
    without effect. The network is changed in place: those layers are replaced by a LoraLayer. Raises RMDError as
    ``adapted_layers``.
    """

    def __init__(self, network, names, *, rank, alpha, targets, seed=0):
        self.network = network.requires_grad_(False)
        self.alpha = alpha
        self._kind = type(network)
        self._role = Role()
        self.layers = {}
        for name, layer in adapted_layers(network, targets).items():
            self.layers[name] = LoraLayer(layer, names, self._role, rank=rank, alpha=alpha)
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, self.layers[name])
        self.adapters = {name: Adapter(self.layers, name, derive_seed(seed, "adapter", name)) for name in names}

    def with_adapter(self, name, call=None):
        """The network as a role sees it: every call has the adapter ``name``, or none for None.

        ``call``: what to call in the network's place, such as the same network under autocast.
        """
        return HookedNetwork(self.network, call or self.network, lambda: self.activate(name))

    def activate(self, name):
        """Let the following calls see the adapter ``name`` alone, or none."""
        self._role.name = name

    def enable_gradient_checkpointing(self, setting=True):
        """Recompute activations in the backward pass, with the adapter that the forward pass saw.

        ``setting``: true, or ``offload`` for the inputs of blocks to wait in system memory.
        """

        def with_the_same_adapter(block):
            name = self._role.name

            def call(*inputs):
                self.activate(name)
                return block(*inputs)

            return call

        self.network.enable_gradient_checkpointing(Recomputing(setting, with_the_same_adapter))

    def leave_casts_to_autocast(self):
        """Let adapters take inputs as they are: under autocast a copy in float32 would only be cast back."""
        for layer in self.layers.values():
            layer.cast_inputs = False

    def base_state(self):
        """The state dict of the frozen network, by the names that it has without adapters."""
        own = tuple(f"{name}.{part}." for name in self.layers for part in ("down", "up"))
        return {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in self.network.state_dict().items()
            if not name.startswith(own)
        }

    def factors(self, name):
        """The adapter as ``{layer name: Factors}``; the tensors are shared, not copied."""
        return {
            layer_name: Factors(layer.down[name].detach(), layer.up[name].detach(), self.alpha)
            for layer_name, layer in self.layers.items()
        }

    @torch.no_grad()
    def merged(self, role, *, dtype, base=None):
        """A plain network of the same class on the CPU, the adapter of a role added to its weights.

        Weights are in ``dtype``, those beyond its range in float32. ``base``: a plain network to take the other
        weights from, where those at hand are quantised.
        """
        weights = {}
        for name, tensor in (self.base_state() if base is None else base.state_dict()).items():
            tensor = gather_full(tensor)
            layer, _, kind = name.rpartition(".")
            if layer in self.layers and kind == "weight":
                tensor = tensor.float() + self.layers[layer].delta(role).to(tensor.device)
            weights[name] = _fitting(tensor, dtype)
        return build(self._kind, self.network.config, weights).eval().requires_grad_(False)


class Adapter:
    """The parameters of one adapter, named ``<layer>.down`` and ``<layer>.up``, with the usual start of a LoRA.

    ``down`` is uniform within 1 / sqrt(inputs), a function of ``seed``, and ``up`` zero.
    """

    def __init__(self, layers, name, seed):
        self._parameters = {}
        for layer_name, layer in layers.items():
            down = layer.down[name]
            self._parameters |= {f"{layer_name}.down": down, f"{layer_name}.up": layer.up[name]}
            generator = torch.Generator().manual_seed(derive_seed(seed, f"{layer_name}.down"))
            bound = 1 / math.sqrt(down[0].numel())
            down.data.copy_((torch.rand(down.shape, generator=generator) * 2 - 1) * bound)

    def named_parameters(self):
        """(name, parameter) pairs in the order of the layers."""
        return self._parameters.items()

    def parameters(self):
        """The parameters in the same order."""
        return self._parameters.values()

    def state_dict(self):
        """The tensors by name, shared, not copied."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}


def _fitting(tensor, dtype):
    """The tensor on the CPU in ``dtype``, or in float32 where a value is beyond the range of ``dtype``."""
    cast = tensor.to(dtype)
    return (cast if torch.isfinite(cast).all() else tensor.float()).cpu()

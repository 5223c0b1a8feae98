"""LoRA adapters with roles: one frozen network with several of them on it, of which each call sees one or none.

These are forty lines of our own in place of peft: which adapter a call sees changes several times in an update, all of
them keep their gradients meanwhile, and a recomputed block must see the adapter that its forward pass saw.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

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


class Lora(NamedTuple):
    """What a LoRA changes in a network: ``{layer: Factors}``, and ``{name: tensor}``, added to other tensors."""

    factors: dict
    changes: dict

    def fits(self, layers, rank):
        """Whether adapters of a rank on these layers can take it in whole."""
        return not self.changes and all(n in layers and len(f.down) <= rank for n, f in self.factors.items())

    def of(self, part):
        """What it changes in a part of the network, by the part's own names; all of it for None."""
        start = "" if part is None else f"{part}."
        own = ({n.removeprefix(start): v for n, v in values.items() if n.startswith(start)} for values in self)
        return Lora(*own)

    def inside(self, part):
        """The same for a network that this one is a part of."""
        return Lora(*({f"{part}.{name}": value for name, value in values.items()} for values in self))


class Role:
    """Which adapter the layers of a network see now: its ``name``, or None."""

    name = None


class LoraLayer(torch.nn.Module):
    """A frozen linear layer or convolution plus ``alpha / rank * up(down(x))`` of the adapter that ``role`` names.

    All layers of a network share one Role, so that a change of adapter is one assignment. Roles may begin with a frozen
    LoRA and a change of the bias, to which their adapter, if they have one here, is added.
    """

    def __init__(self, base_layer, names, role, *, rank, alpha):
        super().__init__()
        self.base_layer = base_layer
        self.role = role
        self.scale = alpha / rank
        self.cast_inputs = True
        self.names = frozenset(names)
        self.begun = ()  # the roles that begin with something
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
        own, begun = name in self.names, name in self.begun
        if not own and not begun:
            return result
        if self.cast_inputs:
            x = x.to(torch.float32)
        added = [self._through(x, self.down[name], self.up[name]) * self.scale] if own else []
        if begun:
            added += [] if self.start_down is None else [self._through(x, self.start_down, self.start_up)]
            added += [] if self.start_bias is None else [self.start_bias]
        return sum(added, result).to(result.dtype)

    def _through(self, x, down, up):
        if isinstance(self.base_layer, torch.nn.Linear):
            return F.linear(F.linear(x, down), up)
        return _CONVOLUTIONS[type(self.base_layer)](self.base_layer._conv_forward(x, down, None), up)

    def begin(self, roles, factors, bias):
        """Let ``roles`` begin with Factors and with a change of the bias, each of them or None."""
        self.begun = roles
        linear, weight = isinstance(self.base_layer, torch.nn.Linear), self.base_layer.weight
        spread = [] if linear else [1] * len(self.base_layer.kernel_size)
        down = up = None
        if factors is not None:
            rank = len(factors.down)
            down = factors.down.reshape(rank, *([-1] if linear else weight.shape[1:]))
            up = (factors.up * (factors.alpha / rank)).reshape(-1, rank, *spread)
        if bias is not None:
            bias = bias.reshape(-1, *spread)
        for name, tensor in (("start_down", down), ("start_up", up), ("start_bias", bias)):
            if tensor is not None and not weight.is_meta:
                tensor = tensor.to(weight.device)
            self.register_buffer(name, tensor, persistent=False)  # it is read from its file again

    def delta(self, name):
        """What a role adds to the weight, in its shape."""
        pairs = [(self.down[name], self.up[name] * self.scale)] if name in self.names else []
        if name in self.begun and self.start_down is not None:
            pairs.append((self.start_down, self.start_up))
        deltas = [(up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:]) for down, up in pairs]
        return sum(deltas[1:], deltas[0]) if deltas else torch.zeros(())

    def factors(self, name, alpha):
        """What a role adds to the weight as one Factors with this ``alpha``."""
        pairs = [(self.down[name].detach(), self.up[name].detach(), self.scale)] if name in self.names else []
        if name in self.begun and self.start_down is not None:
            pairs.append((self.start_down, self.start_up, 1.0))
        if len(pairs) == 1 and name in self.down:
            return Factors(*pairs[0][:2], alpha)
        down = torch.cat([down for down, _, _ in pairs])
        return Factors(down, torch.cat([up * scale for _, up, scale in pairs], 1) * (len(down) / alpha), alpha)


class ChangedLayer(torch.nn.Module):
    """A frozen layer whose weights ``roles`` see with ``changes`` ({name: tensor}) added."""

    def __init__(self, base_layer, role, roles, changes):
        super().__init__()
        self.base_layer = base_layer
        self.role = role
        self.begun = roles
        self.names = tuple(changes)
        for name, change in changes.items():
            weight = getattr(base_layer, name)
            change = change if weight.is_meta else change.to(weight.device)
            self.register_buffer(f"start_{name}", change, persistent=False)

    def forward(self, *args, **kwargs):
        """The output of the layer, as the role that is active sees it."""
        if self.role.name not in self.begun:
            return self.base_layer(*args, **kwargs)
        weights = {name: getattr(self.base_layer, name) for name in self.names}
        changed = {name: (w.float() + getattr(self, f"start_{name}")).to(w.dtype) for name, w in weights.items()}
        return torch.func.functional_call(self.base_layer, changed, args, kwargs)


def adapted_layers(network, targets):
    """The layers that get an adapter, ``{name: layer}``; ``targets`` are endings of their names.

    Raises RMDError where no layer ends like that, or where one is of a kind that takes no LoRA.
    """
    named = [(n, layer) for n, layer in network.named_modules() if n and not isinstance(layer, torch.nn.ModuleList)]
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
    without effect. The network is changed in place: those layers are replaced by a LoraLayer. ``start``: a Lora that
    the adapters named in ``started`` start from; if it does not fit them whole, it stays as a frozen extra term.
    Raises RMDError as ``adapted_layers``, and for a ``start`` that changes what no layer has.
    """

    def __init__(self, network, names, *, rank, alpha, targets, seed=0, start=None, started=()):
        self.network = network.requires_grad_(False)
        self.alpha = alpha
        self._kind = type(network)
        self._role = Role()
        self.layers = {}
        self._start, self._started = start, tuple(started)
        targeted = adapted_layers(network, targets)
        self.beside = start is not None and not start.fits(targeted, rank)
        changes = _by_layer(network, start.changes) if self.beside else {}
        for name, layer in (targeted | _changed_layers(network, start, changes) if self.beside else targeted).items():
            own = names if name in targeted else ()
            self.layers[name] = LoraLayer(layer, own, self._role, rank=rank, alpha=alpha)
            if self.beside:
                bias = changes.get(name, {}).pop("bias", None)
                self.layers[name].begin(self._started, start.factors.get(name), bias)
            _put(network, name, self.layers[name])
        for name, own in {name: own for name, own in changes.items() if own}.items():
            if name in self.layers:
                raise RMDError(
                    f"the weight of '{name}' is changed in full, but it has an adapter; set model.mode three networks"
                )
            _put(network, name, ChangedLayer(network.get_submodule(name), self._role, self._started, own))
        adapted = {name: layer for name, layer in self.layers.items() if name in targeted}
        self.adapters = {name: Adapter(adapted, name, derive_seed(seed, "adapter", name)) for name in names}
        if start is not None and not self.beside:
            for name in self._started:
                self.adapters[name].begin_with(start, alpha / rank)

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
        """A role's LoRA as ``{layer name: Factors}``, what it began with in it; where it can, tensors are shared."""
        return {
            layer_name: layer.factors(name, self.alpha)
            for layer_name, layer in self.layers.items()
            if name in layer.names or (name in layer.begun and layer.start_down is not None)
        }

    def lora(self, name):
        """A role as a Lora of the plain network."""
        return Lora(self.factors(name), self._start.changes if self.beside and name in self._started else {})

    @torch.no_grad()
    def merged(self, role, *, dtype, base=None):
        """A plain network of the same class on the CPU, the adapter of a role added to its weights.

        Weights are in ``dtype``, those beyond its range in float32. ``base``: a plain network to take the other
        weights from, if the ones here are quantised.
        """
        weights, changes = {}, self.lora(role).changes
        for name, tensor in (self.base_state() if base is None else base.state_dict()).items():
            tensor = gather_full(tensor)
            layer, _, kind = name.rpartition(".")
            if layer in self.layers and kind == "weight":
                tensor = tensor.float() + self.layers[layer].delta(role).to(tensor.device)
            if name in changes:
                tensor = tensor.float() + changes[name].to(tensor.device)
            weights[name] = _fitting(tensor, dtype)
        return build(self._kind, self.network.config, weights).eval().requires_grad_(False)


def _put(network, name, layer):
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, layer)


def _by_layer(network, changes):
    """``{layer: {parameter: change}}`` of changes by tensor name; RMDError for a tensor that is no layer's."""
    found = {}
    for name, change in changes.items():
        layer, _, own = name.rpartition(".")
        if own not in ("weight", "bias") or next(network.get_submodule(layer).children(), None) is not None:
            raise RMDError(f"'{name}' is not the weight or bias of a layer, so adapters cannot change it")
        found.setdefault(layer, {})[own] = change
    return found


def _changed_layers(network, start, changes):
    """The layers to which a start adds factors or a bias alone."""
    names = [*start.factors, *(name for name, own in changes.items() if own.keys() == {"bias"})]
    layers = {name: network.get_submodule(name) for name in names}
    return {n: x for n, x in layers.items() if isinstance(x, torch.nn.Linear) or type(x) in _CONVOLUTIONS}


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

    @torch.no_grad()
    def begin_with(self, lora, scale):
        """Start from a Lora of the same layers and at most the adapter's rank, whose other rows keep the usual start.

        ``scale``: alpha / rank of the adapter; the Lora's own scale goes into its ``up``.
        """
        for layer, value in lora.factors.items():
            down, up = (self._parameters[f"{layer}.{part}"] for part in ("down", "up"))
            rank = len(value.down)
            down[:rank] = value.down.reshape(rank, *down.shape[1:])
            up[:, :rank] = value.up.reshape(len(up), rank, *up.shape[2:]) * (value.alpha / rank / scale)

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

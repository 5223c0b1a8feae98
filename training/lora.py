"""A frozen network with several LoRA adapters on it, of which a call sees one or none."""

import math
import warnings

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from rmd_core.errors import RMDError, one_line
from rmd_core.noise import derive_seed

from .export import Factors
from .offload import Recomputing
from .parallel import full


class AdaptedNetwork:
    """A network with one LoRA for each of ``names``, in float32; the network itself is frozen and stays as it is.

    ``targets``: endings of the names of the layers that get one. The adapters' values are open until ``start``. The
    network is changed in place: its layers are wrapped by peft's. Raises RMDError where no layer ends like that, or
    where one is of a kind that takes no LoRA.
    """

    def __init__(self, network, names, *, rank, alpha, targets):
        self.network = network.requires_grad_(False)
        self.alpha = alpha
        self._kind = type(network)
        self._active = ""  # no adapter's name
        _check_targets(network, targets)
        settings = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0, init_lora_weights=False
        )
        for name in names:
            _inject(network, settings, name)
        self.layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}
        self.adapters = {name: Adapter(self.layers, name) for name in names}
        self.use(None)

    def start(self, seed):
        """Give every adapter its first values, a function of ``seed`` and its name; they are without effect."""
        for name, adapter in self.adapters.items():
            adapter.start(derive_seed(seed, "adapter", name))
        return self

    def seen_with(self, name, call=None):
        """The network as a role sees it: every call has the adapter ``name``, or none for None.

        ``call``: what to call in the network's place, such as the same network under autocast.
        """
        return _View(self, name, call or self.network)

    def use(self, name):
        """Let the following calls see the adapter ``name`` alone, or none; gradients of the others stay possible."""
        if name == self._active:
            return
        for layer in self.layers.values():
            layer.set_adapter([] if name is None else [name])
        self._active = name
        for adapter in self.adapters.values():  # set_adapter freezes what is not active, but its graph may still wait
            for parameter in adapter.parameters():
                parameter.requires_grad_(True)

    def enable_gradient_checkpointing(self, setting=True):
        """Recompute activations in the backward pass, with the adapter that the forward pass saw.

        ``setting``: true, or ``offload`` for the inputs of blocks to wait in main memory.
        """

        def with_the_same_adapter(block):
            name = self._active

            def call(*inputs):
                self.use(name)
                return block(*inputs)

            return call

        self.network.enable_gradient_checkpointing(Recomputing(setting, with_the_same_adapter))

    def leave_casts_to_autocast(self):
        """Let adapters take inputs as they are: under autocast a copy in float32 would only be cast back."""
        for layer in self.layers.values():
            layer.cast_input_dtype_enabled = False

    def factors(self, name):
        """The adapter as ``{layer name: Factors}``; the tensors are shared, not copied."""
        return {
            layer_name: Factors(layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach(), self.alpha)
            for layer_name, layer in self.layers.items()
        }

    @torch.no_grad()
    def merged(self, name, *, dtype, base=None):
        """A plain network of the same class on the CPU, the adapter added to its weights.

        Weights are in ``dtype``, those that it cannot hold in float32. ``base``: a plain network to take the other
        weights from, where those at hand are quantised.
        """
        weights = {}
        for key, tensor in (self.network if base is None else base).state_dict().items():
            tensor = full(tensor)
            owner, _, kind = key.rpartition(".")
            layer_name = owner.removesuffix(".base_layer")
            if layer_name in self.layers and kind == "weight":
                delta = self.layers[layer_name].get_delta_weight(name).to(tensor.device)
                weights[f"{layer_name}.weight"] = _fitting(tensor.float() + delta.float(), dtype)
            elif layer_name in self.layers:
                weights[f"{layer_name}.{kind}"] = _fitting(tensor, dtype)
            elif not any(owner.startswith(f"{adapted}.") for adapted in self.layers):
                weights[key] = _fitting(tensor, dtype)
        with init_empty_weights(include_buffers=False):
            plain = self._kind.from_config(self.network.config)
        plain.load_state_dict(weights, strict=True, assign=True)
        return plain.eval().requires_grad_(False)


class Adapter:
    """The parameters of one adapter, named ``<layer>.down`` and ``<layer>.up``."""

    def __init__(self, layers, name):
        self._parameters = {}
        for layer_name, layer in layers.items():
            for part, module in (("down", layer.lora_A[name]), ("up", layer.lora_B[name])):
                module.to(torch.float32)
                self._parameters[f"{layer_name}.{part}"] = module.weight

    def named_parameters(self):
        """(name, parameter) pairs in the order of the layers."""
        return self._parameters.items()

    def parameters(self):
        """The parameters in the same order."""
        return self._parameters.values()

    def state_dict(self):
        """The tensors by name, shared, not copied."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, tensors):
        """Take the values of ``tensors``. Raises RuntimeError if they are those of another adapter."""
        if {n: t.shape for n, t in tensors.items()} != {n: p.shape for n, p in self._parameters.items()}:
            raise RuntimeError("names or shapes of another adapter")
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])

    @torch.no_grad()
    def start(self, seed):
        """The usual start of a LoRA: ``down`` uniform within 1 / sqrt(inputs), ``up`` zero."""
        for name, parameter in self._parameters.items():
            if name.endswith(".up"):
                parameter.zero_()
                continue
            generator = torch.Generator().manual_seed(derive_seed(seed, name))
            bound = 1 / math.sqrt(parameter[0].numel())
            parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)


class _View:
    """The network with one adapter on; everything but the call is the network's own."""

    def __init__(self, owner, name, call):
        self._owner, self._name, self._call = owner, name, call

    def __call__(self, *arguments, **named):
        self._owner.use(self._name)
        return self._call(*arguments, **named)

    def __getattr__(self, name):
        return getattr(self._owner.network, name)


def _check_targets(network, targets):
    names = [name for name, _ in network.named_modules() if name]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise RMDError(f"model.targets: no layer's name ends in '{target}'; a layer is, for example, '{names[-1]}'")


def _inject(network, settings, name):
    # Peft draws start values, which are replaced, from the global generator, which must stay as it is.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            inject_adapter_in_model(settings, network, name)
        except ValueError as error:
            raise RMDError(f"model.targets: {one_line(error)}") from None


def _fitting(tensor, dtype):
    """The tensor on the CPU in ``dtype``, or in float32 where ``dtype`` cannot hold a value."""
    cast = tensor.to(dtype)
    return (cast if torch.isfinite(cast).all() else tensor.float()).cpu()

"""What the trainer asks of a model family, and what all of them share: a family adds facts and its forward."""

import logging
import re
import weakref
from pathlib import Path
from types import SimpleNamespace

import torch

from rmd_core.errors import RMDError
from rmd_core.files import read_json
from rmd_core.noising import place
from rmd_core.schedule import FlowCurve

from ..hub import INDEX, is_folder
from ..text_encoders import FAMILIES
from .files import (
    decode_kl,
    encode_kl,
    load_component,
    load_kl_vae,
    load_native,
    outline_component,
    outline_native,
    save_native,
    scheduler_config,
)

log = logging.getLogger(__name__)

NATIVE_SHIFT = 3.0  # of the flow models here, where a configuration gives none


class Backbone:
    """One model family: its noise curve, its latents, its network calls and its files.

    Conditioning is a dictionary of tensors whose first axis is the batch. A checkpoint is one safetensors file in
    native key names, or a Diffusers-format folder. A family sets the attributes below and implements ``keys``,
    ``native_config`` and ``predict``; what else differs it overrides. ``shift``: a flow teacher's shift.
    """

    name: str
    architecture: str  # modelspec.architecture of an exported student
    prediction: str  # "flow", "v" or "eps"
    curve: object  # the NoiseCurve the teacher was trained on; flows get it from their shift
    latents: str  # whose they are; backbones of one autoencoder and normalisation give the same name
    channels: int  # of a latent
    variance: bool = False  # the network's output has as many channels more, a variance that is left out
    multiple: int  # height and width of a latent must be multiples of it
    pixels_per_cell: int  # of the autoencoder
    size_conditioning: str = "none"  # "none", "stage" or "final": which size is given to the network
    temporal: bool = False  # latents are (B, C, T, H, W), not (B, C, H, W)
    fps: int = 16  # frames a second of its videos
    prompts_of: str | None = None  # the backbone with the same text encoders, where it is another
    prompt_tokens: int  # to which our text encoders pad a prompt; at most so many where they pad to the longest
    masked: bool = False  # the network masks the padding of prompts
    pooled: bool = False  # the network takes a pooled text embedding too
    experts: tuple = ()  # the parts of a network of which each level asks one, such as rmd_core.experts.EXPERTS
    sequence_plan: tuple = ()  # entries of diffusers' plan by which processes divide a sequence; where it is offered
    adapter_targets: tuple = ("to_q", "to_k", "to_v", "to_out.0")  # endings of the layers that a LoRA is put on

    kind: type  # the diffusers class
    component: str = "transformer"  # its folder
    aliases: tuple = ()  # other names of the class in configurations
    left_over: tuple = ()  # tensors of a folder that the class has no place for
    unused: tuple = ()  # native tensors that the class has no use for
    text_width: str  # the entry of the class's configuration with the width of text embeddings
    scaling: float  # of the autoencoder
    latent_shift: float = 0.0

    def __init__(self, *, shift=None):
        if self.prediction == "flow":
            self.curve = FlowCurve(NATIVE_SHIFT if shift is None else shift)
        elif shift is not None:
            raise RMDError(f"backbone.shift is {shift:g}, but {self.name} is not a rectified flow; leave it out")

    @staticmethod
    def keys(config):
        """The KeyMap of a network of this configuration."""
        raise NotImplementedError

    @classmethod
    def keys_of_file(cls, names):
        """The KeyMap of a network with the blocks that the ``names`` in a LoRA file speak of."""
        blocks = [int(number) for name in names for number in re.findall(r"blocks[._](\d+)[._]", name)]
        return cls.keys(SimpleNamespace(num_layers=1 + max(blocks, default=0)))

    @staticmethod
    def native_name(name):
        """The name in ``keys`` of a tensor in a native file, where other programs name it otherwise."""
        return name

    @staticmethod
    def native_config(tensors, metadata):
        """Constructor arguments for a native file, from the shapes of its tensors.

        None, or a KeyError, IndexError, ValueError or ArithmeticError, for another network's.
        """
        raise NotImplementedError

    def predict(self, network, x, sigma_B, conditioning):
        """The network's output in float32 for states ``x`` at the noise levels ``sigma_B``, shape (B,), float64."""
        raise NotImplementedError

    # Networks and files

    def native_metadata(self, network):
        """Metadata by which ComfyUI's loader detects the network, beside its tensors."""
        return {}

    def check_file(self, path):
        """Raise RMDError for a native file that says in its header that it is no such network."""

    def check_network(self, network, path):
        """Raise RMDError for a network that cannot be distilled."""
        found = (network.config.in_channels, network.config.out_channels)
        expected = (self.channels, self.channels * (1 + self.variance))
        if found != expected:
            raise RMDError(
                f"{path}: its network has (input, output) channels {found}, {self.name} needs {expected}; "
                "choose another backbone.name or base"
            )

    def load(self, path, *, dtype=torch.float32):
        """The network of a checkpoint, on the CPU in ``dtype``. Raises RMDError for a wrong one."""
        if is_folder(path):
            network = load_component(
                self.kind,
                path,
                component=self.component,
                dtype=dtype,
                aliases=self.aliases,
                ignored=self.left_over,
            )
        else:
            self.check_file(path)
            network = load_native(self, path, dtype=dtype)
        self.check_network(network, path)
        return network

    def outline(self, path):
        """The network of a checkpoint on the meta device, from configuration or header. Raises RMDError as ``load``."""
        if is_folder(path):
            network = outline_component(self.kind, path, component=self.component, aliases=self.aliases)
        else:
            self.check_file(path)
            network = outline_native(self, path)
        self.check_network(network, path)
        return network

    def native_state(self, network):
        """The network's tensors under the names that ComfyUI's loader detects."""
        return self.keys(network.config).to_native(network.state_dict())

    def native_layer(self, network, layer):
        """(native layer, layers of the network that are stacked in it, from its first row) of a layer, by name."""
        return self.keys(network.config).native_layer(layer)

    def export(self, network, path, *, dtype=torch.float16, metadata=None):
        """Write the network as one file that ComfyUI loads, with further metadata. Raises RMDError where that fails."""
        metadata = {**self.native_metadata(network), **(metadata or {})}
        save_native(self.native_state(network), path, dtype=dtype, metadata=metadata)

    def architecture_of(self, network):
        """The modelspec.architecture of a student made from this network."""
        return self.architecture

    # Latents

    def latent_shape(self, batch, frames):
        """The first axes of a batch of latents, before height and width: (B, C), with time (B, C, T)."""
        return (batch, self.channels, frames) if self.temporal else (batch, self.channels)

    def check_sizes(self, network, sizes):
        """Raise RMDError for a stage size, (height, width) in cells, at which the network fails here or in ComfyUI."""

    def load_vae(self, path):
        """The autoencoder of a file or folder, frozen, in float32 on the CPU. Raises RMDError for a wrong one."""
        return load_kl_vae(path, channels=self.channels, scaling=self.scaling, shift=self.latent_shift)

    def decode(self, vae, latents):
        """Images (B, 3, T, H, W) in 0..1 of latents."""
        return decode_kl(vae, latents, scaling=self.scaling, shift=self.latent_shift)

    def encode(self, vae, images):
        """Latents, of one frame for a video model, of images (B, 3, H, W) in 0..1: what ``decode`` decodes."""
        return encode_kl(vae, images, scaling=self.scaling, shift=self.latent_shift)

    # Conditioning

    def pooled_width(self, network):
        """The width of the pooled text embedding of a network that takes one."""
        raise NotImplementedError

    def conditioning(self, cache, texts):
        """The conditioning of prompts from a ``PromptCache``, on the CPU. Raises RMDError for a missing prompt."""
        found = {"text": cache.batch(texts)}
        if self.masked:
            found["mask"] = cache.mask(texts)
        if self.pooled:
            found["pooled"] = cache.pooled(texts)
        return found

    def check_cache(self, network, cache):
        """Raise RMDError unless the cache's embeddings fit the network."""
        if self.masked and not cache.masked:
            raise RMDError(
                f"{cache.path} does not say that padding is masked, as {self.name} does; "
                "make it with python -m training.encode_prompts"
            )
        if cache.masked and not self.masked:
            raise RMDError(
                f"{cache.path} is for networks that mask the padding, but {self.name} does not; make a cache for it"
            )
        _check_width(cache, "embeddings", cache.dim, network.config[self.text_width])
        if self.pooled:
            _check_width(cache, "pooled embeddings", cache.pooled_dim, self.pooled_width(network))

    def zero_conditioning(self, network, tokens, device):
        """Conditioning of one sample with nothing in it, of the shapes the network takes."""
        blank = {"text": torch.zeros(1, tokens, network.config[self.text_width], device=device)}
        if self.masked:
            blank["mask"] = torch.ones(1, tokens, device=device)
        if self.pooled:
            blank["pooled"] = torch.zeros(1, self.pooled_width(network), device=device)
        return blank

    # Costs

    def recommended_batch(self, network):
        """Samples of an update below which training ``network`` is known to suffer; None where nothing is known."""
        return None

    def flops(self, network, height, width, frames, tokens):
        """Floating-point operations of one forward of one sample: PyTorch's count over a forward without data."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"):
            copy = type(network).from_config(network.config)
            x = torch.empty(*self.latent_shape(1, frames), height, width)
        sigma = torch.full((1,), self.curve.sigma_max, dtype=torch.float64)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.predict(copy, x, sigma, self.zero_conditioning(network, tokens, "meta"))
        return counter.get_total_flops()


def _check_width(cache, what, found, expected):
    if found is None:
        raise RMDError(
            f"{cache.path} has no {what}, which this network needs; make it with python -m training.encode_prompts"
        )
    if found != expected:
        raise RMDError(
            f"{cache.path} has {what} of width {found}, but the transformer takes {expected}; "
            "use the cache of its own text encoder"
        )


_DECIDING = weakref.WeakKeyDictionary()  # network -> the weight that decides; to look at all of them takes milliseconds


def network_dtype(network):
    """The floating-point type of a network's weights, apart from the few that diffusers keeps in float32.

    Quantised weights are called in the type of the others, and adapters on frozen weights have their own.
    """
    if network not in _DECIDING:
        weights = [p for p in network.parameters() if p.is_floating_point()]
        frozen = [p for p in weights if not p.requires_grad]
        _DECIDING[network] = max(frozen or weights, key=torch.Tensor.numel)
    return _DECIDING[network].dtype


_EMBEDDERS = weakref.WeakKeyDictionary()  # network -> its module that embeds the timestep


def tell_exactly(network, timestep):
    """Make the next call of a network embed this timestep, which diffusers' class rounds to the type of the weights.

    ComfyUI's class does not. Rounded to bfloat16, a level of 0.9 becomes 0.8984.
    """
    if network not in _EMBEDDERS:
        embedder = next(module for name, module in network.named_modules() if name.endswith("time_proj"))
        if not hasattr(embedder, "exact"):
            embedder.register_forward_pre_hook(lambda module, args: (module.exact,))
        _EMBEDDERS[network] = embedder
    _EMBEDDERS[network].exact = timestep


def select(conditioning, rows):
    """The conditioning of the samples ``rows``, indices on the CPU; every tensor keeps its device."""
    return {name: tensor[place(rows, tensor.device)] for name, tensor in conditioning.items()}


def concat(first, second):
    """The conditioning of two batches as one."""
    return {name: torch.cat((tensor, second[name])) for name, tensor in first.items()}


def to_device(conditioning, device):
    """The conditioning on a device; ``lengths`` of prompts stay on the CPU, where a network call reads them."""
    return {name: tensor if name == "lengths" else place(tensor, device) for name, tensor in conditioning.items()}


def warn_of_another_shift(backbone, path):
    """Log a warning where the scheduler in a Diffusers-format folder has another shift than a flow backbone's curve."""
    scheduler = scheduler_config(path) if backbone.prediction == "flow" and is_folder(path) else {}
    shift = scheduler.get("flow_shift", scheduler.get("shift"))
    # A scheduler that computes its shift from each size has no one shift.
    if type(shift) in (int, float) and shift != backbone.curve.shift and not scheduler.get("use_dynamic_shifting"):
        log.warning(
            "warning: the scheduler of %s has shift %g, but backbone.shift is %g, which sets the levels of the plan's "
            "first size; set backbone.shift=%g unless you mean another",
            *(path, shift, backbone.curve.shift, shift),
        )


def refuse_distilled(path):
    """Raise RMDError for a teacher's Diffusers-format folder that says of itself that it is distilled."""
    index = Path(path) / INDEX
    if index.is_file() and read_json(index).get("is_distilled"):
        raise RMDError(f"{path} is distilled already; set backbone.base to the model that it was made from")


def refuse_other_family(backbone, cache):
    """Raise RMDError for a cache that says it was made by the text encoders of another model family."""
    families = "|".join(family.name for family in FAMILIES.values())
    made = re.fullmatch(rf"({families})(-\d+)?-[0-9a-f]{{12}}", cache.encoder)  # see TextEncoders.identity
    if made is not None and made[1] != (backbone.prompts_of or backbone.name).replace("_", "-"):
        raise RMDError(
            f"{cache.path} was made by the text encoders of {made[1]} ({cache.encoder}), not by those of "
            f"{backbone.name}; use a cache of its own"
        )

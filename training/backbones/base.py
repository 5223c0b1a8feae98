"""What the trainer asks of a model family."""

from abc import ABC, abstractmethod

import torch
from torch.utils.flop_counter import FlopCounterMode


class Backbone(ABC):
    """One model family: its noise curve, its latents, its network calls and its files.

    Conditioning is a dictionary of tensors whose first axis is the batch. A checkpoint is one safetensors file in
    native key names, or a Diffusers-format folder.
    """

    name: str
    architecture: str  # modelspec.architecture of an exported student
    prediction: str  # "flow", "v" or "eps"
    channels: int  # of a latent
    multiple: int  # height and width of a latent must be multiples of it
    pixels_per_cell: int  # of the autoencoder
    size_conditioning: str  # "none", "stage" or "final": which size the network is told
    temporal: bool  # latents are (B, C, T, H, W), not (B, C, H, W)
    curve: object  # the NoiseCurve the teacher was trained on
    prompt_tokens: int  # to which our text encoders pad a prompt; at most so many where they pad to the longest
    known_batch: int | None = None  # samples of an update below which training is known to suffer
    adapter_targets: tuple = ("to_q", "to_k", "to_v", "to_out.0")  # endings of the layers that a LoRA is put on

    @abstractmethod
    def load(self, path, *, dtype):
        """The network of a checkpoint, on the CPU in ``dtype``. Raises RMDError for a wrong one."""

    @abstractmethod
    def outline(self, path):
        """The network of a checkpoint on the meta device, from configuration or header. Raises RMDError as ``load``."""

    @abstractmethod
    def predict(self, network, x, sigma_B, conditioning):
        """The network's output in float32 for states ``x`` at the noise levels ``sigma_B``, shape (B,), float64."""

    @abstractmethod
    def conditioning(self, cache, texts):
        """The conditioning of prompts from a ``PromptCache``, on the CPU. Raises RMDError for a missing prompt."""

    @abstractmethod
    def check_cache(self, network, cache):
        """Raise RMDError unless the cache's embeddings fit the network."""

    @abstractmethod
    def native_state(self, network):
        """The network's tensors under the names that ComfyUI's loader detects."""

    @abstractmethod
    def native_layer(self, network, layer):
        """(native layer, layers of the network that are stacked in it, from its first row) of a layer, by name."""

    @abstractmethod
    def load_vae(self, path):
        """The autoencoder of a file or folder, frozen, in float32 on the CPU. Raises RMDError for a wrong one."""

    @abstractmethod
    def decode(self, vae, latents):
        """Pictures (B, 3, T, H, W) in 0..1 of latents."""

    @abstractmethod
    def export(self, network, path, *, dtype, metadata):
        """Write the network as one file that ComfyUI loads, with further metadata."""

    @abstractmethod
    def blank_conditioning(self, network, tokens, device):
        """Conditioning of one sample with nothing in it, of the shapes the network takes."""

    def architecture_of(self, network):
        """The modelspec.architecture of a student made from this network."""
        return self.architecture

    def check_sizes(self, network, sizes):  # noqa: B027 - most networks run at every size
        """Raise RMDError for a stage size, (height, width) in cells, at which the network fails here or in ComfyUI."""

    def flops(self, network, height, width, frames, tokens):
        """Floating-point operations of one forward of one sample: PyTorch's count over a forward without data."""
        with torch.device("meta"):
            copy = type(network).from_config(network.config)
            x = torch.empty(*self.latent_shape(1, frames), height, width)
        sigma = torch.full((1,), self.curve.sigma_max, dtype=torch.float64)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.predict(copy, x, sigma, self.blank_conditioning(network, tokens, "meta"))
        return counter.get_total_flops()

    def latent_shape(self, batch, frames):
        """The shape of a batch of latents without height and width."""
        return (batch, self.channels, frames) if self.temporal else (batch, self.channels)

    @staticmethod
    def parameters(network):
        """The number of parameters."""
        return sum(parameter.numel() for parameter in network.parameters())


def network_dtype(network):
    """The floating-point type of a network's weights, apart from the few that diffusers keeps in float32.

    Quantised weights are called in the type of the others, and adapters on frozen weights have their own.
    """
    weights = [p for p in network.parameters() if p.is_floating_point()]
    frozen = [p for p in weights if not p.requires_grad]
    return max(frozen or weights, key=torch.Tensor.numel).dtype


def take(conditioning, rows):
    """The conditioning of some samples."""
    return {name: tensor[rows] for name, tensor in conditioning.items()}


def join(first, second):
    """The conditioning of two batches as one."""
    return {name: torch.cat((tensor, second[name])) for name, tensor in first.items()}


def move(conditioning, device):
    """The conditioning on a device."""
    return {name: tensor.to(device) for name, tensor in conditioning.items()}

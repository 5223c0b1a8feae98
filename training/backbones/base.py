"""What the trainer asks of a model family."""

from abc import ABC, abstractmethod

import torch


class Backbone(ABC):
    """One model family: its noise curve, its latents, its network calls and its files.

    Conditioning is a dictionary of tensors whose first axis is the batch.
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
    known_batch: int | None = None  # samples of an update below which training is known to suffer
    adapter_targets: tuple = ("to_q", "to_k", "to_v", "to_out.0")  # endings of the layers that a LoRA is put on

    @abstractmethod
    def load(self, path, *, dtype):
        """The network of a checkpoint file, on the CPU in ``dtype``. Raises RMDError for a wrong file."""

    def outline(self, path):
        """The network of a checkpoint on the meta device. Families that can do so read nothing but headers."""
        return self.load(path, dtype=torch.bfloat16).to("meta")

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
    def flops(self, network, height, width, frames, tokens):
        """Floating-point operations of one forward of one sample, by counting matrix products."""

    @abstractmethod
    def load_vae(self, path):
        """The autoencoder of a file. Raises RMDError for a wrong file."""

    @abstractmethod
    def decode(self, vae, latents):
        """Pictures (B, 3, T, H, W) in 0..1 of latents."""

    @abstractmethod
    def export(self, network, path, *, dtype, metadata):
        """Write the network as one file that ComfyUI loads, with further metadata."""

    @abstractmethod
    def blank_conditioning(self, network, tokens, device):
        """Conditioning of one sample with nothing in it, of the shapes the network takes."""

    @abstractmethod
    def native_layer(self, network, layer):
        """(native layer, layers of the network that are stacked in it, from its first row) of a layer, by name."""

    def latent_shape(self, batch, frames):
        """The shape of a batch of latents without height and width."""
        return (batch, self.channels, frames) if self.temporal else (batch, self.channels)

    @staticmethod
    def parameters(network):
        """The number of parameters."""
        return sum(parameter.numel() for parameter in network.parameters())


def take(conditioning, rows):
    """The conditioning of some samples."""
    return {name: tensor[rows] for name, tensor in conditioning.items()}


def join(first, second):
    """The conditioning of two batches as one."""
    return {name: torch.cat((tensor, second[name])) for name, tensor in first.items()}


def move(conditioning, device):
    """The conditioning on a device."""
    return {name: tensor.to(device) for name, tensor in conditioning.items()}

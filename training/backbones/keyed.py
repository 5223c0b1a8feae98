"""A model family whose native files are a renaming of diffusers' tensors: it is a few facts and a KeyMap."""

from abc import abstractmethod
from collections.abc import Callable

from .base import Backbone
from .kl_vae import decode_kl, load_kl_vae
from .network_files import is_folder, load_component, load_native, outline_component, outline_native, save_native


class KeyedBackbone(Backbone):
    """A family of one diffusers class, with Stable Diffusion's kind of autoencoder.

    What follows here is read from the facts; ``checked`` is the place for what else a network must be.
    """

    kind: type  # the diffusers class
    component: str = "transformer"  # its folder
    aliases: tuple = ()  # other names of the class in configurations
    left_over: tuple = ()  # tensors of a folder that the class has no place for
    unused: tuple = ()  # native tensors that it has no use for
    keys: Callable  # keys(config): the KeyMap of a network of this configuration
    scaling: float  # of the autoencoder
    latent_shift: float = 0.0

    @staticmethod
    @abstractmethod
    def native_config(tensors):
        """Constructor arguments for a native file, from the shapes of its tensors; None for another network's."""

    def check_file(self, path):  # noqa: B027 - most say nothing
        """Raise RMDError for a native file that says in its header that it is no such network."""

    def checked(self, network, path):
        """The network. Raises RMDError for one that cannot be distilled."""
        return network

    def load(self, path, *, dtype):
        if is_folder(path):
            names = {"aliases": self.aliases, "ignored": self.left_over}
            network = load_component(self.kind, path, component=self.component, dtype=dtype, **names)
        else:
            self.check_file(path)
            reading = {"config_of": self.native_config, "keys_of": self.keys, "ignored": self.unused}
            network = load_native(self.kind, path, dtype=dtype, **reading)
        return self.checked(network, path)

    def outline(self, path):
        if is_folder(path):
            network = outline_component(self.kind, path, component=self.component, aliases=self.aliases)
        else:
            self.check_file(path)
            network = outline_native(self.kind, path, config_of=self.native_config, ignored=self.unused)
        return self.checked(network, path)

    def native_state(self, network):
        return self.keys(network.config).to_native(network.state_dict())

    def native_layer(self, network, layer):
        return self.keys(network.config).native_layer(layer)

    def export(self, network, path, *, dtype, metadata):
        save_native(self.native_state(network), path, dtype=dtype, metadata=metadata)

    def load_vae(self, path):
        return load_kl_vae(path, channels=self.channels, scaling=self.scaling, shift=self.latent_shift)

    def decode(self, vae, latents):
        return decode_kl(vae, latents, scaling=self.scaling, shift=self.latent_shift)

"""Student, fake score and teacher of a run, as full networks or as adapters on one frozen base."""

from .adapters import AdapterNetworks, adapt, adapted_layers
from .base import Networks
from .three_networks import ThreeNetworks

MODES = {"adapters": AdapterNetworks, "three networks": ThreeNetworks}

__all__ = ["Networks", "adapt", "adapted_layers", "make_networks"]


def make_networks(setup, processes):
    """The Networks of the configured mode, on this process's device. They take over ``setup.teacher``."""
    return MODES[setup.config.model.mode](setup, processes)

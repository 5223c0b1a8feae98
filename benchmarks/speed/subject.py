"""A model on a device, and timed runs of it through the cascade engine."""

from dataclasses import dataclass

import torch

from rmd_core.boundary import Boundary
from rmd_core.noise import SeededNoise
from training.backbones import make_backbone
from training.objective import Guidance
from training.sample import sample_latents

from .clock import DeviceClock, TimedNetwork
from .networks import compile_in_place, random_conditioning, random_network

SCALE = 5.0  # of the guidance; any other takes as long
ETA = 0.5  # of a student; a teacher's steps are deterministic


@dataclass(frozen=True)
class Run:
    """Seconds of one cascade from noise to latent, and of each network call in it, by (height, width)."""

    seconds: float
    calls: tuple

    @property
    def outside(self):
        """The share of the time that is not spent in network calls."""
        return 1.0 - sum(seconds for _, seconds in self.calls) / self.seconds


class Subject:
    """A SpeedModel with random weights on a device; ``mode`` is eager or compile."""

    def __init__(self, model, *, device, dtype, mode):
        self.model = model
        self.device = torch.device(device)
        self.dtype = dtype
        self.mode = mode
        self.backbone = make_backbone(model.backbone)
        self.clock = DeviceClock(device)
        network = random_network(*model.network, device=self.device, dtype=dtype)
        if mode == "compile":
            compile_in_place(network)
        self.network = TimedNetwork(network, self.clock)

    def sample(self, way, batch):
        """Sample a way once and give its Run."""
        self.network.calls.clear()
        guidance = Guidance(SCALE, self._conditioning(batch, seed=2)) if way.guided else None
        conditioning = self._conditioning(batch, seed=1)
        self.clock.wait()
        began = self.clock.mark()
        sample_latents(
            self.backbone,
            self.network,
            way.plan,
            conditioning=conditioning,
            noise=SeededNoise(0),
            boundary=Boundary(),
            eta=1.0 if way.guided else ETA,
            frames=self.model.frames,
            guidance=guidance,
            device=self.device,
        )
        ended = self.clock.mark()
        self.clock.wait()
        calls = tuple((size, self.clock.seconds(*marks)) for size, *marks in self.network.calls)
        return Run(self.clock.seconds(began, ended), calls)

    def decoder(self):
        """A function that decodes the latent of one sample at the final size and gives the seconds it took."""
        vae = random_network(*self.model.vae, device=self.device, dtype=self.dtype)
        shape = (*self.backbone.latent_shape(1, self.model.frames), *self.model.high)
        latent = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(self.device)

        def decode():
            self.clock.wait()
            began = self.clock.mark()
            self.backbone.decode(vae, latent)
            ended = self.clock.mark()
            self.clock.wait()
            return self.clock.seconds(began, ended)

        return decode

    def _conditioning(self, batch, *, seed):
        return random_conditioning(
            self.backbone, self.network, tokens=self.model.tokens, batch=batch, device=self.device, seed=seed
        )

"""The validation images of a run: fixed prompts and noise, sampled by the rules of inference."""

import io
import math

import torch
from PIL import Image

from rmd_core.files import make_folder, write_atomically
from rmd_core.noise import SeededNoise, derive_seed

from .backbones.base import to_device
from .plans import sampling_boundary
from .sample import as_bytes, sample_latents

_NEARLY = 1 / 255  # so near to black or white counts as burnt


class Validation:
    """Samples fixed prompts with fixed noise by the rules of inference, and writes ``images/step_000050.png``.

    ``setup``: the Setup of the run, with an autoencoder. ``decodes``: whether this process decodes and writes.
    """

    def __init__(self, setup, folder, *, device="cpu", decodes=True):
        self.setup = setup
        self.folder = folder
        self.device = device
        self.conditioning = to_device(setup.embed(setup.validation_prompts), device)
        self.vae = setup.vae.to(device) if decodes else None
        self.boundary = sampling_boundary(setup.config.method, setup.learned(device))
        self.seed = derive_seed(setup.config.train.seed, "validation")

    def sample(self, network):
        """Clean latents (B, C, [T,] H, W) of the validation prompts, sampled one at a time for the sake of memory."""
        return torch.cat([self._sample_one(network, number) for number in range(len(self.setup.validation_prompts))])

    def _sample_one(self, network, number):
        config = self.setup.config
        return sample_latents(
            self.setup.backbone,
            network,
            self.setup.plan,
            conditioning={name: rows[number : number + 1] for name, rows in self.conditioning.items()},
            noise=SeededNoise(self.seed, (number,)),
            boundary=self.boundary,
            eta=config.method.eta,
            frames=config.plan.frames,
            device=self.device,
        ).x0

    def decode(self, latents):
        """Images (B, 3, H, W) in 0..1 on the CPU of the latents of ``sample``, decoded one at a time.

        Of a video it is the first frame, which its first latent frame decides.
        """
        if latents.ndim == 5:
            latents = latents[:, :, :1]
        return torch.cat([self.setup.backbone.decode(self.vae, one)[:, :, 0].cpu() for one in latents.split(1)])

    def write(self, images, update):
        """Write the images of ``decode`` as the grid of an update.

        Returns figures: the share of pixels burnt to black or white in a channel.
        """
        make_folder(self.folder)
        write_atomically(self.folder / f"step_{update:06d}.png", grid_png(images))
        burnt = (images <= _NEARLY) | (images >= 1 - _NEARLY)
        return {"picture_saturation": burnt.float().mean().item()}


def grid_png(images_BCHW, *, gap=2):
    """The bytes of a PNG with images (B, 3, H, W) in 0..1 side by side in a nearly square grid."""
    values = as_bytes(images_BCHW)
    count, height, width, _ = values.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, image in enumerate(values):
        sheet.paste(Image.fromarray(image), ((number % columns) * (width + gap), (number // columns) * (height + gap)))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()

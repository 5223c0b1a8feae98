"""Sampling from a student or a teacher through the one cascade engine.
Validation: the student samples fixed prompts with fixed noise, as one picture grid."""

import io
import math

import torch
from PIL import Image

from rmd_core.cascade import DenoiserRunner, run_cascade
from rmd_core.files import make_folder, write_atomically
from rmd_core.noise import SeededNoise, derive_seed

from .objective import estimate_x0_eps


def sample_latents(
    backbone, network, plan, *, conditioning, noise, boundary, eta, frames=1, guidance=None, device="cpu"
):
    """The CascadeResult of a network on a plan, one latent for each row of ``conditioning``.

    ``noise``: where the cascade's noise comes from, such as ``SeededNoise(seed)``.
    """
    count = len(next(iter(conditioning.values())))

    def denoise(x, step):
        sigma = torch.full((len(x),), step.sigma, dtype=torch.float64)
        return estimate_x0_eps(backbone, network, x, sigma, conditioning, curve=plan.curve, guidance=guidance)

    return run_cascade(
        plan,
        DenoiserRunner(denoise, eta=eta, device=device),
        shape=backbone.latent_shape(count, frames),
        noise=noise,
        boundary=boundary,
    )


_NEARLY = 1 / 255


class Validation:
    """Samples ``prompts`` by the plan with the rules of inference, and writes ``pictures/step_000050.png``."""

    def __init__(self, plan, backbone, vae, *, conditioning, boundary, eta, frames, seed, folder, device="cpu"):
        self.plan = plan
        self.backbone = backbone
        self.vae = vae
        self.conditioning = conditioning
        self.boundary = boundary
        self.eta = eta
        self.frames = frames
        self.seed = derive_seed(seed, "validation")
        self.folder = folder
        self.device = device

    def sample(self, network):
        """Clean latents (B, C, [T,] H, W) of the validation prompts."""
        return sample_latents(
            self.backbone,
            network,
            self.plan,
            conditioning=self.conditioning,
            noise=SeededNoise(self.seed),
            boundary=self.boundary,
            eta=self.eta,
            frames=self.frames,
            device=self.device,
        ).x0

    def write(self, latents, update):
        """Write the grid of an update from the latents of ``sample``.

        Returns figures: the share of pixels burnt to black or white in a channel.
        """
        pictures = self.backbone.decode(self.vae, latents)
        make_folder(self.folder)
        write_atomically(self.folder / f"step_{update:06d}.png", grid_png(pictures[:, :, 0]))
        burnt = (pictures <= _NEARLY) | (pictures >= 1 - _NEARLY)
        return {"picture_saturation": burnt.float().mean().item()}


def grid_png(pictures_BCHW, *, gap=2):
    """The bytes of a PNG with pictures (B, 3, H, W) in 0..1 side by side in a nearly square grid."""
    count, _, height, width = pictures_BCHW.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    values = (pictures_BCHW.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    for place, picture in enumerate(values):
        sheet.paste(Image.fromarray(picture), ((place % columns) * (width + gap), (place // columns) * (height + gap)))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()

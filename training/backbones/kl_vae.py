"""The autoencoder of the picture models: AutoencoderKL from a Diffusers-format folder, and decoding with it."""

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from rmd_core.errors import RMDError

from .network_files import load_component


def load_kl_vae(path, *, channels, scaling, shift=0.0):
    """The ``AutoencoderKL`` in ``vae`` of a Diffusers-format folder, or in ``path`` itself, frozen, in float32.

    ``channels``, ``scaling``, ``shift``: what the backbone's latents are made with. Raises RMDError for any other
    autoencoder, or a single file.
    """
    if Path(path).is_file():
        raise RMDError(f"{path} is a file; give backbone.vae a Diffusers-format folder with vae/ in it, or that folder")
    vae = load_component(AutoencoderKL, path, component="vae", dtype=torch.float32)
    found = (vae.config.latent_channels, vae.config.scaling_factor, vae.config.shift_factor or 0.0)
    wanted = (channels, scaling, shift)
    if not all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) for a, b in zip(found, wanted)):
        raise RMDError(
            f"{path}: its latents have channels, scale and shift {found}, this backbone's have {wanted}; "
            "use the autoencoder of the base model"
        )
    return vae.requires_grad_(False)


@torch.no_grad()
def decode_kl(vae, latents, *, scaling, shift=0.0):
    """Pictures (B, 3, 1, H, W) in 0..1 from the latents (B, C, h, w) that networks see, as float32."""
    decoded = vae.decode(latents.to(vae.dtype) / scaling + shift, return_dict=False)[0]
    return (decoded.float() * 0.5 + 0.5).clamp(0, 1)[:, :, None]

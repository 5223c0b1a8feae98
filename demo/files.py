"""Where the demo's shipped files lie, and how pictures become latents."""

from pathlib import Path

import torch

MODELS = Path(__file__).parent / "models"
TEACHER = MODELS / "diffusion_models" / "rmd_tiny_wan_teacher.safetensors"
STUDENT = MODELS / "diffusion_models" / "rmd_tiny_wan_student.safetensors"
VAE = MODELS / "vae" / "rmd_tiny_wan_vae.safetensors"
PROMPTS = MODELS / "embeddings" / "rmd_tiny_prompts.safetensors"
JUDGE = MODELS / "judge.safetensors"
PROMPT_LIST = Path(__file__).parent / "data" / "prompts.txt"


@torch.no_grad()
def encode_pictures(vae, pictures):
    """Normalised latents (B, 16, S/8, S/8) of pictures (B, 3, S, S) in -1..1, by an AutoencoderKLWan."""
    return normalise(vae, vae.encode(pictures.unsqueeze(2)).latent_dist.mode()[:, :, 0])


def normalise(vae, latents):
    """Raw latents (B, 16, h, w) by Wan's fixed means and deviations."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return (latents - mean) / std

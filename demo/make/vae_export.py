"""Write a trained autoencoder as the Wan2.1 file that ComfyUI's own VAE loader reads.

    python -m demo.make.vae_export DIR/vae.pt

Wan's pipeline normalises latents by fixed means and deviations. The last layer of the encoder and the
first of the decoder are 1x1 convolutions, so this world's own statistics are folded into them: after
Wan's normalisation every channel has mean 0 and deviation 1 on the teacher's images.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from einops import rearrange, reduce, repeat

from rmd_core.files import save_safetensors
from training.backbones.wan import WanBackbone

from .. import files
from ..world import TEACHER_STYLES, Drawings
from . import vae as tiny


def native_name(name):
    """Wan's own name of a parameter of diffusers' AutoencoderKLWan with two residual blocks a level."""
    if name.startswith(("quant_conv", "post_quant_conv")):
        return name.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")
    name = name.replace(".conv_in.", ".conv1.", 1) if ".conv_in." in name else name
    name = name.replace(".norm_out.", ".head.0.").replace(".conv_out.", ".head.2.")
    name = name.replace("encoder.down_blocks.", "encoder.downsamples.")
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"upsamples.{4 * int(m[1]) + int(m[2])}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"upsamples.{4 * int(m[1]) + 3}", name)
    name = name.replace("mid_block.resnets.0", "middle.0").replace("mid_block.attentions.0", "middle.1")
    name = name.replace("mid_block.resnets.1", "middle.2").replace("conv_shortcut", "shortcut")
    if "downsamples." in name or "upsamples." in name or "middle." in name:
        for ours, theirs in (("norm1", "0"), ("conv1", "2"), ("norm2", "3"), ("conv2", "6")):
            name = name.replace(f".{ours}.", f".residual.{theirs}.")
    return name


def clip_vae(frame_state):
    """diffusers' AutoencoderKLWan with frame weights on the last temporal tap; time itself is copied or skipped."""
    whole = AutoencoderKLWan(**tiny.CONFIG)
    state = {}
    for key, target in whole.state_dict().items():
        value = torch.zeros_like(target)
        if "time_conv" in key:
            if key.endswith("weight"):
                channels = target.shape[1]
                eye = repeat(torch.eye(channels), "i j -> (n i) j", n=target.shape[0] // channels)
                value[:, :, -1, 0, 0] = eye
        elif target.ndim == 5:
            value[:, :, -1] = frame_state[key].view(value[:, :, -1].shape)
        else:
            value = frame_state[key].view(target.shape).clone()
        state[key] = value
    whole.load_state_dict(state)
    return whole


@torch.no_grad()
def latent_statistics(frame_vae, count=2304):
    """Mean and deviation (16,) of the latents of the teacher's images at the final size."""
    device = next(frame_vae.parameters()).device
    images = Drawings(TEACHER_STYLES).to(device)
    generator = torch.Generator().manual_seed(3)
    latents = torch.cat([tiny.encode(frame_vae, images.sample(32, generator, side=128)[0]) for _ in range(count // 32)])
    return reduce(latents, "b c h w -> c", "mean").cpu().double(), latents.std((0, 2, 3)).cpu().double()


@torch.no_grad()
def fold(whole, mean, std):
    """Make Wan's fixed normalisation give unit latents, by the 1x1 convolutions at both ends of the latent."""
    wan_mean, wan_std = (torch.tensor(v).double() for v in (whole.config.latents_mean, whole.config.latents_std))
    scale = wan_std / std
    last, first = whole.quant_conv, whole.post_quant_conv
    first.bias += (first.weight[:, :, 0, 0, 0].double() @ (mean - wan_mean / scale)).float()
    first.weight.copy_(first.weight.double() / rearrange(scale, "c -> 1 c 1 1 1"))
    last.weight[:16] = (last.weight[:16].double() * rearrange(scale, "c -> c 1 1 1 1")).float()
    last.bias[:16] = ((last.bias[:16].double() - mean) * scale + wan_mean).float()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("frame_vae", type=Path)
    parser.add_argument("--out", type=Path, default=files.VAE)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    frame_vae = tiny.frame_vae(0)
    state = torch.load(args.frame_vae, weights_only=True)
    frame_vae.load_state_dict(state)
    whole = clip_vae(state)
    fold(whole, *latent_statistics(frame_vae.to(args.device)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    tensors = {native_name(key): value.half() for key, value in whole.state_dict().items()}
    save_safetensors(args.out, tensors, {"modelspec.title": "RMD tiny Wan2.1 VAE"})
    shipped = WanBackbone().load_vae(args.out)
    tiny.flatten_convolutions(shipped)
    print(json.dumps(tiny.report(shipped.to(args.device))))


if __name__ == "__main__":
    main()

"""Train the demo's tiny Wan2.1 autoencoder and write it in the key names that ComfyUI loads.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m demo.make.vae --minutes 60 --out DIR
    python -m demo.make.vae --device cuda --batch 64 --minutes 2 --out DIR

It trains single frames, so every causal 3-D convolution is a 2-D one on its last tap (the others
see zero padding). The other taps stay zero: a clip is coded frame by frame.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from einops import rearrange, reduce
from torch.nn import functional as F

from ..world import HELD_OUT_STYLES, SEEN_STYLES, Drawings
from .training import Training

CONFIG = dict(
    base_dim=8,
    z_dim=16,
    dim_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    attn_scales=[],
    temperal_downsample=[False, True, True],
    dropout=0.0,
)
LATENT_NOISE = 0.08  # of a latent of about unit size
LATENT_PENALTY = 2e-3  # on the mean square of the latent


class FrameConv(torch.nn.Module):
    """A causal 3-D or a plain 2-D convolution on one frame, its weight a matrix, as Muon needs."""

    def __init__(self, conv):
        super().__init__()
        causal = isinstance(conv, WanCausalConv3d)
        weight = conv.weight.detach()[:, :, -1] if causal else conv.weight.detach()
        self.shape = weight.shape
        self.weight = torch.nn.Parameter(rearrange(weight, "o ... -> o (...)").clone())
        self.bias = torch.nn.Parameter(conv.bias.detach().clone())
        self.causal = causal
        self.stride = conv.stride[-2:]
        self.padding = (conv._padding[2], conv._padding[0]) if causal else conv.padding

    def forward(self, x):
        frame = x[:, :, 0] if self.causal else x
        frame = frame.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(frame, self.weight.view(self.shape), self.bias, self.stride, self.padding)
        return y.unsqueeze(2) if self.causal else y


def flatten_convolutions(module):
    """Replace every convolution inside ``module`` by its FrameConv, except those along time."""
    for name, child in module.named_children():
        if name != "time_conv" and isinstance(child, (WanCausalConv3d, torch.nn.Conv2d)):
            setattr(module, name, FrameConv(child))
        else:
            flatten_convolutions(child)


def frame_vae(seed):
    """The autoencoder to train: diffusers' AutoencoderKLWan on single frames."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(**CONFIG)
    flatten_convolutions(vae)
    for key, module in vae.named_modules():
        if key.endswith("time_conv"):
            module.requires_grad_(False)
    return vae


def encode(vae, x_BCHW):
    """Latent means (B, 16, H/8, W/8), without caches."""
    return vae.quant_conv(vae.encoder(x_BCHW.unsqueeze(2)))[:, :16, 0]


def normalise(vae, z_BCHW):
    """Raw latents by Wan's fixed means and deviations."""
    mean, std = (v.to(z_BCHW) for v in _statistics(vae))
    return (z_BCHW - mean) / std


def denormalise(vae, z_BCHW):
    """Raw latents of normalised ones."""
    mean, std = (v.to(z_BCHW) for v in _statistics(vae))
    return z_BCHW * std + mean


def _statistics(vae):
    return (rearrange(torch.tensor(v), "c -> 1 c 1 1") for v in (vae.config.latents_mean, vae.config.latents_std))


@torch.no_grad()
def encode_images(vae, images):
    """Normalised latents (B, 16, S/8, S/8) of images (B, 3, S, S) in -1..1, by an AutoencoderKLWan as it is shipped."""
    return normalise(vae, vae.encode(images.unsqueeze(2)).latent_dist.mode()[:, :, 0])


def decode(vae, z_BCHW):
    """Images (B, 3, 8H, 8W), not clamped."""
    return vae.decoder(vae.post_quant_conv(z_BCHW.unsqueeze(2)))[:, :, 0]


def image_loss(y, x):
    """L1 + L2 + L1 of the differences between neighbours, which keeps edges sharp."""
    edge = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    return (y - x).abs().mean() + (y - x).square().mean() + 0.5 * edge


def crops(images, generator, side=64):
    """One random crop of each image, on any pixel."""
    span = images.shape[-1] - side
    corner = torch.randint(span + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(images, corner)])


def batch(drawings, generator, size, *, whole):
    """Images to reconstruct: crops of 128 px, or whole images of 64, 96 or 128 px."""
    if not whole:
        picked = drawings.sample(size, generator, side=128)[0]
        return crops(picked, generator)
    side = (64, 96, 128)[torch.randint(3, (), generator=generator)]
    return drawings.sample(max(1, size * 64 * 64 // side**2), generator, side=side)[0]


@torch.no_grad()
def psnr(vae, drawings, generator, *, side, held_out, count=48):
    """Mean peak signal-to-noise ratio in dB over images of the given side."""
    x = drawings.sample(count, generator, side=side, held_out=held_out)[0]
    y = torch.cat([decode(vae, encode(vae, part)).clamp(-1, 1) for part in x.split(8)])
    return (10 * torch.log10(4 / reduce((y - x).square(), "b c h w -> b", "mean"))).mean().item()


def report(vae):
    """PSNR on held-out jitters of trained drawings, and on drawings that no model has seen."""
    device = next(vae.parameters()).device
    seen, unseen = Drawings(SEEN_STYLES).to(device), Drawings(HELD_OUT_STYLES).to(device)
    rows = {}
    for side in (128, 96, 64):
        rows[f"seen_{side}"] = psnr(vae, seen, torch.Generator().manual_seed(1), side=side, held_out=True)
        rows[f"unseen_{side}"] = psnr(vae, unseen, torch.Generator().manual_seed(1), side=side, held_out=True)
    return {key: round(value, 2) for key, value in rows.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=60, help="of CPU time over all processes, or on the GPU")
    parser.add_argument("--batch", type=int, default=8, help="64-px crops a process")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--start", type=Path, help="continue from this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vae = frame_vae(0)
    if args.start:
        vae.load_state_dict(torch.load(args.start, weights_only=True))
    vae = vae.to(args.device)
    training = Training(vae, lambda name, p: p.ndim == 2, lr=args.lr, minutes=args.minutes, clip=0.5)
    drawings, shown = Drawings(SEEN_STYLES).to(args.device), 0.0
    generator = torch.Generator().manual_seed(100 * training.rank + 7 + (1000 if args.start else 0))
    args.out.mkdir(parents=True, exist_ok=True)
    while (share := training.share()) < 1:
        step, warm = training.step, min(1.0, (training.step + 1) / 100)
        x = batch(drawings, generator, args.batch, whole=share > 0.7 or step % 5 == 4)
        z = encode(vae, x)
        penalty = LATENT_PENALTY * z.square().mean()
        z = z + LATENT_NOISE * torch.randn(z.shape, generator=generator).to(z)
        error = image_loss(decode(vae, z), x)
        training.update(penalty + error, args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))))
        if training.rank == 0 and share - shown > 0.04:
            shown = share
            training.save(args.out / "vae.pt")
            live = {k: v.clone() for k, v in vae.state_dict().items()}
            vae.load_state_dict(training.averaged)
            figures = dict(share=round(share, 3), loss=round(error.item(), 4), cpu=round(training.spent), **report(vae))
            print(json.dumps(dict(step=training.step, **figures)), flush=True)
            vae.load_state_dict(live)
    if training.rank == 0:
        training.save(args.out / "vae.pt")
        vae.load_state_dict(training.averaged)
        print(json.dumps(dict(step=training.step, done=True, **report(vae))), flush=True)
    training.close()


if __name__ == "__main__":
    main()

"""Train the demo's teacher: a tiny Wan2.1 transformer on the latents of the demo world.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m demo.make.teacher --cpu-minutes 75 --out DIR

Flow matching at 128, 96 and 64 px, by default half of the steps below the final size; the concept is always in
the prompt or the whole prompt is empty, while style and background are sometimes left open.
"""

import argparse
import json
import math
import os
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from einops import rearrange, repeat

from training.backbones.wan import WanBackbone

from .. import files
from ..world import TEACHER_STYLES, WIDTH, Drawings, draw_jitter, embed
from .training import Training
from .vae import encode, flatten_convolutions, normalise

CONFIG = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=1,
    attention_head_dim=128,
    in_channels=16,
    out_channels=16,
    text_dim=WIDTH,
    freq_dim=256,
    ffn_dim=384,
    num_layers=8,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
)
# side in px -> (images in a batch of one process, shift of the noise levels)
SIZES = {128: (24, 2.0), 96: (40, 1.5), 64: (64, 1.0)}
NO_PROMPT, OPEN_STYLE, OPEN_BACKGROUND = 0.1, 0.1, 0.1


def draw_sigma(count, shift, generator):
    """Noise levels: logit-normal around the middle, a fifth of them uniform, then shifted."""
    u = torch.sigmoid(torch.randn(count, generator=generator))
    flat = torch.rand(count, generator=generator)
    u = torch.where(torch.rand(count, generator=generator) < 0.2, flat, u).clamp(1e-3, 1 - 1e-3)
    return shift * u / (1 + (shift - 1) * u)


def draw_prompts(index, background, drawings, generator):
    """Prompt embeddings (B, TOKENS, WIDTH), parts of some prompts left open."""
    rows = []
    for i, b, r in zip(index.tolist(), background.tolist(), torch.rand(len(index), 3, generator=generator).tolist()):
        style = "*" if r[1] < OPEN_STYLE else drawings.styles[i]
        where = "*" if r[2] < OPEN_BACKGROUND else f"on-{drawings.backgrounds[b]}"
        rows.append(embed("" if r[0] < NO_PROMPT else f"{drawings.concepts[i]} {style} {where}"))
    return torch.stack(rows)


def frame_encoder():
    """The shipped encoder, its convolutions flattened to single frames, which is several times faster."""
    vae = WanBackbone().load_vae(files.VAE)
    flatten_convolutions(vae)
    return lambda images: normalise(vae, encode(vae, images))


@torch.no_grad()
def latent_pool(encode, jitters, generator):
    """Latents of every drawing and background of the teacher's styles, each with ``jitters`` jitters.

    encode: images (B, 3, S, S) in -1..1 to latents (B, 16, S/8, S/8) in the teacher's space.
    Returns {side: (N, 16, side/8, side/8)}, index (N,), background (N,).
    """
    drawings = Drawings(TEACHER_STYLES)
    pairs = torch.cartesian_prod(torch.arange(len(drawings)), torch.arange(len(drawings.backgrounds)))
    index, background = repeat(pairs, "n two -> (j n) two", j=jitters).unbind(1)
    jitter = draw_jitter(len(index), generator, held_out=False)
    pool = {}
    for side in SIZES:
        parts = []
        for rows in torch.arange(len(index)).split(32):
            parts.append(encode(drawings.render(index[rows], background[rows], jitter[rows], side=side)))
        pool[side] = torch.cat(parts)
    return pool, index, background


def flow_loss(model, latents, context, shift, generator):
    sigma = draw_sigma(len(latents), shift, generator)
    noise = torch.randn(latents.shape, generator=generator)
    mix = rearrange(sigma, "b -> b 1 1 1")
    noisy = (1 - mix) * latents + mix * noise
    velocity = model(noisy.unsqueeze(2), 1000 * sigma, context, return_dict=False)[0][:, :, 0]
    return (velocity - (noise - latents)).square().mean()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu-minutes", type=float, default=75, help="over all processes")
    parser.add_argument("--jitters", type=int, default=64, help="images of each drawing and background")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--shares", type=float, nargs=len(SIZES), default=(0.5, 0.25, 0.25), help="of the steps at 128, 96 and 64 px"
    )
    parser.add_argument("--start", type=Path, help="continue from this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = WanTransformer3DModel(**CONFIG)
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True))
    generator = torch.Generator().manual_seed(11 + int(os.environ.get("RANK", 0)))
    jitters = args.jitters // int(os.environ.get("WORLD_SIZE", 1))
    pool, index, background = latent_pool(frame_encoder(), jitters, generator)
    drawings = Drawings(TEACHER_STYLES)
    training = Training(
        model,
        lambda name, p: p.ndim == 2 and "proj_out" not in name,
        lr=args.lr,
        cpu_minutes=args.cpu_minutes,
        clip=1.0,
    )
    sides, shown = torch.Generator().manual_seed(5), 0.0  # all processes take the same sides
    recent = {side: [] for side in SIZES}
    while (share := training.share()) < 1:
        side = list(SIZES)[int(torch.multinomial(torch.tensor(args.shares), 1, generator=sides))]
        count, shift = SIZES[side]
        rows = torch.randint(len(index), (count,), generator=generator)
        context = draw_prompts(index[rows], background[rows], drawings, generator)
        loss = flow_loss(model, pool[side][rows], context, shift, generator)
        training.update(loss, args.lr * min(1.0, (training.step + 1) / 100) * max(0.01, min(1.0, (1 - share) / 0.4)))
        recent[side].append(loss.item())
        if training.rank == 0 and (share - shown > 0.03 or not math.isfinite(loss.item())):
            shown = share
            means = {f"loss_{side}": round(sum(r[-200:]) / max(1, len(r[-200:])), 4) for side, r in recent.items()}
            print(json.dumps(dict(step=training.step, share=round(share, 3), cpu=round(training.spent), **means)),
                  flush=True)  # fmt: skip
            training.save(args.out / "teacher.pt")
    if training.rank == 0:
        training.save(args.out / "teacher.pt")
        model.load_state_dict(training.averaged)
        WanBackbone().export(model, args.out / "teacher.safetensors")
    training.close()


if __name__ == "__main__":
    main()

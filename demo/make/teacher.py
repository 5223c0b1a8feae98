"""Train the demo's teacher: a tiny Wan2.1 transformer on the latents of the demo world.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m demo.make.teacher --minutes 75 --out DIR
    python -m demo.make.teacher --device cuda --scale 16 --jitters 96 --minutes 4 --out DIR

Flow matching at the full size only, so that a smaller image is new to it, as 512 px is to SDXL.
``--shares .5 .25 .25`` trains at 128, 96 and 64 px. The concept is always in the prompt or the whole prompt is empty,
while style and background are sometimes left open.
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
from ..world import BACKGROUNDS, TEACHER_STYLES, WIDTH, Drawings, sample_jitter, word_vector
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
# side in px -> (images in a batch, shift of the noise levels)
SIZES = {128: (24, 2.0), 96: (40, 1.5), 64: (64, 1.0)}
NO_PROMPT, OPEN_STYLE, OPEN_BACKGROUND = 0.1, 0.1, 0.1


def draw_sigma(count, shift, generator):
    """Noise levels: logit-normal around the middle, a fifth of them uniform, then shifted."""
    place = {"generator": generator, "device": generator.device}
    u = torch.sigmoid(torch.randn(count, **place))
    flat = torch.rand(count, **place)
    u = torch.where(torch.rand(count, **place) < 0.2, flat, u).clamp(1e-3, 1 - 1e-3)
    return shift * u / (1 + (shift - 1) * u)


class PromptTable:
    """Prompt embeddings of drawings on backgrounds, parts of some prompts left open."""

    def __init__(self, drawings, device):
        self.concepts, self.styles, self.backgrounds = (
            torch.stack([word_vector(word) for word in words]).to(device)
            for words in (drawings.concepts, drawings.styles, [f"on-{name}" for name in BACKGROUNDS])
        )

    def sample(self, index, background, generator):
        """Embeddings (B, TOKENS, WIDTH) of the drawings (B,) on the backgrounds (B,)."""
        rolls = torch.rand(3, len(index), 1, generator=generator, device=generator.device)
        prompted, style, where = (roll >= p for roll, p in zip(rolls, (NO_PROMPT, OPEN_STYLE, OPEN_BACKGROUND)))
        words = self.concepts[index], self.styles[index] * style, self.backgrounds[background] * where
        return rearrange(list(words), "t b w -> b t w") * prompted[:, None]


def frame_encoder(device):
    """The shipped encoder, its convolutions flattened to single frames, which is several times faster."""
    vae = WanBackbone().load_vae(files.VAE)
    flatten_convolutions(vae)
    vae = vae.to(device)
    return lambda images: normalise(vae, encode(vae, images))


@torch.no_grad()
def latent_pool(encode, drawings, sides, jitters, generator):
    """Latents of every drawing on every background, each with ``jitters`` jitters.

    encode: images (B, 3, S, S) in -1..1 to latents (B, 16, S/8, S/8) in the teacher's space.
    Returns {side: (N, 16, side/8, side/8)}, index (N,), background (N,).
    """
    pairs = torch.cartesian_prod(torch.arange(len(drawings)), torch.arange(len(drawings.backgrounds)))
    index, background = repeat(pairs, "n two -> (j n) two", j=jitters).unbind(1)
    jitter = sample_jitter(len(index), generator, held_out=False)
    pool = {}
    for side in sides:
        parts = []
        for rows in torch.arange(len(index)).split(64):
            parts.append(encode(drawings.render(index[rows], background[rows], jitter[rows], side=side)))
        pool[side] = torch.cat(parts)
    return pool, index, background


def flow_loss(model, latents, context, shift, generator):
    sigma = draw_sigma(len(latents), shift, generator)
    noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    mix = rearrange(sigma, "b -> b 1 1 1")
    noisy = (1 - mix) * latents + mix * noise
    velocity = model(noisy.unsqueeze(2), 1000 * sigma, context, return_dict=False)[0][:, :, 0]
    return (velocity - (noise - latents)).square().mean()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=75, help="of CPU time over all processes, or on the GPU")
    parser.add_argument("--jitters", type=int, default=64, help="images of each drawing and background")
    parser.add_argument("--scale", type=int, default=1, help="batches this many times as large")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--shares", type=float, nargs=len(SIZES), default=(1.0, 0.0, 0.0), help="of the steps at 128, 96 and 64 px"
    )
    parser.add_argument("--start", type=Path, help="continue from this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = WanTransformer3DModel(**CONFIG)
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True))
    model = model.to(args.device)
    seed = 11 + int(os.environ.get("RANK", 0))
    generator = torch.Generator(args.device).manual_seed(seed)
    drawings = Drawings(TEACHER_STYLES).to(args.device)
    sides = [side for side, share in zip(SIZES, args.shares) if share]
    jitters = args.jitters // int(os.environ.get("WORLD_SIZE", 1))
    jitter_generator = torch.Generator().manual_seed(seed)
    pool, *labels = latent_pool(frame_encoder(args.device), drawings, sides, jitters, jitter_generator)
    index, background = (each.to(args.device) for each in labels)
    prompts = PromptTable(drawings, args.device)
    training = Training(
        model,
        lambda name, p: p.ndim == 2 and "proj_out" not in name,
        lr=args.lr,
        minutes=args.minutes,
        clip=1.0,
    )
    order, shown = torch.Generator().manual_seed(5), 0.0  # all processes take the same sides
    recent = {side: [] for side in sides}
    while (share := training.share()) < 1:
        side = list(SIZES)[int(torch.multinomial(torch.tensor(args.shares), 1, generator=order))]
        count, shift = SIZES[side]
        rows = torch.randint(len(index), (args.scale * count,), generator=generator, device=args.device)
        context = prompts.sample(index[rows], background[rows], generator)
        loss = flow_loss(model, pool[side][rows], context, shift, generator)
        training.update(loss, args.lr * min(1.0, (training.step + 1) / 100) * max(0.01, min(1.0, (1 - share) / 0.4)))
        recent[side] = recent[side][-199:] + [loss.detach()]
        if training.rank == 0 and share - shown > 0.03:
            shown = share
            means = {f"loss_{side}": round(torch.stack(r).mean().item(), 4) for side, r in recent.items() if r}
            print(json.dumps(dict(step=training.step, share=round(share, 3), spent=round(training.spent), **means)),
                  flush=True)  # fmt: skip
            training.save(args.out / "teacher.pt")
            if not all(map(math.isfinite, means.values())):
                raise SystemExit("the loss is not finite; lower --lr")
    if training.rank == 0:
        training.save(args.out / "teacher.pt")
        model.load_state_dict(training.averaged)
        WanBackbone().export(model.cpu(), args.out / "teacher.safetensors")
    training.close()


if __name__ == "__main__":
    main()

"""Train the demo's teacher: a tiny Wan2.1 transformer on the latents of the demo world.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m demo.make.teacher --cpu-minutes 75 --out DIR

Flow matching at 128, 96 and 64 px, by default half of the steps below the final size; the concept always stands
in the prompt or the whole prompt is empty, while style and background are sometimes left open.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import distributed

from training.backbones.wan import load_wan_vae, save_wan_transformer

from .. import files
from ..world.catalogue import TEACHER_STYLES
from ..world.drawings import Drawings
from ..world.words import WIDTH, embed
from .latents import latent_pool
from .muon import Muon
from .vae import encode, flatten_convolutions

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
# side in px -> (pictures in a batch of one process, shift of the noise levels)
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
    vae = load_wan_vae(files.VAE)
    flatten_convolutions(vae)
    return lambda pictures: files.normalise(vae, encode(vae, pictures))


def flow_loss(model, latents, context, shift, generator):
    sigma = draw_sigma(len(latents), shift, generator)
    noise = torch.randn(latents.shape, generator=generator)
    mix = sigma.view(-1, 1, 1, 1)
    noisy = (1 - mix) * latents + mix * noise
    velocity = model(noisy.unsqueeze(2), 1000 * sigma, context, return_dict=False)[0][:, :, 0]
    return (velocity - (noise - latents)).square().mean()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu-minutes", type=float, default=75, help="over all processes")
    parser.add_argument("--jitters", type=int, default=64, help="pictures of each drawing and background")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--shares", type=float, nargs=len(SIZES), default=(0.5, 0.25, 0.25), help="of the steps at 128, 96 and 64 px"
    )
    parser.add_argument("--start", type=Path, help="continue from this file")
    args = parser.parse_args()
    ranks, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    torch.set_num_threads(1)
    if ranks > 1:
        distributed.init_process_group("gloo")
    args.out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(11 + rank)
    pool, index, background = latent_pool(frame_encoder(), args.jitters // ranks, generator)
    drawings = Drawings(TEACHER_STYLES)
    torch.manual_seed(0)
    model = WanTransformer3DModel(**CONFIG)
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True))
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "proj_out" not in name]
    others = [p for p in parameters if not any(p is m for m in matrices)]
    optimisers = [
        Muon(matrices, args.lr),
        torch.optim.AdamW(others, args.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    averaged = {k: v.clone() for k, v in model.state_dict().items()}
    sides = torch.Generator().manual_seed(5)  # one draw for all processes
    began, budget, step, shown = time.process_time(), args.cpu_minutes * 60 / ranks, 0, 0.0
    recent = {side: [] for side in SIZES}
    while True:
        spent = torch.tensor(time.process_time() - began)
        if ranks > 1:
            distributed.all_reduce(spent, distributed.ReduceOp.MAX)
        share = spent.item() / budget
        if share >= 1:
            break
        rate = args.lr * min(1.0, (step + 1) / 100) * max(0.01, min(1.0, (1 - share) / 0.4))
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = rate
        side = list(SIZES)[int(torch.multinomial(torch.tensor(args.shares), 1, generator=sides))]
        count, shift = SIZES[side]
        rows = torch.randint(len(index), (count,), generator=generator)
        context = draw_prompts(index[rows], background[rows], drawings, generator)
        loss = flow_loss(model, pool[side][rows], context, shift, generator)
        model.zero_grad(set_to_none=True)
        loss.backward()
        if ranks > 1:
            flat = torch.cat([p.grad.reshape(-1) for p in parameters])
            distributed.all_reduce(flat)
            for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
                p.grad.copy_(part.view_as(p) / ranks)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        recent[side].append(loss.item())
        decay = min(0.998, step / (step + 20))
        for key, value in model.state_dict().items():
            averaged[key].lerp_(value, 1 - decay)
        if rank == 0 and (share - shown > 0.03 or not math.isfinite(loss.item())):
            shown = share
            means = {f"loss_{side}": round(sum(r[-200:]) / max(1, len(r[-200:])), 4) for side, r in recent.items()}
            print(json.dumps(dict(step=step, share=round(share, 3), cpu=round(spent.item()), **means)), flush=True)
            torch.save(averaged, args.out / "teacher.part")
            os.replace(args.out / "teacher.part", args.out / "teacher.pt")
    if rank == 0:
        torch.save(averaged, args.out / "teacher.pt")
        model.load_state_dict(averaged)
        save_wan_transformer(model, args.out / "teacher.safetensors")
    if ranks > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()

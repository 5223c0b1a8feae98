"""Write drawings as a file of images, for the trainer of upsamplers.

    python -m demo.make.upsampler --out outputs/upsampler/images.safetensors
    python training/train_upsampler.py --backbone wan --vae demo/models/vae/rmd_tiny_wan_vae.safetensors \\
        --images outputs/upsampler/images.safetensors --size 128x128 --width 32 --blocks 2 --out outputs/upsampler
"""

import argparse
from pathlib import Path

import torch

from rmd_core.files import make_folder, save_safetensors

from ..world import TEACHER_STYLES, Drawings


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--count", type=int, default=1536, metavar="N", help="images of 128 px")
    args = parser.parse_args()
    drawings, generator = Drawings(TEACHER_STYLES), torch.Generator().manual_seed(0)
    parts = [drawings.sample(32, generator, side=128)[0] for _ in range(-(-args.count // 32))]
    images = torch.cat(parts)[: args.count] / 2 + 0.5
    make_folder(args.out.parent)
    save_safetensors(args.out, {"images": (images.clamp(0, 1) * 255).round().to(torch.uint8)})


if __name__ == "__main__":
    main()

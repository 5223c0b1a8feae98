"""Write drawings as a file of images, for the trainer of upsamplers.

    python -m demo.make.upsampler --out outputs/upsampler/images.safetensors

``python -m benchmarks.upsampler`` trains and measures one.
"""

import argparse
from pathlib import Path

import torch

from rmd_core.files import make_folder, save_safetensors

from ..world import TEACHER_STYLES, Drawings

COUNT = 1536


def write_images(path, count=COUNT):
    """Write ``images`` (count, 3, 128, 128), bytes, as a safetensors file: the teacher's drawings, training jitters."""
    drawings, generator = Drawings(TEACHER_STYLES), torch.Generator().manual_seed(0)
    parts = [drawings.sample(32, generator, side=128)[0] for _ in range(-(-count // 32))]
    images = torch.cat(parts)[:count] / 2 + 0.5
    make_folder(path.parent)
    save_safetensors(path, {"images": (images.clamp(0, 1) * 255).round().to(torch.uint8)})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--count", type=int, default=COUNT, metavar="N", help="images of 128 px")
    args = parser.parse_args()
    write_images(args.out, args.count)


if __name__ == "__main__":
    main()

"""Train a latent upsampler for the switch, on latents of images and of their downscaled copies.

    python training/train_upsampler.py --backbone sdxl --vae VAE --images FOLDER --size 1024x1024 --out FOLDER

The autoencoder encodes each image once at every size; the latents are kept in the output folder. A small network then
learns to make the large latent of a small one. At the end a table compares it with interpolation on images that were
held out. Exit codes: 0 done, 1 the memory ran out, 2 bad input or no place to write, 130 stopped by Ctrl-C.

upsampler.safetensors   the upsampler       latents.safetensors      what the autoencoder made of the images
metrics.jsonl           the losses          checkpoint.safetensors   what --resume goes on from
report.json             the table
"""

import argparse
import hashlib
import json
import logging
import math
import sys
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from torch.nn import functional as F
from tqdm import tqdm

if __name__ == "__main__":  # run as a file: the repository takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmd_core.boundary import UPSAMPLERS, upsample
from rmd_core.errors import RMDError
from rmd_core.files import hash_file, open_tensors, read_tensors, save_safetensors, weights_digest, write_json
from rmd_core.noise import derive_seed
from rmd_core.noising import place
from rmd_core.upsampler import LARGEST_STEP, LatentUpsampler
from training.backbones import BACKBONES, make_backbone
from training.encode_prompts import exit_code
from training.evaluate import ENDINGS, opened
from training.hub import VAE, fetched
from training.record import MetricsFile
from training.run import lock_folder
from training.sample import size_in_cells

log = logging.getLogger(__name__)

SMALLER = (1 / 2, 5 / 8, 3 / 4, 7 / 8)  # the sizes to enlarge from, where none is given
WARMUP = 100  # updates over which the learning rate rises
RECORDED = 20  # updates of a line in metrics.jsonl
KEPT = torch.float16  # of latents on disk and in memory
CHECKPOINT = "checkpoint.safetensors"
LEARNED = "upsampler"


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    given = _parser().parse_args(argv)

    def work(device):
        with lock_folder(given.out):
            _train(given, device)

    return exit_code(
        work,
        given.device,
        memory="a smaller --batch or --size needs less",
        stopped=f"the same command goes on with the latents that are there; add --resume if {CHECKPOINT} is there too",
    )


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="docs/train/guide.md")
    parser.add_argument("--backbone", choices=BACKBONES, required=True, help="the model family whose latents it is for")
    parser.add_argument("--vae", required=True, metavar="VAE", help="folder, hub id or file")
    parser.add_argument("--images", type=Path, required=True, metavar="PATH", help="folder, or safetensors of images")
    parser.add_argument("--size", required=True, metavar="WxH", help="of the large image in pixels; images are cropped")
    parser.add_argument("--smaller", nargs="+", metavar="WxH", help="sizes to enlarge from; 1/2, 5/8, 3/4 and 7/8")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything is written")
    parser.add_argument("--name", default=LEARNED, metavar="NAME", help="of the file, without its ending")
    parser.add_argument("--updates", type=int, default=4000, metavar="N", help="in all")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="latents of an update")
    parser.add_argument("--lr", type=float, default=5e-4, metavar="X", help="learning rate of AdamW, falling to 0")
    parser.add_argument("--width", type=int, default=96, metavar="N", help="of the hidden layers")
    parser.add_argument("--blocks", type=int, default=4, metavar="N", help="residual blocks at each size")
    parser.add_argument("--frequency", type=float, default=0.1, metavar="X", help="weight of the frequency loss")
    parser.add_argument("--held-out", type=int, default=32, metavar="N", help="images for the table, not trained on")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="everything random follows from it")
    parser.add_argument("--device", default="auto", help="auto, cpu, or a device's name")
    parser.add_argument("--checkpoint-every", type=int, default=500, metavar="N", help="updates between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    return parser


def _train(given, device):
    if min(given.updates, given.batch, given.width, given.held_out, given.checkpoint_every) < 1 or given.blocks < 0:
        raise RMDError("--updates, --batch, --width, --held-out and --checkpoint-every must be at least 1, --blocks 0")
    if not given.lr > 0 or not given.frequency >= 0:
        raise RMDError(
            f"--lr is {given.lr:g} and --frequency {given.frequency:g}; --lr must be above 0, --frequency at least 0"
        )
    backbone = make_backbone(given.backbone)
    sizes = _sizes(given, backbone)
    vae = backbone.load_vae(fetched(given.vae, VAE)).to(device)
    large, smalls, content = kept_latents(given, backbone, vae, sizes)
    count = len(large) - given.held_out
    if count < 1:
        raise RMDError(f"{given.images} has {len(large)} images, --held-out takes {given.held_out}; give more images")
    order = torch.randperm(len(large), generator=_generator(given.seed, "held out"))
    training = Training(given, content, backbone, large[order[:count]], [s[order[:count]] for s in smalls], device)
    training.restore()
    training.run()
    path = training.network.save(given.out / f"{given.name}.safetensors")
    held_out = order[count:]
    rows = compare(training.network, large[held_out], [small[held_out] for small in smalls], backbone, vae)
    write_json(given.out / "report.json", {"images": len(held_out), "rows": rows})
    print(table(rows, backbone.pixels_per_cell))
    log.info("the upsampler is %s", path)


# Images and their latents


def _sizes(given, backbone):
    """The (height, width) in cells, the large one first. Raises RMDError for sizes that do not fit."""
    px = backbone.pixels_per_cell
    large = size_in_cells(given.size, "--size", px)
    if given.smaller is None:
        found = [tuple(math.ceil(share * side) for side in large) for share in SMALLER]
    else:
        found = [size_in_cells(text, "--smaller", px) for text in given.smaller]
    for size in found:
        if size == large or any(not small <= side <= LARGEST_STEP * small for small, side in zip(size, large)):
            raise RMDError(
                f"from {size[1] * px}x{size[0] * px} to {given.size} px, an axis grows by less than 1 or more than "
                f"{LARGEST_STEP} times, or none grows; change --size or --smaller"
            )
    return [large, *dict.fromkeys(found)]


def kept_latents(given, backbone, vae, sizes):
    """Latents (N, C, h, w) at the large size, a list of them at the smaller ones, and what they depend on, as text.

    They are read from the output folder where they are there, else encoded and written there; what an interruption
    left is written too, and the next call goes on from it. Raises RMDError for no usable image, and where they would
    replace those of a training.
    """
    path, rows = given.out / "latents.safetensors", []  # a row: an image's latents at all sizes
    files = _image_files(given.images)
    digest = hashlib.sha256()
    for file in files:
        hash_file(file, digest)
    made_from = {"images": digest.hexdigest(), "vae": weights_digest(vae.state_dict().values()), "sizes": sizes}
    content = json.dumps({"backbone": backbone.name, **made_from})
    if path.exists():
        tensors, metadata = read_tensors(path)
        if metadata.get("content") == content:
            return tensors["0"], [tensors[str(number)] for number in range(1, len(sizes))], content
        if (given.out / CHECKPOINT).exists():
            raise RMDError(f"{given.out} has a training on other images, sizes or autoencoder; give another --out")
        if metadata.get("begun") == content:
            rows = list(zip(*(tensors[str(number)].split(1) for number in range(len(sizes)))))
    usable = left_out = 0
    pixels = [tuple(cells * backbone.pixels_per_cell for cells in size) for size in sizes]
    try:
        for image in tqdm(_images(files), unit="image", dynamic_ncols=True, total=_count(files)):
            if image.shape[-2] < pixels[0][0] or image.shape[-1] < pixels[0][1]:
                left_out += 1
                continue
            usable += 1
            if usable <= len(rows):
                continue
            image = cropped(image, pixels[0]).to(next(vae.parameters()).device)
            row = [_flat(backbone.encode(vae, shrunk(image, size))).to("cpu", KEPT) for size in pixels]
            if [latent.shape[-2:] for latent in row] != sizes:
                raise RMDError(f"the autoencoder's latents have another size than {backbone.name}'s; give its own")
            rows.append(row)
    except BaseException:
        if rows:
            _write_latents(path, rows, {"begun": content})
        raise
    if left_out:
        log.warning("warning: %d images are smaller than %s px and left out", left_out, given.size)
    if not rows:
        raise RMDError(f"{given.images} has no image of at least {given.size} px; give larger images or another --size")
    latents = _write_latents(path, rows, {"content": content})
    return latents[0], latents[1:], content


def _write_latents(path, rows, metadata):
    """Write the latents of all images, a tensor for each size, and return them."""
    latents = [torch.cat(column) for column in zip(*rows)]
    save_safetensors(path, {str(number): tensor for number, tensor in enumerate(latents)}, metadata)
    return latents


def _image_files(path):
    """The image files of a folder in order, or the one safetensors file."""
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS) if path.is_dir() else []
    if not files:
        raise RMDError(f"--images {path}: it has no {', '.join(ENDINGS)}; give a folder of images, or safetensors")
    return files


def _images(files):
    """The images (1, 3, H, W) in 0..1 of files, one by one; a warning names those that cannot be read."""
    for file in files:
        if file.suffix.lower() not in ENDINGS:
            stored = _stored(file)
            yield from (stored[n : n + 1].float() / 255 for n in range(len(stored)))
            continue
        try:
            values = np.array(opened(file))
        except RMDError as error:
            log.warning("warning: left out: %s", error)
            continue
        yield rearrange(torch.from_numpy(values), "h w c -> 1 c h w").float() / 255


def _count(files):
    return sum(1 if file.suffix.lower() in ENDINGS else len(_stored(file)) for file in files)


def _stored(file):
    """The tensor ``images`` (N, 3, H, W) of bytes in a safetensors file."""
    stored = open_tensors(file)
    images = stored.get_tensor("images") if "images" in stored.keys() else torch.empty(0)  # noqa: SIM118
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise RMDError(f"{file}: give a tensor 'images' of bytes (uint8) and shape (N, 3, H, W)")
    return images


def cropped(image, size_hw):
    """An image (1, 3, H, W) shrunk until it just covers a smaller (height, width), its middle cut out."""
    height, width = size_hw
    share = max(height / image.shape[-2], width / image.shape[-1])
    image = shrunk(image, tuple(max(side, round(share * own)) for side, own in zip(size_hw, image.shape[-2:])))
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]


def shrunk(image, size_hw):
    """An image (1, 3, H, W) at a smaller (height, width), bicubic with antialias."""
    if image.shape[-2:] == tuple(size_hw):
        return image
    return F.interpolate(image, size=tuple(size_hw), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def _flat(latents):
    """Latents of one image without the time axis."""
    return rearrange(latents, "b c 1 h w -> b c h w") if latents.ndim == 5 else latents


# Training


class Training:
    """One run: ``restore``, then ``run``; ``network`` is the LatentUpsampler.

    ``large`` (N, C, H, W) and ``smalls``, a list of (N, C, h, w), are latents of the same images. ``content``: what
    they depend on, as text.
    """

    def __init__(self, given, content, backbone, large, smalls, device):
        self.given = given
        self.large, self.smalls, self.device = large, smalls, device
        sizes = {"width": given.width, "blocks": given.blocks}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(given.seed, "weights"))  # that of the CPU alone
            network = LatentUpsampler(channels=backbone.channels, latents=backbone.name, **sizes)
        self.network = network.to(device)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=given.lr, weight_decay=0.0)
        options = ("updates", "batch", "lr", "frequency", "held_out", "seed")
        settings = sizes | {name: getattr(given, name) for name in options} | {"latents": content}
        self.settings = json.dumps(settings, sort_keys=True)
        self.done = 0
        self.file = given.out / CHECKPOINT
        self.metrics = MetricsFile(given.out / "metrics.jsonl")

    def restore(self):
        """Go on from the checkpoint. Raises RMDError where there is one and --resume was not given, or the reverse."""
        if not self.given.resume:
            if self.file.exists():
                raise RMDError(
                    f"{self.file} is of a training; add --resume, delete it to start again with the latents that are "
                    "there, or give another --out"
                )
            self.metrics.keep_until(0)
            return
        if not self.file.exists():
            raise RMDError(f"there is no {self.file} to resume from; start without --resume")
        tensors, metadata = read_tensors(self.file)
        if metadata.get("settings") != self.settings:
            raise RMDError(
                f"{self.file} belongs to a training with other options or images; give the same ones, or another --out"
            )
        names = [name for name, _ in self.network.named_parameters()]
        self.network.load_state_dict({name: tensors[name] for name in names})
        state = self.optimiser.state_dict()
        state["state"] = {
            number: {key: tensors[f"{key} {name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for number, name in enumerate(names)
        }
        self.optimiser.load_state_dict(state)
        self.done = int(metadata["update"])
        self.metrics.keep_until(self.done)

    def run(self):
        """Train to the end."""
        parameters = sum(p.numel() for p in self.network.parameters())
        log.info("%d latents at %d sizes, %d parameters", len(self.large), 1 + len(self.smalls), parameters)
        with tqdm(initial=self.done, total=self.given.updates, unit="update", dynamic_ncols=True) as bar:
            while self.done < self.given.updates:
                losses = self.update(self.done + 1)
                self.done += 1
                bar.update()
                last = self.done == self.given.updates
                recorded, saved = (last or self.done % n == 0 for n in (RECORDED, self.given.checkpoint_every))
                if recorded or saved:
                    figures = {name: value.item() for name, value in losses.items()}
                    if not all(map(math.isfinite, figures.values())):
                        raise RMDError(f"update {self.done}: the loss is not finite; start again with a lower --lr")
                if recorded:
                    bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()})
                    self.metrics.append({"update": self.done, **figures})
                if saved:
                    self._save()

    def update(self, number):
        """One update, counted from 1; returns its losses, on the device."""
        given, generator = self.given, _generator(self.given.seed, "batch", number)
        small = self.smalls[torch.randint(len(self.smalls), (), generator=generator)]
        rows = torch.randint(len(self.large), (given.batch,), generator=generator)
        x, target = (place(latents[rows], self.device, torch.float32) for latents in (small, self.large))
        made = self.network(x, target.shape[-2:])
        losses = {"l1": (made - target).abs().mean(), "frequency": frequency_loss(made, target)}
        rate = given.lr * min(1.0, number / WARMUP) * 0.5 * (1 + math.cos(math.pi * number / given.updates))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        (losses["l1"] + given.frequency * losses["frequency"]).backward()
        self.optimiser.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def _save(self):
        tensors = dict(self.network.state_dict())
        for name, parameter in self.network.named_parameters():
            tensors |= {f"{key} {name}": value for key, value in self.optimiser.state[parameter].items()}
        save_safetensors(self.file, tensors, {"settings": self.settings, "update": str(self.done)})


def frequency_loss(made_BCHW, target_BCHW):
    """The mean absolute difference of the moduli of two spectra: texture of the right strength, wherever it is."""
    made, target = (torch.fft.rfft2(x, norm="ortho").abs() for x in (made_BCHW, target_BCHW))
    return (made - target).abs().mean()


def _generator(seed, *parts):
    return torch.Generator().manual_seed(derive_seed(seed, *parts))


# The table


@torch.no_grad()
def compare(network, large, smalls, backbone, vae):
    """Figures of every way to enlarge held-out latents: a dict for each size and way, in order.

    ``psnr``: of decoded images against the decoded large latent, in dB. ``latent_energy``, ``image_energy``: the energy
    of both above the frequencies of the small size, over that of the large latent and its image.
    """
    device, rows = next(network.parameters()).device, []
    large = large.to(device, torch.float32)
    target = _decoded(backbone, vae, large)
    for small in smalls:
        x, size = small.to(device, torch.float32), large.shape[-2:]
        shares = [low / high for low, high in zip(x.shape[-2:], size)]
        ways = {name: upsample(x, size, name) for name in UPSAMPLERS} | {LEARNED: network(x, size)}
        for name, made in ways.items():
            images = _decoded(backbone, vae, made)
            figures = {
                "psnr": (-10 * reduce((images - target).square(), "b c h w -> b", "mean").log10()).mean(),
                "latent_energy": high_energy(made, shares) / high_energy(large, shares),
                "image_energy": high_energy(images, shares) / high_energy(target, shares),
            }
            row = {"from": list(x.shape[-2:]), "to": list(size), "way": name}
            rows.append(row | {name: value.item() for name, value in figures.items()})
    return rows


def _decoded(backbone, vae, latents):
    """Images (N, 3, H, W) in 0..1 of latents, decoded one at a time."""
    parts = (rearrange(one, "b c h w -> b c 1 h w") if backbone.temporal else one for one in latents.split(1))
    return torch.cat([backbone.decode(vae, one)[:, :, 0] for one in parts])


def high_energy(x_BCHW, shares_hw):
    """The energy above the frequencies that a smaller size has in either axis; ``shares_hw``: small over large."""
    spectrum = torch.fft.fft2(x_BCHW, norm="ortho").abs().square()
    rows, columns = (
        torch.fft.fftfreq(cells, device=x_BCHW.device).abs() >= share / 2
        for cells, share in zip(x_BCHW.shape[-2:], shares_hw)
    )
    return (spectrum * (rows[:, None] | columns[None, :])).sum()


def table(rows, px):
    """The figures of ``compare`` as text."""
    head = f"{'from':>10} {'to':>10}  {'way':<10} {'PSNR, dB':>9} {'latent energy':>14} {'image energy':>13}"
    lines = [head]
    for row in rows:
        low, large = (f"{size[1] * px}x{size[0] * px}" for size in (row["from"], row["to"]))
        energies = f"{row['latent_energy']:>14.2f} {row['image_energy']:>13.2f}"
        lines.append(f"{low:>10} {large:>10}  {row['way']:<10} {row['psnr']:>9.2f} {energies}")
    lines.append(
        "PSNR of decoded images; energy above the small size's frequencies: 1 is as much as the real large one has"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

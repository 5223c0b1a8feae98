"""Sampling through the one cascade engine; as a command, images or videos of a student without ComfyUI.

    python training/sample.py --student student.safetensors --prompts prompts.txt --out FOLDER

Plan, levels and noise come from the recipe in the student's file; the autoencoder, the text encoders and for a LoRA the
network come from its base. One image is made at a time. Exit codes: 0 done, 1 the memory ran out, 2 bad input or no
place to write, 130 stopped by Ctrl-C.
"""

import argparse
import io
import json
import logging
import os
import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

if __name__ == "__main__":  # run as a file: the repository takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmd_core.boundary import Boundary
from rmd_core.cascade import DenoiserRunner, run_cascade
from rmd_core.errors import RMDError
from rmd_core.files import make_folder, write_atomically
from rmd_core.noise import SeededNoise
from rmd_core.plan import StagePlan
from rmd_core.prompt_cache import NULL_PROMPT
from rmd_core.recipe import Recipe, read_recipe
from rmd_core.upsampler import read_upsampler
from training.backbones import Backbone, backbone_of
from training.backbones.base import refuse_other_family, to_device
from training.encode_prompts import encode_prompts, exit_code
from training.hub import ENCODERS, NETWORK, VAE, fetched, hub_id, is_folder
from training.lora_files import merge_lora
from training.memory import gib
from training.objective import Guidance, estimate_x0_eps
from training.offload import NetworkOffloader
from training.plans import check_upsampler
from training.prompts import open_cache, read_prompts
from training.quantised import BITS, quantise
from training.start import read_changes
from training.text_encoders import TextEncoders

log = logging.getLogger(__name__)

SETTINGS = "rmd"  # the text entry of a PNG that says how it was made
DESCRIPTION = 0x010E  # the entry of EXIF that does in a WebP


def sample_latents(
    backbone, network, plan, *, conditioning, noise, boundary, eta, frames=1, guidance=None, device="cpu"
):
    """The CascadeResult of a network on a plan, one latent for each row of ``conditioning``.

    ``noise``: where the cascade's noise comes from, such as ``SeededNoise(seed)``.
    """
    count = len(next(iter(conditioning.values())))

    def denoise(x, step):
        sigma = torch.full((len(x),), step.sigma, dtype=torch.float64)
        return estimate_x0_eps(backbone, network, x, sigma, conditioning, curve=plan.curve, guidance=guidance)

    return run_cascade(
        plan,
        DenoiserRunner(denoise, eta=eta, device=device),
        shape=backbone.latent_shape(count, frames),
        noise=noise,
        boundary=boundary,
    )


@dataclass(frozen=True)
class Student:
    """A student ready to sample with its recipe; ``offloader``: moves network and autoencoder, None where both stay."""

    recipe: Recipe
    plan: StagePlan
    boundary: Boundary
    backbone: Backbone
    network: object
    vae: torch.nn.Module
    cache: object
    device: str
    precision: str
    offloader: NetworkOffloader | None

    @torch.no_grad()
    def images(self, prompt, seed, *, frames=1):
        """The images (T, 3, H, W) of one prompt in 0..1, on the CPU; ``frames``: of the latent.

        The noise is that of the nodes for the same seed and a batch of one.
        """
        recipe, backbone = self.recipe, self.backbone
        conditioning, null = (
            to_device(backbone.conditioning(self.cache, [text]), self.device) for text in (prompt, NULL_PROMPT)
        )
        latents = sample_latents(
            backbone,
            self.network,
            self.plan,
            conditioning=conditioning,
            noise=SeededNoise(seed),
            boundary=self.boundary,
            eta=recipe.eta,
            frames=frames,
            guidance=None if recipe.cfg == 1.0 else Guidance(recipe.cfg, null),
            device=self.device,
        ).x0
        if self.offloader is not None:
            self.offloader.called("vae")
        return rearrange(backbone.decode(self.vae, latents), "1 c t h w -> t c h w").cpu()


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    given = _parser().parse_args(argv)

    def work(device):
        prompts = [text for text in read_prompts(given.prompts) for _ in range(given.count)]
        _sample_all(load_student(given, prompts, device), given, prompts)

    return exit_code(
        work,
        given.device,
        memory="--offload waiting, --tile-vae, --dtype bfloat16, int8 or nf4, or a smaller --size need less",
        stopped="--resume makes the images that are missing",
    )


def _parser():
    parser = argparse.ArgumentParser(description="Sample a student without ComfyUI.", epilog="docs/train/evaluation.md")
    parser.add_argument(
        "--student", type=Path, required=True, metavar="FILE", help="whole student or LoRA; of two experts either file"
    )
    parser.add_argument("--prompts", required=True, metavar="FILE", help=".txt (one a line) or .jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the images")
    parser.add_argument("--base", metavar="BASE", help="base model: folder, hub id or file; default: the recipe's base")
    parser.add_argument("--vae", metavar="VAE", help="autoencoder: folder, hub id or file; default: that of the base")
    parser.add_argument("--upsampler", metavar="FILE", help="upsampler that the student was trained with")
    parser.add_argument("--encode-from", metavar="MODEL", help="folder or hub id with text encoders; default: the base")
    parser.add_argument("--cache", metavar="CACHE", help="prompt embeddings; default: prompts in the --out folder")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the first image; each next image adds 1"
    )
    parser.add_argument("--count", type=int, default=1, metavar="N", help="images of each prompt")
    parser.add_argument("--size", metavar="WxH", help="size in pixels; default: the size of training")
    parser.add_argument("--frames", type=int, default=1, metavar="N", help="latent frames; 21 are 81 images of Wan")
    parser.add_argument("--save-frames", action="store_true", help="also write every frame of a video as PNG")
    parser.add_argument("--device", default="auto", help="auto, cpu, or a device's name")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", *BITS), default="auto", help="precision of the network"
    )
    parser.add_argument(
        "--offload", choices=("none", "waiting"), default="none", help="waiting: idle networks stay in RAM"
    )
    parser.add_argument(
        "--tile-vae", action="store_true", help="decode in tiles: less memory, not quite the same image"
    )
    parser.add_argument("--resume", action="store_true", help="only make the missing images")
    return parser


# What an image needs


def load_student(given, prompts, device):
    """The Student of the command line ``given``, its prompts encoded. Raises RMDError for what does not fit."""
    recipe = read_recipe(given.student)
    backbone = backbone_of(recipe)
    if given.count < 1 or given.frames < 1 or given.seed < 0:
        raise RMDError("--count and --frames must be at least 1, --seed at least 0")
    if given.frames > 1 and not backbone.temporal:
        raise RMDError(f"--frames is {given.frames}, but {backbone.name} makes single images; use 1")
    boundary = _boundary(given, recipe, backbone, device)
    size = None
    if given.size is not None:
        size = size_in_cells(given.size, "--size", recipe.pixels_per_cell, multiple=recipe.multiple)
    plan = recipe.plan(size)
    lora = recipe.adapter_alpha is not None
    base = _base(given.base, recipe)
    vae = given.vae or _of_folder(base, "--vae", "autoencoder")
    make_folder(given.out)
    later = [*([(_needed(base), NETWORK)] if lora else []), (vae, VAE)]
    cache = _encoded(given, base, prompts, device, later)
    refuse_other_family(backbone, cache)
    if recipe.prompt_encoder != cache.encoder:
        log.warning(
            "warning: the student was trained with prompts encoded by %s, but %s was made by %s; if these "
            "text encoders differ, images get worse",
            *(recipe.prompt_encoder, cache.path, cache.encoder),
        )
    precision = _usual(device) if given.dtype == "auto" else given.dtype
    dtype = getattr(torch, _usual(device) if precision in BITS else precision)
    network = backbone.load(fetched(base, NETWORK, later) if lora else given.student, dtype=dtype)
    if lora:
        merge_lora(network, read_changes(given.student, backbone, network), given.student)
    network.requires_grad_(False)
    backbone.check_cache(network, cache)
    backbone.check_sizes(network, plan.sizes)
    if precision in BITS:
        quantise(network, precision, targets=backbone.adapter_targets, device=device)
    autoencoder = backbone.load_vae(fetched(vae, VAE))
    if given.tile_vae:
        autoencoder.enable_tiling()
    offloader = None
    if given.offload == "waiting":
        parts = {name: network.get_submodule(name) for name in backbone.experts} or {"network": network}
        parts["vae"] = autoencoder
        offloader = NetworkOffloader(parts, device, frozen=tuple(parts))
        if backbone.experts:
            network.wait(offloader)
        else:
            network = offloader.hooked("network", network, network)
    else:
        network, autoencoder = network.to(device), autoencoder.to(device)
    return Student(recipe, plan, boundary, backbone, network, autoencoder, cache, device, precision, offloader)


def _boundary(given, recipe, backbone, device):
    """The recipe's rule at a change of size, with its learned upsampler in it if it has one."""
    rule = recipe.boundary()
    if (rule.learned_sha256 is None) != (given.upsampler is None):
        advice = "leave out --upsampler" if rule.learned_sha256 is None else "give its file as --upsampler"
        raise RMDError(f"{given.student} was trained with the upsampler {recipe.upsampler}; {advice}")
    if given.upsampler is None:
        return rule
    network = check_upsampler(read_upsampler(given.upsampler), given.upsampler, backbone)
    if network.digest() != rule.learned_sha256:
        raise RMDError(
            f"{given.student} was trained with the upsampler {recipe.upsampler}, {given.upsampler} has other weights; "
            "give the right file"
        )
    return replace(rule, learned=network.to(device))


def _usual(device):
    """The default type of weights."""
    return "float32" if torch.device(device).type == "cpu" else "bfloat16"


def size_in_cells(text, option, pixels_per_cell, *, multiple=1):
    """(height, width) in latent cells of an option's ``WxH`` in pixels, each a multiple of ``multiple`` cells."""
    match, step = re.fullmatch(r"(\d+)[xX](\d+)", text), multiple * pixels_per_cell
    if match is None or any(int(side) < step or int(side) % step for side in match.groups()):
        raise RMDError(f"{option} {text}: give width and height in pixels, such as 1024x768, multiples of {step}")
    return int(match[2]) // pixels_per_cell, int(match[1]) // pixels_per_cell


def _base(given, recipe):
    """The base as a path or a hub id; None if none is named or found."""
    if given is None and (hub_id(recipe.base_model) or Path(recipe.base_model).exists()):
        return recipe.base_model
    return given


def _needed(base):
    if base is None:
        raise RMDError("the recipe's base is neither a path nor a hub id; give --base")
    return base


def _of_folder(base, option, what):
    """The base, where its folder has other parts than the network. Raises RMDError, naming the ``option``, else."""
    if base is None or not is_folder(base):
        why = "no base is known" if base is None else f"{base} is one file"
        raise RMDError(f"{why}, so there is no {what}; give {option}, or a Diffusers-format folder or hub id as --base")
    return base


def _encoded(given, base, prompts, device, later):
    """The PromptCache with every prompt, encoded now where it is missing; ``later``: as ``more`` of ``fetching``."""
    path = Path(given.cache or given.out / "prompts")
    cache, texts = open_cache(path), dict.fromkeys((*prompts, NULL_PROMPT))
    if cache is None or any(text not in cache for text in texts):
        source = given.encode_from or _of_folder(base, "--encode-from, or --cache with these prompts", "text encoder")
        dtype = getattr(torch, _usual(device))
        encoders = TextEncoders(fetched(source, ENCODERS, later), device=device, dtype=dtype)
        encode_prompts(encoders, prompts, path)
        cache = open_cache(path)
    return cache


# Files


def _sample_all(student, given, prompts):
    plan, px = student.plan, student.recipe.pixels_per_cell
    sizes = " to ".join(f"{width * px}x{height * px}" for height, width in (stage.size for stage in plan.stages))
    shared = {
        "student": given.student.name,
        "base": student.recipe.base_model,
        "steps": plan.split,
        "sizes": sizes,
        "dtype": student.precision,
        "config": student.recipe.config_digest[:12],
        "training_step": student.recipe.training_step,
    }
    items = {f"{n:05d}": {"prompt": prompt, "seed": given.seed + n, **shared} for n, prompt in enumerate(prompts)}
    there = {path.stem: path for path in given.out.glob("*.*") if path.suffix in (".png", ".webp")}
    for name in items.keys() & there.keys():
        if not given.resume:
            raise RMDError(
                f"{given.out} already has images; choose another --out, or add --resume to make the missing ones"
            )
        if settings_of(there[name]) != items[name]:
            raise RMDError(f"{there[name]} was made with other options or prompts; choose another --out, or delete it")
    log.info("%s: %s steps, %s px, %d images on %s", given.student.name, plan.split, sizes, len(items), student.device)
    seconds = []
    for name, made in tqdm(items.items(), unit="image", dynamic_ncols=True):
        if name in there:
            continue
        began = time.perf_counter()
        images = student.images(made["prompt"], made["seed"], frames=given.frames)
        seconds.append(time.perf_counter() - began)
        _write(given.out / name, images, made, fps=student.backbone.fps, save_frames=given.save_frames)
    if seconds:
        rest = seconds[1:] or seconds
        first = f" (the first {seconds[0]:.3g} s)" if len(seconds) > 1 else ""
        memory = gib(peak_memory(student.device))
        log.info("%s: %.3g s an image%s, %s in use at most", given.out, sum(rest) / len(rest), first, memory)


def _write(path, images, settings, *, fps, save_frames):
    """An image as PNG, a video as animated WebP, with the settings in it."""
    frames = [Image.fromarray(frame) for frame in as_bytes(images)]
    text, buffer = json.dumps(settings), io.BytesIO()
    if len(frames) == 1:
        frames[0].save(buffer, format="PNG", pnginfo=_info(text))
        write_atomically(path.with_suffix(".png"), buffer.getvalue())
        return
    if save_frames:
        make_folder(path)
        for number, frame in enumerate(frames):
            single = io.BytesIO()
            frame.save(single, format="PNG", pnginfo=_info(text))
            write_atomically(path / f"{number:04d}.png", single.getvalue())
    exif = Image.Exif()
    exif[DESCRIPTION] = text
    frames[0].save(
        buffer,
        format="WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        loop=0,
        quality=90,
        exif=exif,
    )
    write_atomically(path.with_suffix(".webp"), buffer.getvalue())


def settings_of(path):
    """The settings that ``_write`` put into an image or a video, empty where none can be read."""
    try:
        with Image.open(path) as image:
            found = json.loads(image.info.get(SETTINGS) or image.getexif()[DESCRIPTION])
    except (OSError, KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def as_bytes(images_BCHW):
    """Images in 0..1 as (B, H, W, C) bytes."""
    return (rearrange(images_BCHW, "b c h w -> b h w c") * 255).round().to(torch.uint8).cpu().numpy()


def _info(text):
    info = PngInfo()
    info.add_text(SETTINGS, text)
    return info


def peak_memory(device):
    """The most memory in use until now, in bytes: of a GPU, or of this process in system memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.name == "nt":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())

"""The demo's world, larger, for minutes on a GPU: a teacher of one size, a few-step student, RMD, and their scores.

    python -m benchmarks.gpu_world --minutes 8 --out outputs/gpu_world
    python -m benchmarks.gpu_world --tiny --minutes 2 --out outputs/tiny_world        tries the program, on a CPU too

30 things in 3 drawing styles on 6 backgrounds, 256 px. Every part is saved when it is done, and the teacher once a
minute; the same command goes on where it was cut off. ``results.json`` has the scores.
"""

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional as F

from benchmarks.results import provenance, write_results
from demo.classifier import classify, decode_frames, frame_vae, frechet_distance, load_classifier
from demo.make import teacher as small
from demo.make.training import Training
from demo.make.vae import decode, encode
from demo.sampling import SamplingSetup, make_latents, single_resolution, student_setup
from demo.world import BACKGROUNDS, CONCEPTS, ENCODER, MORE_CONCEPTS, Drawings, embed, prompt, sample_jitter
from rmd_core.boundary import Boundary
from rmd_core.errors import RMDError
from rmd_core.plan import plan_from_split
from rmd_core.schedule import NoMap
from training import distill
from training.backbones import make_backbone
from training.prompts import PromptCache, write_prompt_cache

log = logging.getLogger(__name__)
CONFIG = Path(__file__).resolve().parents[1] / "training" / "configs" / "demo.yaml"
STYLES = ("noto", "fluent", "twemoji")
PAIRS = [(style, concept) for style in STYLES for concept in CONCEPTS | MORE_CONCEPTS]
SHIFT, GUIDANCE = 3.0, 2.0
TEACHER = 0.5  # of the minutes; students and scores take the rest


@dataclass(frozen=True)
class Scale:
    """Sizes of everything; ``side`` in px, ``jitters`` of each drawing and background, ``images`` for a distance."""

    side: int = 256
    width: int = 448
    layers: int = 10
    batch: int = 128
    jitters: int = 48
    images: int = 9720
    updates: int = 400

    @property
    def config(self):
        """Of the transformer, 27 million parameters at this scale."""
        heads = self.width // 64
        sizes = {"num_attention_heads": heads, "attention_head_dim": 64, "ffn_dim": 3 * self.width}
        return small.CONFIG | sizes | {"num_layers": self.layers}


TINY = Scale(side=64, width=64, layers=1, batch=4, jitters=1, images=60, updates=1)


def train_teacher(scale, folder, device, minutes):
    """``teacher.safetensors`` in the folder, unless it is there; goes on from the last minute's weights."""
    path = folder / "teacher.safetensors"
    if path.exists():
        return path
    torch.manual_seed(0)
    model = WanTransformer3DModel(**scale.config)
    if (folder / "teacher.pt").exists():
        model.load_state_dict(torch.load(folder / "teacher.pt", weights_only=True))
    model = model.to(device)
    log.info("teacher of %.1f million parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    generator = torch.Generator(device).manual_seed(1)
    drawings = Drawings(STYLES, PAIRS).to(device)
    sides, jitter_generator = [scale.side], torch.Generator().manual_seed(2)
    pool, index, background = small.latent_pool(
        small.frame_encoder(device), drawings, sides, scale.jitters, jitter_generator
    )
    index, background = index.to(device), background.to(device)
    prompts = small.PromptTable(drawings, device)
    training = Training(model, lambda name, p: p.ndim == 2 and "proj_out" not in name, lr=1e-3, minutes=minutes, clip=1)
    saved = time.monotonic()
    while (share := training.share()) < 1:
        rows = torch.randint(len(index), (scale.batch,), generator=generator, device=device)
        context = prompts.sample(index[rows], background[rows], generator)
        loss = small.flow_loss(model, pool[scale.side][rows], context, SHIFT, generator)
        training.update(loss, 1e-3 * min(1.0, (training.step + 1) / 100) * max(0.01, min(1.0, (1 - share) / 0.4)))
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            training.save(folder / "teacher.pt")
            log.info("teacher: step %d, loss %.3f", training.step, loss.item())
    model.load_state_dict(training.averaged)
    make_backbone("wan", shift=SHIFT).export(model.cpu(), path)
    return path


def write_prompts(folder):
    """The prompt cache of this world."""
    path = folder / "prompts.safetensors"
    if not path.exists():
        texts = [prompt(concept, style, background) for style, concept in PAIRS for background in BACKGROUNDS]
        write_prompt_cache(path, {text: embed(text) for text in ["", *texts]}, encoder=ENCODER)
    return path


def distil(name, scale, folder, teacher, prompts, *changes):
    """A student of the teacher, unless it is there. Raises RMDError when the trainer fails."""
    path = folder / "students" / name / "student.safetensors"
    if path.exists():
        return path
    cells = scale.side // 8
    sets = [
        *(f"backbone.base={teacher}", "backbone.vae=null", f"prompts.cache={prompts}"),
        *(f"plan.sizes=[[{cells // 2},{cells // 2}],[{cells},{cells}]]", f"output.folder={path.parent}"),
        *("output.name=student", "output.trackers=[]", "output.checkpoint_every=100", "output.validation_prompts=null"),
        *(f"train.updates={scale.updates}", "train.device=auto", "train.precision=float32", "train.warmup_updates=0"),
        *changes,
    ]
    resume = ["--resume"] if (path.parent / "run.json").exists() else []
    words = ["--config", str(CONFIG), *(word for text in sets for word in ("--set", text)), *resume]
    if distill.main(words):
        raise RMDError(f"the student {name} was not trained; see the lines above")
    return path


class Scores:
    """Frechet distances to real images, in the features that the demo's classifier has at 128 px."""

    def __init__(self, scale, cache, device):
        self.scale, self.cache, self.device = scale, cache, device
        self.vae, self.classifier = frame_vae().to(device), load_classifier()
        texts = [prompt(concept, style, b) for style, concept in PAIRS for b in BACKGROUNDS]
        self.prompts = (texts * (scale.images // len(texts) + 1))[: scale.images]
        self.real = self._features(self._real(8))
        self.floor = frechet_distance(self._features(self._real(9)), self.real)

    @torch.no_grad()
    def _real(self, seed):
        drawings = Drawings(STYLES, PAIRS).to(self.device)
        index = torch.arange(self.scale.images) // len(BACKGROUNDS) % len(drawings)
        background = torch.arange(self.scale.images) % len(BACKGROUNDS)
        jitter = sample_jitter(self.scale.images, torch.Generator().manual_seed(seed), held_out=True)
        for rows in torch.arange(self.scale.images).split(24):
            plain = drawings.render(index[rows], background[rows], jitter[rows], side=self.scale.side)
            yield decode(self.vae, encode(self.vae, plain)).clamp(-1, 1).cpu()

    def _features(self, batches):
        sized = (F.interpolate(images, (128, 128), mode="area") for images in batches)
        return torch.cat([classify(self.classifier, images).features for images in sized])

    def of(self, setup, backbone, *, images=None):
        """{"fd", "cost", "images"} of a SamplingSetup."""
        prompts = self.prompts[: images or self.scale.images]
        options = {"seed": 0, "batch": 256, "device": self.device}
        latents, _ = make_latents(setup, backbone, self.cache, prompts, **options)
        features = self._features(decode_frames(self.vae, part) for part in latents.split(24))
        return {"fd": frechet_distance(features, self.real), "cost": setup.units, "images": len(prompts)}


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="for everything")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try this program")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    torch.set_float32_matmul_precision("high")
    scale, device = TINY if args.tiny else Scale(), "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        teacher = train_teacher(scale, args.out, device, TEACHER * args.minutes)
        prompts = write_prompts(args.out)
        one = distil("one", scale, args.out, teacher, prompts, "plan.split=4", one_size(scale), "method.mapping=none")
        area = distil("area", scale, args.out, teacher, prompts, "method.mapping=area")
        none = distil("none", scale, args.out, teacher, prompts, "method.mapping=none")
    except RMDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    backbone = make_backbone("wan", shift=SHIFT)
    scores = Scores(scale, PromptCache(prompts), device)
    few, mapped, unmapped = (student_setup(path.parent.name, path, backbone) for path in (one, area, none))
    cells = scale.side // 8
    long = single_resolution(backbone.curve, 50, (cells, cells))
    network = backbone.load(teacher, dtype=torch.float32)
    halves = [(stage.height, stage.width) for stage in mapped.plan.stages]
    plain = plan_from_split(backbone.curve, (2, 2), sizes=halves, mapping=NoMap(), steps=4)
    setups = {
        "few-step model": few,
        "untouched in the cascade, no mapping": replace(mapped, network=few.network, plan=plain),
        "untouched in the cascade, area mapping": replace(mapped, network=few.network),
        "RMD, no mapping": unmapped,
        "RMD, area mapping": mapped,
        "teacher, 50 steps": SamplingSetup(
            title="", network=network, plan=long, boundary=Boundary(), eta=1.0, guidance=GUIDANCE
        ),
    }
    results = {"made": provenance(device=torch.cuda.get_device_name() if device == "cuda" else "CPU"), "rows": {}}
    results["rows"]["real images"] = {"fd": scores.floor, "images": scale.images}
    for title, setup in setups.items():
        results["rows"][title] = scores.of(setup, backbone, images=scale.images // (5 if "50" in title else 1))
        write_results(args.out / "results.json", results)
    print(json.dumps(results, indent=1))
    return 0


def one_size(scale):
    """The setting of a plan at the final size alone."""
    return f"plan.sizes=[[{scale.side // 8},{scale.side // 8}]]"


if __name__ == "__main__":
    sys.exit(main())

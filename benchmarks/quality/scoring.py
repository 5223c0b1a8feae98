"""Score the shipped teacher and students on the demo world, with the real-against-real floor beside them.

    OMP_NUM_THREADS=1 python -m benchmarks.quality [--students FILE ...] [--teacher-steps 50] [--seeds 2]

Every row has the same number of pictures: one for each full prompt (12 concepts x 2 styles x 6 backgrounds) and seed.
The reference is as many pictures again of held-out jitters, through the autoencoder. FD and KID use the features of
the judge; SWD is the sliced Wasserstein distance of small patches, x100; concept, style and background: the share that
the judge names right, worst: of the worst concept; >=.95: concepts named right so often in both styles; spread: of
features within a concept, over that of real pictures. Finished rows are kept in benchmarks/results/quality.json.
"""

import argparse
import datetime
import hashlib
import json
import platform
from dataclasses import replace
from pathlib import Path

import torch

from demo import files
from demo.comparison import table
from demo.sampling import Way, make_pictures, single_resolution
from demo.students import student_way
from demo.world.catalogue import BACKGROUNDS, CONCEPTS, SEEN_STYLES, TEACHER_STYLES, prompt
from demo.world.drawings import Drawings, draw_jitter
from rmd_core.boundary import Boundary
from rmd_core.recipe import read_recipe
from training.backbones import make_backbone
from training.files import write_json
from training.prompt_cache import PromptCache

from .judge import judge_pictures, load_judge
from .picture_metrics import diversity, frechet_distance, kernel_distance, sliced_wasserstein

RESULTS = Path(__file__).parent / "results" / "quality.json"
PROMPTS = [prompt(c, s, b) for s in TEACHER_STYLES for c in CONCEPTS for b in BACKGROUNDS]
SEED_OF_REFERENCE, SEED_OF_FLOOR = 900, 901


@torch.no_grad()
def real_pictures(backbone, vae, seed, repeats):
    """Pictures of every prompt with held-out jitters, through the autoencoder, in -1..1."""
    drawings = Drawings(TEACHER_STYLES)
    names = list(zip(drawings.styles, drawings.concepts))
    words = [text.split() for text in PROMPTS * repeats]
    index = torch.tensor([names.index((style, concept)) for concept, style, _ in words])
    background = torch.tensor([drawings.backgrounds.index(b.removeprefix("on-")) for _, _, b in words])
    jitter = draw_jitter(len(words), torch.Generator().manual_seed(seed), held_out=True)
    parts = []
    for rows in torch.arange(len(words)).split(24):
        plain = drawings.render(index[rows], background[rows], jitter[rows], side=128)
        parts.append(backbone.decode(vae, files.encode_pictures(vae, plain).unsqueeze(2))[:, :, 0] * 2 - 1)
    return torch.cat(parts)


def labels_of(prompts):
    """The label numbers that the judge should give, by kind."""
    words = [text.split() for text in prompts]
    order = {"concept": list(CONCEPTS), "style": list(SEEN_STYLES), "background": list(BACKGROUNDS)}
    columns = {"concept": [w[0] for w in words], "style": [w[1] for w in words],
               "background": [w[2].removeprefix("on-") for w in words]}
    return {kind: torch.tensor([order[kind].index(name) for name in columns[kind]]) for kind in order}


def score(judge, pictures, reference, reference_verdict, repeats):
    """All figures of one set of pictures against the reference, as a dict of floats."""
    verdict, truth = judge_pictures(judge, pictures), labels_of(PROMPTS * repeats)
    right = {kind: (verdict.labels[kind] == truth[kind]).float() for kind in truth}
    spread = diversity(verdict.features, truth["concept"]) / diversity(reference_verdict.features, truth["concept"])
    return {
        "fd": frechet_distance(verdict.features, reference_verdict.features),
        "kid": kernel_distance(verdict.features, reference_verdict.features),
        "swd": sliced_wasserstein(pictures, reference, 5),
        **{kind: share.mean().item() for kind, share in right.items()},
        "worst_concept": min(right["concept"][truth["concept"] == c].mean().item() for c in range(len(CONCEPTS))),
        "concepts_at_95": sum(
            all((right["concept"][(truth["concept"] == c) & (truth["style"] == s)].mean().item() >= 0.95)
                for s in range(len(TEACHER_STYLES))) for c in range(len(CONCEPTS))),
        "spread": spread,
    }


def ways(backbone, teacher, student_paths, teacher_steps, guidance):
    """Every way to sample that gets a row, with a name that identifies its figures."""
    rows = []
    students = [(path, student_way(path.stem, path, backbone)) for path in student_paths]
    first = students[0][1]
    size, steps = first.plan.final_hw, len(first.plan.steps)
    teach = dict(network=teacher, boundary=Boundary(), eta=1.0)
    for count, scale in ((teacher_steps, guidance), (steps, guidance), (steps, 1.0)):
        title = f"teacher, {count} steps" + ("" if scale == 1.0 else f", CFG {scale:g}")
        rows.append(Way(title=title, plan=single_resolution(backbone.curve, count, size), guidance=scale, **teach))
    for upsampler in ("bicubic", "nearest", "bilinear"):
        rows.append(Way(title=f"teacher in the cascade, {upsampler}", network=teacher, plan=first.plan,
                        boundary=replace(first.boundary, upsampler=upsampler), eta=first.eta))
    return rows + [way for _, way in students]


def fingerprint(way, paths):
    """What a row depends on: its description and the bytes of the files."""
    digest = hashlib.sha256(repr((way.title, way.plan, way.boundary, way.eta, way.guidance)).encode())
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", type=Path, nargs="+", default=[files.STUDENT])
    parser.add_argument("--teacher-steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=2.0, help="of the teacher")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each prompt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone = make_backbone("wan", shift=read_recipe(args.students[0]).curve.shift)
    vae, judge, cache = backbone.load_vae(files.VAE), load_judge(), PromptCache(files.PROMPTS)
    teacher = backbone.load(files.TEACHER, dtype=torch.float32)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    reference = real_pictures(backbone, vae, SEED_OF_REFERENCE, args.seeds)
    verdict = judge_pictures(judge, reference)
    shown = [("real, other jitters", None, score(
        judge, real_pictures(backbone, vae, SEED_OF_FLOOR, args.seeds), reference, verdict, args.seeds))]
    for way in ways(backbone, teacher, args.students, args.teacher_steps, args.guidance):
        network_file = next((p for p in args.students if p.stem == way.title), files.TEACHER)
        key = f"{way.title} {fingerprint(way, (network_file, files.VAE, files.JUDGE))} x{args.seeds}"
        if key not in stored["rows"]:
            made = [make_pictures(way, backbone, vae, cache, PROMPTS, seed=seed) for seed in range(args.seeds)]
            pictures = torch.cat([pictures for pictures, _ in made])
            seconds = sum(spent for _, spent in made) / len(made)
            figures = score(judge, pictures, reference, verdict, args.seeds)
            stored["rows"][key] = {**figures, "units": way.units, "cpu_ms": 1000 * seconds}
            stored["made"] = {"date": datetime.date.today().isoformat(), "torch": torch.__version__,
                              "cpu": platform.processor() or platform.machine(), "threads": 1}
            RESULTS.parent.mkdir(exist_ok=True)
            write_json(RESULTS, stored)
        shown.append((way.title, stored["rows"][key], stored["rows"][key]))
    head = ["", "cost", "CPU ms", "FD", "KID", "SWD", "concept", "style", "backgr.", "worst", ">=.95", "spread"]
    lines = [
        [title, f"{way['units']:.2f}" if way else "-", f"{way['cpu_ms']:.1f}" if way else "-", f"{f['fd']:.2f}",
         f"{f['kid']:.0f}", f"{f['swd']:.2f}", f"{f['concept']:.3f}", f"{f['style']:.3f}", f"{f['background']:.3f}",
         f"{f['worst_concept']:.2f}", f"{f['concepts_at_95']}/{len(CONCEPTS)}", f"{f['spread']:.2f}"]
        for title, way, f in shown
    ]
    print(table(head, lines))
    print(f"{len(reference)} pictures a row")


if __name__ == "__main__":
    main()

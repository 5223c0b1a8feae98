"""Score a folder of images: CLIP score with their prompts, Frechet and kernel distance to a folder of reference images.

    python training/evaluate.py --images A --reference B --clip MODEL --features MODEL

The models are transformers models, folders or hub ids. A prompt comes from the PNG itself, as sample.py writes it, or
from a text file of the same name. Exit codes: 0 done, 1 the memory ran out, 2 bad input or no place to write, 130
stopped by Ctrl-C.
"""

import argparse
import contextlib
import math
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image, ImageOps
from tqdm import tqdm

if __name__ == "__main__":  # run as a file: the repository takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rmd_core.errors import RMDError, one_line
from rmd_core.files import write_json
from training.encode_prompts import exit_code
from training.hub import ENCODER_STEM, Part, fetched, refuse_packed, weights_variant
from training.sample import settings_of

MODEL = Part(("",), ENCODER_STEM)  # a repository of one model
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
SUBSET = 1000  # images of which a kernel distance is computed at once
SUBSETS = 100  # of these, where there are more images


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="See docs/train/evaluation.md.")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="the images to score")
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="reference images to compare with")
    parser.add_argument("--clip", metavar="MODEL", help="a CLIP model of transformers: folder or hub id")
    parser.add_argument("--features", metavar="MODEL", help="an image model of transformers, such as a DINOv2")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="images scored together")
    parser.add_argument("--device", default="auto", help="auto, cpu, or a device's name")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a JSON file for the numbers")
    given = parser.parse_args(argv)

    def work(device):
        numbers = score(given, device)
        print(report(numbers, given.images, given.reference))
        if given.out is not None:
            write_json(given.out, numbers)

    return exit_code(work, given.device, memory="a smaller --batch needs less", stopped="nothing was written")


def score(given, device):
    """All numbers of the command line ``given``, by name. Raises RMDError for folders or models that do not fit.

    What can be refused is refused before the first image is scored.
    """
    if given.clip is None and given.features is None:
        raise RMDError("nothing to compute; give --clip MODEL, --features MODEL or both")
    if given.features is not None and given.reference is None:
        raise RMDError("--features compares with other images; give --reference FOLDER")
    if given.features is not None and find_spec("torchmetrics") is None:
        raise RMDError("--features needs torchmetrics, which is not installed: pip install torchmetrics")
    if given.batch < 1:
        raise RMDError("--batch must be at least 1")
    folders = {"images": given.images} | ({"reference": given.reference} if given.reference else {})
    files = {name: image_files(folder) for name, folder in folders.items()}
    numbers = {name: {"folder": str(folders[name]), "count": len(found)} for name, found in files.items()}
    prompts, pairs = {}, []
    if given.clip is not None:
        prompts = {name: [prompt_of(path) for path in found] for name, found in files.items()}
    if len(prompts) == 2:
        pairs = pairs_by_prompt(*prompts.values())
    clip = None if given.clip is None else Clip(given.clip, device)
    model = None if given.features is None else ImageModel(given.features, device)
    if clip is not None:
        values = {name: clip.scores(files[name], texts, batch=given.batch) for name, texts in prompts.items()}
        for name, found in values.items():
            numbers[name]["clip"] = mean_and_error(found)
        if pairs:
            first, second = (found[[pair[side] for pair in pairs]] for side, found in enumerate(values.values()))
            numbers["clip_difference"] = mean_and_error(first - second) | {"pairs": len(pairs)}
    if model is not None:
        features = {name: model.features(found, batch=given.batch) for name, found in files.items()}
        numbers["features"] = {"model": given.features, "width": features["images"].shape[1]}
        numbers["frechet"] = frechet_distance(features["reference"], features["images"])
        numbers["kernel"] = kernel_distance(features["reference"], features["images"])
    return numbers


def report(numbers, images, reference):
    """The numbers of ``score`` as text."""
    lines = []
    for name, folder in (("images", images), ("reference", reference)):
        if name in numbers:
            clip = numbers[name].get("clip")
            scored = f", CLIP score {clip['mean']:.2f} +- {clip['error']:.2f}" if clip else ""
            lines.append(f"{folder}: {numbers[name]['count']} images{scored}")
    if "clip_difference" in numbers:
        found = numbers["clip_difference"]
        what = f"CLIP score, images less reference, {found['pairs']} pairs of one prompt: {found['mean']:+.2f}"
        lines.append(what if found["error"] is None else f"{what} +- {found['error']:.2f}")
        if found["error"] is None:
            lines.append("note: one pair gives no standard error; sample more images with the same --prompts")
    if "features" in numbers:
        width, model = numbers["features"]["width"], numbers["features"]["model"]
        lines.append(f"Frechet distance {numbers['frechet']:.4g}, kernel distance {numbers['kernel']:.4g} ({model})")
        fewest = min(numbers[name]["count"] for name in ("images", "reference"))
        if fewest <= width:
            lines.append(
                f"note: {fewest} images for {width} features make the Frechet distance too large; compare it with that "
                "of equally many images alone"
            )
    return "\n".join(lines)


# Images and prompts


def image_files(folder):
    """The images in a folder, by name. Raises RMDError where there are fewer than two."""
    try:
        found = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in ENDINGS)
    except OSError as error:
        raise RMDError(f"{folder}: cannot be read ({error.strerror or error}); give a folder of images") from None
    if len(found) < 2:
        raise RMDError(f"{folder} has {len(found)} images ({', '.join(ENDINGS)}); give a folder with 2 or more")
    return found


def prompt_of(path):
    """The prompt of an image. Raises RMDError where there is none."""
    text = path.with_suffix(".txt")
    if text.is_file():
        try:
            return text.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RMDError(f"{text}: cannot be read as UTF-8 text ({one_line(error, 120)}); write it again") from None
    prompt = settings_of(path).get("prompt")
    if not isinstance(prompt, str):
        raise RMDError(
            f"{path}: there is no prompt in it; give images of training/sample.py, or write each prompt into a file "
            f"such as {text.name}"
        )
    return prompt


def pairs_by_prompt(first, second):
    """(number, number) pairs of equal prompts, each image once, in order. Raises RMDError where there are none."""
    waiting = {}
    for number, prompt in enumerate(second):
        waiting.setdefault(prompt, []).append(number)
    pairs = [(number, waiting[prompt].pop(0)) for number, prompt in enumerate(first) if waiting.get(prompt)]
    if not pairs:
        raise RMDError("no prompt is in both folders; sample both with the same --prompts")
    return pairs


def opened(path):
    """An image file as a PIL image in RGB, upright. Raises RMDError, naming the file, for one that cannot be read."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError) as error:
        raise RMDError(f"{path}: cannot be read as an image ({one_line(error, 120)}); delete it") from None


# Models


class ImageModel:
    """A model of transformers that turns images into vectors, from a folder or a hub id, in float32 on a device.

    Raises RMDError for one that cannot be loaded, or has no safetensors.
    """

    def __init__(self, name, device):
        from transformers import AutoImageProcessor, AutoModel

        self.folder, self.device = fetched(name, MODEL), device
        weights_variant(self.folder, ENCODER_STEM)
        refuse_packed(self.folder, ENCODER_STEM)
        with _loading(name):
            self.processor = AutoImageProcessor.from_pretrained(self.folder, use_fast=False, local_files_only=True)
            model = AutoModel.from_pretrained(self.folder, use_safetensors=True, local_files_only=True)
        self.model = model.eval().float().to(device)

    @torch.inference_mode()
    def features(self, files, *, batch):
        """The vectors (N, D) of image files, on the CPU."""
        return torch.cat([self._vectors(files[i : i + batch]) for i in tqdm(range(0, len(files), batch), leave=False)])

    def _vectors(self, files):
        pixels = self.processor([opened(path) for path in files], return_tensors="pt")["pixel_values"].to(self.device)
        with_text = hasattr(self.model, "get_image_features")
        output = self.model.get_image_features(pixel_values=pixels) if with_text else self.model(pixel_values=pixels)
        return _pooled(output).float().cpu()


class Clip(ImageModel):
    """A CLIP model; the score of an image and a prompt is 100 times their cosine, 0 at least (arXiv 2104.08718)."""

    def __init__(self, name, device):
        super().__init__(name, device)
        from transformers import AutoTokenizer

        if not hasattr(self.model, "get_text_features"):
            raise RMDError(f"--clip {name}: this model takes no text; give a CLIP model")
        with _loading(f"--clip {name}"):
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @torch.inference_mode()
    def scores(self, files, prompts, *, batch):
        """The scores (N,) of image files with their prompts, which are cut off at the model's length."""
        found = []
        for start in tqdm(range(0, len(files), batch), leave=False):
            length = self.model.config.text_config.max_position_embeddings
            texts = self.tokenizer(
                prompts[start : start + batch],
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            ours = _pooled(self.model.get_text_features(**texts.to(self.device))).float().cpu()
            cosine = torch.nn.functional.cosine_similarity(self._vectors(files[start : start + batch]), ours)
            found.append(100 * cosine.clamp(min=0))
        return torch.cat(found)


@contextlib.contextmanager
def _loading(name):
    """A block that loads a part of a model; what transformers raises for one that it cannot load is an RMDError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise RMDError(f"{name}: cannot be loaded as a model of transformers ({one_line(error, 200)})") from None


def _pooled(output):
    """One vector for each image or text; newer versions of transformers give more beside it."""
    vectors = output if isinstance(output, torch.Tensor) else output.get("pooler_output")
    if vectors is None:
        raise RMDError("--features: this model gives no vector for an image; give a DINOv2 or a CLIP model")
    return vectors


# Numbers


def mean_and_error(values):
    """The mean of some values (N,), and the standard error of that mean, None where there is one value."""
    values = values.double()
    error = (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None
    return {"mean": values.mean().item(), "error": error}


class _Given(torch.nn.Module):
    """A feature extractor for torchmetrics that returns precomputed features."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, features):
        return features


def frechet_distance(reference, features):
    """The Frechet distance of two sets of features (N, D), taken as Gaussians (arXiv 1706.08500); by torchmetrics."""
    # Each from its own module: the package has them only where torch-fidelity is installed too.
    from torchmetrics.image.fid import FrechetInceptionDistance

    return _metric(FrechetInceptionDistance, reference, features).compute().item()


def kernel_distance(reference, features):
    """The unbiased squared distance of two sets of features by a cubic kernel (arXiv 1801.01401); by torchmetrics.

    Of more than SUBSET features it is the mean over SUBSETS subsets, which are always the same ones.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    fewest = min(len(reference), len(features))
    sizes = {"subset_size": min(SUBSET, fewest), "subsets": 1 if fewest <= SUBSET else SUBSETS}
    metric = _metric(KernelInceptionDistance, reference, features, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # that of the CPU alone, which is put back
        return metric.compute()[0].item()


def _metric(kind, reference, features, **settings):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features")  # they are in memory already
        metric = kind(feature=_Given(features.shape[1]), **settings)
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return metric


if __name__ == "__main__":
    sys.exit(main())

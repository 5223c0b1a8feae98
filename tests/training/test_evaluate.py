"""Scores of images: distances against closed forms and slow references, CLIP scores against transformers itself."""

import json
import math

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import AutoImageProcessor, CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from encoder_world import clip_tokenizer
from rmd_core.errors import RMDError
from training import evaluate
from training.evaluate import (
    MODEL,
    frechet_distance,
    image_files,
    kernel_distance,
    main,
    mean_and_error,
    opened,
    pairs_by_prompt,
)
from training.hub import files_of

SIDE = 16
PROMPTS = ("a b", "c d", "e f", "a b")


def features(count, mean, deviation, *, seed):
    """Features (N, D) whose sample mean is ``mean``, and whose covariance the diagonal of ``deviation`` squared."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    values -= values.mean(0)
    white = values @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(values.T))).T
    return white * torch.tensor(deviation) + torch.tensor(mean)


def test_the_frechet_distance_of_two_gaussians():
    first, second = ([0.0, 1.0, 2.0], [1.0, 2.0, 0.5]), ([0.5, 1.0, 0.0], [1.0, 1.0, 3.0])
    expected = sum((a - b) ** 2 for pair in zip(first, second) for a, b in zip(*pair))
    one, two = features(40, *first, seed=1), features(70, *second, seed=2)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-6)


def slow_kernel_distance(x, y):
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    n = len(x)
    same = sum(kernel(v[i], v[j]) for v in (x, y) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return same - 2 * sum(kernel(a, b) for a in x for b in y) / n**2


def test_the_kernel_distance_is_the_unbiased_one(monkeypatch):
    generator, before = torch.Generator().manual_seed(3), torch.get_rng_state()
    x, y = torch.randn(9, 4, generator=generator), torch.randn(9, 4, generator=generator) + 0.5
    assert kernel_distance(x, y) == pytest.approx(slow_kernel_distance(x.double(), y.double()), rel=1e-6)
    pairs = [torch.randn(2, 5, 4, generator=generator) for _ in range(300)]
    values = torch.tensor([kernel_distance(*pair) for pair in pairs])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))  # of equal distributions
    monkeypatch.setattr(evaluate, "SUBSET", 6)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU is seeded"))
    assert kernel_distance(x, y) == kernel_distance(x, y) != pytest.approx(slow_kernel_distance(x, y))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(tiny CLIP, tiny DINOv2) with random weights, as folders."""
    folder = tmp_path_factory.mktemp("models")
    text = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = small | {"image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=small | text, vision_config=vision, projection_dim=8)
    steps = {f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
    steps |= {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}
    steps |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "image_processor_type": "CLIPImageProcessor"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder / "clip")
        Dinov2Model(Dinov2Config(**small, image_size=SIDE, patch_size=8)).save_pretrained(folder / "dino")
    clip_tokenizer().save_pretrained(folder / "clip")
    for name in ("clip", "dino"):
        (folder / name / "preprocessor_config.json").write_text(json.dumps(steps), encoding="utf-8")
    return folder / "clip", folder / "dino"


def write_images(folder, seed, prompts=PROMPTS, *, beside=False):
    """Random images with their prompts, in them or beside them."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for number, prompt in enumerate(prompts):
        values = torch.randint(256, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
        info = PngInfo()
        if beside:
            (folder / f"{number}.txt").write_text(f"{prompt}\n", encoding="utf-8")
        else:
            info.add_text("rmd", json.dumps({"prompt": prompt}))
        Image.fromarray(values.numpy()).save(folder / f"{number}.png", pnginfo=info)
    return folder


def reference_scores(model, folder, prompts):
    """CLIP scores by transformers alone, one image at a time."""
    network, tokenizer = CLIPModel.from_pretrained(model), clip_tokenizer()
    processor = AutoImageProcessor.from_pretrained(model, use_fast=False)
    found = []
    for path, prompt in zip(image_files(folder), prompts):
        pixels = processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = network(pixel_values=pixels, **tokenizer(prompt, return_tensors="pt"))
        found.append(100 * max(0.0, float(output.image_embeds[0] @ output.text_embeds[0])))
    return found


def test_clip_scores_and_their_pairs(tmp_path, models, capsys):
    a = write_images(tmp_path / "a", 1)
    b = write_images(tmp_path / "b", 2, ("e f", "a b", "g h"), beside=True)
    out = tmp_path / "scores.json"
    options = ("--images", str(a), "--reference", str(b), "--clip", str(models[0]), "--batch", "3", "--device", "cpu")
    assert main([*options, "--out", str(out)]) == 0
    numbers = json.loads(out.read_text())
    ours, theirs = (
        reference_scores(models[0], folder, texts) for folder, texts in ((a, PROMPTS), (b, ("e f", "a b", "g h")))
    )
    assert max(ours) > 0 and numbers["images"]["clip"]["mean"] == pytest.approx(sum(ours) / 4, abs=1e-3)
    assert numbers["reference"]["clip"]["mean"] == pytest.approx(sum(theirs) / 3, abs=1e-3)
    difference = numbers["clip_difference"]
    assert difference["pairs"] == 2
    assert difference["mean"] == pytest.approx((ours[0] - theirs[1] + ours[2] - theirs[0]) / 2, abs=1e-3)
    assert "2 pairs" in capsys.readouterr().out


def test_one_pair_has_no_error_and_gives_valid_json(tmp_path, models, capsys):
    a = write_images(tmp_path / "a", 1)
    b, out = write_images(tmp_path / "b", 2, ("e f", "x y")), tmp_path / "scores.json"
    options = ("--images", str(a), "--reference", str(b), "--clip", str(models[0]), "--device", "cpu")
    assert main([*options, "--out", str(out)]) == 0
    numbers = json.loads(out.read_text(), parse_constant=pytest.fail)  # called for NaN, which JSON does not have
    assert numbers["clip_difference"]["pairs"] == 1 and numbers["clip_difference"]["error"] is None
    said = capsys.readouterr().out
    assert "nan" not in said and "note: one pair gives no standard error" in said


@pytest.mark.parametrize("which", [0, 1])
def test_distances_of_folders(tmp_path, models, capsys, which):
    a, b = write_images(tmp_path / "a", 1), write_images(tmp_path / "b", 2)
    for other in (a, b):
        options = ("--images", str(a), "--reference", str(other), "--features", str(models[which]), "--device", "cpu")
        assert main([*options, "--out", str(tmp_path / f"{other.name}.json")]) == 0
    same, apart = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert same["frechet"] == pytest.approx(0.0, abs=1e-4) and apart["frechet"] > 1e-3
    assert same["features"]["width"] == (8, 16)[which] and "note: 4 images" in capsys.readouterr().out


def test_the_error_of_a_mean():
    found = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found == {"mean": 3.0, "error": pytest.approx(math.sqrt(14 / 3 / 4))}
    assert mean_and_error(torch.tensor([2.0])) == {"mean": 2.0, "error": None}
    assert pairs_by_prompt(["x", "y", "x"], ["x", "x", "z"]) == [(0, 0), (2, 1)]
    with pytest.raises(RMDError, match="same --prompts"):
        pairs_by_prompt(["x"], ["y"])


def test_what_is_missing_is_said_in_one_line(tmp_path, models, capsys):
    a = write_images(tmp_path / "a", 1)
    (tmp_path / "empty").mkdir()
    clip, dino = map(str, models)
    for options, words in (
        ((), "--clip MODEL"),
        (("--features", dino), "--reference"),
        (("--clip", dino), "takes no text"),
        (("--clip", str(tmp_path / "empty")), "model.safetensors"),
        (("--clip", clip, "--reference", str(tmp_path / "empty")), "2 or more"),
        (("--clip", clip, "--batch", "0"), "--batch must be at least 1"),
    ):
        assert main(["--images", str(a), "--device", "cpu", *options]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert words in line
    Image.new("RGB", (SIDE, SIDE)).save(a / "9.png")
    for words in ("9.png: there is no prompt", "9.txt: cannot be read as UTF-8"):
        assert main(["--images", str(a), "--device", "cpu", "--clip", clip]) == 2
        assert words in capsys.readouterr().err
        (a / "9.txt").write_bytes("caf\u00e9".encode("latin-1"))


@pytest.mark.parametrize("wrong", ["--features", "--reference"])
def test_nothing_is_scored_before_all_is_known_to_fit(tmp_path, models, capsys, monkeypatch, wrong):
    a, b = write_images(tmp_path / "a", 1), write_images(tmp_path / "b", 2, ("x", "y"))
    options = {"--images": a, "--reference": a, "--clip": models[0], "--features": models[1]}
    options |= {wrong: tmp_path / "none" if wrong == "--features" else b}
    monkeypatch.setattr(evaluate.ImageModel, "_vectors", lambda *_: pytest.fail("an image was scored"))
    assert main(["--device", "cpu", *(str(part) for pair in options.items() for part in pair)]) == 2
    assert ("none" if wrong == "--features" else "same --prompts") in capsys.readouterr().err


def test_scores_are_said_where_the_file_cannot_be_written(tmp_path, models, capsys):
    a = write_images(tmp_path / "a", 1)
    options = ("--images", str(a), "--clip", str(models[0]), "--out", str(tmp_path / "none" / "scores.json"))
    assert main([*options, "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert "4 images, CLIP score" in said.out and "could not be written" in said.err


def test_a_photo_is_turned_upright(tmp_path):
    image, exif = Image.new("RGB", (3, 2)), Image.Exif()
    image.putpixel((0, 0), (255, 255, 255))
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "a.png", exif=exif)
    upright = opened(tmp_path / "a.png")
    assert upright.size == (2, 3) and upright.getpixel((1, 0)) == (255, 255, 255)


def test_of_a_model_on_the_hub_safetensors_and_small_files_are_read():
    names = ["README.md", "config.json", "flax_model.msgpack", "merges.txt", "model.safetensors", "pytorch_model.bin"]
    assert files_of(MODEL, names, "it") == ["config.json", "merges.txt", "model.safetensors"]

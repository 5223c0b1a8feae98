"""Sampling without ComfyUI: against the demo's own sampling and against the adapters of a training, image by image."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from backbone_world import CONFIG as BACKBONE_CONFIG
from backbone_world import student_file, write_expert_world, write_prompts
from demo import files
from demo.sampling import sample_setup, student_setup
from encoder_world import write_model
from rmd_core.boundary import learned_name
from rmd_core.files import read_tensors, save_safetensors
from rmd_core.noise import SeededNoise
from rmd_core.recipe import RECIPE_KEY, read_recipe
from rmd_core.upsampler import LatentUpsampler, read_upsampler
from training.backbones import make_backbone
from training.config import load_config
from training.evaluate import prompt_of
from training.export import export_lora, export_student
from training.lora_files import merge_lora
from training.networks import adapt
from training.plans import sampling_boundary
from training.prompts import PromptCache
from training.sample import as_bytes, main, sample_latents
from training.setup import outline_run, prepare
from training.start import read_changes
from training_world import distill, make_setup, tiny_vae, write_native_vae

TEXTS = ("apple noto on-white", "star fluent on-green")
LETTERS = ("a b c", "d e")


def sample(folder, texts, *options):
    """The exit code of the command for a list of prompts."""
    (folder / "prompts.txt").write_text("\n".join(texts), encoding="utf-8")
    return main([*options, "--prompts", str(folder / "prompts.txt"), "--device", "cpu"])


def pixels(path):
    return np.asarray(Image.open(path))


def test_images_of_the_demo_student_are_those_of_the_demo(tmp_path, capsys):
    options = ["--student", files.STUDENT, "--vae", files.VAE, "--cache", files.PROMPTS, "--out", tmp_path / "out"]
    options = [*map(str, options), "--seed", "7", "--count", "2"]
    assert sample(tmp_path, TEXTS, *options) == 0
    backbone = make_backbone("wan", shift=read_recipe(files.STUDENT).curve.shift)
    vae, cache = backbone.load_vae(files.VAE), PromptCache(files.PROMPTS)
    setup = student_setup("student", files.STUDENT, backbone)
    for number in range(4):
        latents = sample_setup(setup, backbone, cache, [TEXTS[number // 2]], SeededNoise(7 + number))
        path = tmp_path / "out" / f"{number:05d}.png"
        assert np.array_equal(pixels(path), as_bytes(backbone.decode(vae, latents)[:, :, 0])[0])
        made = json.loads(Image.open(path).info["rmd"])
        assert (made["prompt"], made["seed"], made["steps"]) == (TEXTS[number // 2], 7 + number, "2+2")
    assert sample(tmp_path, TEXTS, *options) == 2 and "--resume" in capsys.readouterr().err
    for texts, more in ((TEXTS[::-1], ()), (TEXTS, ("--seed", "8"))):
        assert sample(tmp_path, texts, *options, *more, "--resume") == 2
        assert "was made with other options or prompts" in capsys.readouterr().err
    kept = (tmp_path / "out" / "00000.png").stat().st_mtime_ns
    before = pixels(tmp_path / "out" / "00001.png")
    (tmp_path / "out" / "00001.png").unlink()
    assert sample(tmp_path, TEXTS, *options, "--resume", "--offload", "waiting") == 0
    assert np.array_equal(pixels(tmp_path / "out" / "00001.png"), before)
    assert (tmp_path / "out" / "00000.png").stat().st_mtime_ns == kept
    without_vae = (*options[:2], *options[4:6], "--out", str(tmp_path / "other"))
    assert sample(tmp_path, TEXTS, *without_vae) == 2
    assert "--vae" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_lora_is_sampled_with_its_base_which_encodes_the_prompts(tmp_path, name):
    model = write_model(name, tmp_path / "model")
    write_prompts(name, tmp_path / "prompts.safetensors")
    path = tmp_path / "config.yaml"
    path.write_text(BACKBONE_CONFIG.format(name=name, folder=tmp_path, low=4, high=8), encoding="utf-8")
    overrides = ("model.mode=adapters", "model.rank=3", "model.alpha=1.5")
    setup = prepare(outline_run(load_config(path, overrides).resolved()))
    base = adapt(setup.teacher, setup.backbone, setup.config.model)
    generator = torch.Generator().manual_seed(5)
    for parameter in base.adapters["student"].parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    export_lora(setup, base.network, base.lora("student"), tmp_path / "lora.safetensors", update=3)

    options = ("--student", str(tmp_path / "lora.safetensors"), "--base", str(model), "--out", str(tmp_path / "out"))
    assert sample(tmp_path, LETTERS, *options, "--size", "64x64") == 0
    vae, cache = setup.backbone.load_vae(model), PromptCache(tmp_path / "out" / "prompts")
    shown = {}
    for adapter in ("student", None):
        for number, text in enumerate(LETTERS):
            latents = sample_latents(
                setup.backbone,
                base.with_adapter(adapter),
                setup.plan,
                conditioning=setup.backbone.conditioning(cache, [text]),
                noise=SeededNoise(number),
                boundary=sampling_boundary(setup.config.method),
                eta=setup.config.method.eta,
            ).x0
            image = as_bytes(setup.backbone.decode(vae, latents)[:, :, 0])[0].astype(int)
            shown[adapter, number] = np.abs(pixels(tmp_path / "out" / f"{number:05d}.png") - image).max()
    print(name, shown)
    assert max(shown["student", 0], shown["student", 1]) <= 1 < min(shown[None, 0], shown[None, 1])


def test_two_experts_are_sampled_from_either_file(tmp_path):
    write_expert_world(tmp_path)
    base = ("--base", str(tmp_path / "base_high_noise.safetensors"))
    assert distill(tmp_path, f"backbone.base={base[1]}", "optimiser.student_lr=3e-2") == 0
    write_native_vae(tiny_vae(), tmp_path / "vae.safetensors")
    options = ["--vae", str(tmp_path / "vae.safetensors"), "--cache", str(tmp_path / "prompts.safetensors"), *base]
    shown = []
    for number, (name, more) in enumerate((("high", ()), ("low", ("--offload", "waiting")))):
        own = ("--student", str(student_file(tmp_path / "out", name)), "--out", str(tmp_path / f"images{number}"))
        assert sample(tmp_path, ["a red apple"], *own, *options, *more) == 0
        shown.append(pixels(tmp_path / f"images{number}" / "00000.png"))
    assert np.array_equal(*shown)
    recipe = read_recipe(student_file(tmp_path / "out", "low"))
    backbone = make_backbone("wan22_a14b", shift=5.0)
    network = backbone.load(base[1])
    differences = []
    for _ in range(2):
        with torch.no_grad():
            latents = sample_latents(
                backbone,
                network,
                recipe.plan(),
                conditioning=backbone.conditioning(PromptCache(tmp_path / "prompts.safetensors"), ["a red apple"]),
                noise=SeededNoise(0),
                boundary=recipe.boundary(),
                eta=recipe.eta,
            ).x0
        image = as_bytes(backbone.decode(backbone.load_vae(tmp_path / "vae.safetensors"), latents)[:, :, 0])[0]
        differences.append(np.abs(shown[0].astype(int) - image).max())
        merge_lora(network, read_changes(student_file(tmp_path / "out", "high"), backbone, network), "it")
    assert differences[1] == 0 < differences[0]


def test_a_video_is_an_animation_and_frames(tmp_path):
    setup = make_setup(tmp_path)
    export_student(setup, setup.teacher, tmp_path / "student.safetensors", update=1)
    write_native_vae(tiny_vae(), tmp_path / "vae.safetensors")
    parts = {"student": "student", "vae": "vae", "cache": "prompts"}
    options = [part for name, file in parts.items() for part in (f"--{name}", str(tmp_path / f"{file}.safetensors"))]
    options += ["--out", str(tmp_path / "out"), "--frames", "2", "--size", "96x64", "--tile-vae"]
    assert sample(tmp_path, ["a red apple"], *options, "--save-frames") == 0
    video = Image.open(tmp_path / "out" / "00000.webp")
    assert (video.n_frames, video.size) == (5, (96, 64))
    assert json.loads(video.getexif()[0x010E])["sizes"] == "48x32 to 96x64"
    assert prompt_of(tmp_path / "out" / "00000.webp") == "a red apple"
    frames = sorted((tmp_path / "out" / "00000").glob("*.png"))
    assert len(frames) == 5 and pixels(frames[0]).shape == (64, 96, 3)


@pytest.mark.parametrize(
    "wrong", [("--size", "100x64"), ("--frames", "0"), ("--count", "0"), ("--dtype", "bfloat16", "--cache", "none")]
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path, capsys, wrong):
    options = ("--student", str(files.STUDENT), "--vae", str(files.VAE), "--out", str(tmp_path / "out"))
    assert sample(tmp_path, TEXTS, *options, *wrong) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert wrong[0] in line or "--encode-from" in line


def test_a_student_with_a_learned_upsampler_takes_that_one_alone(tmp_path, capsys):
    """An untrained upsampler is bicubic, so the images are those of the same student with bicubic."""
    network = LatentUpsampler(channels=16, width=4, blocks=1, latents="wan")
    path = network.save(tmp_path / "up.safetensors")
    network.leave.bias.data += 1.0
    other = network.save(tmp_path / "other.safetensors")
    tensors, metadata = read_tensors(files.STUDENT)
    shared = ["--vae", files.VAE, "--cache", files.PROMPTS, "--seed", "7"]

    def run(name, *options, upsampler):
        recipe = replace(read_recipe(files.STUDENT), upsampler=upsampler)
        student = tmp_path / f"student_{name}.safetensors"
        save_safetensors(student, tensors, metadata | {RECIPE_KEY: recipe.to_json()})
        words = map(str, ["--student", student, "--out", tmp_path / name, *shared, *options])
        return sample(tmp_path, TEXTS[:1], *words), tmp_path / name / "00000.png"

    named = learned_name("up.safetensors", read_upsampler(path).digest())
    for name, options, rule, words in (
        ("without", (), named, "give its file as --upsampler"),
        ("other", ("--upsampler", other), named, "has other weights"),
        ("nearest", ("--upsampler", path), "nearest", "leave out --upsampler"),
    ):
        assert run(name, *options, upsampler=rule)[0] == 2 and words in capsys.readouterr().err
    (code, image), (plain, expected) = run("own", "--upsampler", path, upsampler=named), run("b", upsampler="bicubic")
    assert code == plain == 0 and np.array_equal(pixels(image), pixels(expected))

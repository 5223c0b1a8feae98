"""Training an upsampler: better than bicubic where it can be, resumed bit for bit, and what a run makes of its file."""

import json
import math
from argparse import Namespace

import pytest
import torch
from PIL import Image

from rmd_core.boundary import learned_name, upsample
from rmd_core.errors import RMDError
from rmd_core.files import read_tensors, save_safetensors
from rmd_core.noise import derive_seed
from rmd_core.recipe import read_recipe
from rmd_core.upsampler import LatentUpsampler, read_upsampler
from training.backbones import BACKBONES, make_backbone, wan
from training.config import load_config
from training.plans import check_upsampler
from training.train_upsampler import Training, compare, cropped, frequency_loss, high_energy, main, shrunk
from training_world import distill, equal, gradients, make_objective, make_setup, refused, tensors, tiny_vae

from training_world import write_native_vae, write_world  # isort: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of an autoencoder and ten images of 40 x 36 px in two forms: files, and tensors in one file."""
    folder = tmp_path_factory.mktemp("upsampler")
    write_native_vae(tiny_vae(), folder / "vae.safetensors")
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(10, 3, 5, 5, generator=generator)
    pixels = (upsample(small, (36, 40), "bicubic").clamp(0, 1) * 255).round().to(torch.uint8)
    save_safetensors(folder / "images.safetensors", {"images": pixels})
    (folder / "images" / "more").mkdir(parents=True)
    for number, image in enumerate(pixels):
        place = folder / "images" / ("more" if number > 6 else "")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    return folder


def train(images, out, *options, source="images.safetensors"):
    """The exit code of the command."""
    given = {"backbone": "wan", "vae": images / "vae.safetensors", "images": images / source, "out": out}
    given |= {"size": "32x32", "updates": 6, "batch": 2, "width": 4, "blocks": 1, "held-out": 3, "device": "cpu"}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return main([*words, "--smaller", "16x16", "24x16", "--checkpoint-every", "4", *options])


def test_the_file_is_the_network_of_the_table_and_learns(images, tmp_path, capsys):
    assert train(images, tmp_path, "--updates", "120", "--lr", "3e-3", "--name", "up") == 0
    network = read_upsampler(tmp_path / "up.safetensors")
    assert (network.latents, network.channels, network.width, network.blocks) == ("wan", 16, 4, 1)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [(row["from"], row["way"]) for row in rows[::5]] == [([2, 2], "nearest"), ([2, 3], "nearest")]
    by_way = {row["way"]: row for row in rows[:5]}
    assert by_way["upsampler"]["psnr"] > by_way["bicubic"]["psnr"]
    assert all(math.isfinite(row["latent_energy"]) for row in rows) and "32x32" in capsys.readouterr().out
    stored = read_tensors(tmp_path / "latents.safetensors")[0]
    assert [tuple(stored[name].shape) for name in "012"] == [(10, 16, 4, 4), (10, 16, 2, 2), (10, 16, 2, 3)]
    recorded = [json.loads(line)["l1"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(recorded) == 6 and recorded[-1] < recorded[0]


def test_a_folder_of_files_gives_the_latents_of_the_tensors(images, tmp_path, caplog):
    (images / "images" / "broken.png").write_bytes(b"none")
    for source in ("images", "images.safetensors"):
        assert train(images, tmp_path / source, "--updates", "1", source=source) == 0
    one, two = (tensors(tmp_path / source / "latents.safetensors") for source in ("images", "images.safetensors"))
    assert equal(one, two) and "left out: " in caplog.text and "broken.png" in caplog.text


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(images, tmp_path, monkeypatch, capsys):
    assert train(images, tmp_path / "whole") == 0
    steps = iter(range(6))

    def broken(made, target):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return frequency_loss(made, target)

    monkeypatch.setattr("training.train_upsampler.frequency_loss", broken)
    assert train(images, tmp_path / "cut") == 130
    monkeypatch.undo()
    assert train(images, tmp_path / "cut") == 2 and "--resume" in capsys.readouterr().err
    assert refused(capsys, train(images, tmp_path / "cut", "--resume", "--seed", "1"), "other options") == 2
    assert train(images, tmp_path / "cut", "--resume") == 0
    for name in ("upsampler", "checkpoint"):
        assert equal(*(tensors(tmp_path / run / f"{name}.safetensors") for run in ("whole", "cut")))
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "cut" / "metrics.jsonl").read_text()


def test_an_interrupted_encoding_goes_on_where_it_was(images, tmp_path, monkeypatch, capsys):
    assert train(images, tmp_path / "whole", "--updates", "1") == 0
    encode, calls = wan.encode_normalised, []

    def broken(vae, pixels):
        calls.append(pixels)
        if len(calls) == 14:  # of three for each image
            raise KeyboardInterrupt
        return encode(vae, pixels)

    monkeypatch.setattr(wan, "encode_normalised", broken)
    assert train(images, tmp_path / "cut", "--updates", "1") == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert train(images, tmp_path / "cut", "--updates", "1") == 0 and len(calls) == 14 + 3 * 6
    (one, first), (two, second) = (read_tensors(tmp_path / run / "latents.safetensors") for run in ("whole", "cut"))
    assert equal(one, two) and first == second


def test_latents_of_a_training_are_not_replaced_and_a_new_start_drops_old_losses(images, tmp_path, capsys):
    assert train(images, tmp_path) == 0
    before = (tmp_path / "latents.safetensors").read_bytes()
    for more in ((), ("--resume",)):
        code = train(images, tmp_path, "--size", "32x24", *more)
        assert refused(capsys, code, "a training on other images, sizes or autoencoder") == 2
    assert (tmp_path / "latents.safetensors").read_bytes() == before
    recorded = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "checkpoint.safetensors").unlink()
    assert train(images, tmp_path) == 0 and (tmp_path / "metrics.jsonl").read_text() == recorded


def test_no_checkpoint_has_weights_that_are_not_finite(images, tmp_path, capsys):
    code = train(images, tmp_path, "--lr", "1e35")
    assert refused(capsys, code, "update 4: the loss is not finite") == 2
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_what_does_not_fit_is_said_in_one_line(images, tmp_path, capsys):
    for options, words in (
        (("--size", "30x32"), ("--size 30x32", "multiples of 8")),
        (("--smaller", "8x16"), ("an axis grows by less than 1 or more than 2 times",)),
        (("--smaller", "32x32"), ("or none grows",)),
        (("--size", "64x64", "--smaller", "32x32"), ("no image of at least 64x64 px",)),
        (("--held-out", "10"), ("--held-out takes 10",)),
        (("--batch", "0"), ("at least 1",)),
        (("--blocks", "65"), ("blocks is 65, not a whole number from 0 to 64",)),
        (("--vae", str(images / "images.safetensors")), ("images.safetensors: ",)),
        (("--images", str(images / "vae.safetensors")), ("'images' of bytes",)),
        (("--images", str(tmp_path / "none")), ("give a folder of images",)),
        (("--resume",), ("start without --resume",)),
    ):
        assert refused(capsys, train(images, tmp_path / "out", *options), *words) == 2


def test_crops_and_shrinks_keep_what_they_should():
    image = torch.rand(1, 3, 40, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cropped(image, (40, 32)), image[..., 16:48])
    assert cropped(image, (16, 24)).shape == (1, 3, 16, 24)
    flat = torch.full((1, 3, 20, 20), 0.25)
    assert torch.allclose(shrunk(flat, (10, 13)), torch.full((1, 3, 10, 13), 0.25)) and shrunk(flat, (20, 20)) is flat


def test_energy_above_the_small_size_and_the_spectrum_against_closed_forms():
    x = torch.arange(16) / 16
    low, high = (torch.cos(2 * math.pi * cycles * x).repeat(16, 1)[None, None] for cycles in (3, 6))
    assert high_energy(low, (0.5, 0.5)) < 1e-6
    assert high_energy(low + high, (0.5, 0.5)).item() == pytest.approx(high.square().sum().item(), rel=1e-5)
    assert frequency_loss(low, low.roll(5, -1)) < 1e-6 < frequency_loss(low, high)


def test_the_table_of_an_untrained_one_is_bicubic(images):
    backbone = make_backbone("wan")
    vae = backbone.load_vae(images / "vae.safetensors")
    large = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    network = LatentUpsampler(channels=16, width=4, blocks=1, latents="wan")
    rows = {row["way"]: row for row in compare(network, large, [large[..., ::2, ::2]], backbone, vae)}
    assert rows["upsampler"] | {"way": "bicubic"} == rows["bicubic"]


# What a run makes of it


def write_upsampler(path, *, seed=1, spread=0.0, channels=16, latents="wan"):
    """A file of an upsampler, untrained where ``spread`` is 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LatentUpsampler(channels=channels, width=8, blocks=1, latents=latents)
        torch.nn.init.normal_(network.leave.weight, std=spread)
    return network.save(path)


def test_gradients_of_both_losses_go_through_it(tmp_path):
    """An untrained one gives bicubic's gradients; a trained one others, and none of its own."""
    found, write = {}, write_upsampler
    files = {"untrained": write(tmp_path / "zero.safetensors"), "trained": write(tmp_path / "up.sft", spread=0.1)}
    for name, choice in {"bicubic": "bicubic", **files}.items():
        objective = make_objective(setup := make_setup(tmp_path, f"method.upsampler={choice}"))
        batches = setup.sampler().batches(1, "fake-0", round_number=0)
        assert batches[0].stage == 0
        objective.fake_phase(batches, share=False)
        objective.student_phase(batches)
        found[name] = gradients(objective.student), gradients(objective.fake)
        if setup.upsampler is not None:
            assert not gradients(setup.upsampler)
    assert all(equal(*pair) for pair in zip(found["untrained"], found["bicubic"]))
    assert not any(equal(*pair) for pair in zip(found["trained"], found["bicubic"]))


def test_a_run_its_recipe_and_its_digest(tmp_path, capsys):
    write_world(tmp_path)
    path = write_upsampler(tmp_path / "up.safetensors", spread=0.1)
    digest = read_upsampler(path).digest()
    rule, few = f"method.upsampler={path}", "train.updates=2"
    assert distill(tmp_path, rule, few) == 0
    recipe = read_recipe(tmp_path / "out" / "student.safetensors")
    assert recipe.upsampler == learned_name("up.safetensors", digest)
    config = load_config(tmp_path / "out" / "config.yaml").resolved()
    assert config.method.upsampler_sha256 == digest and recipe.config_digest == config.digest()
    moved = path.rename(tmp_path / "moved.safetensors")
    assert (
        load_config(tmp_path / "config.yaml", [f"method.upsampler={moved}", few]).resolved().digest() == config.digest()
    )
    assert load_config(tmp_path / "config.yaml", ["method.upsampler=bicubic"]).resolved().digest() != config.digest()
    other = write_upsampler(tmp_path / "other.safetensors", seed=2, spread=0.1)
    code = distill(tmp_path, f"method.upsampler={other}", few, flags=("--resume",))
    assert refused(capsys, code, f"method.upsampler_sha256: {digest} there") == 2
    assert distill(tmp_path, f"method.upsampler={moved}", few, flags=("--resume",)) == 0


def test_first_weights_leave_the_generators_of_cpu_and_gpu_alone(tmp_path, monkeypatch):
    options = {"width": 4, "blocks": 1, "seed": 3, "lr": 1e-3, "out": tmp_path}
    options |= dict.fromkeys(("updates", "batch", "frequency", "held_out"), 1)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(3, "weights"))
        expected = LatentUpsampler(channels=16, width=4, blocks=1, latents="wan")
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU is seeded"))
    before = torch.get_rng_state()
    network = Training(Namespace(**options), "", make_backbone("wan"), [], [], "cpu").network
    assert equal(network.state_dict(), expected.state_dict()) and torch.equal(torch.get_rng_state(), before)


def test_backbones_of_one_autoencoder_take_each_others_upsampler(tmp_path):
    shared = {"wan": "wan", "wan22_a14b": "wan", "qwen_image": "wan", "sdxl": "sdxl", "pixart_sigma": "sdxl"}
    backbones = {name: make_backbone(name) for name in BACKBONES}
    for made_for, first in backbones.items():
        path = write_upsampler(tmp_path / f"{made_for}.safetensors", channels=first.channels, latents=made_for)
        network = read_upsampler(path)
        for name, backbone in backbones.items():
            if shared.get(made_for, made_for) == shared.get(name, name):
                assert check_upsampler(network, path, backbone) is network
            else:
                with pytest.raises(RMDError, match=f"train one with --backbone {name}"):
                    check_upsampler(network, path, backbone)


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, capsys):
    write_world(tmp_path)
    path = write_upsampler(tmp_path / "up.safetensors")
    wrong = write_upsampler(tmp_path / "four.safetensors", channels=4)
    sd3 = write_upsampler(tmp_path / "sd3.safetensors", latents="sd3")
    for overrides, words in (
        ([f"method.upsampler={wrong}"], ("latents of 4 channels", "--backbone wan")),
        ([f"method.upsampler={sd3}"], ("sd3's latents",)),
        ([f"method.upsampler={path}", f"method.upsampler_sha256={'a' * 64}"], ("does not have the weights",)),
        (["method.upsampler=nearest", f"method.upsampler_sha256={'a' * 64}"], ("upsampler_sha256 needs a file",)),
        ([f"method.upsampler={path}", "method.upsampler_sha256=a"], ("64 hexadecimal digits",)),
        (["method.upsampler=gone.safetensors"], ("no such file",)),
        (["method.upsampler=up.pt"], ("'method.upsampler'", "bicubic", "train_upsampler.py")),
        ([f"method.upsampler={tmp_path / 'teacher.safetensors'}"], ("not an RMD upsampler",)),
    ):
        assert refused(capsys, distill(tmp_path, *overrides), *words) == 2

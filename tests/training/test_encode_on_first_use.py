"""A run that makes its own prompt cache first: the command's cache, made once, interrupted, by one of two processes."""

import gc

import pytest
import torch

from backbone_world import CONFIG
from encoder_world import write_model
from process_world import Run
from rmd_core.prompt_cache import PromptCache
from rmd_core.recipe import read_recipe
from training.backbones import make_backbone
from training.config import load_config
from training.encode_prompts import LiveCache, encode_prompts
from training.encode_prompts import main as encode
from training.text_encoders import FAMILIES, TextEncoders
from training_world import copy_world, distill, metrics, refused

NAME = "sdxl"
TEXTS = ("a red apple", "blue", "the quick brown fox", "zebra")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_model(NAME, folder / "model")
    write_model(NAME, folder / "other", seed=1)
    (folder / "list.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    config = CONFIG.replace("encoder: toy", 'file: "{folder}/list.txt", encode_from: "{folder}/model"')
    config = config.replace("prompts.safetensors", "prompts")
    (folder / "config.yaml").write_text(config.format(name=NAME, folder=folder, low=4, high=8), encoding="utf-8")
    return folder


@pytest.fixture
def world(pristine, tmp_path):
    return copy_world(pristine, tmp_path)


def by_command(world, *, negative=""):
    """The bytes of the files of the cache that the command makes of the same prompts."""
    out = world / "by_command"
    flags = ["--device", "cpu", "--prompts", str(world / "all.txt"), "--negative", negative]
    (world / "all.txt").write_text("\n".join([*TEXTS, "green"]), encoding="utf-8")
    assert encode(["--model", str(world / "model"), "--out", str(out), *flags]) == 0
    return contents(out)


def contents(cache):
    """The bytes of a cache's files, by name."""
    return {path.name: path.read_bytes() for path in cache.glob("*.safetensors")}


def test_a_run_makes_the_cache_that_the_command_makes_and_trains_from_it(world):
    cache = world / "new" / "prompts"
    sets = (f"prompts.cache={cache}", "output.validation_prompts=[green]", "prompts.negative=blurry")
    before = {id(thing) for thing in gc.get_objects() if type(thing) is TextEncoders}
    assert distill(world, *sets) == 0
    assert contents(cache) == by_command(world, negative="blurry") and [*cache.parent.iterdir()] == [cache]
    assert len(metrics(world / "out")) == 1
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is TextEncoders and id(thing) not in before]
    # What is there is not encoded again, and what lacks is added.
    more = (*sets, "output.validation_prompts=[green, yellow]", f"output.folder={world}/more")
    assert distill(world, *more) == 0
    assert len(contents(cache)) == 2 and "yellow" in PromptCache(cache)
    # A run that lacks nothing does not look at the folder, and prompts that it does not use change nothing for it.
    sets += (f"prompts.encode_from={world}/none",)
    assert distill(world, *sets, f"output.folder={world}/again", flags=["--dry-run"]) == 0
    assert distill(world, *sets, "train.updates=2", flags=["--resume"]) == 0
    assert len(metrics(world / "out")) == 2


def test_without_a_cache_prompts_are_encoded_as_they_come(world, capsys):
    """A cache has the same embeddings, so the weights are the same but for the order of sums within a batch."""
    same = ("output.validation_prompts=[green]", "prompts.negative=blurry", "train.updates=2", "train.batch=1")
    cached = (*same, f"prompts.cache={world / 'new'}", f"output.folder={world / 'cached'}")
    assert distill(world, *cached) == 0
    assert distill(world, *same, "prompts.cache=null", "train.updates=1") == 0
    assert distill(world, *same, "prompts.cache=null", flags=["--resume"]) == 0
    a, b = (metrics(world / folder) for folder in ("cached", "out"))
    assert [entry["loss_fake"] for entry in a] == pytest.approx([entry["loss_fake"] for entry in b], rel=1e-3)
    recipes = [read_recipe(world / folder / "student.safetensors") for folder in ("cached", "out")]
    assert recipes[0].prompt_encoder == recipes[1].prompt_encoder
    assert not list(world.glob("out/**/prompts-*")) and distill(world, "prompts.cache=null", flags=["--dry-run"]) == 0
    other = (*same, "prompts.cache=null", "train.updates=3", f"prompts.encode_from={world}/other")
    assert distill(world, *other, flags=["--resume"]) == refused(capsys, 2, "prompt cache", "changed")


@pytest.mark.parametrize("name", ["pixart_alpha", "sd3", "wan"])
def test_live_embeddings_are_those_of_a_cache(tmp_path, name):
    write_model(name, tmp_path / "model")
    (tmp_path / "list.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    config = CONFIG.replace("encoder: toy", 'file: "{folder}/list.txt", encode_from: "{folder}/model"')
    config = config.replace('cache: "{folder}/prompts.safetensors", ', "")
    (tmp_path / "config.yaml").write_text(config.format(name=name, folder=tmp_path, low=4, high=8), encoding="utf-8")
    live = LiveCache(load_config(tmp_path / "config.yaml").resolved(), "cpu")
    encoders = TextEncoders(tmp_path / "model")
    encode_prompts(encoders, TEXTS, tmp_path / "cache", batch=1)
    cache, texts = PromptCache(tmp_path / "cache"), (TEXTS[0], "", TEXTS[2])
    assert (live.encoder, live.tokens, live.dim, live.pooled_dim, live.masked) == (
        *(cache.encoder, cache.tokens, cache.dim, cache.pooled_dim, cache.masked),
    )
    assert torch.allclose(live.batch(texts), cache.batch(texts), atol=1e-3)
    assert torch.equal(live.mask(texts), cache.mask(texts))
    if cache.pooled_dim is not None:
        assert torch.allclose(live.pooled(texts), cache.pooled(texts), atol=1e-3)


def test_an_interrupted_run_goes_on_with_what_is_encoded(world, monkeypatch):
    asked, whole = [], TextEncoders.encode

    def interrupted(self, texts):
        asked.append(texts)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(self, texts)

    words = [f"word {number}" for number in range(8)]  # a batch
    (world / "list.txt").write_text("\n".join([*words, *TEXTS]), encoding="utf-8")
    monkeypatch.setattr(TextEncoders, "encode", interrupted)
    assert distill(world) == 130
    assert PromptCache(world / "prompts").texts == tuple(words) and not (world / "out").exists()
    assert distill(world) == 0
    assert asked == [[""], words, list(TEXTS), list(TEXTS)] and len(contents(world / "prompts")) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("prompts.encoder=toy", "not prompts.encoder 'toy'"),
        ("prompts.file={world}/no.txt", "does not exist"),
        ("prompts.encode_from={world}/none", "has no model_index.json"),
        ("plan.split=2+1", "3 steps"),
        ("backbone.base={world}/none", "none"),
        ("plan.sizes=[[4, 4], [7, 7]]", "multiple"),
        ("prompts.file=null", "give prompts.file"),
        ("prompts.encode_from=null", "prompts: no such prompt cache"),
        ("prompts.cache={world}/c.safetensors", "give the name of a folder, such as {world}/c"),
    ],
)
def test_mistakes_are_refused_before_anything_is_encoded(world, capsys, change, words):
    assert distill(world, change.format(world=world)) == refused(capsys, 2, words.format(world=world))
    assert not list(world.glob("prompts*")) and not (world / "out").exists()


def test_a_dry_run_tells_what_a_run_would_encode_and_makes_no_cache(world, capsys, caplog):
    assert distill(world, flags=["--dry-run"]) == 0
    assert f"{len(TEXTS) + 1} prompts, which a run encodes first" in caplog.text
    assert "not asked yet" in capsys.readouterr().out and not list(world.glob("prompts*"))
    (world / "empty").mkdir()
    sets = (f"prompts.encode_from={world}/empty",)
    assert distill(world, *sets, flags=["--dry-run"]) == refused(capsys, 2, "model_index")


def test_the_memory_is_logged_once_and_before_the_encoders_load(world, caplog):
    assert distill(world) == 0
    messages = [record.message for record in caplog.records]
    (line,) = (i for i, line in enumerate(messages) if line.startswith("memory: "))
    assert line < next(i for i, line in enumerate(messages) if "encoded now by" in line)
    caplog.clear()
    assert distill(world, f"output.folder={world}/more") == 0  # nothing to encode
    again = [record.message for record in caplog.records if record.message.startswith("memory: ")]
    assert [line.split(", of")[0] for line in again] == [messages[line].split(", of")[0]]


@pytest.mark.parametrize("family", [family for family in FAMILIES.values() if family.tokens and family.name != "sd3"])
def test_backbones_know_the_length_that_encoders_pad_to(family):
    assert make_backbone(family.name.replace("-", "_")).prompt_tokens == family.tokens


def test_a_cache_of_other_encoders_is_refused(world, capsys):
    assert distill(world, f"prompts.encode_from={world}/other") == 0
    encoder = PromptCache(world / "prompts").encoder
    sets = (f"output.folder={world}/more", "prompts.encoder=sdxl-of-another-kind")
    assert distill(world, *sets) == refused(capsys, 2, f"was made by the text encoder '{encoder}'")


def test_of_two_processes_the_first_encodes_and_both_train(world):
    run = Run(2, world)
    assert run.codes() == [0, 0], run.printed()
    first, second = run.printed()
    assert "encoded now by" in first and "encoded now by" not in second and "prompt/s" not in second
    assert PromptCache(world / "prompts").texts == tuple(sorted(TEXTS)) and len(metrics(world / "out")) == 1


def test_what_goes_wrong_while_the_first_encodes_ends_both(world):
    (world / "model" / "text_encoder" / "model.safetensors").write_bytes(b"damaged")
    run = Run(2, world)
    assert run.codes() == [2, 2], run.printed()
    first, second = run.errors()
    assert len(first) == 1 and "model.safetensors: truncated" in first[0] and not second
    assert not any("Traceback" in text for text in run.printed())

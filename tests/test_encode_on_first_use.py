"""A run that makes its own prompt cache first: the command's cache, made once, interrupted, by one of two processes."""

import gc

import pytest

from backbone_world import CONFIG
from encoder_world import write_model
from process_world import Run
from rmd_core.prompt_cache import PromptCache
from training.encode_prompts import main as encode
from training.text_encoders import TextEncoders
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
    (folder / "config.yaml").write_text(config.format(name=NAME, folder=folder, low=4, high=8), encoding="utf-8")
    return folder


@pytest.fixture
def world(pristine, tmp_path):
    return copy_world(pristine, tmp_path)


def by_command(world, *, negative=""):
    """The bytes of the cache that the command makes of the same prompts."""
    out = world / "by_command.safetensors"
    flags = ["--device", "cpu", "--prompts", str(world / "all.txt"), "--negative", negative]
    (world / "all.txt").write_text("\n".join([*TEXTS, "green"]), encoding="utf-8")
    assert encode(["--model", str(world / "model"), "--out", str(out), *flags]) == 0
    return out.read_bytes()


def test_a_run_makes_the_cache_that_the_command_makes_and_trains_from_it(world):
    cache = world / "new" / "prompts.safetensors"
    sets = (f"prompts.cache={cache}", "output.validation_prompts=[green]", "prompts.negative=blurry")
    assert distill(world, *sets) == 0
    assert cache.read_bytes() == by_command(world, negative="blurry") and [*cache.parent.iterdir()] == [cache]
    assert len(metrics(world / "out")) == 1
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is TextEncoders]
    # From here on the folder is not looked at: a cache is made once.
    sets += (f"prompts.encode_from={world}/none",)
    assert distill(world, *sets, f"output.folder={world}/again", flags=["--dry-run"]) == 0
    assert distill(world, *sets, "train.updates=2", flags=["--resume"]) == 0
    assert len(metrics(world / "out")) == 2


def test_an_interrupted_run_goes_on_with_what_is_encoded(world, monkeypatch):
    asked, whole = [], TextEncoders.encode

    def interrupted(self, texts):
        asked.append(texts)
        if texts != [""]:
            raise KeyboardInterrupt
        return whole(self, texts)

    validation = "output.validation_prompts=[green]"
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoders, "encode", interrupted)
        assert distill(world, validation) == 130
        assert distill(world, validation) == 130
    assert [texts for texts in asked if texts == [""]] == [[""]]  # the null prompt is not encoded again
    assert not (world / "prompts.safetensors").exists() and not (world / "out").exists()
    assert distill(world, validation) == 0
    assert (world / "prompts.safetensors").read_bytes() == by_command(world)


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
        ("prompts.encode_from=null", "prompts.safetensors"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_encoded(world, capsys, change, words):
    assert distill(world, change.format(world=world)) == refused(capsys, 2, words)
    assert not list(world.glob("prompts.safetensors*")) and not (world / "out").exists()


def test_a_dry_run_makes_no_cache(world, capsys):
    assert distill(world, flags=["--dry-run"]) == refused(capsys, 2, "a dry run writes nothing")
    assert not list(world.glob("prompts.safetensors*"))


def test_a_cache_of_other_encoders_is_refused(world, capsys):
    assert distill(world, f"prompts.encode_from={world}/other") == 0
    encoder = PromptCache(world / "prompts.safetensors").encoder
    sets = (f"output.folder={world}/more", "prompts.encoder=sdxl-of-another-kind")
    assert distill(world, *sets) == refused(capsys, 2, f"was made by the text encoder '{encoder}'")


def test_of_two_processes_the_first_encodes_and_both_train(world):
    run = Run(2, world)
    assert run.codes() == [0, 0], run.printed()
    first, second = run.printed()
    assert "is made now" in first and "is made now" not in second and "prompt/s" not in second
    assert PromptCache(world / "prompts.safetensors").texts == tuple(sorted(TEXTS)) and len(metrics(world / "out")) == 1


def test_what_goes_wrong_while_the_first_encodes_ends_both(world):
    (world / "model" / "text_encoder" / "model.safetensors").write_bytes(b"damaged")
    run = Run(2, world)
    assert run.codes() == [2, 2], run.printed()
    first, second = run.errors()
    assert len(first) == 1 and "cannot be loaded" in first[0] and not second
    assert not any("Traceback" in text for text in run.printed())

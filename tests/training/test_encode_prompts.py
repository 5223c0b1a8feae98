"""Encoding prompts with tiny random text encoders: against the encoders asked by hand, and all the ways it can end."""

import html
import json
import os
import shutil
import signal
import time

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from backbone_world import CONFIG, NAMES
from encoder_world import encode_slowly, write_model
from process_world import server
from rmd_core.errors import RMDError
from rmd_core.prompt_cache import PromptCache, shard_files
from training.backbones import make_backbone
from training.encode_prompts import encode_prompts, main
from training.text_encoders import TextEncoders
from training_world import distill, metrics, refused

TEXTS = ("a red apple", "blue", "the quick brown fox &amp; more", "zebra")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {}

    def model(name, seed=0):
        if (name, seed) not in made:
            made[name, seed] = write_model(name, folder / f"{name}-{seed}", seed=seed)
        return made[name, seed]

    return model


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join([*TEXTS, TEXTS[0]]), encoding="utf-8")
    return path


def shard_names(folder):
    """The names of a cache's files."""
    return sorted(path.name for path in folder.glob("*.safetensors"))


def run(model, prompts, out, *flags):
    return main(["--model", str(model), "--prompts", str(prompts), "--out", str(out), "--device", "cpu", *flags])


def by_hand(name, pipeline, text):
    """(embedding, pooled) of a prompt, straight from tokenizers and encoders, without padding that is masked."""

    def ids(tokenizer, value, length=None):
        padding = {} if length is None else {"padding": "max_length", "max_length": length, "truncation": True}
        return tokenizer([value], return_tensors="pt", **padding).input_ids

    if name.startswith("wan"):
        value = html.unescape(text)
        return pipeline.text_encoder(ids(pipeline.tokenizer, value))[0][0], None
    if name.startswith("pixart"):
        return pipeline.text_encoder(ids(pipeline.tokenizer, text.lower()))[0][0], None
    if name == "qwen_image":
        tokens = ids(pipeline.tokenizer, pipeline.prompt_template_encode.format(text))
        states = pipeline.text_encoder(tokens, output_hidden_states=True).hidden_states
        return states[-1][0, pipeline.prompt_template_encode_start_idx :], None
    if name == "flux2_klein":
        value = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        given = pipeline.tokenizer([value], return_tensors="pt", padding="max_length", max_length=512)
        states = pipeline.text_encoder(**given, output_hidden_states=True).hidden_states
        return torch.cat([states[layer][0] for layer in (9, 18, 27)], -1), None
    if name == "z_image":
        value = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        states = pipeline.text_encoder(ids(pipeline.tokenizer, value), output_hidden_states=True).hidden_states
        return states[-2][0], None
    clips = [
        encoder(ids(tokenizer, text, 77), output_hidden_states=True)
        for encoder, tokenizer in (
            (pipeline.text_encoder, pipeline.tokenizer),
            (pipeline.text_encoder_2, pipeline.tokenizer_2),
        )
    ]
    row = torch.cat([clip.hidden_states[-2] for clip in clips], -1)[0]
    if name == "sdxl":
        return row, clips[1].text_embeds[0]
    long = pipeline.text_encoder_3(ids(pipeline.tokenizer_3, text, 77))[0][0]
    row = torch.nn.functional.pad(row, (0, long.shape[1] - row.shape[1]))
    return torch.cat((row, long)), torch.cat([clip.text_embeds[0] for clip in clips])


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_encoders_load_in_their_precision_without_a_warning(models, name):
    with TextEncoders(models(name), dtype=torch.bfloat16) as encoders:
        parts = [part for part in encoders._pipeline.components.values() if isinstance(part, torch.nn.Module)]
        assert parts and {part.dtype for part in parts} == {torch.bfloat16}
        (encoded,) = encoders.encode(["blue"])
    assert encoded.embedding.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_holds_what_the_encoders_say(models, prompts, tmp_path, name):
    out = tmp_path / "new" / "cache"
    assert run(models(name), prompts, out) == 0
    cache = PromptCache(out)
    assert cache.texts == tuple(sorted(TEXTS)) and shard_names(out) == ["prompts-00000.safetensors"]
    assert cache.tokens == make_backbone(name).prompt_tokens
    others = {"scheduler": None} | ({"vae": None} if name.startswith("wan") else {})
    pipeline = DiffusionPipeline.from_pretrained(models(name), **others)
    for text in TEXTS:
        with torch.no_grad():
            embedding, pooled = by_hand(name, pipeline, text)
        own = cache.embedding(text)[0]
        assert torch.allclose(own[: len(embedding)], embedding, atol=2e-3) and not own[len(embedding) :].any()
        assert len(own) == {"wan": 512, "wan22_5b": 512, "sdxl": 77, "sd3": 154}.get(name, len(embedding))
        if pooled is not None:
            assert torch.allclose(cache.pooled([text])[0], pooled, atol=2e-3)
    assert cache.masked == make_backbone(name).masked and (cache.pooled_dim is None) == (name not in ("sdxl", "sd3"))
    assert cache.embedding("").any() != (name == "sdxl")  # SDXL is guided away from zeros


@pytest.mark.parametrize("name", NAMES)
def test_a_model_folder_and_a_list_of_prompts_are_enough_to_train(models, prompts, tmp_path, name):
    assert run(models(name), prompts, tmp_path / "prompts") == 0
    low, high = (34, 40) if name.startswith("pixart") else (4, 8)
    (tmp_path / "config.yaml").write_text(CONFIG.format(name=name, folder=tmp_path, low=low, high=high))
    encoder = PromptCache(tmp_path / "prompts").encoder
    sets = [f"backbone.base={models(name)}", f"prompts.encoder={encoder}", f"prompts.file={prompts}"]
    sets.append(f"prompts.cache={tmp_path}/prompts")
    assert distill(tmp_path, *sets) == 0
    assert all(torch.tensor(list(entry.values())).isfinite().all() for entry in metrics(tmp_path / "out"))


class Interrupted(TextEncoders):
    """Text encoders that are interrupted at the third batch."""

    calls = 0
    by = KeyboardInterrupt()

    def encode(self, texts):
        self.calls += 1
        if self.calls == 3:
            raise self.by
        return super().encode(texts)


def contents(folder):
    """The bytes of a cache's files."""
    return {name: (folder / name).read_bytes() for name in shard_names(folder)}


def test_an_interrupted_command_goes_on_and_ends_in_the_same_files(models, tmp_path):
    model = models("sdxl")
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert encode_prompts(TextEncoders(model), TEXTS, whole, batch=1, shard=1) == 4
    with pytest.raises(KeyboardInterrupt):
        encode_prompts(Interrupted(model), TEXTS, parted, batch=1, shard=1)
    assert shard_names(parted) == ["prompts-00000.safetensors"]  # of the null prompt and the first one
    assert encode_prompts(TextEncoders(model), TEXTS, parted, batch=1, shard=1) == 3
    assert contents(whole) == contents(parted) and len(contents(whole)) == 4


def test_what_an_interrupted_file_would_have_held_is_kept(models, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode_prompts(Interrupted(models("sdxl")), TEXTS, tmp_path, batch=1)
    assert PromptCache(tmp_path).texts == (TEXTS[0],) and shard_names(tmp_path) == ["prompts-00000.safetensors"]
    assert encode_prompts(TextEncoders(models("sdxl")), TEXTS, tmp_path, batch=1) == 3
    assert set(PromptCache(tmp_path).texts) == set(TEXTS)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB"),
            "ran out of memory on cpu (CUDA out",
        ),
        (RuntimeError("DefaultCPUAllocator: you tried to allocate 8 bytes"), "ran out of memory on cpu (DefaultCPU"),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nline"), "failed on cpu (CUDA error: an"),
    ],
)
def test_a_devices_failure_is_one_line_with_advice_and_keeps_what_is_encoded(models, tmp_path, error, words):
    encoders = Interrupted(models("sdxl"))
    encoders.by = error
    with pytest.raises(RMDError, match="--batch below 1, --dtype bfloat16 or --device cpu") as caught:
        encode_prompts(encoders, TEXTS, tmp_path, batch=1)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert PromptCache(tmp_path).texts == (TEXTS[0],)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("tried to allocate 8 B")])
def test_encoders_that_do_not_fit_are_no_broken_folder(models, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("transformers.CLIPTextModel.from_pretrained", fail)
    with pytest.raises(RMDError, match="the text encoders ran out of memory on cpu"):
        encode_prompts(TextEncoders(models("sdxl")), TEXTS, tmp_path)


def test_a_cache_of_two_precisions_says_so(models, prompts, tmp_path, caplog):
    model, out = models("pixart_alpha"), tmp_path / "cache"
    assert run(model, prompts, out) == 0 and PromptCache(out).precisions == ("float32",)
    first = contents(out)
    assert run(model, prompts, out, "--dtype", "bfloat16") == 0 and "warning" not in caplog.text  # nothing to encode
    caplog.clear()
    prompts.write_text("another", encoding="utf-8")
    assert run(model, prompts, out, "--dtype", "bfloat16") == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "were encoded in float32" in warnings[0] and "in bfloat16;" in warnings[0]
    assert PromptCache(out).precisions == ("bfloat16", "float32") and first.items() < contents(out).items()
    assert "in bfloat16 and float32" in caplog.text
    assert PromptCache(out / "prompts-00001.safetensors").precisions == ("bfloat16",)


def test_more_prompts_are_more_files_and_leave_the_old_ones_as_they_were(models, prompts, tmp_path, capsys):
    model, out = models("pixart_sigma"), tmp_path / "cache"
    assert encode_prompts(TextEncoders(model), TEXTS[:2], out) == 2
    old = contents(out)
    assert encode_prompts(TextEncoders(model), TEXTS, out) == 2
    assert set(PromptCache(out).texts) == set(TEXTS) and old.items() < contents(out).items()
    both = [PromptCache(out / name) for name in shard_names(out)]  # each is a cache of its own
    assert torch.equal(both[0].embedding(""), both[1].embedding("")) and both[0].texts == tuple(sorted(TEXTS[:2]))
    again = Interrupted(model)
    assert encode_prompts(again, TEXTS, out) == again.calls == 0
    assert run(model, prompts, out, "--negative", "blurry") == refused(capsys, 2, "made of '', not of 'blurry'")
    assert run(model, prompts, tmp_path / "other", "--negative", "blurry") == 0
    assert PromptCache(tmp_path / "other").embedding("").shape[1] > both[0].embedding("").shape[1]
    prompts.write_text("green", encoding="utf-8")
    assert run(model, prompts, tmp_path / "other") == 0  # the cache's own negative text
    assert PromptCache(tmp_path / "other").negative == "blurry" and len(shard_names(tmp_path / "other")) == 2


def test_a_truncated_file_is_named_and_the_rest_is_kept(models, prompts, tmp_path, capsys):
    model, out = models("wan"), tmp_path / "cache"
    assert encode_prompts(TextEncoders(model), TEXTS, out, batch=1, shard=1) == 4
    whole = contents(out)
    cut = out / "prompts-00002.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert run(model, prompts, out) == refused(capsys, 2, f"{cut}: truncated", "delete this one file")
    cut.unlink()
    assert encode_prompts(TextEncoders(model), TEXTS, out, batch=1, shard=1) == 1
    assert sorted(contents(out).values()) == sorted(whole.values())


def test_one_file_is_read_but_not_added_to(models, prompts, tmp_path, capsys):
    model = models("wan")
    assert run(model, prompts, tmp_path / "c.safetensors") == refused(capsys, 2, f"such as {tmp_path}/c")
    assert run(model, prompts, tmp_path / "made") == 0
    (tmp_path / "made" / "prompts-00000.safetensors").rename(tmp_path / "c.safetensors")
    prompts.write_text("green", encoding="utf-8")
    assert run(model, prompts, tmp_path / "c.safetensors") == refused(capsys, 2, "move it into its own folder")
    (tmp_path / "c.safetensors").rename(tmp_path / "made" / "old.safetensors")
    assert run(model, prompts, tmp_path / "made") == 0
    assert PromptCache(tmp_path / "made").texts == tuple(sorted([*TEXTS, "green"]))


def test_a_cache_of_other_encoders_is_refused(models, prompts, tmp_path, capsys):
    out = tmp_path / "cache"
    assert run(models("pixart_sigma"), prompts, out) == 0
    for flags, model in (([], models("pixart_sigma", 1)), (["--tokens", "20"], models("pixart_sigma"))):
        assert run(model, prompts, out, *flags) == refused(capsys, 2, "was made by the text encoder 'pixart-sigma-300-")


def test_bad_input_is_one_line(models, prompts, tmp_path, capsys):
    out = tmp_path / "cache"
    for device in ("cuda:77", "gpu"):
        words = f"--device {device}: PyTorch cannot use it"
        assert run(models("sdxl"), prompts, out, "--device", device) == refused(capsys, 2, words)
    assert run(tmp_path / "nothing", prompts, out) == refused(capsys, 2, "has no model_index.json")
    assert run(models("sdxl"), prompts, out, "--tokens", "20") == refused(capsys, 2, "leave --tokens out")
    assert run(models("sdxl"), tmp_path / "no.txt", out) == refused(capsys, 2, "does not exist")
    assert run(models("sdxl"), prompts, out, "--batch", "0") == refused(capsys, 2, "at least 1")
    model = tmp_path / "model"
    shutil.copytree(models("sdxl"), model)
    (model / "tokenizer_2" / "tokenizer.json").unlink()
    assert run(model, prompts, out) == refused(capsys, 2, "tokenizer_2 has no vocabulary", "spiece.model")
    shutil.rmtree(model / "text_encoder_2")
    assert run(model, prompts, out) == refused(capsys, 2, "is missing text_encoder_2")
    shutil.copytree(models("sdxl") / "text_encoder", model / "text_encoder_2")
    (model / "text_encoder_2" / "model.safetensors").unlink()
    assert run(model, prompts, out) == refused(capsys, 2, "text_encoder_2 has no model.safetensors")
    (model / "text_encoder_2" / "config.json").unlink()
    assert run(model, prompts, out) == refused(capsys, 2, "text_encoder_2 has no config.json")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    assert run(model, prompts, out) == refused(capsys, 2, "FluxPipeline; supported are")
    assert not out.exists()
    networks = models("sdxl") / "unet"
    assert run(models("sdxl"), prompts, networks) == refused(capsys, 2, "is not a prompt cache")
    assert not (networks / ".lock").exists()
    assert run(networks / "config.json", prompts, out) == refused(capsys, 2, "has no model_index.json")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_encoders_are_refused(models, prompts, tmp_path, capsys, dtype):
    model = tmp_path / "model"
    shutil.copytree(models("wan"), model)
    path = model / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in sorted(tensors.items()) if tensor.ndim == 2)
    save_file({**tensors, name: tensors[name].to(dtype)}, path, metadata={"format": "pt"})
    assert run(model, prompts, tmp_path / "cache") == refused(capsys, 2, f"'{name}' is", "not quantised")
    save_file({**tensors, "embeddings.position_ids": torch.arange(77)}, path, metadata={"format": "pt"})  # as CLIP has
    assert run(model, prompts, tmp_path / "cache") == 0
    save_file({**tensors, name: tensors[name] * float("nan")}, path, metadata={"format": "pt"})
    assert run(model, prompts, tmp_path / "other") == refused(capsys, 2, "is not finite in float16")


def test_encoders_in_fp16_alone_are_read(models, prompts, tmp_path):
    model, part = tmp_path / "model", tmp_path / "model" / "text_encoder"
    shutil.copytree(models("wan"), model)
    both = TextEncoders(model).identity
    shutil.copy(part / "model.safetensors", part / "model.fp16.safetensors")
    assert TextEncoders(model).identity == both  # of the files that are read
    (part / "model.safetensors").unlink()
    assert run(model, prompts, tmp_path / "cache") == 0 and TextEncoders(model).identity != both


def test_a_cache_of_another_family_is_refused_even_where_the_widths_fit(models, prompts, tmp_path, capsys):
    assert run(models("sd3"), prompts, tmp_path / "prompts") == 0
    (tmp_path / "config.yaml").write_text(CONFIG.format(name="sdxl", folder=tmp_path, low=4, high=8))
    sets = [f"backbone.base={models('sdxl')}", "prompts.encoder=null", f"prompts.cache={tmp_path}/prompts"]
    assert distill(tmp_path, *sets) == refused(
        capsys, 2, "was made by the text encoders of sd3", "not by those of sdxl"
    )


@pytest.mark.parametrize("name", ["sdxl", "sd3", "wan"])
def test_a_text_encoder_that_lacks_weights(models, tmp_path, name):
    shutil.copytree(models(name), tmp_path / "model")
    (path,) = (tmp_path / "model" / "text_encoder").glob("*.safetensors")
    tensors = load_file(path)
    lost = next(key for key in sorted(tensors) if "layer" in key and tensors[key].ndim == 2)
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, path, metadata={"format": "pt"})
    with pytest.raises(RMDError, match="its weights are missing 1 tensors"), TextEncoders(tmp_path / "model"):
        pass


WORDS = [f"word {number}" for number in range(40)]
BOUND = 180  # seconds after which a process that does nothing fails its test


def start(model, out):
    process = server().Process(target=encode_slowly, args=(model, WORDS, out))
    process.start()
    return process


def wait_for(process, out, count):
    """Wait until there are ``count`` files."""
    deadline = time.monotonic() + BOUND
    while len(shard_files(out)) < count:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)


def test_kill_9_loses_nothing_but_the_file_being_written(models, tmp_path):
    model = models("pixart_sigma")
    out, found = tmp_path / "cache", 0
    for more in (1, 7):
        process = start(model, out)
        wait_for(process, out, found // 2 + more)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        before, found = found, len(PromptCache(out).texts)
        assert before + 2 * more <= found < len(WORDS) and found % 2 == 0
    assert encode_prompts(TextEncoders(model), WORDS, out, batch=1, shard=2) == len(WORDS) - found
    assert encode_prompts(TextEncoders(model), WORDS, tmp_path / "whole", batch=1, shard=2) == len(WORDS)
    here, there = PromptCache(out), PromptCache(tmp_path / "whole")
    assert here.digest(["", *WORDS]) == there.digest(["", *WORDS]) and here.texts == there.texts
    assert sorted(path.name for path in out.iterdir()) == [".lock", *(path.name for path in shard_files(out))]
    assert contents(out) == contents(tmp_path / "whole")


def test_of_two_at_once_one_is_refused_and_the_other_ends_well(models, tmp_path, capsys):
    model = models("pixart_sigma")
    out, prompts = tmp_path / "cache", tmp_path / "prompts.txt"
    prompts.write_text("\n".join([*WORDS, "one more"]), encoding="utf-8")
    process = start(model, out)
    wait_for(process, out, 1)
    assert run(model, prompts, out) == refused(capsys, 2, f"another process is adding prompts to {out}", "wait until")
    process.join(BOUND)
    assert process.exitcode == 0 and set(PromptCache(out).texts) == set(WORDS)
    assert run(model, prompts, out) == 0 and set(PromptCache(out).texts) == {*WORDS, "one more"}

"""Prompt lists, the writer of prompt caches, and the order of prompts."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest
import torch

from rmd_core.errors import RMDError
from rmd_core.files import read_metadata, save_safetensors
from rmd_core.prompt_cache import METADATA_KEY, PromptCache, prompt_key
from training.batches import PromptOrder
from training.prompts import read_prompts, write_prompt_cache
from training.write_prompts import write_lists
from training_world import make_setup, write_world


def embeddings():
    generator = torch.Generator().manual_seed(0)
    return {
        "": torch.zeros(2, 3),
        "red": torch.randn(4, 3, generator=generator),
        "blue": torch.randn(2, 3, generator=generator),
    }


def test_cache_gives_back_what_was_written_padded_with_zeros(tmp_path):
    made = embeddings()
    write_prompt_cache(tmp_path / "c.safetensors", made, encoder="toy", dtype=torch.float32)
    cache = PromptCache(tmp_path / "c.safetensors", encoder="toy")
    assert cache.texts == ("blue", "red") and (cache.tokens, cache.dim, cache.encoder) == (4, 3, "toy")
    batch = cache.batch(["blue", "", "red"])
    assert batch.dtype == torch.float32 and torch.equal(batch[2], made["red"])
    assert torch.equal(batch[0], torch.cat((made["blue"], torch.zeros(2, 3)))) and not batch[1].any()
    assert torch.equal(cache.batch(["blue"])[0], batch[0])


def test_a_longer_prompt_changes_no_other_where_the_length_is_given(tmp_path):
    made = embeddings()
    write_prompt_cache(tmp_path / "a.safetensors", made, encoder="toy", tokens=6)
    write_prompt_cache(tmp_path / "b.safetensors", {**made, "long": torch.ones(6, 3)}, encoder="toy", tokens=6)
    a, b = PromptCache(tmp_path / "a.safetensors"), PromptCache(tmp_path / "b.safetensors")
    assert a.tokens == b.tokens == 6 and torch.equal(a.batch(["red", ""]), b.batch(["red", ""]))
    with pytest.raises(RMDError, match="has 6 tokens, more than the 5"):
        write_prompt_cache(tmp_path / "c.safetensors", {**made, "long": torch.ones(6, 3)}, encoder="toy", tokens=5)


def test_a_text_is_keyed_by_its_sha256():
    assert prompt_key("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_another_encoder_is_refused(tmp_path):
    write_prompt_cache(tmp_path / "c.safetensors", embeddings(), encoder="toy")
    with pytest.raises(RMDError, match="'toy', not by 'umt5'"):
        PromptCache(tmp_path / "c.safetensors", encoder="umt5")


def entry(**changes):
    return {"version": 1, "encoder": "toy", "prompts": {prompt_key("red"): "red"}} | changes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "not a prompt cache"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"version": 1}', "damaged"),
        (json.dumps(entry(version=2)), "version 2"),
        (json.dumps(entry(prompts={})), "damaged"),
        (json.dumps(entry(prompts={prompt_key("blue"): "blue"})), "'blue' is missing"),
        (json.dumps(entry(prompts={prompt_key("red"): "blue"})), "'blue' is missing or damaged"),
        (json.dumps(entry(encoder=3)), "damaged"),
        (json.dumps(entry(tokens=1)), "pads its prompts to 1 tokens, but one has 2"),
        (json.dumps(entry(tokens="x")), "pads its prompts to 'x'"),
        (json.dumps(entry(tokens=10**12)), "the limit is 65536"),
        (json.dumps(entry(version=True)), "version True"),
        (json.dumps(entry(version=1.0)), "version 1.0"),
    ],
)
def test_damaged_caches_are_refused(tmp_path, text, words):
    metadata = {} if text is None else {METADATA_KEY: text}
    save_safetensors(tmp_path / "c.safetensors", {prompt_key("red"): torch.zeros(2, 3)}, metadata)
    with pytest.raises(RMDError, match=words) as caught:
        PromptCache(tmp_path / "c.safetensors")
    assert "\n" not in str(caught.value)


def test_embeddings_that_are_no_numbers_are_refused(tmp_path):
    metadata = {METADATA_KEY: json.dumps(entry())}
    save_safetensors(tmp_path / "c.safetensors", {prompt_key("red"): torch.zeros(2, 3, dtype=torch.int64)}, metadata)
    with pytest.raises(RMDError, match="an embedding is I64; F64, F32, F16, BF16 are read"):
        PromptCache(tmp_path / "c.safetensors")


def test_pooled_embeddings_and_the_mask_of_the_padding(tmp_path):
    made = embeddings()
    pooled = {text: torch.full((5,), float(len(text))) for text in made}
    write_prompt_cache(tmp_path / "p.safetensors", made, encoder="toy", pooled=pooled, masked=True)
    cache = PromptCache(tmp_path / "p.safetensors")
    assert (cache.pooled_dim, cache.masked, cache.tokens, cache.texts) == (5, True, 4, ("blue", "red"))
    assert cache.pooled(["blue", ""]).tolist() == [[4.0] * 5, [0.0] * 5]
    assert cache.mask(["blue", "red"]).tolist() == [[1.0, 1.0, 0.0, 0.0], [1.0] * 4]
    assert cache.embedding("blue").shape == (1, 2, 3) and cache.batch(["blue"]).shape == (1, 4, 3)
    write_prompt_cache(tmp_path / "c.safetensors", made, encoder="toy")
    plain = PromptCache(tmp_path / "c.safetensors")
    assert plain.pooled(["blue"]) is plain.pooled_dim is None and not plain.masked
    assert torch.equal(plain.embedding("blue"), plain.batch(["blue"]))
    metadata = json.loads(read_metadata(tmp_path / "c.safetensors")[METADATA_KEY])
    assert metadata.keys() == {"version", "encoder", "tokens", "prompts", "digests"}
    with pytest.raises(RMDError, match="needs a pooled embedding"):
        write_prompt_cache(tmp_path / "x.safetensors", made, encoder="toy", pooled={"": torch.zeros(5)})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"masked": 1}, "damaged"),
        ({"pooled": "x"}, "damaged"),
        ({"pooled": 4}, r"shape \(5,\); \(4,\) is expected"),
    ],
)
def test_damaged_fields_are_refused(tmp_path, fields, words):
    tensors = {prompt_key("red"): torch.zeros(2, 3), prompt_key("red") + ".pooled": torch.zeros(5)}
    save_safetensors(tmp_path / "c.safetensors", tensors, {METADATA_KEY: json.dumps(entry(**fields))})
    with pytest.raises(RMDError, match=words):
        PromptCache(tmp_path / "c.safetensors")
    save_safetensors(
        tmp_path / "c.safetensors", {prompt_key("red"): torch.zeros(2, 3)}, {METADATA_KEY: json.dumps(entry(pooled=5))}
    )
    with pytest.raises(RMDError, match="has no tensor"):
        PromptCache(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"red": torch.zeros(2, 3)}, "null prompt"),
        ({"": torch.zeros(3)}, "tokens, dim"),
        ({"": torch.zeros(1, 3), "red": torch.zeros(1, 4)}, "one dim"),
    ],
)
def test_bad_embeddings_are_not_written(tmp_path, made, words):
    with pytest.raises(RMDError, match=words):
        write_prompt_cache(tmp_path / "c.safetensors", made, encoder="toy")
    assert not (tmp_path / "c.safetensors").exists()


def test_prompt_files(tmp_path):
    (tmp_path / "p.txt").write_text("a red apple\n\n  b\u00e4r  \n", encoding="utf-8")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa red apple\n")
    assert read_prompts(tmp_path / "bom.txt") == ("a red apple",)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a red apple"}\n\n{"prompt": "b", "id": 3}\n', encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == ("a red apple", "b\u00e4r")
    assert read_prompts(tmp_path / "p.jsonl") == ("a red apple", "b")
    (tmp_path / "p.jsonl").write_bytes('{"prompt": "a\u2028red apple"}\r\n{"prompt": "b"}'.encode())
    assert read_prompts(tmp_path / "p.jsonl") == ("a\u2028red apple", "b")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b"", "is empty"),
        ("p.txt", b"\n  \n", "is empty"),
        ("p.jsonl", b"", "is empty"),
        ("p.csv", b"a", "must end in"),
        ("p.txt", b"\xff\xfe\x00", "UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', "line 2"),
        ("p.jsonl", b'"a"\n', "line 1"),
        ("p.jsonl", b'{"prompt": ""}\n', "line 1"),
        ("none.txt", None, "does not exist"),
    ],
)
def test_bad_prompt_files_are_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RMDError, match=words) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_order_is_a_shuffle_per_pass_and_depends_on_the_position_alone():
    prompts = [str(i) for i in range(7)]
    whole = PromptOrder(prompts, seed=3).take(0, 35)
    passes = [whole[i : i + 7] for i in range(0, 35, 7)]
    assert all(sorted(one) == prompts for one in passes) and len({tuple(one) for one in passes}) > 2
    resumed = PromptOrder(prompts, seed=3)
    assert [resumed.take(start, 5) for start in (20, 25, 30)] == [whole[20:25], whole[25:30], whole[30:35]]
    assert resumed.take(0, 7) == passes[0] and PromptOrder(prompts, seed=4).take(0, 35) != whole


def test_a_prompt_file_must_be_covered_by_the_cache(tmp_path):
    write_world(tmp_path)
    (tmp_path / "p.txt").write_text("a red apple\na purple cow\n", encoding="utf-8")
    with pytest.raises(RMDError, match="first 'a purple cow'"):
        make_setup(tmp_path, f"prompts.file={tmp_path}/p.txt")
    (tmp_path / "p.txt").write_text("a red apple\na blue cup\n", encoding="utf-8")
    assert make_setup(tmp_path, f"prompts.file={tmp_path}/p.txt").prompts == ("a red apple", "a blue cup")


def test_a_cache_of_another_width_is_refused(tmp_path):
    write_world(tmp_path)
    write_prompt_cache(tmp_path / "prompts.safetensors", {"": torch.zeros(2, 9), "a": torch.zeros(2, 9)}, encoder="toy")
    with pytest.raises(RMDError, match="width 9, but the transformer takes 16"):
        make_setup(tmp_path)


def test_a_cache_with_only_the_null_prompt_is_refused(tmp_path):
    write_world(tmp_path)
    write_prompt_cache(tmp_path / "prompts.safetensors", {"": torch.zeros(2, 16)}, encoder="toy")
    with pytest.raises(RMDError, match="only the null prompt"):
        make_setup(tmp_path)


SHIPPED = {"pictures": 300, "videos": 150}  # lines of training/prompts/*.txt, written by hand
LONG = {"images_2000": "pictures", "videos_1000": "videos"}  # and those that write_prompts makes


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_list_is_plain_and_varied(name):
    lines = read_prompts(Path(__file__).parents[2] / "training" / "prompts" / f"{name}.txt")
    assert len({line.lower() for line in lines}) == len(lines) == SHIPPED[name]
    for line in lines:
        assert line.isascii() and line.isprintable() and 20 <= len(line) <= 300 and line == " ".join(line.split()), line
    words = [set(re.findall(r"[a-z0-9]+", line.lower())) for line in lines]
    assert all(len(a & b) <= 0.7 * min(len(a), len(b)) for a, b in combinations(words, 2))
    assert len(set().union(*words)) > 4 * len(lines)


def test_the_long_lists_are_what_their_command_writes(tmp_path):
    folder = Path(__file__).parents[2] / "training" / "prompts"
    paths = write_lists(tmp_path)
    assert {path.stem for path in paths} == LONG.keys()
    for path in paths:
        assert path.read_bytes() == (folder / path.name).read_bytes()
        lines = read_prompts(path)
        assert len({line.lower() for line in lines}) == len(lines) == int(path.stem.split("_")[1])
        assert set(read_prompts(folder / f"{LONG[path.stem]}.txt")) <= set(lines)
        for line in lines:
            assert line.isascii() and line.isprintable() and len(line) <= 300 and line == " ".join(line.split()), line
            assert not re.search(r"\ba (?!eu)[aeio]|[{}]|^[a-z]", line), line

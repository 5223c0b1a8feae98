"""Prompt caches: a file or a folder read as one, from headers first, and what does not match refused by name."""

import math
import os

import pytest
import torch
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from rmd_core.errors import RMDError
from rmd_core.prompt_cache import PromptCache, prompt_key
from student_files import PROMPTS
from training.prompts import CacheFolder, write_prompt_cache


@pytest.mark.parametrize("kept", [0, 5, 40, 4000, 153223])
def test_a_truncated_cache_is_refused(tmp_path, kept):
    (tmp_path / "c.safetensors").write_bytes(PROMPTS.read_bytes()[:kept])
    with pytest.raises(RMDError, match="empty|truncated, damaged") as caught:
        PromptCache(tmp_path / "c.safetensors")
    assert "\n" not in str(caught.value)


class Calls(TorchFunctionMode):
    """Within the block, the names of PyTorch's functions as they are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, arguments=(), named=None):
        self.names.append(function.__name__)
        return function(*arguments, **(named or {}))


def test_what_is_not_finite_is_refused_and_each_tensor_looked_at_once(tmp_path):
    path = tmp_path / "c.safetensors"
    good = {text: torch.ones(1, 2) for text in ("", "a", "b", "c")}
    pooled = good | {"c": torch.full((1, 2), math.inf)}
    write_prompt_cache(
        path, good | {"b": good["b"] * math.nan}, pooled={t: v[0] for t, v in pooled.items()}, encoder="toy"
    )
    cache = PromptCache(path)
    for _ in range(2):
        for read in (lambda: cache.batch(["a", "b"]), lambda: cache.pooled(["c"])):
            with pytest.raises(RMDError, match="holds values that are not finite; make it again"):
                read()
    with Calls() as calls:
        assert torch.equal(cache.batch(["c"]), cache.batch(["c"]))
    assert calls.names.count("isfinite") == 1


def test_the_demo_cache_by_another_reader():
    cache, tensors = PromptCache(PROMPTS), load_file(PROMPTS)
    assert len(cache.texts) == len(tensors) - 1 == 252
    expected = torch.stack([tensors[prompt_key(text)].float() for text in cache.texts])
    assert torch.equal(cache.batch(cache.texts), expected) and not cache.batch([""]).any()
    assert "" in cache and "apple noto on-blue" in cache and "apple noto on-grey" not in cache


def test_prompts_that_look_alike():
    cache = PromptCache(PROMPTS)
    assert cache.closest("aple noto on-blue")[0] == "apple noto on-blue"
    assert len(cache.closest("apple noto", count=2)) == 2 and cache.closest("0123456789") == ()


def test_a_message_stays_on_one_line(tmp_path):
    write_prompt_cache(tmp_path / "c.safetensors", {"": torch.zeros(1, 2)}, encoder="toy")
    with pytest.raises(RMDError, match="is missing 1 of 1 prompts, first 'a") as caught:
        PromptCache(tmp_path / "c.safetensors").batch(["a\nred apple" + 500 * "y"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(tmp_path))


def embeddings(*texts, tokens=4, dim=3):
    """Embeddings that depend on the text alone."""
    return {
        text: torch.randn(
            1 + len(text) % tokens, dim, generator=torch.Generator().manual_seed(len(text) + ord(text[0]))
        )
        if text
        else torch.ones(1, dim)
        for text in ("", *texts)
    }


def write(folder, name, *texts, encoder="toy", tokens=6, **settings):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.safetensors"
    write_prompt_cache(path, embeddings(*texts), encoder=encoder, tokens=tokens, **settings)
    return path


@pytest.mark.parametrize("pooled", [False, True])
def test_a_folder_reads_as_one_file_would(tmp_path, pooled):
    def write_all(path, texts):
        made = embeddings(*texts)
        extra = {"pooled": {text: value.mean(0) for text, value in made.items()}} if pooled else {}
        write_prompt_cache(path, made, encoder="toy", tokens=6, masked=True, **extra)

    (tmp_path / "parts").mkdir()
    texts = [f"{'x' * number} {number}" for number in range(9)]
    write_all(tmp_path / "one.safetensors", texts)
    for start in (0, 3, 6):
        write_all(tmp_path / "parts" / f"prompts-0000{start}.safetensors", texts[start : start + 4])  # one text twice
    one, parts = PromptCache(tmp_path / "one.safetensors"), PromptCache(tmp_path / "parts", encoder="toy")
    assert one.texts == parts.texts == tuple(sorted(texts))
    for name in ("tokens", "dim", "pooled_dim", "masked", "encoder", "negative"):
        assert getattr(one, name) == getattr(parts, name)
    order = ["", *reversed(texts)]
    assert torch.equal(one.batch(order), parts.batch(order)) and torch.equal(one.mask(order), parts.mask(order))
    assert (torch.equal(one.pooled(order), parts.pooled(order))) if pooled else parts.pooled(order) is None
    assert one.digest(order) == parts.digest(texts + [""]) != one.digest(texts)
    with pytest.raises(RMDError, match="is missing 1 of 1 prompts, first 'z'"):
        parts.batch(["z"])


def test_other_prompts_do_not_change_the_digest_of_some(tmp_path):
    write(tmp_path / "c", "a", "red", "blue")
    digest = PromptCache(tmp_path / "c").digest(["", "red"])
    write(tmp_path / "c", "b", "green", "red")
    assert PromptCache(tmp_path / "c").digest(["", "red"]) == digest
    changed = embeddings("red", "blue")
    changed["red"] = changed["red"] + 1
    write_prompt_cache(tmp_path / "c" / "a.safetensors", changed, encoder="toy", tokens=6)
    assert PromptCache(tmp_path / "c").digest(["", "red"]) != digest != PromptCache(tmp_path / "c").digest(["", "blue"])
    write_prompt_cache(tmp_path / "f.safetensors", embeddings("red"), encoder="toy", tokens=6, dtype=torch.float32)
    assert PromptCache(tmp_path / "f.safetensors").digest(["", "red"]) != digest


def test_a_cache_without_digests_has_the_same_one(tmp_path):
    """As of files that were written before there were digests in them."""
    path = write(tmp_path, "c", "red", "blue")
    digest = PromptCache(path).digest(["", "red"])
    path.write_bytes(path.read_bytes().replace(b'\\"digests\\"', b'\\"DIGESTS\\"'))
    assert PromptCache(path).digest(["", "red"]) == digest


def test_the_encoders_precisions_are_given_as_far_as_they_are_known(tmp_path):
    write(tmp_path / "c", "a", "red")
    assert PromptCache(tmp_path / "c").precisions == ()
    for name, precision in (("b", "float32"), ("c", "bfloat16"), ("d", "float32")):
        write(tmp_path / "c", name, "blue", precision=precision)
    assert PromptCache(tmp_path / "c").precisions == ("bfloat16", "float32")
    write(tmp_path / "c", "e", "green", precision=["float32"])
    with pytest.raises(RMDError, match="e.safetensors: its 'rmd.prompt_cache' metadata is damaged"):
        PromptCache(tmp_path / "c")


def test_no_file_is_held_open(tmp_path):
    texts = [f"prompt {number}" for number in range(20)]
    for number, text in enumerate(texts):
        write(tmp_path / "c", f"prompts-{number:05d}", text)
    before = len(os.listdir("/proc/self/fd"))
    cache = PromptCache(tmp_path / "c")
    for _ in range(2):
        assert torch.equal(cache.batch(texts)[:, :1], torch.stack([embeddings(t)[t][:1].half().float() for t in texts]))
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "umt5"}, "the text encoder is 'umt5' in one and 'toy' in the other"),
        ({"tokens": 9}, "the length of a prompt is 9 in one and 6 in the other"),
        ({"masked": True}, "the masking of the padding is True"),
        ({"negative": "blurry"}, "the text of the null prompt is 'blurry' in one and '' in the other"),
        (
            {"pooled": {"": torch.ones(2), "blue": torch.ones(2)}},
            "the width of a pooled embedding is 2 in one and None",
        ),
    ],
)
def test_files_that_do_not_go_together_are_named(tmp_path, changes, words):
    first, second = write(tmp_path, "a", "red"), write(tmp_path, "b", "blue", **changes)
    with pytest.raises(RMDError, match=words) as caught:
        PromptCache(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{second} and {first} cannot be in one cache") and "\n" not in text


def test_a_damaged_file_is_named_with_what_to_do(tmp_path):
    for number, text in enumerate(("red", "blue", "green")):
        write(tmp_path, f"prompts-0000{number}", text)
    path = tmp_path / "prompts-00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(RMDError, match="00001.safetensors: truncated.*delete this one file and encode"):
        PromptCache(tmp_path)
    begin = 8 + int.from_bytes(whole[:8], "little")
    path.write_bytes(whole[:begin] + bytes(len(whole) - begin))  # of the right length: seen when it is read
    cache = PromptCache(tmp_path)
    assert cache.batch(["red", "green"]).shape == (2, 6, 3)
    with pytest.raises(RMDError, match="00001.safetensors: damaged, the embedding .* differs from"):
        cache.batch(["blue"])
    path.unlink()
    assert PromptCache(tmp_path).texts == ("green", "red")


def test_what_is_no_cache_in_the_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RMDError, match="is an empty prompt cache"):
        PromptCache(tmp_path / "empty")
    write(tmp_path, "a", "red")
    (tmp_path / "b.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with pytest.raises(RMDError, match="b.safetensors is not a prompt cache") as caught:
        PromptCache(tmp_path)
    assert "delete" not in str(caught.value)  # it is none of ours


def test_a_file_that_is_replaced_under_a_reader_stays_as_it_was(tmp_path):
    write(tmp_path, "prompts-00000", "prompt 0")
    cache = PromptCache(tmp_path)
    before = PromptCache(tmp_path).batch(["prompt 0"])
    write(tmp_path, "prompts-00000", "prompt 0", "another")
    assert torch.equal(cache.batch(["prompt 0"]), before)


def test_one_process_adds_at_a_time(tmp_path):
    folder = CacheFolder(tmp_path / "c")
    with folder.alone():
        with pytest.raises(RMDError, match="another process is adding prompts"), CacheFolder(tmp_path / "c").alone():
            pass
    (tmp_path / "c" / ".prompts-00000.safetensors.77-abcd.part").write_bytes(b"half")
    with CacheFolder(tmp_path / "c").alone():
        assert [path.name for path in (tmp_path / "c").iterdir()] == [".lock"]

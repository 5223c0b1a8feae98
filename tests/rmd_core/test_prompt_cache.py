"""Prompt caches and single tensors, read by the core alone."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from rmd_core.errors import RMDError
from rmd_core.files import TensorFile, save_safetensors
from rmd_core.prompt_cache import PromptCache, prompt_key
from student_files import PROMPTS
from training.prompts import write_prompt_cache

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


def test_every_tensor_is_what_safetensors_reads(tmp_path):
    generator = torch.Generator().manual_seed(2)
    tensors = {str(dtype): (4 * torch.randn(3, 5, generator=generator)).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "one": torch.ones(1)}
    save_file(tensors, tmp_path / "t.safetensors", metadata={"a": "b"})
    file = TensorFile(tmp_path / "t.safetensors")
    for name, tensor in load_file(tmp_path / "t.safetensors").items():
        found = file.read(name)
        assert found.dtype == tensor.dtype and found.shape == tensor.shape and torch.equal(found, tensor)


def test_a_tensor_is_a_copy(tmp_path):
    path = save_safetensors(tmp_path / "t.safetensors", {"a": torch.ones(3)})
    file = TensorFile(path)
    file.read("a").zero_()
    assert torch.equal(file.read("a"), torch.ones(3)) and torch.equal(load_file(path)["a"], torch.ones(3))


def test_an_open_file_outlives_its_replacement(tmp_path):
    path = save_safetensors(tmp_path / "t.safetensors", {"a": torch.ones(3)})
    file = TensorFile(path)
    save_safetensors(path, {"longer": torch.zeros(999)})
    assert torch.equal(file.read("a"), torch.ones(3))


def test_wrong_names_and_types_are_refused(tmp_path):
    path = save_safetensors(tmp_path / "t.safetensors", {"a": torch.zeros(4, dtype=torch.uint8)})
    with pytest.raises(RMDError, match="holds no tensor 'b'"):
        TensorFile(path).read("b")
    path.write_bytes(path.read_bytes().replace(b'"U8"', b'"U7"'))
    with pytest.raises(RMDError, match="'a' is of type U7, which cannot be read"):
        TensorFile(path).read("a")


@pytest.mark.parametrize("kept", [0, 5, 40, 4000, 153223])
def test_a_truncated_cache_is_refused(tmp_path, kept):
    (tmp_path / "c.safetensors").write_bytes(PROMPTS.read_bytes()[:kept])
    with pytest.raises(RMDError, match="empty|truncated") as caught:
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
    with pytest.raises(RMDError, match="lacks 1 of 1 prompts, first 'a") as caught:
        PromptCache(tmp_path / "c.safetensors").batch(["a\nred apple" + 500 * "y"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(tmp_path))

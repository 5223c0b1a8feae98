"""safetensors headers: read without the tensors, written atomically, and never anything but RMDError on bad files."""

import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rmd_core.errors import RMDError
from rmd_core.files import MAX_HEADER_BYTES, read_header, read_metadata, save_safetensors

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def raw_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def sample_tensors():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t.{i}": (9 * torch.randn(3, i, generator=generator)).to(dtype) for i, dtype in enumerate(DTYPES)}
    tensors["scalar"] = torch.tensor(2.5)
    tensors["view"] = torch.arange(12.0).reshape(3, 4).T
    return tensors


def same_bytes(left, right):
    bytes_of = [tensor.reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return left.dtype == right.dtype and torch.equal(*bytes_of)


def test_what_is_written_is_read_by_the_safetensors_library(tmp_path):
    tensors, metadata = sample_tensors(), {"b": "2", "a": 'text "quoted" \u00e9'}
    path = save_safetensors(tmp_path / "model.safetensors", tensors, metadata)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(same_bytes(loaded[name], tensors[name].contiguous()) for name in tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata


def test_what_the_safetensors_library_writes_is_read(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in sample_tensors().items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"k": "v"})
    header = read_header(tmp_path / "model.safetensors")
    assert header.metadata == {"k": "v"}
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert header.parameters == sum(tensor.numel() for tensor in tensors.values())


def test_equal_input_gives_equal_bytes_in_any_order(tmp_path):
    tensors, metadata = sample_tensors(), {"x": "1", "y": "2"}
    one = save_safetensors(tmp_path / "one.safetensors", tensors, metadata).read_bytes()
    backwards = dict(reversed(tensors.items())), dict(reversed(metadata.items()))
    assert save_safetensors(tmp_path / "two.safetensors", *backwards).read_bytes() == one


def test_no_tensor_is_read(tmp_path):
    """The data part is a hole of 1 TB, which nobody could load."""
    size = 2**40
    path = raw_file(tmp_path / "huge.safetensors", {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    try:
        with path.open("r+b") as file:
            file.truncate(file.seek(0, 2) + size)
    except OSError:
        pytest.skip("this file system has no files with holes of that size")
    assert read_header(path).parameters == size


def test_missing_metadata_is_empty(tmp_path):
    path = save_safetensors(tmp_path / "plain.safetensors", {"w": torch.zeros(2)})
    assert read_metadata(path) == {}


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(RMDError, match="no such file"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(RMDError, match="cannot be read"):
        read_header(tmp_path)
    for name in ("a\0b", "\ud800"):
        with pytest.raises(RMDError, match="this is no path"):
            read_header(tmp_path / name)


def test_pickled_and_zipped_files_are_named_for_what_they_are(tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "model.pt")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps({"w": [1.0] * 100}, protocol=2))
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("a", "b" * 100)
    for name in ("model.pt", "old.ckpt", "model.zip"):
        with pytest.raises(RMDError, match="pickled") as caught:
            read_header(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"abc", "truncated"),
        (b"GGUF" + bytes(60), "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "LFS"),
        (b"<!DOCTYPE html><html></html>" * 3, "web page"),
        (struct.pack("<Q", 64) + b"{}", "truncated"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 2**63) + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 4) + b"{}}}", "not JSON"),
        (struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc", "not JSON"),
        (struct.pack("<Q", 2) + b"[]", "instead of an object"),
        (struct.pack("<Q", 90000) + b"[" * 90000, "not JSON"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(RMDError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        {"w": 3},
        {"w": {"dtype": "F32", "shape": [2]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"w": {"dtype": 7, "shape": [2], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"__metadata__": {"a": 1}},
        {"__metadata__": ["a"]},
    ],
)
def test_damaged_entries(tmp_path, header):
    with pytest.raises(RMDError, match="damaged"):
        read_header(raw_file(tmp_path / "bad.safetensors", header, bytes(8)))


def test_every_truncation_is_an_error(tmp_path):
    whole = save_safetensors(tmp_path / "whole.safetensors", {"w": torch.ones(3, 4)}, {"a": "b"}).read_bytes()
    part = tmp_path / "part.safetensors"
    for length in range(len(whole)):
        part.write_bytes(whole[:length])
        with pytest.raises(RMDError):
            read_header(part)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_give_a_header_or_an_rmd_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    tensors = {"w": torch.ones(2), "b": torch.ones(1)}
    whole = bytearray(save_safetensors(folder / "fuzz_source.safetensors", tensors, {"a": "b"}).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "fuzz.safetensors"
    path.write_bytes(whole)
    try:
        read_header(path)
    except RMDError:
        pass


@given(st.binary(max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_header_or_an_rmd_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except RMDError:
        pass


def test_what_the_format_lacks_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(RMDError, match="complex64"):
        save_safetensors(path, {"w": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(RMDError, match="must be text"):
        save_safetensors(path, {"w": torch.zeros(1)}, {"step": 3})
    with pytest.raises(RMDError, match="not valid text"):
        save_safetensors(path, {"w": torch.zeros(1)}, {"a": "\ud800"})
    assert not list(tmp_path.iterdir())


def entry(begin, end):
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("tensors", "size", "told"),
    [
        ({"a": entry(0, 4), "b": entry(6, 8)}, 8, "'b' leaves a gap or lies on another"),
        ({"a": entry(0, 4), "b": entry(3, 8)}, 8, "'b' leaves a gap or lies on another"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "'b' leaves a gap or lies on another"),
        ({"a": entry(2, 8)}, 8, "'a' leaves a gap or lies on another"),
        ({"a": entry(0, 4)}, 9, "5 bytes follow its last tensor"),
        ({}, 3, "3 bytes follow its last tensor"),
    ],
)
def test_tensors_fill_the_file_one_after_the_other(tmp_path, tensors, size, told):
    """As the safetensors library has it, which refuses these files too."""
    path = raw_file(tmp_path / "m.safetensors", tensors, b"\1" * size)
    with pytest.raises(RMDError, match=told):
        read_header(path)
    with pytest.raises(Exception, match="deserializing header"):
        load_file(path)


def test_a_name_that_stands_twice(tmp_path):
    one = json.dumps(entry(0, 4))
    for text in (f'{{"a": {one}, "a": {one}}}', f'{{"__metadata__": {{"x": "1", "x": "2"}}, "a": {one}}}'):
        path = raw_file(tmp_path / "m.safetensors", text.encode(), b"\1" * 4)
        with pytest.raises(RMDError, match="names '[ax]' twice"):
            read_header(path)


def test_a_pipe_or_a_device_is_no_file_and_nothing_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(RMDError, match="a pipe or a device, not a file"):
            read_header(tmp_path / name)

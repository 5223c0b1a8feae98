"""Files: read lazily, written atomically, and never anything but one line of RMDError for bad ones."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rmd_core.errors import RMDError
from rmd_core.files import (
    DTYPE_NAMES,
    open_tensors,
    read_header,
    read_metadata,
    read_tensors,
    save_safetensors,
    write_atomically,
)


def sample_tensors():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t.{i}": (9 * torch.randn(3, i, generator=generator)).to(dtype) for i, dtype in enumerate(DTYPE_NAMES)}
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
    save_file(tensors, tmp_path / "plain.safetensors")
    assert read_metadata(tmp_path / "plain.safetensors") == {}
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert header.tensors["t.3"].dtype == "BF16"


def test_equal_input_gives_equal_bytes_in_any_order(tmp_path):
    tensors, metadata = sample_tensors(), {"x": "1", "y": "2"}
    one = save_safetensors(tmp_path / "one.safetensors", tensors, metadata).read_bytes()
    backwards = dict(reversed(tensors.items())), dict(reversed(metadata.items()))
    assert save_safetensors(tmp_path / "two.safetensors", *backwards).read_bytes() == one


def test_no_tensor_is_read(tmp_path):
    """The data part is a hole of 1 TB, which nobody could load."""
    size = 2**40
    path = tmp_path / "huge.safetensors"
    path.write_bytes(with_header({"w": entry(0, size)}, b""))
    try:
        with path.open("r+b") as file:
            file.truncate(file.seek(0, 2) + size)
    except OSError:
        pytest.skip("this file system has no files with holes of that size")
    assert read_header(path).tensors["w"].shape == (size,)
    with pytest.raises(RMDError, match="huge.safetensors: cannot be read"):
        read_tensors(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(RMDError, match="no such file"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(RMDError, match="cannot be read"):
        read_header(tmp_path)
    for name in ("a\0b", "\ud800"):
        with pytest.raises(RMDError, match="this is not a valid path"):
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


DAMAGED = "truncated, damaged, or not a safetensors file"


def with_header(header, data=bytes(8)):
    """The bytes of a safetensors file; `header` is text or made into JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin, end, **changes):
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]} | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"GGUF" + bytes(60), "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "LFS"),
        (b"<!DOCTYPE html><html></html>" * 3, "web page"),
        (b"abc", DAMAGED),
        (struct.pack("<Q", 64) + b"{}", DAMAGED),
        (struct.pack("<Q", 10**8 + 1) + b"{}", DAMAGED),
        (struct.pack("<Q", 2**63) + b"{}", DAMAGED),
        *(
            (with_header(header), DAMAGED)
            for header in (
                b"{}}}",
                b"\xff\xfe\xfd\xfc",
                b"[]",
                b"[" * 90000,
                {},  # 8 bytes follow
                {"w": 3},
                {"w": {"dtype": "U8", "shape": [8]}},
                {"w": entry(0, 8, data_offsets=[0])},
                {"w": entry(0, 8, data_offsets=[8, 0])},
                {"w": entry(0, 8, shape=[-8])},
                {"w": entry(0, 8, shape=[8.0])},
                {"w": entry(0, 8, shape=[True])},
                {"w": entry(0, 8, shape=[3])},
                {"w": entry(0, 8, dtype=7)},
                {"w": entry(0, 8, dtype="U7")},
                {"w": entry(0, 7)},  # a byte follows
                {"w": entry(2, 8)},  # a gap before
                {"a": entry(0, 4), "b": entry(6, 8)},  # a gap between
                {"a": entry(0, 4), "b": entry(3, 8)},  # they overlap
                {"__metadata__": {"a": 1}, "w": entry(0, 8)},
                {"__metadata__": ["a"], "w": entry(0, 8)},
            )
        ),
    ],
)
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    for read in (read_header, read_tensors):
        with pytest.raises(RMDError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


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
    with suppress(RMDError):
        read_header(path)


def test_what_the_format_lacks_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(RMDError, match="complex64"):
        save_safetensors(path, {"w": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(RMDError, match="must be text"):
        save_safetensors(path, {"w": torch.zeros(1)}, {"step": 3})
    with pytest.raises(RMDError, match="not valid text"):
        save_safetensors(path, {"w": torch.zeros(1)}, {"a": "\ud800"})
    assert not list(tmp_path.iterdir())


def test_an_open_file_outlives_its_replacement(tmp_path):
    path = save_safetensors(tmp_path / "t.safetensors", {"a": torch.ones(3)})
    file = open_tensors(path)
    save_safetensors(path, {"longer": torch.zeros(999)})
    assert torch.equal(file.get_tensor("a"), torch.ones(3))


def test_a_pipe_or_a_device_is_no_file_and_nothing_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(RMDError, match="a pipe or a device; give a safetensors file"):
            read_header(tmp_path / name)


def names(folder):
    return [entry.name for entry in folder.iterdir()]


def test_bytes_and_pieces_give_the_same_file(tmp_path):
    one = write_atomically(tmp_path / "one", b"abcdef")
    two = write_atomically(str(tmp_path / "two"), iter([b"ab", memoryview(b"cd"), b"", b"ef"]))
    assert one.read_bytes() == two.read_bytes() == b"abcdef"
    assert write_atomically(two, b"").read_bytes() == b""
    assert sorted(names(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError, ValueError])
def test_a_failure_between_pieces_leaves_the_old_file_and_no_rubbish(tmp_path, error):
    path = write_atomically(tmp_path / "file", b"old")

    def pieces():
        yield b"new"
        raise error("broken off")

    with pytest.raises(RMDError if error is OSError else error, match="broken off"):
        write_atomically(path, pieces())
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_paths_that_are_none_are_named_and_nothing_is_written(tmp_path):
    for path in (tmp_path / "a\0b", tmp_path / "a\0b" / "c", tmp_path / "\ud800", "", "."):
        with pytest.raises(RMDError, match="cannot be written: this is not a valid path"):
            write_atomically(path, b"x")
    with pytest.raises(RMDError, match="not a valid path"):
        save_safetensors(tmp_path / "a\0b", {"w": torch.zeros(1)})
    assert not names(tmp_path)


def test_a_folder_or_a_place_without_one_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RMDError, match="folder: could not be written"):
        write_atomically(tmp_path / "folder", b"x")
    assert names(tmp_path) == ["folder"]
    with pytest.raises(RMDError, match="none.*No such file"):
        save_safetensors(tmp_path / "none" / "model.safetensors", {"w": torch.zeros(1)})


FULL_DISK = """
import resource, sys, torch
from rmd_core.files import save_safetensors
from rmd_core.errors import RMDError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_safetensors(sys.argv[1], {"w": torch.ones(100_000)})
except RMDError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    """The system refuses the bytes behind 4096, as a full disk would."""
    path = save_safetensors(tmp_path / "model.safetensors", {"w": torch.zeros(4)}, {"version": "old"})
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert str(path) in done.stdout and "could not be written" in done.stdout
    assert path.read_bytes() == before
    assert names(tmp_path) == ["model.safetensors"]

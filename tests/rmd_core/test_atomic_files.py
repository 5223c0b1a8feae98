"""Files written in one stroke: the whole new one, or the old one and no rubbish."""

import subprocess
import sys

import pytest
import torch

from rmd_core.errors import RMDError
from rmd_core.files import save_safetensors, write_atomically


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
        with pytest.raises(RMDError, match="cannot be written: it is no file's path"):
            write_atomically(path, b"x")
    with pytest.raises(RMDError, match="no file's path"):
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
from rmd_core.header import save_safetensors
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

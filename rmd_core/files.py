"""Files: safetensors read through the library with one-line errors, everything written atomically.

Reading: `open_tensors` (lazily), `read_tensors` (all), `read_header` and `read_metadata` (no tensor). Writing:
`save_safetensors` (equal input gives equal bytes), `write_text`, `write_json` and `write_atomically` leave either the
whole new file or what was there before. `lock_file` keeps other processes out.
`finite_weights` and `cast_weight` check what a network is given or saved as.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import RMDError, one_line

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

_PICKLED = "this is a pickled .pt/.ckpt file; only safetensors is read, so convert it first with a tool you trust"
_OTHER_FORMATS = {
    b"\x80": _PICKLED,
    b"PK\x03\x04": _PICKLED,
    b"GGUF": "this is a GGUF file; give the safetensors file it was made from",
    b"version https://git-lfs": "this is a Git LFS pointer, not the file; run `git lfs pull`",
    b"<": "this is a web page, not a model; download the file itself",
}
"""First bytes of files that are often given in place of a safetensors file, and the words for each."""


def open_tensors(path: str | Path, *, framework: str = "pt") -> Any:
    """A lazy reader of a safetensors file (`safe_open`): `keys`, `get_tensor`, `get_slice`, `metadata`.

    The file stays readable when another one takes its place. Its tensors are views of the mapped file.
    Raises RMDError, naming file and cause, for a missing, unreadable, truncated or damaged file, for a pipe or a
    device, and for pickled, zipped, GGUF or pointer files that only look like a model.
    """
    start = b""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block forever
            raise RMDError(f"{path}: cannot be read, it is a folder, a pipe or a device; give a safetensors file")
        with open(path, "rb") as file:
            start = file.read(32)
        return safe_open(str(path), framework=framework, device="cpu")
    except RMDError:
        raise
    except FileNotFoundError:
        raise RMDError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise RMDError(f"{path}: {_cause(start, error)}") from None
    except (OSError, RuntimeError) as error:
        raise RMDError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or one_line(error)})") from error
    except ValueError as error:  # a NUL byte, or text the file system cannot name
        raise RMDError(f"{str(path)!r}: this is not a valid path ({error}); correct it") from None


def _cause(start: bytes, error: SafetensorError) -> str:
    if not start:
        return "the file is empty; copy or download it again"
    for magic, meaning in _OTHER_FORMATS.items():
        # A valid file may start with these bytes by chance (they are a length); then a brace follows at byte 8.
        if start.startswith(magic) and start[8:9] != b"{":
            return meaning
    return f"truncated, damaged, or not a safetensors file ({one_line(error, 200)}); copy or download it again"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a header: its safetensors dtype name, such as "BF16", and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself: `tensors` by name and `metadata` (string to string, may be empty)."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: str | Path) -> Header:
    """The names, dtypes and shapes of a safetensors file and its metadata; no tensor is loaded.

    Raises RMDError as `open_tensors` does.
    """
    # NumPy's reader maps the file for reading only, so a file larger than the memory is no obstacle.
    with open_tensors(path, framework="np") as file:
        return header_of(file)


def header_of(file: Any) -> Header:
    """The header of a file opened by `open_tensors`."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    tensors = {name: TensorEntry(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    return Header(tensors, dict(file.metadata() or {}))


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, empty if it has none. Raises RMDError as `open_tensors` does."""
    with open_tensors(path, framework="np") as file:
        return dict(file.metadata() or {})


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file, on the CPU, and its metadata. Raises RMDError as `open_tensors` does."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def finite_weights(
    tensors: Mapping[str, torch.Tensor], path: str | Path, *, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The weights in `dtype`. Raises RMDError, naming `path`, for integers or a value that is not finite."""
    weights = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise RMDError(
                f"{path}: '{name}' holds {_short(tensor.dtype)} values, but weights must be floating-point; "
                "use the file before quantisation"
            )
        weights[name] = tensor.to(dtype)
        if not torch.isfinite(weights[name]).all():
            raise RMDError(f"{path}: '{name}' holds values that are not finite; the file is damaged, use another one")
    return weights


def cast_weight(name: str, tensor: torch.Tensor, dtype: torch.dtype, path: str | Path) -> torch.Tensor:
    """A network's weight in the `dtype` of a file. Raises RMDError, naming the file, if it is then not finite."""
    cast = tensor.to(dtype)
    if torch.isfinite(cast).all():
        return cast
    if torch.isfinite(tensor).all():
        advice = f"'{name}' does not fit into {_short(dtype)}; set output.dtype to bfloat16 or float32"
    else:
        advice = f"'{name}' holds values that are not finite; lower the learning rates (optimiser.*)"
    raise RMDError(f"{path} was not written: {advice}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls the dtypes that are written."""


def save_safetensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file atomically and return its path; equal input gives equal bytes.

    The library's own writer keeps no order of the metadata and needs every tensor in memory at once; here tensors may
    live on any device and are copied to the CPU one at a time. Raises RMDError as `write_atomically` does, for a dtype
    that is not in the format, or metadata that is not text.
    """
    table: dict[str, object] = {}
    if metadata:
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise RMDError(f"{path}: metadata must be text; turn each value into a string")
        table["__metadata__"] = dict(sorted(metadata.items()))
    # Widest dtype first, so that every tensor starts at a multiple of its own item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    begin = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in DTYPE_NAMES or name == "__metadata__":
            raise RMDError(f"{path}: tensor {name!r} of dtype {tensor.dtype} cannot be stored in safetensors")
        end = begin + tensor.numel() * tensor.element_size()
        table[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    try:
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RMDError(f"{path}: a name or metadata value is not valid text ({error.reason})") from None
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return write_atomically(path, chain([head], (_tensor_bytes(tensors[name]) for name in order)))


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of the bytes by which a tensor is stored in a safetensors file, as 64 hex digits."""
    return hashlib.sha256(_tensor_bytes(tensor)).hexdigest()


def weights_digest(tensors: Iterable[torch.Tensor]) -> str:
    """SHA-256 of the weights of a network, as 64 hex digits, independent of their names and their dtype in the file.

    It covers the sorted shapes and digests of all weights in bfloat16, the type a loader may have cast them to.
    """
    parts = sorted(f"{tuple(one.shape)} {tensor_digest(one.to(torch.bfloat16))}" for one in tensors)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _tensor_bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data


def hash_file(path: str | Path, digest: hashlib._Hash) -> hashlib._Hash:
    """Feed a file to a digest, which is returned. Raises RMDError for a file that cannot be read."""
    try:  # hashlib.file_digest came with Python 3.11
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise RMDError(f"{path}: cannot be read ({error.strerror or error})") from None
    return digest


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises RMDError for a missing or unreadable file, and for anything but an object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RMDError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RMDError(f"{path} is damaged: it is not a JSON object; copy or download it again")
    return value


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text as `write_atomically` does."""
    write_atomically(path, text.encode())


def write_json(path: str | Path, value: object) -> None:
    """Write a value as indented JSON with sorted keys as `write_atomically` does."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_atomically(path: str | Path, content: bytes | Iterable[bytes | memoryview]) -> Path:
    """Write a file in its target's folder, flush it to the disk, and move it into place. Returns the path.

    content is whole or an iterable of pieces. On any failure (a full disk, a missing right, an
    interruption, an error while a piece is made) the part-written file is removed and what was at `path` stays. The
    folder must exist. Raises RMDError naming path and cause when writing fails or the path is none.
    """
    path = Path(path)
    try:
        os.fsencode(path)
        if "\0" in str(path):
            raise ValueError("embedded null byte")
        part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    except ValueError as error:
        raise RMDError(f"{str(path)!r} cannot be written: this is not a valid path ({error}); correct it") from None
    started = False
    try:
        with open(part, "xb") as file:
            started = True
            for piece in (content,) if isinstance(content, bytes) else content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        started = False
    except OSError as error:
        raise RMDError(
            f"{path}: could not be written ({error.strerror or error}); nothing was changed, "
            "free some space or choose another folder"
        ) from error
    finally:
        if started:
            try:
                os.unlink(part)
            except OSError as error:
                log.warning("could not remove the part-written file %s: %s", part, error)
    _sync_folder(path.parent)
    return path


def _sync_folder(folder: Path) -> None:
    """Make the move itself durable where the system allows it (not on Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        log.debug("the folder %s cannot be synced", folder)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_file(path: str | Path, taken: str) -> Iterator[None]:
    """A block in which no other process on this machine has the lock on this file, which is made and stays.

    The lock is the system's and ends with the process, however that ends. Raises RMDError, saying `taken`, where
    another process has it, or the file cannot be made. A file system without locks gets a warning: the lock file that
    filelock falls back to would outlive a killed process.
    """
    with writing(path):
        file = open(path, "ab")  # noqa: SIM115
    with file:
        try:
            if sys.platform == "win32":
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise RMDError(taken) from None
            log.warning(
                "warning: %s cannot be locked (%s); make sure that no other program writes there", path, error.strerror
            )
        yield  # closing the file gives the lock back


def make_folder(path: str | Path) -> None:
    """Create a folder and its parents. Raises RMDError where that fails."""
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A block that writes `path`: an OSError in it is raised as the RMDError that says so."""
    try:
        yield
    except OSError as error:
        raise RMDError(
            f"{path}: could not be written ({error.strerror or error}); free some space or choose another output folder"
        ) from None

"""Files written in one stroke: either the whole new file is there, or what was there before.
The safetensors format: a header read without the tensors, and a file written with one.
Single tensors out of a safetensors file, without reading the rest.
Read safetensors files whole or tensor by tensor, with one-line errors.
Small files and folders of a run; files are written in one stroke."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError, safe_open

from .errors import RMDError, one_line

log = logging.getLogger(__name__)

Content = bytes | Iterable[bytes | memoryview]
"""The bytes of a file, whole or in pieces that are asked for one at a time."""


def write_atomically(path: str | Path, content: Content) -> Path:
    """Write a file beside its target, flush it to the disk, and move it into place. Returns the path.

    On any failure (a full disk, a missing right, an interruption, an error while a piece is made) the part-written file
    is removed and what was at `path` stays. The folder must exist. Raises RMDError naming path and cause when writing
    fails or the path is none.
    """
    path = Path(path)
    pieces = (content,) if isinstance(content, bytes) else content
    part = _part_of(path)
    started = False
    try:
        with open(part, "xb") as file:
            started = True
            for piece in pieces:
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
            _remove(part)
    _sync_folder(path.parent)
    return path


def _part_of(path: Path) -> Path:
    try:
        os.fsencode(path)
        if "\0" in str(path):
            raise ValueError("embedded null byte")
        return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    except ValueError as error:
        raise RMDError(f"{str(path)!r} cannot be written: it is no file's path ({error}); correct it") from None


def _remove(part: Path) -> None:
    try:
        os.unlink(part)
    except OSError as error:
        log.warning("could not remove the part-written file %s: %s", part, error)


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


MAX_HEADER_BYTES = 100_000_000

_PICKLED = "this is a pickled .pt/.ckpt file; only safetensors is read, so convert it first with a tool you trust"
_MAGICS = {
    b"\x80": _PICKLED,
    b"PK\x03\x04": _PICKLED,
    b"GGUF": "this is a GGUF file; give the safetensors file it was made from",
    b"version https://git-lfs": "this is a Git LFS pointer, not the file; run `git lfs pull`",
    b"<": "this is a web page, not a model; download the file itself",
}

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a header: its safetensors dtype name, its shape, and its byte range within the data part."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself: `tensors` by name and `metadata` (string to string, may be empty)."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    @property
    def parameters(self) -> int:
        """Number of values in all tensors together."""
        return sum(prod(entry.shape) for entry in self.tensors.values())


def read_header(path: str | Path) -> Header:
    """Read the header of a safetensors file; no tensor is loaded and nothing is unpickled.

    Raises RMDError, naming the file and the cause, for a missing, unreadable, truncated or damaged file, a header
    longer than the file or than 100 MB, tensors that do not fill the rest of the file one after the other, and for
    pickled, zipped, GGUF or pointer files that only look like a model.
    Source: the safetensors format (8-byte little-endian length, then JSON).
    """
    path = Path(path)
    try:
        found = path.stat()
        if stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode) or stat.S_ISSOCK(found.st_mode):
            raise RMDError(f"{path}: this is a pipe or a device, not a file; give a safetensors file")
        size = found.st_size
        with path.open("rb") as file:
            head = file.read(32)
            length = _header_length(path, head, size)
            file.seek(8)
            raw = file.read(length)
    except FileNotFoundError:
        raise RMDError(f"{path}: no such file") from None
    except OSError as error:
        raise RMDError(f"{path}: cannot be read ({error.strerror or error})") from error
    except RMDError:
        raise
    except ValueError as error:  # a NUL byte, or text the file system cannot name
        raise RMDError(f"{str(path)!r}: this is no path ({error}); correct it") from None
    if len(raw) < length:
        raise RMDError(f"{path}: truncated, the header ends after {len(raw)} of {length} bytes; copy it again")
    return _parse(path, raw, size - 8 - length)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, empty if it has none. Raises RMDError as `read_header` does."""
    return dict(read_header(path).metadata)


def save_safetensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file atomically: either the whole new file is at `path`, or what was there before.

    Equal input gives equal bytes: tensors are ordered by size of their dtype and name, metadata by key. Tensors may
    live on any device; they are copied to the CPU one at a time. Returns the path.

    Raises RMDError as `write_atomically` does, for a dtype the format lacks, or metadata that is not text.
    """
    path = Path(path)
    head, order = _build_header(path, tensors, metadata or {})
    return write_atomically(path, chain([head], (_tensor_bytes(tensors[name]) for name in order)))


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of the bytes by which a tensor is stored in a safetensors file, as 64 hex digits."""
    return hashlib.sha256(_tensor_bytes(tensor)).hexdigest()


def _header_length(path: Path, head: bytes, size: int) -> int:
    if size == 0:
        raise RMDError(f"{path}: the file is empty; copy or download it again")
    for magic, meaning in _MAGICS.items():
        # A valid file may start with these bytes by chance (they are a length); then a brace follows at byte 8.
        if head.startswith(magic) and head[8:9] != b"{":
            raise RMDError(f"{path}: {meaning}")
    if size < 8:
        raise RMDError(f"{path}: truncated, {size} bytes cannot hold a safetensors header; copy it again")
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise RMDError(
            f"{path}: not a safetensors file (its header would be {length} bytes, more than {MAX_HEADER_BYTES})"
        )
    if length > size - 8:
        raise RMDError(f"{path}: truncated, its header of {length} bytes does not fit in {size} bytes; copy it again")
    return length


def _parse(path: Path, raw: bytes, data_bytes: int) -> Header:
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_twins)
    except _Twins as error:
        raise RMDError(f"{path}: its header is damaged (it names {error} twice); copy it again") from None
    except (ValueError, RecursionError):
        raise RMDError(f"{path}: not a safetensors file, or its header is damaged (it is not JSON)") from None
    if not isinstance(table, dict):
        raise RMDError(f"{path}: its header is damaged (a {type(table).__name__} instead of an object)")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise RMDError(f"{path}: its metadata is damaged (only text values are allowed)")
    tensors = {name: _entry(path, name, value) for name, value in table.items()}
    needed = max((entry.end for entry in tensors.values()), default=0)
    if needed > data_bytes:
        raise RMDError(f"{path}: truncated, it holds {data_bytes} of {needed} bytes of tensors; copy it again")
    _check_filled(path, tensors, data_bytes)
    return Header(tensors, metadata)


class _Twins(Exception):
    """A name that stands twice in one JSON object."""


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise _Twins(repr(name)[:80])
        found[name] = value
    return found


def _check_filled(path: Path, tensors: Mapping[str, TensorEntry], data_bytes: int) -> None:
    """Raise RMDError unless the tensors lie one after the other from the first byte of the data to the last."""
    reached = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            raise RMDError(f"{path}: damaged, tensor {name[:80]!r} leaves a gap or lies on another; copy it again")
        reached = entry.end
    if reached != data_bytes:
        raise RMDError(f"{path}: damaged, {data_bytes - reached} bytes follow its last tensor; copy it again")


def _entry(path: Path, name: str, value: object) -> TensorEntry:
    damaged = RMDError(f"{path}: its header is damaged (the entry of tensor {name[:80]!r})")
    if not isinstance(value, dict):
        raise damaged
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise damaged
    begin, end = offsets
    if end < begin or (dtype in DTYPES and end - begin != prod(shape) * DTYPES[dtype].itemsize):
        raise damaged
    return TensorEntry(dtype, tuple(shape), begin, end)


def _naturals(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _build_header(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, list[str]]:
    table: dict[str, object] = {}
    if metadata:
        if not all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items()):
            raise RMDError(f"{path}: metadata must be text; turn each value into a string")
        table["__metadata__"] = dict(sorted(metadata.items()))
    # Widest dtype first, so that every tensor starts at a multiple of its own item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    begin = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES or name == "__metadata__":
            raise RMDError(f"{path}: tensor {name!r} of dtype {tensor.dtype} cannot be stored in safetensors")
        end = begin + tensor.numel() * tensor.element_size()
        table[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    try:
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RMDError(f"{path}: a name or metadata value is not valid text ({error.reason})") from None
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def _tensor_bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


class TensorFile:
    """A safetensors file mapped into memory; it stays readable when another file takes its place on disk.

    Raises RMDError as `read_header` does, and for a file that cannot be mapped.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.header = read_header(path)
        try:
            with self.path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise RMDError(f"{self.path}: cannot be read ({error}); copy it to another place") from None
        self._begin = 8 + int.from_bytes(self._bytes[:8], "little")

    def read(self, name: str) -> torch.Tensor:
        """A copy of one tensor, on the CPU, in its stored dtype and shape.

        Raises RMDError for a name that is not in the file, a dtype that PyTorch lacks, or missing bytes.
        """
        entry = self.entry(name)
        if entry.dtype not in DTYPES:
            raise RMDError(
                f"{self.path}: tensor {name[:80]!r} is of type {entry.dtype}, which cannot be read; "
                "save it as F16, BF16 or F32"
            )
        raw = bytearray(self._bytes[self._begin + entry.begin : self._begin + entry.end])
        dtype = DTYPES[entry.dtype]
        if len(raw) != prod(entry.shape) * dtype.itemsize:
            raise RMDError(f"{self.path}: truncated, tensor {name[:80]!r} is not whole; copy it again")
        return torch.frombuffer(raw, dtype=dtype).reshape(entry.shape) if raw else torch.empty(entry.shape, dtype=dtype)

    def digest(self, name: str) -> str:
        """SHA-256 of the bytes of one tensor, as 64 hex digits. Raises RMDError for a name that is not in the file."""
        entry = self.entry(name)
        with memoryview(self._bytes)[self._begin + entry.begin : self._begin + entry.end] as raw:
            return hashlib.sha256(raw).hexdigest()

    def entry(self, name: str) -> TensorEntry:
        """What the header says of one tensor; raises RMDError for a name that is not in the file."""
        if name not in self.header.tensors:
            raise RMDError(f"{self.path}: it holds no tensor {name[:80]!r}; copy it again")
        return self.header.tensors[name]


def open_tensors(path):
    """A lazy reader of a safetensors file: ``keys``, ``get_tensor``, ``get_slice``, ``metadata``.

    Raises RMDError for a missing, pickled, truncated or otherwise damaged file.
    """
    read_header(path)
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise RMDError(
            f"{path}: not a safetensors file that can be read ({one_line(error)}); copy or download it again"
        ) from None


def read_tensors(path):
    """All tensors of a safetensors file, on the CPU, and its metadata: ``(tensors, metadata)``. Raises RMDError."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def finite_weights(tensors, path, *, dtype):
    """The weights in ``dtype``. Raises RMDError, naming ``path``, for integers or a value that is not finite."""
    weights = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise RMDError(
                f"{path}: '{name}' holds {str(tensor.dtype).removeprefix('torch.')} values, weights are "
                "floating-point numbers; use the file that was not quantised"
            )
        weights[name] = tensor.to(dtype)
        if not torch.isfinite(weights[name]).all():
            raise RMDError(f"{path}: '{name}' holds values that are not finite; the file is damaged, use another one")
    return weights


def cast_weight(name, tensor, dtype, path):
    """A network's weight in the ``dtype`` of a file. Raises RMDError, naming the file, if it is then not finite."""
    cast = tensor.to(dtype)
    if torch.isfinite(cast).all():
        return cast
    if torch.isfinite(tensor).all():
        kind = str(dtype).removeprefix("torch.")
        advice = f"'{name}' does not fit into {kind}; set output.dtype to bfloat16 or float32"
    else:
        advice = f"'{name}' holds values that are not finite; lower the learning rates (optimiser.*)"
    raise RMDError(f"{path} was not written: {advice}")


def write_text(path, text):
    """Write UTF-8 text; a crash or a full disk leaves the old file. Raises RMDError when it cannot be written."""
    write_atomically(path, text.encode())


def write_json(path, value):
    """Write ``value`` as indented JSON as ``write_text`` does."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def make_folder(path):
    """Create a folder and its parents. Raises RMDError where that fails."""
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing(path):
    """A block that writes ``path``: an OSError in it is raised as the RMDError that says so."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RMDError(
            f"{path}: could not be written ({reason}); free some space or choose another output folder"
        ) from None

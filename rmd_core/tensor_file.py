"""Single tensors out of a safetensors file, without reading the rest."""

from __future__ import annotations

import hashlib
import mmap
from math import prod
from pathlib import Path

import torch

from .errors import RMDError
from .header import DTYPES, TensorEntry, read_header


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

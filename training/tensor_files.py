"""Read and write safetensors files, with one-line errors and without ever leaving half a file behind."""

import contextlib
import errno
import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rmd_core.errors import RMDError


def read_metadata(path):
    """The string-to-string metadata of a safetensors file (empty if it has none). Raises RMDError."""
    with _open(path) as file:
        return dict(file.metadata() or {})


def read_tensors(path):
    """All tensors of a safetensors file, on the CPU, and its metadata: ``(tensors, metadata)``.

    Raises RMDError for a missing, pickled, truncated or otherwise damaged file.
    """
    with _open(path) as file:
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, error) from None
        return tensors, dict(file.metadata() or {})


def write_tensors(path, tensors, *, metadata=None):
    """Write a safetensors file in one stroke: a temporary file beside it, flushed, then renamed over it.

    Raises RMDError when the disk is full or the folder cannot be written; an older file then stays as it was.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(contiguous, metadata=metadata))


def write_json(path, value):
    """Write ``value`` as indented JSON in one stroke. Raises RMDError as ``write_tensors`` does."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_bytes(path, content):
    """Write a file in one stroke. Raises RMDError as ``write_tensors`` does."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise write_failure(path, error) from None


def write_failure(path, error):
    """The RMDError for an OSError met while writing ``path``."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = "no space is left there" if full else (error.strerror or str(error))
    advice = "free some space or choose another output folder" if full else "choose an output folder that can be written"
    return RMDError(f"cannot write {path}: {reason}; {advice}")


def _open(path):
    path = Path(path)
    if not path.is_file():
        raise RMDError(f"{path} does not exist; give the path of a .safetensors file")
    with open(path, "rb") as file:
        start = file.read(8)
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise RMDError(f"{path} is a pickled PyTorch file, which may run code when read; convert it to .safetensors")
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path, error):
    reason = " ".join(str(error).split())
    return RMDError(f"{path} is no complete safetensors file ({reason}); copy or download it again")

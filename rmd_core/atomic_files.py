"""Files written in one stroke: either the whole new file is there, or what was there before."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from .errors import RMDError

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

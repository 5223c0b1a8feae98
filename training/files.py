"""Write small files in one stroke, so that a crash or a full disk never leaves half of one."""

import contextlib
import json
import os
from pathlib import Path

from rmd_core.errors import RMDError


def write_bytes(path, content):
    """Write ``content`` beside ``path``, flush it to the disk, and rename it over ``path``.

    Raises RMDError when the disk is full or the folder cannot be written; an older file then stays as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise write_failure(path, error) from None


def write_text(path, text):
    """Write UTF-8 text as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def write_json(path, value):
    """Write ``value`` as indented JSON as ``write_bytes`` does."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def make_folder(path):
    """Create a folder and its parents. Raises RMDError where that fails."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(path, error) from None


def write_failure(path, error):
    """The RMDError for an OSError met while writing ``path``."""
    reason = error.strerror or str(error)
    return RMDError(f"{path}: could not be written ({reason}); free some space or choose another output folder")

"""Small files and folders of a run; files are written in one stroke."""

import contextlib
import json
from pathlib import Path

from rmd_core.atomic_files import write_atomically
from rmd_core.errors import RMDError


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

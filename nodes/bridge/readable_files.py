"""Files that ComfyUI's own loaders read: what they cannot read is told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from ...rmd_core.errors import RMDError, one_line


@contextmanager
def readable(student: str) -> Iterator[None]:
    """Run a loader of ComfyUI's on the file called `student`.

    Raises RMDError where the safetensors library refuses the file, or ComfyUI misses a tensor in it.
    """
    try:
        yield
    except (KeyError, IndexError) as error:
        raise RMDError(
            f"{student}: ComfyUI misses a tensor in this file ({one_line(error, 200)}); copy it again or export it "
            "again"
        ) from error
    except (SafetensorError, OSError) as error:
        raise RMDError(
            f"{student}: this file cannot be read ({one_line(error, 200)}); copy it again or export it again"
        ) from None

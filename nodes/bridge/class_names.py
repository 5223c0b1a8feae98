"""ComfyUI's classes by name, so that none has to be imported which another version lacks."""

from __future__ import annotations

from typing import Any


def class_names(value: Any) -> tuple[str, ...]:
    """The name of an object's class, then of those it derives from, the nearest first."""
    return tuple(base.__name__ for base in type(value).__mro__)

"""The one error that is raised for input that cannot be used."""

from __future__ import annotations


class RMDError(ValueError):
    """One line that names what was given, what is allowed and what to change."""


def one_line(error: object, limit: int | None = None) -> str:
    """The text of another error on one line, of a long one the first `limit` characters."""
    return " ".join(str(error).split())[:limit]

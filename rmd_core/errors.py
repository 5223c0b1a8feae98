"""The one error that is raised for input that cannot be used."""

from __future__ import annotations


class RMDError(ValueError):
    """One line: what came, what is allowed and what to change."""


def one_line(error: object, limit: int | None = None) -> str:
    """The text of another error on one line, cut to `limit` characters."""
    return " ".join(str(error).split())[:limit]


def short_repr(value: object, limit: int = 80) -> str:
    """A value as messages quote it: on one line, cut to `limit` characters with an ellipsis."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."

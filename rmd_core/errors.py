"""The one error that the method raises for input it cannot use, and what it quotes of others."""

from __future__ import annotations


class RMDError(ValueError):
    """One line that names what came, what is allowed and what to change."""


def one_line(told: object, most: int | None = None) -> str:
    """What an error says on one line, and of a long text the first `most` characters."""
    return " ".join(str(told).split())[:most]

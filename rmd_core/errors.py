"""The one error that the method raises for input it cannot use."""


class RMDError(ValueError):
    """One line that names what came, what is allowed and what to change."""

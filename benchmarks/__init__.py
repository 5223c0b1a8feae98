"""Measured claims: each module is one command that prints its table and stores its results."""

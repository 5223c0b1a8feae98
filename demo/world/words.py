"""Prompts as vectors without a text encoder: each word has one fixed Gaussian vector, seeded by its text."""

import hashlib

import torch

TOKENS = 3  # concept, style, background
WIDTH = 64
ENCODER = "rmd-demo-words-3x64"


def word_vector(word):
    """The vector (WIDTH,) of one word, the same on every machine."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big")
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def embed(prompt):
    """Up to TOKENS words in order as (TOKENS, WIDTH); the slots of missing words, or of ``*``, are zero."""
    words = prompt.split()
    if len(words) > TOKENS:
        raise ValueError(f"{prompt!r} has {len(words)} words; the demo world knows at most {TOKENS}")
    slots = [torch.zeros(WIDTH) if word == "*" else word_vector(word) for word in words]
    return torch.stack(slots + [torch.zeros(WIDTH)] * (TOKENS - len(slots)))

"""Prompt embeddings read from one safetensors file, keyed by the SHA-256 of each prompt, bound to a text encoder.

Optional metadata: `pooled`, the width of a pooled embedding that every prompt has under its key and `.pooled`, and
`masked`, true where the network masks the padding, so that a prompt alone is to be given without any.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import pad

from .errors import RMDError
from .tensor_file import TensorFile

METADATA_KEY = "rmd.prompt_cache"
VERSION = 1
NULL_PROMPT = ""
"""What guidance is guided away from."""

MOST_COMPARED = 20_000
"""How many prompts are compared with one that is missing; more would take seconds."""


POOLED = ".pooled"
"""What follows a prompt's key in the name of its pooled embedding."""


def prompt_key(text: str) -> str:
    """The tensor name of a prompt: the SHA-256 of its UTF-8 text, as 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def shown(text: object) -> str:
    """A prompt as a message quotes it: on one line, and not all of a long one."""
    quoted = repr(text)
    return quoted if len(quoted) <= 80 else quoted[:77] + "..."


class PromptCache:
    """Prompt embeddings read from a cache file as they are asked for.

    `tokens` is the length to which every prompt is padded, `dim` the width of an embedding, `pooled_dim` that of a
    pooled one (None where there are none), `masked` whether the network masks the padding, `encoder` the name of the
    text encoder that made them; give `encoder` to refuse a file made by another. Raises RMDError for a file that is no
    prompt cache.
    """

    def __init__(self, path: str | Path, *, encoder: str | None = None) -> None:
        self.path = path
        self._file = TensorFile(path)
        entry = self._entry()
        if encoder is not None and entry["encoder"] != encoder:
            raise RMDError(
                f"{path} was made by the text encoder '{entry['encoder']}', not by '{encoder}'; make the cache again"
            )
        self.encoder: str = entry["encoder"]
        self._keys = {text: key for key, text in entry["prompts"].items()}
        shapes = [self._shape(key) for key in entry["prompts"]]
        longest = max(shape[0] for shape in shapes)
        self.tokens: int = entry.get("tokens", longest)
        if type(self.tokens) is not int or self.tokens < longest:
            raise RMDError(
                f"{path} pads its prompts to {self.tokens!r} tokens, but one has {longest}; make the cache again"
            )
        self.dim: int = shapes[0][1]
        if any(shape[1] != self.dim for shape in shapes):
            raise RMDError(f"{path}: its embeddings have different widths; make the cache again")
        self.masked: bool = entry.get("masked", False)
        self.pooled_dim: int | None = entry.get("pooled")
        if type(self.masked) is not bool or not (self.pooled_dim is None or type(self.pooled_dim) is int):
            raise RMDError(f"{path}: its '{METADATA_KEY}' metadata is damaged; make the cache again")
        if self.pooled_dim is not None:
            for key in entry["prompts"]:
                shape = self._file.entry(key + POOLED).shape
                if shape != (self.pooled_dim,):
                    raise RMDError(f"{path}: a pooled embedding has shape {shape}; ({self.pooled_dim},) is expected")

    @property
    def texts(self) -> tuple[str, ...]:
        """All prompts but the null prompt, in sorted order."""
        return tuple(sorted(text for text in self._keys if text != NULL_PROMPT))

    def __contains__(self, text: str) -> bool:
        return text in self._keys

    def require(self, texts: Sequence[str]) -> None:
        """Raise RMDError unless every one of `texts` is in the cache."""
        absent = [text for text in texts if text not in self._keys]
        if absent:
            raise RMDError(
                f"{self.path} lacks {len(absent)} of {len(texts)} prompts, first {shown(absent[0])}; "
                "add them to the cache"
            )

    def closest(self, text: str, count: int = 3) -> tuple[str, ...]:
        """The prompts of the cache that look most like `text`, the likeliest first; at most `count`."""
        return tuple(get_close_matches(text, islice(self.texts, MOST_COMPARED), n=count, cutoff=0.3))

    def batch(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings (B, tokens, dim) in float32, zero-padded to the cache's number of tokens."""
        self.require(texts)
        rows = [self._row(text) for text in texts]
        return torch.stack([pad(row, (0, 0, 0, self.tokens - len(row))) for row in rows])

    def mask(self, texts: Sequence[str]) -> torch.Tensor:
        """Which tokens of `batch` are the prompt's own (B, tokens): 1.0 for those, 0.0 for padding."""
        self.require(texts)
        lengths = torch.tensor([self._file.entry(self._keys[text]).shape[0] for text in texts])
        return (torch.arange(self.tokens) < lengths[:, None]).float()

    def pooled(self, texts: Sequence[str]) -> torch.Tensor | None:
        """Pooled embeddings (B, pooled_dim) in float32, or None where the cache has none."""
        self.require(texts)
        if self.pooled_dim is None:
            return None
        return torch.stack([self._file.read(self._keys[text] + POOLED).float() for text in texts])

    def embedding(self, text: str) -> torch.Tensor:
        """One prompt's embedding (1, tokens, dim) in float32, padded unless `masked`: what a network is to be given."""
        if not self.masked:
            return self.batch([text])
        self.require([text])
        return self._row(text)[None]

    def _row(self, text: str) -> torch.Tensor:
        return self._file.read(self._keys[text]).float()

    def _entry(self) -> dict:
        text = self._file.header.metadata.get(METADATA_KEY)
        if text is None:
            raise RMDError(f"{self.path} is no prompt cache: it has no '{METADATA_KEY}' metadata")
        try:
            entry = json.loads(text)
            version, encoder, prompts = entry["version"], entry["encoder"], entry["prompts"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise RMDError(f"{self.path}: its '{METADATA_KEY}' metadata is damaged; make the cache again") from None
        if version != VERSION:
            raise RMDError(f"{self.path} is a prompt cache of version {version}; this program reads version {VERSION}")
        if not isinstance(encoder, str) or not isinstance(prompts, dict) or not prompts:
            raise RMDError(f"{self.path}: its '{METADATA_KEY}' metadata is damaged; make the cache again")
        stored = self._file.header.tensors
        for key, prompt in prompts.items():
            if key not in stored or not isinstance(prompt, str) or prompt_key(prompt) != key:
                raise RMDError(f"{self.path}: its entry for the prompt {shown(prompt)} is missing or damaged")
        return entry

    def _shape(self, key: str) -> tuple[int, ...]:
        shape = self._file.entry(key).shape
        if len(shape) != 2 or 0 in shape:
            raise RMDError(f"{self.path}: an embedding has shape {shape}; (tokens, dim) is expected")
        return shape

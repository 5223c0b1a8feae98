"""Prompt embeddings on disk: one file, or a folder of such files (shards) that are read as one."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import pad

from .errors import RMDError
from .prompt_shard import NULL_PROMPT, SHARD_NAME, PromptShard, prompt_key, shown

__all__ = ["NULL_PROMPT", "PromptCache", "prompt_key", "shard_files", "shown"]

MOST_COMPARED = 20_000
"""How many prompts are compared with one that is missing; more would take seconds."""

MOST_OPEN = 32
"""How many shards are kept open; a process may not have many more files than a thousand."""


def shard_files(folder: str | Path) -> list[Path]:
    """The files of a cache that is a folder, by name: every safetensors file in it, whoever made it."""
    return sorted(path for path in Path(folder).glob("*.safetensors") if not path.name.startswith("."))


class PromptCache:
    """Prompt embeddings read from a file, or from the files of a folder, as they are asked for.

    `tokens` is the length to which every prompt is padded, `dim` the width of an embedding, `pooled_dim` that of a
    pooled one (None where there are none), `masked` whether the network masks the padding, `encoder` the name of the
    text encoder that made them, `precisions` those that it ran in, as far as the files say, `negative` the text that
    the null prompt was made of; give `encoder` to refuse a cache made by another. Only headers are read at first. A
    prompt that two files hold is read from the first of them by name. Raises RMDError for what is no prompt cache, and
    for files that do not go together.
    """

    def __init__(self, path: str | Path, *, encoder: str | None = None) -> None:
        self.path = path
        self._open: deque[PromptShard] = deque()
        self._of: dict[str, PromptShard] = {}
        files, precisions = _files(path), set()
        first = _shard(files[0])
        if encoder is not None and first.encoder != encoder:
            raise RMDError(
                f"{path} was made by the text encoder '{first.encoder}', not by '{encoder}'; make the cache again"
            )
        for file in files:
            shard = first if file == files[0] else _shard(file)
            _refuse_unlike(first, shard)
            self._keep(shard)
            precisions.add(shard.precision)
            for text in shard.keys:
                self._of.setdefault(text, shard)
        self.encoder, self.tokens, self.dim = first.encoder, first.tokens, first.dim
        self.masked, self.pooled_dim, self.negative = first.masked, first.pooled_dim, first.negative
        self.precisions = tuple(sorted(name for name in precisions if name is not None))

    @property
    def texts(self) -> tuple[str, ...]:
        """All prompts but the null prompt, in sorted order."""
        return tuple(sorted(text for text in self._of if text != NULL_PROMPT))

    def __contains__(self, text: str) -> bool:
        return text in self._of

    def require(self, texts: Sequence[str]) -> None:
        """Raise RMDError unless every one of `texts` is in the cache."""
        absent = [text for text in texts if text not in self._of]
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
        rows = [self.row(text) for text in texts]
        return torch.stack([pad(row, (0, 0, 0, self.tokens - len(row))) for row in rows])

    def mask(self, texts: Sequence[str]) -> torch.Tensor:
        """Which tokens of `batch` are the prompt's own (B, tokens): 1.0 for those, 0.0 for padding."""
        self.require(texts)
        lengths = torch.tensor([self._of[text].length(text) for text in texts])
        return (torch.arange(self.tokens) < lengths[:, None]).float()

    def pooled(self, texts: Sequence[str]) -> torch.Tensor | None:
        """Pooled embeddings (B, pooled_dim) in float32, or None where the cache has none."""
        self.require(texts)
        if self.pooled_dim is None:
            return None
        return torch.stack([self._shard(text).pooled(text) for text in texts])

    def embedding(self, text: str) -> torch.Tensor:
        """One prompt's embedding (1, tokens, dim) in float32, padded unless `masked`: what a network is to be given."""
        return self.row(text)[None] if self.masked else self.batch([text])

    def row(self, text: str) -> torch.Tensor:
        """One prompt's embedding (tokens, dim) in float32, without padding."""
        self.require([text])
        return self._shard(text).row(text)

    def digest(self, texts: Sequence[str]) -> str:
        """SHA-256 over what the cache gives for some prompts, in any order; prompts besides do not change it."""
        self.require(texts)
        lines = sorted(f"{prompt_key(text)} {self._shard(text).digest(text)}" for text in set(texts))
        return hashlib.sha256("\n".join([f"{self.tokens} {self.masked}", *lines]).encode()).hexdigest()

    def _shard(self, text: str) -> PromptShard:
        shard = self._of[text]
        if shard not in self._open:
            self._keep(shard)
        return shard

    def _keep(self, shard: PromptShard) -> None:
        self._open.append(shard)
        if len(self._open) > MOST_OPEN:
            self._open.popleft().close()


def _files(path: str | Path) -> Sequence[str | Path]:
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise RMDError(
                f"{path}: no such prompt cache, neither a file nor a folder; correct the path, or make it with "
                "python -m training.encode_prompts"
            )
        return [path]
    files = shard_files(path)
    if not files:
        raise RMDError(
            f"{path} is an empty prompt cache: it holds no safetensors file; fill it with python -m "
            "training.encode_prompts"
        )
    return files


def _shard(file: str | Path) -> PromptShard:
    try:
        return PromptShard(file)
    except RMDError as error:
        if not SHARD_NAME.fullmatch(Path(file).name) or not os.path.exists(file):
            raise
        raise RMDError(
            f"{error}; or delete this one file, the others stay good, and python -m training.encode_prompts encodes "
            "again what it held"
        ) from None


def _refuse_unlike(first: PromptShard, shard: PromptShard) -> None:
    for what, name in (
        ("text encoder", "encoder"),
        ("length of a prompt", "tokens"),
        ("width of an embedding", "dim"),
        ("width of a pooled embedding", "pooled_dim"),
        ("masking of the padding", "masked"),
        ("text of the null prompt", "negative"),
    ):
        here, there = getattr(shard, name), getattr(first, name)
        if here != there:
            raise RMDError(
                f"{shard.path} and {first.path} cannot be one cache: the {what} is {shown(here)} in one and "
                f"{shown(there)} in the other; move one of them out of the folder"
            )

"""Prompt embeddings on disk: one safetensors file, or a folder of such files (shards) that is read as one.

A tensor's name is the SHA-256 of its prompt; the file names the text encoder that made it. Optional metadata:
`pooled`, the width of a pooled embedding that every prompt has under its key and `.pooled`; `masked`, true where the
network masks the padding, so a single prompt needs no padding; `negative`, the encoded text of the null prompt if it is
not the empty one; `precision`, the encoder's own, such as float32; `digests`, the SHA-256
of each tensor's bytes. `training/prompts.py` writes these files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from .errors import RMDError, short_repr
from .files import header_of, open_tensors, tensor_digest

METADATA_KEY = "rmd.prompt_cache"
VERSION = 1
NULL_PROMPT = ""
"""The prompt that guidance moves away from."""

POOLED = ".pooled"
"""The ending of the name of a pooled embedding, after the prompt's key."""

SHARD_NAME = re.compile(r"prompts-(\d{5,})\.safetensors")
"""The names that training.encode_prompts gives to the files of a folder."""

DTYPES = ("F64", "F32", "F16", "BF16")
"""The dtypes of stored embeddings."""

MAX_TOKENS = 65_536
"""The most tokens that prompts are padded to; a damaged header would ask for more memory than there is."""

MAX_COMPARED = 20_000
"""How many prompts are compared with one that is missing; more would take seconds."""


def prompt_key(text: str) -> str:
    """The tensor name of a prompt: the SHA-256 of its UTF-8 text, as 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def shard_files(folder: str | Path) -> list[Path]:
    """The files of a cache that is a folder, by name: every safetensors file in it, whoever made it."""
    return sorted(path for path in Path(folder).glob("*.safetensors") if not path.name.startswith("."))


class PromptCache:
    """Prompt embeddings of a file or a folder, each read on first use; opening reads only headers.

    `tokens` is the length to which every prompt is padded, `dim` the width of an embedding, `pooled_dim` that of a
    pooled one (None where there are none), `masked` whether the network masks the padding, `encoder` the name of the
    text encoder that made them, `precisions` those that it ran in, as far as the files say, `negative` the text that
    the null prompt was made of; give `encoder` to refuse a cache made by another. A prompt of two files is read
    from the first of them by name. Raises RMDError for what is no prompt cache, and for files that do not match.
    """

    def __init__(self, path: str | Path, *, encoder: str | None = None) -> None:
        self.path = path
        self._shard_of: dict[str, _Shard] = {}
        shards = (_read_shard(file) for file in self._files())
        first = next(shards)
        if encoder is not None and first.encoder != encoder:
            raise RMDError(
                f"{path} was made by the text encoder '{first.encoder}', not by '{encoder}'; make the cache again"
            )
        precisions = set()
        for shard in chain([first], shards):
            _check_match(first, shard)
            precisions.add(shard.precision)
            for text in shard.keys:
                self._shard_of.setdefault(text, shard)
        self.encoder = first.encoder
        self.tokens = first.tokens
        self.dim = first.dim
        self.masked = first.masked
        self.pooled_dim = first.pooled_dim
        self.negative = first.negative
        self.precisions = tuple(sorted(name for name in precisions if name is not None))

    def _files(self) -> Sequence[str | Path]:
        if not os.path.exists(self.path):
            raise RMDError(
                f"{self.path}: no such prompt cache, neither a file nor a folder; correct the path, or make it with "
                "python -m training.encode_prompts"
            )
        if not os.path.isdir(self.path):
            return [self.path]
        files = shard_files(self.path)
        if not files:
            raise RMDError(
                f"{self.path} is an empty prompt cache: it holds no safetensors file; fill it with python -m "
                "training.encode_prompts"
            )
        return files

    @property
    def texts(self) -> tuple[str, ...]:
        """All prompts but the null prompt, in sorted order."""
        return tuple(sorted(text for text in self._shard_of if text != NULL_PROMPT))

    def __contains__(self, text: str) -> bool:
        return text in self._shard_of

    def require(self, texts: Sequence[str]) -> None:
        """Raise RMDError unless every one of `texts` is in the cache."""
        absent = [text for text in texts if text not in self._shard_of]
        if absent:
            raise RMDError(
                f"{self.path} is missing {len(absent)} of {len(texts)} prompts, first {short_repr(absent[0])}; "
                "add them to the cache"
            )

    def closest(self, text: str, count: int = 3) -> tuple[str, ...]:
        """The prompts of the cache that look most like `text`, the likeliest first; at most `count`."""
        return tuple(get_close_matches(text, islice(self.texts, MAX_COMPARED), n=count, cutoff=0.3))

    def row(self, text: str) -> torch.Tensor:
        """One prompt's embedding `(tokens, dim)` in float32, without padding."""
        self.require([text])
        shard = self._shard_of[text]
        return shard.read(shard.keys[text])

    def batch(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings `(B, tokens, dim)` in float32, zero-padded to the cache's number of tokens."""
        self.require(texts)
        rows = [self.row(text) for text in texts]
        return torch.stack([pad(row, (0, 0, 0, self.tokens - len(row))) for row in rows])

    def embedding(self, text: str) -> torch.Tensor:
        """One prompt's embedding `(1, tokens, dim)` in float32, padded unless `masked`: what a network is given."""
        return self.row(text)[None] if self.masked else self.batch([text])

    def mask(self, texts: Sequence[str]) -> torch.Tensor:
        """Which tokens of `batch` are the prompt's own, `(B, tokens)`: 1.0 for those, 0.0 for padding."""
        self.require(texts)
        lengths = torch.tensor([self._shard_of[text].length(text) for text in texts])
        return (torch.arange(self.tokens) < lengths[:, None]).float()

    def pooled(self, texts: Sequence[str]) -> torch.Tensor | None:
        """Pooled embeddings `(B, pooled_dim)` in float32, or None where the cache has none."""
        self.require(texts)
        if self.pooled_dim is None:
            return None
        shards = [self._shard_of[text] for text in texts]
        return torch.stack([shard.read(shard.keys[text] + POOLED) for shard, text in zip(shards, texts)])

    def digest(self, texts: Sequence[str]) -> str:
        """SHA-256 over what the cache gives for some prompts, in any order; other prompts do not change it."""
        self.require(texts)
        lines = sorted(f"{prompt_key(text)} {self._shard_of[text].digest(text)}" for text in set(texts))
        return hashlib.sha256("\n".join([f"{self.tokens} {self.masked}", *lines]).encode()).hexdigest()


class _Shard:
    """The prompts of one file: its header, checked, and tensors read on first use.

    The file is mapped, not held open; replacing the file does not change the data read here. `keys` are the
    tensor names by prompt, the other attributes are as in `PromptCache`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._file = open_tensors(path)
        self._header = header_of(self._file)
        self._checked: set[str] = set()  # tensors that have been read once, found as they were written, and finite
        entry = self._metadata()
        self.keys = {text: key for key, text in entry["prompts"].items()}
        shapes = [self._shape(key) for key in entry["prompts"]]
        longest, self.dim = max(tokens for tokens, _ in shapes), shapes[0][1]
        if any(dim != self.dim for _, dim in shapes):
            raise RMDError(f"{path}: its embeddings have different widths; make the cache again")
        self.tokens: int = entry.get("tokens", longest)
        if type(self.tokens) is not int or not longest <= self.tokens <= MAX_TOKENS:
            raise RMDError(
                f"{path} pads its prompts to {short_repr(self.tokens)} tokens, but one has {longest}, and the limit "
                f"is {MAX_TOKENS}; make the cache again"
            )
        self.encoder: str = entry["encoder"]
        self.masked: bool = entry.get("masked", False)
        self.negative: str = entry.get("negative", NULL_PROMPT)
        self.precision: str | None = entry.get("precision")
        self.pooled_dim: int | None = entry.get("pooled")
        self._digests: dict[str, str] = entry.get("digests", {})
        if (
            type(self.masked) is not bool
            or not isinstance(self.negative, str)
            or not isinstance(self._digests, dict)
            or not isinstance(self.precision, (str, type(None)))
            or type(self.pooled_dim) not in (int, type(None))
        ):
            raise self._damaged()
        for key in entry["prompts"] if self.pooled_dim is not None else ():
            if key + POOLED not in self._header.tensors:
                raise RMDError(f"{path}: it has no tensor {key + POOLED!r}; copy it again")
            shape = self._header.tensors[key + POOLED].shape
            if shape != (self.pooled_dim,):
                raise RMDError(f"{path}: a pooled embedding has shape {shape}; ({self.pooled_dim},) is expected")

    def _metadata(self) -> dict[str, Any]:
        text = self._header.metadata.get(METADATA_KEY)
        if text is None:
            raise RMDError(f"{self.path} is not a prompt cache: it has no '{METADATA_KEY}' metadata")
        try:
            entry = json.loads(text)
            version, encoder, prompts = entry["version"], entry["encoder"], entry["prompts"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._damaged() from None
        if type(version) is not int or version != VERSION:
            raise RMDError(
                f"{self.path} is a prompt cache of version {short_repr(version)}; this program reads version {VERSION}"
            )
        if not isinstance(encoder, str) or not isinstance(prompts, dict) or not prompts:
            raise self._damaged()
        for key, prompt in prompts.items():
            if key not in self._header.tensors or not isinstance(prompt, str) or prompt_key(prompt) != key:
                raise RMDError(f"{self.path}: its entry for the prompt {short_repr(prompt)} is missing or damaged")
        return entry

    def _damaged(self) -> RMDError:
        return RMDError(f"{self.path}: its '{METADATA_KEY}' metadata is damaged; make the cache again")

    def _shape(self, key: str) -> tuple[int, int]:
        entry = self._header.tensors[key]
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise RMDError(f"{self.path}: an embedding has shape {entry.shape}; (tokens, dim) is expected")
        if entry.dtype not in DTYPES:
            raise RMDError(f"{self.path}: an embedding is {entry.dtype}; {', '.join(DTYPES)} are read")
        return entry.shape[0], entry.shape[1]

    def length(self, text: str) -> int:
        """How many tokens a prompt has."""
        return self._header.tensors[self.keys[text]].shape[0]

    def read(self, name: str) -> torch.Tensor:
        """A copy of one tensor in float32; RMDError where it is not what was written, or not finite."""
        stored = self._file.get_tensor(name)
        tensor = stored.to(torch.float32, copy=True)
        if name not in self._checked:
            if name in self._digests and tensor_digest(stored) != self._digests[name]:
                raise RMDError(
                    f"{self.path}: damaged, the embedding {name[:80]!r} differs from the one that was written; "
                    "copy it again"
                )
            if not tensor.isfinite().all():
                raise RMDError(
                    f"{self.path}: the embedding {name[:80]!r} holds values that are not finite; make it again"
                )
            self._checked.add(name)
        return tensor

    def digest(self, text: str) -> str:
        """SHA-256 of what is stored of a prompt: of the bytes of its embedding and of its pooled one, with dtypes."""
        names = [self.keys[text], *([self.keys[text] + POOLED] if self.pooled_dim is not None else [])]
        parts = []
        for name in names:
            stored = self._digests.get(name) or tensor_digest(self._file.get_tensor(name))
            parts.append(f"{self._header.tensors[name].dtype} {stored}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_shard(file: str | Path) -> _Shard:
    try:
        return _Shard(file)
    except RMDError as error:
        if not SHARD_NAME.fullmatch(Path(file).name) or not os.path.exists(file):
            raise
        raise RMDError(
            f"{error}; or delete this one file and encode its prompts again: python -m training.encode_prompts"
        ) from None


def _check_match(first: _Shard, shard: _Shard) -> None:
    """Raise RMDError unless two files can be one cache."""
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
                f"{shard.path} and {first.path} cannot be in one cache: the {what} is {short_repr(here)} in one and "
                f"{short_repr(there)} in the other; move one of them out of the folder"
            )

"""One safetensors file of prompt embeddings, keyed by the SHA-256 of each prompt, bound to a text encoder.

Optional metadata: `pooled`, the width of a pooled embedding that every prompt has under its key and `.pooled`;
`masked`, true where the network masks the padding, so that a prompt alone is to be given without any; `negative`, the
text that was encoded for the null prompt, where it is not the empty one; `precision`, the encoder's own, such as
float32; `digests`, the SHA-256 of each tensor's bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch

from .errors import RMDError
from .tensor_file import TensorFile

METADATA_KEY = "rmd.prompt_cache"
VERSION = 1
NULL_PROMPT = ""
"""What guidance is guided away from."""

MOST_TOKENS = 65_536
"""The most tokens that prompts are padded to; a damaged header would ask for more memory than there is."""

POOLED = ".pooled"
"""What follows a prompt's key in the name of its pooled embedding."""

DTYPES = ("F64", "F32", "F16", "BF16")
"""What embeddings are stored in."""

SHARD_NAME = re.compile(r"prompts-(\d{5,})\.safetensors")
"""What the files of a cache that is a folder are called by the program that makes them."""


def prompt_key(text: str) -> str:
    """The tensor name of a prompt: the SHA-256 of its UTF-8 text, as 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def shown(text: object) -> str:
    """A prompt as a message quotes it: on one line, and not all of a long one."""
    quoted = repr(text)
    return quoted if len(quoted) <= 80 else quoted[:77] + "..."


class PromptShard:
    """The prompts of one file, by its header; a tensor is read when it is asked for.

    `keys`: tensor names by prompt. `tokens`, `dim`, `pooled_dim`, `masked`, `encoder`: as in `PromptCache`; `negative`:
    the text that the null prompt was made of; `precision`: the encoder's, None where the file does not say it. Raises
    RMDError for a file that is no prompt cache.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._file: TensorFile | None = TensorFile(path)
        self._header = self._file.header
        self._checked: set[str] = set()  # the tensors that have been read once: as they were written, and finite
        entry = self._entry()
        self.encoder: str = entry["encoder"]
        self.keys = {text: key for key, text in entry["prompts"].items()}
        shapes = [self._shape(key) for key in entry["prompts"]]
        longest = max(shape[0] for shape in shapes)
        self.tokens: int = entry.get("tokens", longest)
        if type(self.tokens) is not int or not longest <= self.tokens <= MOST_TOKENS:
            raise RMDError(
                f"{path} pads its prompts to {shown(self.tokens)} tokens, but one has {longest}, and {MOST_TOKENS} are "
                "the most; make the cache again"
            )
        self.dim: int = shapes[0][1]
        if any(shape[1] != self.dim for shape in shapes):
            raise RMDError(f"{path}: its embeddings have different widths; make the cache again")
        self.masked: bool = entry.get("masked", False)
        self.negative: str = entry.get("negative", NULL_PROMPT)
        self.pooled_dim: int | None = entry.get("pooled")
        self.precision: str | None = entry.get("precision")
        self._digests: dict[str, str] = entry.get("digests", {})
        if (
            type(self.masked) is not bool
            or not isinstance(self.negative, str)
            or not isinstance(self._digests, dict)
            or not isinstance(self.precision, (str, type(None)))
            or not (self.pooled_dim is None or type(self.pooled_dim) is int)
        ):
            raise self._damaged()
        if self.pooled_dim is not None:
            for key in entry["prompts"]:
                shape = self._file.entry(key + POOLED).shape
                if shape != (self.pooled_dim,):
                    raise RMDError(f"{path}: a pooled embedding has shape {shape}; ({self.pooled_dim},) is expected")

    def close(self) -> None:
        """Let the file go until something is read again."""
        self._file = None

    def length(self, text: str) -> int:
        """How many tokens a prompt has."""
        return self._header.tensors[self.keys[text]].shape[0]

    def row(self, text: str) -> torch.Tensor:
        """A prompt's embedding (tokens, dim) in float32, without padding."""
        return self._read(self.keys[text])

    def pooled(self, text: str) -> torch.Tensor:
        """A prompt's pooled embedding (pooled_dim,) in float32."""
        return self._read(self.keys[text] + POOLED)

    def digest(self, text: str) -> str:
        """SHA-256 of what is stored of a prompt: of the bytes of its embedding and of its pooled one, with dtypes."""
        names = [self.keys[text], *([self.keys[text] + POOLED] if self.pooled_dim is not None else [])]
        parts = [f"{self._header.tensors[name].dtype} {self._digests.get(name) or self._sum(name)}" for name in names]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._opened().read(name).float()
        if name not in self._checked:
            self._check(name, tensor)
            self._checked.add(name)
        return tensor

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        if name in self._digests and self._sum(name) != self._digests[name]:
            raise RMDError(
                f"{self.path}: damaged, the embedding {name[:80]!r} is not the one that was written; copy it again"
            )
        if not tensor.isfinite().all():
            raise RMDError(f"{self.path}: the embedding {name[:80]!r} holds values that are not finite; make it again")

    def _sum(self, name: str) -> str:
        return self._opened().digest(name)

    def _opened(self) -> TensorFile:
        if self._file is None:
            file = TensorFile(self.path)
            if file.header != self._header:
                raise RMDError(f"{self.path} was changed while it was in use; start again")
            self._file = file
        return self._file

    def _entry(self) -> dict:
        text = self._header.metadata.get(METADATA_KEY)
        if text is None:
            raise RMDError(f"{self.path} is no prompt cache: it has no '{METADATA_KEY}' metadata")
        try:
            entry = json.loads(text)
            version, encoder, prompts = entry["version"], entry["encoder"], entry["prompts"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._damaged() from None
        if type(version) is not int or version != VERSION:
            raise RMDError(
                f"{self.path} is a prompt cache of version {shown(version)}; this program reads version {VERSION}"
            )
        if not isinstance(encoder, str) or not isinstance(prompts, dict) or not prompts:
            raise self._damaged()
        for key, prompt in prompts.items():
            if key not in self._header.tensors or not isinstance(prompt, str) or prompt_key(prompt) != key:
                raise RMDError(f"{self.path}: its entry for the prompt {shown(prompt)} is missing or damaged")
        return entry

    def _damaged(self) -> RMDError:
        return RMDError(f"{self.path}: its '{METADATA_KEY}' metadata is damaged; make the cache again")

    def _shape(self, key: str) -> tuple[int, ...]:
        entry = self._header.tensors[key]
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise RMDError(f"{self.path}: an embedding has shape {entry.shape}; (tokens, dim) is expected")
        if entry.dtype not in DTYPES:
            raise RMDError(f"{self.path}: an embedding is {entry.dtype}; {', '.join(DTYPES)} are read")
        return entry.shape

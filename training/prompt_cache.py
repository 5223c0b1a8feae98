"""Prompt embeddings on disk: one safetensors file, keyed by the SHA-256 of each prompt, bound to its text encoder."""

import hashlib
import json

import torch
from torch.nn.functional import pad

from rmd_core.errors import RMDError
from rmd_core.header import save_safetensors

from .tensor_files import open_tensors

METADATA_KEY = "rmd.prompt_cache"
VERSION = 1
NULL_PROMPT = ""  # what guidance is guided away from


def prompt_key(text):
    """The tensor name of a prompt: the SHA-256 of its UTF-8 text, as 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_prompt_cache(path, embeddings, *, encoder, tokens=None, dtype=torch.float16):
    """Write ``{prompt: (tokens, dim) tensor}`` as one cache file; the null prompt is the empty text.

    ``encoder``: a name for the text encoder that made the embeddings; a reader can insist on it. ``tokens``: the length
    to which a reader pads every prompt, None for the longest one now; give it to add longer prompts later, as a network
    sees the padding. Raises RMDError for an embedding of the wrong shape or a file that cannot be written.
    """
    widths = {tuple(value.shape[1:]) for value in embeddings.values()}
    if len(widths) != 1 or len(next(iter(widths))) != 1:
        raise RMDError(
            f"prompt embeddings must all be (tokens, dim) with one dim, got trailing shapes {sorted(widths)}"
        )
    if NULL_PROMPT not in embeddings:
        raise RMDError("a prompt cache needs the embedding of the empty text, the null prompt")
    longest = max(len(value) for value in embeddings.values())
    if tokens is not None and tokens < longest:
        raise RMDError(f"a prompt has {longest} tokens, more than the {tokens} that every prompt is padded to")
    prompts = {prompt_key(text): text for text in embeddings}
    entry = {"version": VERSION, "encoder": encoder, "tokens": tokens or longest, "prompts": prompts}
    tensors = {prompt_key(text): value.to(dtype) for text, value in embeddings.items()}
    save_safetensors(path, tensors, {METADATA_KEY: json.dumps(entry, sort_keys=True)})


class PromptCache:
    """Prompt embeddings read from a cache file as they are asked for.

    ``encoder``: refuse a file made by another text encoder. Raises RMDError for a file that is no cache.
    """

    def __init__(self, path, *, encoder=None):
        self.path = path
        self._file = open_tensors(path)
        entry = self._entry()
        if encoder is not None and entry["encoder"] != encoder:
            raise RMDError(
                f"{path} was made by the text encoder '{entry['encoder']}', not by '{encoder}'; make the cache again"
            )
        self.encoder = entry["encoder"]
        self._keys = {text: key for key, text in entry["prompts"].items()}
        shapes = [self._shape(key) for key in entry["prompts"]]
        longest = max(shape[0] for shape in shapes)
        self.tokens = entry.get("tokens", longest)
        if type(self.tokens) is not int or self.tokens < longest:
            raise RMDError(
                f"{path} pads its prompts to {self.tokens!r} tokens, but one has {longest}; make the cache again"
            )
        self.dim = shapes[0][1]
        if any(shape[1] != self.dim for shape in shapes):
            raise RMDError(f"{path}: its embeddings have different widths; make the cache again")

    @property
    def texts(self):
        """All prompts but the null prompt, in sorted order."""
        return tuple(sorted(text for text in self._keys if text != NULL_PROMPT))

    def require(self, texts):
        """Raise RMDError unless every one of ``texts`` is in the cache."""
        absent = [text for text in texts if text not in self._keys]
        if absent:
            raise RMDError(
                f"{self.path} lacks {len(absent)} of {len(texts)} prompts, first '{absent[0]}'; add them to the cache"
            )

    def batch(self, texts):
        """Embeddings (B, tokens, dim) in float32, zero-padded to the cache's number of tokens."""
        self.require(texts)
        rows = [self._file.get_tensor(self._keys[text]).float() for text in texts]
        return torch.stack([pad(row, (0, 0, 0, self.tokens - len(row))) for row in rows])

    def _entry(self):
        text = (self._file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            raise RMDError(f"{self.path} is no prompt cache: it has no '{METADATA_KEY}' metadata")
        try:
            entry = json.loads(text)
            version, encoder, prompts = entry["version"], entry["encoder"], entry["prompts"]
        except (ValueError, TypeError, KeyError):
            raise RMDError(f"{self.path}: its '{METADATA_KEY}' metadata is damaged; make the cache again") from None
        if version != VERSION:
            raise RMDError(f"{self.path} is a prompt cache of version {version}; this program reads version {VERSION}")
        if not isinstance(encoder, str) or not isinstance(prompts, dict) or not prompts:
            raise RMDError(f"{self.path}: its '{METADATA_KEY}' metadata is damaged; make the cache again")
        stored = set(self._file.keys())
        for key, prompt in prompts.items():
            if key not in stored or not isinstance(prompt, str) or prompt_key(prompt) != key:
                raise RMDError(f"{self.path}: its entry for the prompt '{prompt}' is missing or damaged")
        return entry

    def _shape(self, key):
        shape = tuple(self._file.get_slice(key).get_shape())
        if len(shape) != 2 or 0 in shape:
            raise RMDError(f"{self.path}: an embedding has shape {shape}; (tokens, dim) is expected")
        return shape

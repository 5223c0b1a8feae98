"""Prompt lists, and prompt embeddings written as caches that ``rmd_core.prompt_cache`` reads."""

import contextlib
import json
from pathlib import Path

import torch

from rmd_core.errors import RMDError
from rmd_core.files import lock_file, make_folder, save_safetensors, tensor_digest
from rmd_core.prompt_cache import (
    METADATA_KEY,
    NULL_PROMPT,
    POOLED,
    SHARD_NAME,
    VERSION,
    PromptCache,
    prompt_key,
    shard_files,
)


def read_prompts(path):
    """The prompts of a ``.txt`` file (one a line) or a ``.jsonl`` file (objects with a ``prompt``), as a tuple.

    Blank lines are skipped. Raises RMDError for a missing, empty or malformed file.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise RMDError(f"{path}: a prompt file must end in .txt (one prompt a line) or .jsonl")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines cuts at characters inside of prompts too
    except FileNotFoundError:
        raise RMDError(f"the prompt file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RMDError(f"the prompt file {path} cannot be read as UTF-8 text ({error})") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        prompt = line.strip()
        if prompt and path.suffix == ".jsonl":
            try:
                prompt = json.loads(prompt)["prompt"].strip()
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                prompt = ""
            if not prompt:
                raise RMDError(f'{path}, line {number}: expected an object like {{"prompt": "a red apple"}}')
        if prompt:
            prompts.append(prompt)
    if not prompts:
        raise RMDError(f"the prompt file {path} is empty; write one prompt a line")
    return tuple(prompts)


def open_cache(path, *, encoder=None):
    """The PromptCache at ``path``, or None where nothing is cached yet. Raises RMDError for another encoder's."""
    path = Path(path)
    return PromptCache(path, encoder=encoder) if path.is_file() or shard_files(path) else None


def write_prompt_cache(
    path,
    embeddings,
    *,
    encoder,
    pooled=None,
    masked=False,
    tokens=None,
    negative=NULL_PROMPT,
    precision=None,
    dtype=torch.float16,
):
    """Write ``{prompt: (tokens, dim) tensor}`` as one cache file; the null prompt is the empty text.

    ``pooled``: ``{prompt: (width,) tensor}`` for the same prompts. ``masked``: whether the network masks the padding.
    ``tokens``: the length that a reader pads prompts to, None for the longest one here. ``negative``: the text of the
    null prompt's embedding. ``precision``: the encoder's, such as ``float32``; ``dtype``: the file's. Raises RMDError
    for an embedding of the wrong shape or a file that cannot be written.
    """
    shapes = {tuple(value.shape[1:]) for value in embeddings.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise RMDError(
            f"prompt embeddings must all be (tokens, dim) with one dim, got trailing shapes {sorted(shapes)}"
        )
    if NULL_PROMPT not in embeddings:
        raise RMDError("a prompt cache needs the embedding of the empty text, the null prompt")
    longest = max(len(value) for value in embeddings.values())
    if tokens is not None and tokens < longest:
        raise RMDError(f"a prompt has {longest} tokens, more than the {tokens} that every prompt is padded to")
    prompts = {prompt_key(text): text for text in embeddings}
    entry = {"version": VERSION, "encoder": encoder, "tokens": tokens or longest, "prompts": prompts}
    tensors = {prompt_key(text): value.to(dtype) for text, value in embeddings.items()}
    if pooled is not None:
        shapes = {tuple(value.shape) for value in pooled.values()}
        if pooled.keys() != embeddings.keys() or len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise RMDError(f"every prompt needs a pooled embedding of one width, got shapes {sorted(shapes)}")
        entry["pooled"] = len(pooled[NULL_PROMPT])
        tensors |= {prompt_key(text) + POOLED: value.to(dtype) for text, value in pooled.items()}
    if masked:
        entry["masked"] = True
    if negative != NULL_PROMPT:
        entry["negative"] = negative
    if precision is not None:
        entry["precision"] = precision
    entry["digests"] = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    save_safetensors(path, tensors, {METADATA_KEY: json.dumps(entry, sort_keys=True)})


class CacheFolder:
    """A prompt cache that can be added to: a folder of files (shards), each written once, atomically, by one process.

    Raises RMDError for a path that is a file or named like one.
    """

    def __init__(self, path):
        self.path = Path(path)
        if self.path.is_file():
            raise RMDError(
                f"{path} is a single file, which cannot be extended; move it into its own folder, such as "
                f"{self.path.with_suffix('')}, and give that folder"
            )
        if self.path.suffix in (".safetensors", ".sft"):
            raise RMDError(
                f"{path}: a prompt cache is a folder of safetensors files; give the name of a folder, such as "
                f"{self.path.with_suffix('')}"
            )

    @contextlib.contextmanager
    def alone(self):
        """Within the block no other process adds prompts; what a killed one left half written is removed.

        Makes the folder. Raises RMDError where another process is adding prompts.
        """
        make_folder(self.path)
        taken = f"another process is adding prompts to {self.path}; wait until it has ended, and start this one again"
        with lock_file(self.path / ".lock", taken):
            for part in self.path.glob(".*.part"):
                part.unlink(missing_ok=True)
            yield

    def add(self, encoded, **settings):
        """Write ``{prompt: Encoded}``, the null prompt among them, as one more file; ``settings``: as for a file."""
        numbers = (SHARD_NAME.fullmatch(path.name) for path in shard_files(self.path))
        number = 1 + max((int(match[1]) for match in numbers if match), default=-1)
        pooled = {text: value.pooled for text, value in encoded.items()}
        write_prompt_cache(
            self.path / f"prompts-{number:05d}.safetensors",
            {text: value.embedding for text, value in encoded.items()},
            pooled=None if pooled[NULL_PROMPT] is None else pooled,
            **settings,
        )

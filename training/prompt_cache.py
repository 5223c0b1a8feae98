"""Prompt embeddings written to one safetensors file; rmd_core.prompt_cache reads it."""

import json

import torch

from rmd_core.errors import RMDError
from rmd_core.header import save_safetensors
from rmd_core.prompt_cache import METADATA_KEY, NULL_PROMPT, POOLED, VERSION, PromptCache, prompt_key

__all__ = ["METADATA_KEY", "NULL_PROMPT", "PromptCache", "prompt_key", "write_prompt_cache"]


def write_prompt_cache(path, embeddings, *, encoder, pooled=None, masked=False, tokens=None, dtype=torch.float16):
    """Write ``{prompt: (tokens, dim) tensor}`` as one cache file; the null prompt is the empty text.

    ``pooled``: ``{prompt: (width,) tensor}`` for the same prompts, where the network takes it. ``masked``: whether the
    network masks the padding.

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
    widths = {tuple(value.shape) for value in (pooled or {}).values()}
    if pooled is not None and (pooled.keys() != embeddings.keys() or len(widths) != 1 or len(next(iter(widths))) != 1):
        raise RMDError(f"every prompt needs a pooled embedding of one width, got shapes {sorted(widths)}")
    longest = max(len(value) for value in embeddings.values())
    if tokens is not None and tokens < longest:
        raise RMDError(f"a prompt has {longest} tokens, more than the {tokens} that every prompt is padded to")
    prompts = {prompt_key(text): text for text in embeddings}
    entry = {"version": VERSION, "encoder": encoder, "tokens": tokens or longest, "prompts": prompts}
    tensors = {prompt_key(text): value.to(dtype) for text, value in embeddings.items()}
    if pooled is not None:
        entry["pooled"] = len(next(iter(pooled.values())))
        tensors |= {prompt_key(text) + POOLED: value.to(dtype) for text, value in pooled.items()}
    if masked:
        entry["masked"] = True
    save_safetensors(path, tensors, {METADATA_KEY: json.dumps(entry, sort_keys=True)})

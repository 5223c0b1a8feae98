"""Encode prompts once with a model's own text encoders, for training to read.

    python -m training.encode_prompts --model FOLDER --prompts prompts.txt --out cache.safetensors

Prompts that the cache already holds are not encoded again, and an interrupted command goes on where it was. Exit codes:
0 done, 2 bad input or no place to write, 130 stopped by Ctrl-C.
"""

import argparse
import json
import logging
import shutil
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from rmd_core.errors import RMDError
from rmd_core.header import read_header, save_safetensors
from rmd_core.prompt_cache import NULL_PROMPT, POOLED, PromptCache, prompt_key

from .files import make_folder, write_json
from .prompt_cache import write_prompt_cache
from .prompts import read_prompts
from .tensor_files import open_tensors
from .text_encoders import Encoded, TextEncoders

log = logging.getLogger(__name__)

DTYPE = torch.float16


class Shards:
    """What is encoded so far: a folder beside the cache, files of some prompts each, whole or absent.

    ``terms``: what all of them have in common, such as the encoder. Raises RMDError for a folder with other terms.
    """

    def __init__(self, out, terms):
        self.folder = Path(f"{out}.parts")
        manifest = self.folder / "manifest.json"
        if manifest.is_file():
            try:
                found = json.loads(manifest.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                found = None
            if found != terms:
                raise RMDError(f"{self.folder} was begun with other settings; delete it, or use the same ones again")
        else:
            make_folder(self.folder)
            write_json(manifest, terms)

    def keys(self):
        """The prompt keys that are encoded."""
        return {name for path in self._files() for name in read_header(path).tensors if not name.endswith(POOLED)}

    def add(self, encoded):
        """Write ``{prompt: Encoded}`` as one more file."""
        number = 1 + max((int(path.stem) for path in self._files()), default=-1)
        tensors = {prompt_key(text): _finite(text, value.embedding) for text, value in encoded.items()}
        tensors |= {
            prompt_key(text) + POOLED: _finite(text, value.pooled)
            for text, value in encoded.items()
            if value.pooled is not None
        }
        save_safetensors(self.folder / f"{number:05d}.safetensors", tensors)

    def read(self):
        """All tensors by name, mapped from the files."""
        tensors = {}
        for path in self._files():
            file = open_tensors(path)
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors

    def remove(self):
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self):
        return sorted(self.folder.glob("[0-9]*.safetensors"))


def encode_prompts(encoders, prompts, out, *, negative=NULL_PROMPT, batch=8, shard=256):
    """Write the cache of ``prompts`` and the null prompt at ``out``; returns how many prompts were encoded.

    As ``encoding``, in one go.
    """
    return sum(encoding(encoders, prompts, out, negative=negative, batch=batch, shard=shard))


def encoding(encoders, prompts, out, *, negative=NULL_PROMPT, batch=8, shard=256):
    """Write the cache of ``prompts`` and the null prompt at ``out``, as a generator over numbers of prompts encoded.

    ``encoders``: a ``TextEncoders``, which is loaded only if something is missing. ``negative``: what the teacher is
    guided away from. What ``out`` holds already is kept, but for the null prompt where a ``negative`` is given. Raises
    RMDError for an ``out`` made by other encoders.
    """
    identity = encoders.identity
    known = PromptCache(out, encoder=identity) if Path(out).exists() else None
    terms = {"version": 1, "encoder": identity, "dtype": str(encoders.dtype), "batch": batch, "negative": negative}
    shards = Shards(out, terms)
    done = shards.keys()
    wanted = [text for text in dict.fromkeys(prompts) if text != NULL_PROMPT and (known is None or text not in known)]
    missing = [text for text in wanted if prompt_key(text) not in done]
    if known is None or NULL_PROMPT not in known or negative != NULL_PROMPT:
        wanted.insert(0, NULL_PROMPT)
    null_missing = NULL_PROMPT in wanted and prompt_key(NULL_PROMPT) not in done
    if missing or null_missing:
        with encoders:
            if null_missing:
                shards.add({NULL_PROMPT: encoders.encode_null(negative)})
            with tqdm(total=len(missing), unit="prompt", dynamic_ncols=True) as bar:
                for start in range(0, len(missing), shard):
                    part, encoded = missing[start : start + shard], {}
                    for first in range(0, len(part), batch):
                        texts = part[first : first + batch]
                        encoded |= dict(zip(texts, encoders.encode(texts)))
                        bar.update(len(texts))
                    shards.add(encoded)
                    yield len(encoded)
    tensors = shards.read()
    texts = dict.fromkeys(wanted, tensors)
    if known is not None:
        file = open_tensors(out)
        old = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        texts = dict.fromkeys((NULL_PROMPT, *known.texts), old) | texts
    whole = {text: _read(source, text) for text, source in texts.items()}
    pooled = {text: value.pooled for text, value in whole.items()}
    write_prompt_cache(
        out,
        {text: value.embedding for text, value in whole.items()},
        encoder=identity,
        pooled=None if pooled[NULL_PROMPT] is None else pooled,
        masked=encoders.masked,
        tokens=encoders.length,
        dtype=DTYPE,
    )
    shards.remove()


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        if arguments.batch < 1 or (arguments.tokens is not None and arguments.tokens < 1):
            raise RMDError("--batch and --tokens are 1 or more")
        prompts = read_prompts(arguments.prompts)
        device = arguments.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        encoders = TextEncoders(
            arguments.model, device=device, dtype=getattr(torch, arguments.dtype), tokens=arguments.tokens
        )
        make_folder(Path(arguments.out).parent)
        count = encode_prompts(encoders, prompts, arguments.out, negative=arguments.negative, batch=arguments.batch)
        cache = PromptCache(arguments.out)
    except RMDError as error:
        return _say(f"error: {' '.join(str(error).split())}", 2)
    except KeyboardInterrupt:
        return _say("stopped; the same command goes on where it was", 130)
    log.info("%s: %d prompts, %d of them new, encoder %s", arguments.out, len(cache.texts), count, cache.encoder)
    return 0


def _read(tensors, text):
    key = prompt_key(text)
    return Encoded(tensors[key], tensors.get(key + POOLED))


def _finite(text, tensor):
    cast = tensor.to(DTYPE)
    if not torch.isfinite(cast).all():
        raise RMDError(f"the embedding of {text[:60]!r} is not finite in float16; try --dtype float32")
    return cast


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="See docs/training.md.")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="Diffusers-format folder with text encoders")
    parser.add_argument("--prompts", required=True, metavar="FILE", help=".txt (one a line) or .jsonl")
    parser.add_argument("--out", required=True, metavar="FILE", help="the cache, a safetensors file")
    parser.add_argument("--negative", default=NULL_PROMPT, metavar="TEXT", help="what the teacher is guided away from")
    parser.add_argument("--tokens", type=int, metavar="N", help="length of a text; the family's own if left out")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="prompts encoded together")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the encoders' weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, or a device's name")
    return parser


def _say(text, code):
    print(text, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

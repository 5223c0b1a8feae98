"""Encode prompts once with a model's own text encoders, for training to read.

    python -m training.encode_prompts --model FOLDER --prompts prompts.txt --out CACHE

The cache is a folder of safetensors files. Prompts that it already contains are not encoded again, and an interrupted
command continues where it was. Exit codes: 0 done, 2 bad input, no memory or no place to write, 130 stopped by Ctrl-C.

A training run whose configuration names text encoders fills its cache in the same way before it trains: ``make_cache``.
One without a cache keeps the encoders loaded: ``LiveCache``.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import pad
from tqdm import tqdm

from rmd_core.errors import RMDError, one_line, short_repr
from rmd_core.prompt_cache import NULL_PROMPT, PromptCache

from .backbones import make_backbone
from .hub import ENCODERS, fetched, fetching, local_path
from .offload import ran_out_of_memory
from .prompts import CacheFolder, open_cache, read_prompts
from .text_encoders import Encoded, TextEncoders

log = logging.getLogger(__name__)

DTYPE = torch.float16  # of the cache
SHARD = 256  # prompts of one file besides the null prompt; they take up to 1 GiB for Wan, 2 GiB for FLUX.2 klein


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    arguments = _parser().parse_args(argv)

    def work(device):
        if arguments.batch < 1 or (arguments.tokens is not None and arguments.tokens < 1):
            raise RMDError("--batch and --tokens must be at least 1")
        prompts = read_prompts(arguments.prompts)
        CacheFolder(arguments.out)
        folder, dtype = fetched(arguments.model, ENCODERS), getattr(torch, arguments.dtype)
        encoders = TextEncoders(folder, device=device, dtype=dtype, tokens=arguments.tokens)
        count = encode_prompts(encoders, prompts, arguments.out, negative=arguments.negative, batch=arguments.batch)
        cache = PromptCache(arguments.out)
        made_by = f"encoder {cache.encoder}, in {' and '.join(cache.precisions) or 'unknown precision'}"
        log.info("%s: %d prompts, %d of them new, %s", arguments.out, len(cache.texts), count, made_by)

    return exit_code(
        work,
        arguments.device,
        memory="a smaller --batch needs less",
        stopped="the same command continues where it was",
    )


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="See docs/train/prompts.md.")
    parser.add_argument(
        "--model", required=True, metavar="FOLDER", help="Diffusers-format folder with text encoders, or a hub id"
    )
    parser.add_argument("--prompts", required=True, metavar="FILE", help=".txt (one a line) or .jsonl")
    parser.add_argument("--out", required=True, metavar="CACHE", help="the cache, a folder of safetensors files")
    parser.add_argument("--negative", default=NULL_PROMPT, metavar="TEXT", help="negative prompt of the teacher")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens of each prompt; default: the family's length")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="prompts encoded together")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the encoders")
    parser.add_argument("--device", default="auto", help="auto, cpu, or a device's name")
    return parser


def usable_device(device):
    """The name of a device that PyTorch can use; ``auto``: a GPU if there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error, 200)
        raise RMDError(f"--device {device}: PyTorch cannot use it ({reason}); choose auto or cpu") from None
    return device


def exit_code(work, device, *, memory, stopped):
    """Run a program's ``work(device)`` on a usable device; returns its exit code, and prints why it is not 0.

    1 where the memory ran out, and ``memory`` says what needs less; 2 for an RMDError; 130 for Ctrl-C, after which
    ``stopped`` says how to go on.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        device = usable_device(device)
        work(device)
    except RMDError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        print(f"error: the memory of {device} ran out ({one_line(error, 200)}); {memory}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; {stopped}", file=sys.stderr)
        return 130
    return 0


def encode_prompts(encoders, prompts, out, *, negative=NULL_PROMPT, batch=8, shard=SHARD):
    """Add what is missing to the cache ``out``, as ``encoding`` does, and return how many prompts were encoded."""
    return sum(encoding(encoders, prompts, out, negative=negative, batch=batch, shard=shard))


def encoding(encoders, prompts, out, *, negative=NULL_PROMPT, batch=8, shard=SHARD):
    """Add ``prompts`` and the null prompt to the cache ``out``, as a generator over numbers of prompts encoded.

    ``encoders``: a ``TextEncoders``, loaded only if something is missing. ``negative``: what the teacher is guided away
    from; the empty text for the cache's own. Each step writes a file of ``shard`` prompts, an interruption what is
    encoded by then. Raises RMDError for an ``out`` of other encoders or another ``negative``, or one in use.
    """
    folder, identity = CacheFolder(out), encoders.identity
    open_cache(out, encoder=identity)  # refuses another cache before anything is written
    with folder.alone():
        known, null = open_cache(out, encoder=identity), None
        missing = [text for text in dict.fromkeys(prompts) if text != NULL_PROMPT and text not in (known or ())]
        if known is not None and NULL_PROMPT in known:
            if negative not in (NULL_PROMPT, known.negative):
                raise RMDError(
                    f"the null prompt of {known.path} was made of {short_repr(known.negative)}, not of "
                    f"{short_repr(negative)}; make another cache, or leave the negative text out"
                )
            negative, pooled = known.negative, known.pooled([NULL_PROMPT])
            null = Encoded(known.row(NULL_PROMPT), None if pooled is None else pooled[0])
            if not missing:
                return
        precision = str(encoders.dtype).removeprefix("torch.")
        others = [] if known is None else [other for other in known.precisions if other != precision]
        if others:
            log.warning(
                "warning: %s contains prompts that were encoded in %s, and the missing ones are encoded in %s; for one "
                "precision encode all of them into another cache",
                *(out, " and ".join(others), precision),
            )
        settings = {"encoder": identity, "masked": encoders.masked, "tokens": encoders.length, "dtype": DTYPE}
        settings |= {"negative": negative, "precision": precision}
        with _device_errors(encoders.device, batch), encoders:
            null = null or _as_stored(negative, encoders.encode_null(negative))
            with tqdm(total=len(missing), unit="prompt", dynamic_ncols=True) as bar:
                for start in range(0, max(1, len(missing)), shard):
                    part, encoded = missing[start : start + shard], {}
                    try:
                        for first in range(0, len(part), batch):
                            texts = part[first : first + batch]
                            encoded |= {text: _as_stored(text, e) for text, e in zip(texts, encoders.encode(texts))}
                            bar.update(len(texts))
                    finally:
                        if encoded or not part:
                            folder.add({NULL_PROMPT: null} | encoded, **settings)
                    yield len(encoded)


def _as_stored(text, encoded):
    """What was encoded, in the precision of the cache. Raises RMDError where that is not finite."""
    tensors = [None if tensor is None else tensor.to(DTYPE) for tensor in (encoded.embedding, encoded.pooled)]
    if not all(torch.isfinite(tensor).all() for tensor in tensors if tensor is not None):
        raise RMDError(
            f"the embedding of {short_repr(text)} is not finite in float16; the encoders' weights are damaged, or need "
            "--dtype float32"
        )
    return Encoded(*tensors)


@contextlib.contextmanager
def _device_errors(device, batch):
    """A device's failure as an RMDError with advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        how = "ran out of memory" if ran_out_of_memory(error) else "failed"
        raise RMDError(
            f"the text encoders {how} on {device} ({one_line(error, 200)}); the prompts encoded so far are "
            f"kept; run python -m training.encode_prompts with --batch below {batch}, --dtype bfloat16 or --device cpu"
        ) from None


@dataclass(frozen=True)
class PlannedCache:
    """What is known of a prompt cache before a run has filled it; ``texts``: the prompts but the null prompt."""

    encoder: str
    tokens: int
    texts: tuple


class LiveCache:
    """Embeddings encoded on first use, by encoders that stay on the device; otherwise like a PromptCache.

    They are rounded to a cache's precision, so that training sees what it would see from a cache. ``config``: of the
    run. Raises RMDError for wrong encoders.
    """

    def __init__(self, config, device):
        settings = config.prompts
        self.path, self.texts, self.negative = settings.encode_from, read_prompts(settings.file), settings.negative
        encoders = _encoders_of(config, device)
        self.encoder, self.masked = encoders.identity, encoders.masked
        self._encoders = encoders.__enter__()
        self._null = _as_stored(self.negative, encoders.encode_null(self.negative))
        self._last = {}
        self.tokens = encoders.length or len(self._null.embedding)
        self.dim = self._null.embedding.shape[-1]
        self.pooled_dim = None if self._null.pooled is None else self._null.pooled.shape[-1]
        log.info("prompts are encoded by %s as they come", self.path)

    def require(self, texts):
        """Raise nothing: a PromptCache would for a prompt it lacks, but here every text can be encoded."""

    def batch(self, texts):
        """Embeddings (B, tokens, dim) in float32, padded with zeros, on the CPU."""
        rows = [row.embedding.float() for row in self._encoded(texts)]
        return torch.stack([pad(row, (0, 0, 0, self.tokens - len(row))) for row in rows])

    def mask(self, texts):
        """Which tokens of ``batch`` are the prompt's own, (B, tokens): 1.0 for those, 0.0 for padding."""
        lengths = torch.tensor([len(row.embedding) for row in self._encoded(texts)])
        return (torch.arange(self.tokens) < lengths[:, None]).float()

    def pooled(self, texts):
        """Pooled embeddings (B, pooled_dim) in float32, or None where there are none."""
        return None if self.pooled_dim is None else torch.stack([row.pooled.float() for row in self._encoded(texts)])

    def digest(self, texts):
        """SHA-256 over what decides the embeddings of some texts, in any order."""
        content = [self.encoder, str(self._encoders.dtype), self.negative, *sorted(set(texts))]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _encoded(self, texts):
        """The Encoded of every text; those of the last call are kept, because callers read a batch one by one."""
        missing = [text for text in dict.fromkeys(texts) if text != NULL_PROMPT and text not in self._last]
        if missing:
            found = {text: _as_stored(text, e) for text, e in zip(missing, self._encoders.encode(missing))}
            self._last = {text: row for text, row in self._last.items() if text in texts} | found
        return [self._null if text == NULL_PROMPT else self._last[text] for text in texts]


def _encoders_of(config, device):
    """The TextEncoders of a run, not loaded yet. Raises RMDError for those of another name than it asks for."""
    settings = config.prompts
    encoders = TextEncoders(
        local_path(settings.encode_from), device=device, dtype=getattr(torch, config.train.precision)
    )
    if settings.encoder not in (None, encoders.identity):
        raise RMDError(
            f"{settings.encode_from} has the text encoder '{encoders.identity}', not prompts.encoder "
            f"'{settings.encoder}'; change one of them"
        )
    return encoders


def make_cache(config, *, device):
    """Encode the prompts of a run that are missing in ``prompts.cache`` with the encoders of ``prompts.encode_from``.

    A generator, whose step is the download of a file or the encoding of a file of prompts; without a cache the download
    alone. Raises RMDError for wrong encoders.
    """
    settings, folder = config.prompts, config.prompts.encode_from
    if settings.cache is None:
        yield from fetching(folder, ENCODERS)
        return
    texts, missing = _prompts_of(config)
    if not missing:
        return
    CacheFolder(settings.cache)
    yield from fetching(folder, ENCODERS)
    encoders = _encoders_of(config, device)
    log.info("%s is missing %d prompts, which are encoded now by %s", settings.cache, len(missing), folder)
    yield from encoding(encoders, texts, settings.cache, negative=settings.negative)


def planned_cache(config):
    """The PlannedCache where ``make_cache`` would encode, None where nothing is missing; writes and downloads nothing.

    Raises RMDError for a folder on this machine without the encoders, and a path where no cache can be made.
    """
    settings = config.prompts
    if settings.cache is None:
        texts = read_prompts(settings.file)
    else:
        texts, missing = _prompts_of(config)
        if not missing:
            return None
        CacheFolder(settings.cache)
        log.info(
            "%s is missing %d prompts, which a run encodes first by %s",
            *(settings.cache, len(missing), settings.encode_from),
        )
    if Path(settings.encode_from).is_dir():
        TextEncoders(settings.encode_from)
    tokens = make_backbone(config.backbone.name).prompt_tokens
    return PlannedCache(settings.encoder or f"of {settings.encode_from}, not asked yet", tokens, texts)


def _prompts_of(config):
    """(all texts that a run needs besides the null prompt, those of all that are missing in its cache)."""
    texts = (*read_prompts(config.prompts.file), *(config.output.validation_prompts or ()))
    known = open_cache(config.prompts.cache) or ()
    return texts, [text for text in dict.fromkeys((*texts, NULL_PROMPT)) if text not in known]


if __name__ == "__main__":
    sys.exit(main())

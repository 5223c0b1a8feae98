"""The prompt cache of a run that names text encoders: what it lacks is encoded, before anything is trained."""

import logging

import torch

from rmd_core.errors import RMDError

from .encode_prompts import encoding
from .hub import ENCODERS, fetching, located
from .prompt_cache import NULL_PROMPT, CacheFolder, open_cache
from .prompts import read_prompts
from .setup import outline_run
from .text_encoders import TextEncoders

log = logging.getLogger(__name__)


def make_cache(config, *, device):
    """Encode what ``prompts.cache`` lacks with the text encoders of ``prompts.encode_from``, as a generator.

    That is, of the prompts of ``prompts.file``, the validation prompts and the null prompt; where nothing is lacking,
    the encoders are not looked at. A step is a file of prompts, or one that is downloaded; what an interrupted run has
    encoded is not encoded again, and after the last step the encoders are freed. Raises RMDError for a folder without
    encoders, encoders that did not make the cache or are not ``prompts.encoder``, and whatever else is wrong with the
    configuration and can be told before.
    """
    wanted, folder = config.prompts, config.prompts.encode_from
    texts, lacking = _lacking(config)
    if not lacking:
        return
    CacheFolder(wanted.cache)
    outline_run(config)
    yield from fetching(folder, ENCODERS)
    encoders = TextEncoders(located(folder), device=device, dtype=getattr(torch, config.train.precision))
    identity = encoders.identity
    if wanted.encoder not in (None, identity):
        raise RMDError(
            f"{folder} has the text encoder '{identity}', not prompts.encoder '{wanted.encoder}'; change one of them"
        )
    log.info("%s lacks %d prompts, which are encoded now by %s", wanted.cache, len(lacking), folder)
    yield from encoding(encoders, texts, wanted.cache, negative=wanted.negative)


def refuse_to_make_cache(config):
    """Raise RMDError where ``make_cache`` would write: a dry run writes nothing."""
    _, lacking = _lacking(config)
    if lacking:
        raise RMDError(
            f"the prompt cache {config.prompts.cache} lacks {len(lacking)} prompts; a run encodes them first, but a "
            "dry run writes nothing: add them with python -m training.encode_prompts, or start the run"
        )


def _lacking(config):
    """(all texts that a run needs besides the null prompt, those of all that its cache lacks)."""
    texts = (*read_prompts(config.prompts.file), *(config.output.validation_prompts or ()))
    known = open_cache(config.prompts.cache) or ()
    return texts, [text for text in dict.fromkeys((*texts, NULL_PROMPT)) if text not in known]

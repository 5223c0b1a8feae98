"""The prompt cache of a run that names text encoders: what it lacks is encoded, before anything is trained."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from rmd_core.errors import RMDError

from .backbones import make_backbone
from .encode_prompts import encoding
from .hub import ENCODERS, fetching, located
from .memory import device_memory, estimate_memory, tell_memory
from .prompt_cache import NULL_PROMPT, CacheFolder, open_cache
from .prompts import read_prompts
from .setup import outline_run
from .text_encoders import TextEncoders

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheToBe:
    """What is known of a prompt cache before a run has filled it; ``texts``: the prompts but the null prompt."""

    encoder: str
    tokens: int
    texts: tuple


def make_cache(config, *, device, spread=1):
    """Encode what ``prompts.cache`` lacks with the text encoders of ``prompts.encode_from``, as a generator.

    That is, of the prompts of ``prompts.file``, the validation prompts and the null prompt; where nothing is lacking,
    the encoders are not looked at. A step is a file of prompts, or one that is downloaded; what an interrupted run has
    encoded is not encoded again, and after the last step the encoders are freed. Raises RMDError for a folder without
    encoders, encoders that did not make the cache or are not ``prompts.encoder``, and whatever else is wrong with the
    configuration and can be told before. The memory that the training will need is told before the encoders load; its
    MemoryEstimate is what the generator returns, or None where nothing is lacking. ``spread``: as in ``prepare``.
    """
    wanted, folder = config.prompts, config.prompts.encode_from
    texts, lacking = _lacking(config)
    if not lacking:
        return
    CacheFolder(wanted.cache)
    backbone, plan, _, outline = outline_run(config)

    def estimated(config):
        tokens = backbone.prompt_tokens
        return estimate_memory(config, backbone, outline, size=plan.final_hw, tokens=tokens, spread=spread)

    memory = tell_memory(config, estimated, *device_memory(config.train.device))
    yield from fetching(folder, ENCODERS)
    encoders = TextEncoders(located(folder), device=device, dtype=getattr(torch, config.train.precision))
    identity = encoders.identity
    if wanted.encoder not in (None, identity):
        raise RMDError(
            f"{folder} has the text encoder '{identity}', not prompts.encoder '{wanted.encoder}'; change one of them"
        )
    log.info("%s lacks %d prompts, which are encoded now by %s", wanted.cache, len(lacking), folder)
    yield from encoding(encoders, texts, wanted.cache, negative=wanted.negative)
    return memory


def planned_cache(config):
    """The CacheToBe where ``make_cache`` would encode, None where nothing is lacking; nothing is written or downloaded.

    Raises RMDError for a folder on this machine without the encoders, and a place where no cache can be made.
    """
    wanted = config.prompts
    texts, lacking = _lacking(config)
    if not lacking:
        return None
    CacheFolder(wanted.cache)
    if Path(wanted.encode_from).is_dir():
        TextEncoders(wanted.encode_from)
    log.info("%s lacks %d prompts, which a run encodes first by %s", wanted.cache, len(lacking), wanted.encode_from)
    tokens = make_backbone(config.backbone.name).prompt_tokens
    return CacheToBe(wanted.encoder or f"of {wanted.encode_from}, not asked yet", tokens, texts)


def _lacking(config):
    """(all texts that a run needs besides the null prompt, those of all that its cache lacks)."""
    texts = (*read_prompts(config.prompts.file), *(config.output.validation_prompts or ()))
    known = open_cache(config.prompts.cache) or ()
    return texts, [text for text in dict.fromkeys((*texts, NULL_PROMPT)) if text not in known]

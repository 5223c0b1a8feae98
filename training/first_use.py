"""The prompt cache of a run that names text encoders instead: made once, before anything is trained."""

import logging
from pathlib import Path

import torch

from rmd_core.errors import RMDError

from .encode_prompts import encoding
from .files import make_folder
from .prompts import read_prompts
from .setup import outline_run
from .text_encoders import TextEncoders

log = logging.getLogger(__name__)


def make_cache(config, *, device):
    """Write ``prompts.cache`` with the text encoders of ``prompts.encode_from``, unless it is there, as a generator.

    It holds the prompts of ``prompts.file``, the validation prompts and the null prompt. A step is a file of prompts;
    what an interrupted run has encoded is not encoded again, and after the last step the encoders are freed. Raises
    RMDError for a folder without encoders, encoders that are not ``prompts.encoder``, and whatever else is wrong with
    the configuration and can be told before.
    """
    wanted, folder = config.prompts, config.prompts.encode_from
    if Path(wanted.cache).exists():
        return
    outline_run(config)
    texts = (*read_prompts(wanted.file), *(config.output.validation_prompts or ()))
    encoders = TextEncoders(folder, device=device, dtype=getattr(torch, config.train.precision))
    identity = encoders.identity
    if wanted.encoder not in (None, identity):
        raise RMDError(
            f"{folder} has the text encoder '{identity}', not prompts.encoder '{wanted.encoder}'; change one of them"
        )
    make_folder(Path(wanted.cache).parent)
    log.info("%s does not exist and is made now, with the text encoders of %s", wanted.cache, folder)
    yield from encoding(encoders, texts, wanted.cache, negative=wanted.negative)


def refuse_to_make_cache(config):
    """Raise RMDError where ``make_cache`` would write: a dry run writes nothing."""
    if not Path(config.prompts.cache).exists():
        raise RMDError(
            f"the prompt cache {config.prompts.cache} does not exist; a run makes it first, but a dry run writes "
            "nothing: make it with python -m training.encode_prompts, or start the run"
        )

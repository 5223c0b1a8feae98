"""What several backbones refuse."""

import re

from rmd_core.errors import RMDError

_MADE = re.compile(r"(wan|sdxl|sd3|pixart-alpha|pixart-sigma)(-\d+)?-[0-9a-f]{12}")  # as encode_prompts names encoders


def refuse_shift(backbone, shift):
    """Raise RMDError for a flow shift given to a model that is no flow."""
    if shift is not None:
        raise RMDError(f"backbone.shift is {shift:g}, but {backbone.name} is no rectified flow; leave it out")


def refuse_other_family(backbone, cache):
    """Raise RMDError for a cache that says it was made by the text encoders of another model family."""
    made = _MADE.fullmatch(cache.encoder)
    if made is not None and made[1] != backbone.name.replace("_", "-"):
        raise RMDError(
            f"{cache.path} was made by the text encoders of {made[1]} ({cache.encoder}), not by those of "
            f"{backbone.name}; use a cache of its own"
        )


def refuse_masked(cache):
    """Raise RMDError for a cache whose prompts are for a network that masks their padding."""
    if cache.masked:
        raise RMDError(f"{cache.path} was made for a network that masks the padding, this one does not; make its own")


def check_width(cache, found, wanted, what="embeddings"):
    """Raise RMDError unless the cache's ``what`` have the width that the network takes; ``found`` None: it has none."""
    if found is None:
        raise RMDError(
            f"{cache.path} holds no {what}, which this network needs; make it with python -m training.encode_prompts"
        )
    if found != wanted:
        raise RMDError(
            f"{cache.path} holds {what} of width {found}, but the transformer takes {wanted}; "
            "use the cache of its own text encoder"
        )

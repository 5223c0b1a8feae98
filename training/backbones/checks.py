"""What several backbones refuse."""

import logging
import re

from rmd_core.errors import RMDError
from rmd_core.logsnr import FlowCurve

from .network_files import is_folder, scheduler_config

log = logging.getLogger(__name__)

_MADE = re.compile(r"(wan|sdxl|sd3|pixart-alpha|pixart-sigma)(-\d+)?-[0-9a-f]{12}")  # as encode_prompts names encoders


def refuse_shift(backbone, shift):
    """Raise RMDError for a flow shift given to a model that is no flow."""
    if shift is not None:
        raise RMDError(f"backbone.shift is {shift:g}, but {backbone.name} is no rectified flow; leave it out")


def warn_of_another_shift(backbone, path):
    """Log a warning where the scheduler in a Diffusers-format folder has another shift than a flow backbone's curve."""
    told = scheduler_config(path) if isinstance(backbone.curve, FlowCurve) and is_folder(path) else {}
    shift = told.get("flow_shift", told.get("shift"))
    # A scheduler that computes its shift from each size has no one shift.
    if type(shift) in (int, float) and shift != backbone.curve.shift and not told.get("use_dynamic_shifting"):
        log.warning(
            "warning: the scheduler of %s has shift %g, and backbone.shift is %g, which the plan's first size is named "
            "by; set backbone.shift=%g unless another is meant",
            *(path, shift, backbone.curve.shift, shift),
        )


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

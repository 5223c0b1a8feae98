"""What a student starts from, where it is not the teacher: a whole network of its kind, or a LoRA on the teacher.

Files of few-step models are read under the names of ComfyUI, kohya's programs, diffusers and PEFT.
"""

import copy
import logging
from dataclasses import replace

import torch

from rmd_core.errors import RMDError
from rmd_core.experts import expert_files
from rmd_core.files import finite_weights, read_header, read_tensors

from .backbones.files import build
from .hub import is_folder, local_path
from .lora import Lora
from .lora_files import check_lora, is_lora, merge_lora, read_lora
from .parallel import same_shapes

log = logging.getLogger(__name__)


def read_start(settings, backbone, teacher, *, load):
    """What the student starts from by the configuration's model section: a Lora for adapters, else a network.

    ``teacher``: its network. ``load``: of a whole network, ``backbone.load``. Raises RMDError for what is of other
    sizes than the teacher, and for a whole network where adapters are trained.
    """
    path, adapters = local_path(settings.init_from), settings.mode == "adapters"
    names = {} if is_folder(path) else read_header(path).tensors
    if is_lora(names):
        lora = read_changes(path, backbone, teacher, strength=settings.init_strength)
        return _of_layers(lora, teacher, path) if adapters else merge_lora(copy.deepcopy(teacher), lora, path)
    if adapters:
        raise RMDError(
            f"model.init_from: {path} is a whole network, but adapters start from a LoRA; give the same model as a "
            "LoRA, or set model.mode three networks"
        )
    own = teacher.state_dict()
    if names.keys() == own.keys():  # one file with the names of diffusers
        network = build(type(teacher), teacher.config, finite_weights(read_tensors(path)[0], path, dtype=torch.float32))
    else:
        network = load(path, dtype=torch.float32)
    if not same_shapes(network.state_dict(), own):
        raise RMDError(
            f"{settings.init_from} has other layer sizes than the teacher; set model.init_from to a student of "
            "this teacher"
        )
    return network.eval()


def _of_layers(lora, network, path):
    """A Lora without its changes of tensors that are no layer's, such as a block's modulation; a warning names them."""
    layers = {name for name, layer in network.named_modules() if next(layer.children(), None) is None}
    kept = {name: change for name, change in lora.changes.items() if name.rpartition(".")[0] in layers}
    if len(kept) < len(lora.changes):
        first = next(name for name in lora.changes if name not in kept)
        log.warning(
            "warning: %s: %d changes outside of layers, first '%s', are left out, as ComfyUI does; "
            "model.mode three networks keeps them",
            *(path, len(lora.changes) - len(kept), first),
        )
    return Lora(lora.factors, kept)


def read_changes(path, backbone, network, *, strength=1.0):
    """The Lora in a file for a network, multiplied by ``strength``. Raises RMDError for that of another network.

    For a network of experts it is in two files, named by either of them.
    """
    keys = backbone.keys(network.config)
    if not backbone.experts:
        return _read_one(path, keys, network, strength)
    lora = Lora({}, {})
    for name, file in zip(backbone.experts, expert_files(path)):
        own = _read_one(file, keys, network.get_submodule(name), strength).inside(name)
        lora = Lora(lora.factors | own.factors, lora.changes | own.changes)
    return lora


def _read_one(path, keys, network, strength):
    tensors = finite_weights(read_tensors(path)[0], path, dtype=torch.float32)
    factors, changes = read_lora(tensors, keys, path)
    factors = {layer: replace(value, up=value.up * strength) for layer, value in factors.items()}
    lora = Lora(factors, {name: change * strength for name, change in changes.items()})
    check_lora(network, lora, path)
    return lora

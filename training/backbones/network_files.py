"""Networks and autoencoders out of Diffusers folders and native-key files, and networks into the latter."""

import contextlib
import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers.utils import logging as diffusers_logging

from rmd_core.errors import RMDError, one_line
from rmd_core.header import read_header, save_safetensors

from ..tensor_files import cast_weight, finite_weights, read_tensors
from ..wan_keys import WRAPPER_PREFIX
from ..weight_files import FILE_ENDINGS, NETWORK_STEM, refuse_packed, weights_variant


def is_folder(path):
    """Whether a checkpoint is a Diffusers-format folder; what is neither a file nor named like one counts as one."""
    return not (Path(path).is_file() or Path(path).suffix in FILE_ENDINGS)


def component_folder(path, component):
    """The folder of a component, such as ``transformer``, in a Diffusers-format folder, or ``path`` if it is one.

    Raises RMDError if neither is there.
    """
    path = Path(path)
    for folder in (path / component, path):
        if (folder / "config.json").is_file():
            return folder
    if not path.exists():
        raise RMDError(
            f"{path} does not exist; give a Diffusers-format folder, a safetensors file, or a hub id as owner/name"
        )
    raise RMDError(f"{path} is no Diffusers-format folder: it has no {component}/config.json; download all of it")


def load_component(kind, path, *, component, dtype, aliases=(), ignored=()):
    """A diffusers model of class ``kind`` from a Diffusers-format folder, in ``dtype`` on the CPU, in eval mode.

    ``aliases``: other class names by which its configuration may go; ``ignored``: weights that may be left over. Only
    safetensors are read; where a folder has nothing but the fp16 variant, that is taken. Raises RMDError for another
    class, and for weights missing, left over, of other shapes or not finite.
    """
    folder = component_folder(path, component)
    _config(kind, folder, aliases)
    variant = weights_variant(folder, NETWORK_STEM)
    refuse_packed(folder, NETWORK_STEM)
    try:
        with _quiet():  # what is wrong is told below, in one line
            model, told = kind.from_pretrained(
                str(folder),
                torch_dtype=dtype,
                use_safetensors=True,
                variant=variant,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, ArithmeticError, AssertionError) as error:
        raise RMDError(f"{folder}: its weights cannot be loaded ({one_line(error, 300)})") from None
    left_over = [key for key in told["unexpected_keys"] if key not in ignored]
    for words, keys in (("lack", told["missing_keys"]), ("also hold", left_over)):
        if keys:
            raise RMDError(f"{folder}: its weights {words} {len(keys)} tensors, first {sorted(keys)[0][:80]!r}")
    for key, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise RMDError(f"{folder}: '{key}' holds values that are not finite; the folder is damaged")
    return model.eval()


def outline_component(kind, path, *, component, aliases=()):
    """The model that ``load_component`` would load, on the meta device, from its configuration alone."""
    folder = component_folder(path, component)
    config = _config(kind, folder, aliases)
    weights_variant(folder, NETWORK_STEM)
    try:
        with torch.device("meta"), _quiet():
            return kind.from_config(config).eval()
    except (
        ValueError,
        RuntimeError,
        TypeError,
        KeyError,
        ArithmeticError,
        AssertionError,
        NotImplementedError,
    ) as error:
        raise RMDError(f"{folder}: its configuration makes no model ({one_line(error, 300)})") from None


def load_native(kind, path, *, config_of, keys_of, dtype, ignored=()):
    """A diffusers model of class ``kind`` from one file in native key names, as ``load_component`` gives it.

    ``config_of(tensors)``: constructor arguments, or None for tensors of another network. ``keys_of(config)``: its
    KeyMap. A prefix ``model.diffusion_model.`` is taken off, and what else such a whole checkpoint holds is left out.
    Raises RMDError for a file that is not this network's.
    """
    tensors = _own(read_tensors(path)[0], ignored)
    arguments = _arguments(kind, config_of, tensors, path)
    with init_empty_weights(include_buffers=False):
        model = kind(**arguments)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    try:
        state = keys_of(model.config).to_diffusers(tensors)
    except RMDError as error:
        raise RMDError(f"{path}: {error}") from None
    missing = sorted(wanted.keys() ^ state.keys())
    if missing:
        raise RMDError(f"{path}: {len(missing)} tensors do not fit a {kind.__name__}, first {missing[0][:80]!r}")
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            raise RMDError(f"{path}: '{name}' has shape {tuple(state[name].shape)}, expected {shape}")
    model.load_state_dict(finite_weights(state, path, dtype=dtype), strict=True, assign=True)
    return model.eval().requires_grad_(True)


def outline_native(kind, path, *, config_of, ignored=()):
    """The model that ``load_native`` would load, on the meta device, from the file's header."""
    with torch.device("meta"):
        tensors = {name: torch.empty(entry.shape) for name, entry in read_header(path).tensors.items()}
        return kind(**_arguments(kind, config_of, _own(tensors, ignored), path)).eval()


def save_native(native, path, *, dtype, metadata):
    """Write native tensors as one file in ``dtype``. Raises RMDError for values not finite in it, or a full disk."""
    tensors = {name: cast_weight(name, tensor, dtype, path) for name, tensor in native.items()}
    save_safetensors(path, tensors, metadata)


def scheduler_config(path):
    """The scheduler's configuration in a Diffusers-format folder, or beside the one of a network; else empty."""
    for folder in (Path(path), Path(path).resolve().parent):
        try:
            config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        return config if isinstance(config, dict) else {}
    return {}


def _config(kind, folder, aliases):
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = config.get("_class_name") or " or ".join(config.get("architectures") or ["model of unknown class"])
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        raise RMDError(f"{folder / 'config.json'} cannot be read as a JSON object; download it again") from None
    if name not in (kind.__name__, *aliases):
        raise RMDError(f"{folder} holds a {name}, not a {kind.__name__}; choose another backbone.name or folder")
    if config.get("quantization_config") is not None:
        raise RMDError(f"{folder} holds a quantised model; give the weights it was made from")
    return config


def _own(tensors, ignored):
    """The network's tensors of a file, without prefix."""
    wrapped = {n.removeprefix(WRAPPER_PREFIX): t for n, t in tensors.items() if n.startswith(WRAPPER_PREFIX)}
    return {name: tensor for name, tensor in (wrapped or tensors).items() if name not in ignored}


def _arguments(kind, config_of, tensors, path):
    try:
        arguments = config_of(tensors)
    except (KeyError, IndexError, ValueError, ArithmeticError):
        arguments = None
    if arguments is None:
        raise RMDError(
            f"{path} is no {kind.__name__} of this backbone in native key names; give a Diffusers-format folder, "
            "or a file as it lies in ComfyUI's models/diffusion_models"
        )
    return arguments


@contextlib.contextmanager
def _quiet():
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)

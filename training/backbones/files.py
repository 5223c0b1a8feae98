"""Names of one network's tensors in the file ComfyUI reads (native) and in diffusers, both ways.
Networks and autoencoders out of Diffusers folders and native-key files, and networks into the latter.
The autoencoder of the picture models: AutoencoderKL from a folder or a native-key file, and decoding with it."""

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from rmd_core.errors import RMDError, one_line
from rmd_core.files import cast_weight, finite_weights, read_header, read_tensors, save_safetensors

from ..hub import NETWORK_STEM, is_folder, refuse_packed, weights_variant


@dataclass(frozen=True)
class Source:
    """What a native tensor is made of: diffusers tensors one below the other; ``swapped`` exchanges the two halves.

    Diffusers keeps scale before shift in its final norms, the native files shift before scale.
    """

    names: tuple
    swapped: bool = False


class KeyMap:
    """The native names of a network, each with its ``Source``."""

    def __init__(self):
        self.entries = {}

    def add(self, native, *names, swapped=False, ends=("weight", "bias")):
        """Map a native layer to one diffusers layer, or to several stacked ones, for each parameter in ``ends``."""
        for end in ends:
            self.add_tensor(f"{native}.{end}", *(f"{name}.{end}" for name in names), swapped=swapped)

    def add_tensor(self, native, *names, swapped=False):
        """Map one native tensor."""
        self.entries[native] = Source(names, swapped)

    def diffusers_names(self):
        """Every diffusers name that the map knows."""
        return {name for source in self.entries.values() for name in source.names}

    def native_layer(self, layer):
        """(native layer, layers that are stacked in it, from its first row) of a diffusers layer, by name.

        Raises RMDError for a layer outside the map, or one whose halves change places.
        """
        for native, source in self.entries.items():
            if f"{layer}.weight" in source.names:
                if source.swapped:
                    raise RMDError(f"'{layer}' has its halves the other way round in native files; leave it out")
                return native.removesuffix(".weight"), tuple(name.removesuffix(".weight") for name in source.names)
        raise RMDError(f"'{layer}' has no native name; name other layers")

    def to_native(self, state):
        """A diffusers state dict under native names; tensors that are only renamed are shared, not copied.

        Names of the map that ``state`` lacks altogether (an optional layer) are left out. Raises RMDError for a name
        outside the map and for a stack of which a part is missing.
        """
        foreign = sorted(state.keys() - self.diffusers_names())
        if foreign:
            raise RMDError(f"'{foreign[0]}' has no native name; this variant cannot be saved for ComfyUI")
        native = {}
        for name, source in self.entries.items():
            parts = [state[part] for part in source.names if part in state]
            if not parts:
                continue
            if len(parts) != len(source.names):
                raise RMDError(f"'{name}' is made of {', '.join(source.names)}, of which the network has only a part")
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
            native[name] = _swapped(tensor) if source.swapped else tensor
        return native

    def to_diffusers(self, state):
        """A native state dict under diffusers names, stacks taken apart. Raises RMDError for a name outside the map."""
        foreign = sorted(state.keys() - self.entries.keys())
        if foreign:
            raise RMDError(f"{len(foreign)} tensors are foreign to this network, first {foreign[0][:80]!r}")
        ours = {}
        for name, tensor in state.items():
            source = self.entries[name]
            if source.swapped:
                tensor = _swapped(tensor)
            if len(source.names) == 1:
                ours[source.names[0]] = tensor
            else:
                ours |= {part: rows.clone() for part, rows in zip(source.names, tensor.chunk(len(source.names)))}
        return ours


def _swapped(tensor):
    first, second = tensor.chunk(2)
    return torch.cat((second, first))


WRAPPER_PREFIX = "model.diffusion_model."  # some files carry it in front of every native key


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
    from accelerate import init_empty_weights

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
    from diffusers.utils import logging as diffusers_logging

    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


_PREFIX = "first_stage_model."  # in front of the autoencoder's keys in a whole checkpoint


def load_kl_vae(path, *, channels, scaling, shift=0.0):
    """The ``AutoencoderKL`` of a Diffusers-format folder, or of a native-key file, frozen, in float32 on the CPU.

    ``channels``, ``scaling``, ``shift``: what the backbone's latents are made with; a file does not tell, so it is
    taken to be made for them. Raises RMDError for any other autoencoder.
    """
    from diffusers import AutoencoderKL

    if is_folder(path):
        vae = load_component(AutoencoderKL, path, component="vae", dtype=torch.float32)
    else:
        vae = _load_file(path, scaling=scaling, shift=shift)
    found = (vae.config.latent_channels, vae.config.scaling_factor, vae.config.shift_factor or 0.0)
    wanted = (channels, scaling, shift)
    if not all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) for a, b in zip(found, wanted)):
        raise RMDError(
            f"{path}: its latents have channels, scale and shift {found}, this backbone's have {wanted}; "
            "use the autoencoder of the base model"
        )
    return vae.requires_grad_(False)


@torch.no_grad()
def decode_kl(vae, latents, *, scaling, shift=0.0):
    """Pictures (B, 3, 1, H, W) in 0..1 from the latents (B, C, h, w) that networks see, as float32."""
    decoded = vae.decode(latents.to(vae.dtype) / scaling + shift, return_dict=False)[0]
    return (decoded.float() * 0.5 + 0.5).clamp(0, 1)[:, :, None]


def _load_file(path, *, scaling, shift):
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    tensors, _ = read_tensors(path)
    inner = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    tensors = finite_weights(inner or tensors, path, dtype=torch.float32)
    levels = len({name.split(".")[2] for name in tensors if name.startswith("encoder.down.")})
    layers = len({name.split(".")[4] for name in tensors if name.startswith("encoder.down.0.block.")})
    try:
        arguments = {
            "block_out_channels": [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)],
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "layers_per_block": layers,
            "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
            "use_quant_conv": "quant_conv.weight" in tensors,
            "use_post_quant_conv": "post_quant_conv.weight" in tensors,
            "scaling_factor": scaling,
            "shift_factor": shift or None,
        }
        with init_empty_weights(include_buffers=False):
            vae = AutoencoderKL(**arguments)
        state = convert_ldm_vae_checkpoint(tensors, arguments)
        vae.load_state_dict(state, strict=True, assign=True)
    except (ArithmeticError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise RMDError(f"{path} is no AutoencoderKL in native key names ({one_line(error, 200)})") from None
    return vae.eval()

"""Networks and autoencoders from Diffusers-format folders and native-key files, and networks into the latter.

Native files are read by our own maps of names and not by diffusers' ``from_single_file``, since that asks the hub for a
configuration, does not know PixArt, and does not write: writing needs the maps, and reading is their inverse. The tests
compare them with diffusers' converters. The autoencoders' names are only read, so diffusers' converters do that.
"""

import contextlib
import math
import re
from pathlib import Path

import torch
from einops import rearrange

from rmd_core.errors import RMDError, one_line
from rmd_core.files import cast_weight, finite_weights, read_header, read_json, read_tensors, save_safetensors

from ..hub import COUNTED, NETWORK_STEM, is_folder, refuse_packed, weights_variant

# What diffusers and PyTorch raise for weights or configurations that make no model.
_UNFIT = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


class KeyMap:
    """The names of one network's tensors in the file ComfyUI reads (native), and in diffusers.

    A native tensor is one diffusers tensor, or several stacked along the first axis. In some, diffusers keeps scale
    before shift where native files have shift before scale: the halves of those are swapped.
    """

    def __init__(self):
        self.sources = {}  # native name: names in diffusers
        self.swapped = set()  # native names

    def add(self, native, *names, swapped=False, ends=("weight", "bias")):
        """Map a native layer to one diffusers layer, or to several stacked ones, for each parameter in ``ends``."""
        for end in ends:
            self.add_tensor(f"{native}.{end}", *(f"{name}.{end}" for name in names), swapped=swapped)

    def add_tensor(self, native, *names, swapped=False):
        """Map one native tensor."""
        self.sources[native] = names
        if swapped:
            self.swapped.add(native)

    def native_layer(self, layer):
        """(native layer, layers that are stacked in it, from its first row) of a diffusers layer, by name.

        Raises RMDError for a layer outside the map, or one whose halves are swapped.
        """
        for native, names in self.sources.items():
            if f"{layer}.weight" in names:
                if native in self.swapped:
                    raise RMDError(
                        f"'{layer}' has its halves swapped in ComfyUI's files, so a LoRA cannot change it; leave it out"
                    )
                return native.removesuffix(".weight"), tuple(name.removesuffix(".weight") for name in names)
        raise RMDError(f"'{layer}' has no name in ComfyUI's files; name other layers")

    def to_native(self, state):
        """A diffusers state dict under native names; tensors that are only renamed are shared, not copied.

        Names of the map that are missing in ``state`` (an optional layer) are left out. Raises RMDError for a name
        outside the map and for a stack of which a part is missing.
        """
        foreign = sorted(state.keys() - {name for names in self.sources.values() for name in names})
        if foreign:
            raise RMDError(f"'{foreign[0]}' has no name in ComfyUI's files; this variant cannot be saved for ComfyUI")
        native = {}
        for name, parts in self.sources.items():
            tensors = [state[part] for part in parts if part in state]
            if not tensors:
                continue
            if len(tensors) != len(parts):
                raise RMDError(f"'{name}' needs all of {', '.join(parts)}, but the network has only some of them")
            tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            native[name] = _swap_halves(tensor) if name in self.swapped else tensor
        return native

    def to_diffusers(self, state):
        """A native state dict under diffusers names, stacks taken apart."""
        ours = {}
        for name, tensor in state.items():
            parts = self.sources[name]
            if name in self.swapped:
                tensor = _swap_halves(tensor)
            if len(parts) == 1:
                ours[parts[0]] = tensor
            else:
                ours |= {part: rows.clone() for part, rows in zip(parts, tensor.chunk(len(parts)))}
        return ours


def _swap_halves(tensor):
    return torch.cat(tensor.chunk(2)[::-1])


# Diffusers-format folders


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
        with quiet():
            model, info = kind.from_pretrained(
                str(folder),
                torch_dtype=dtype,
                use_safetensors=True,
                variant=variant,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, *_UNFIT) as error:
        raise RMDError(f"{folder}: its weights cannot be loaded ({one_line(error, 300)})") from None
    left_over = [key for key in info["unexpected_keys"] if key not in ignored]
    for words, keys in (("are missing", info["missing_keys"]), ("also contain", left_over)):
        if keys:
            raise RMDError(f"{folder}: its weights {words} {len(keys)} tensors, first {sorted(keys)[0][:80]!r}")
    for key, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise RMDError(f"{folder}: '{key}' has values that are not finite; the folder is damaged")
    return model.eval()


def outline_component(kind, path, *, component, aliases=()):
    """The model that ``load_component`` would load, on the meta device, from its configuration alone."""
    folder = component_folder(path, component)
    config = _config(kind, folder, aliases)
    weights_variant(folder, NETWORK_STEM)
    try:
        with torch.device("meta"), quiet():
            return kind.from_config(config).eval()
    except _UNFIT as error:
        raise RMDError(f"{folder}: no model can be made from its configuration ({one_line(error, 300)})") from None


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
    raise RMDError(f"{path} is not a Diffusers-format folder: it has no {component}/config.json; download all of it")


def scheduler_config(path):
    """The scheduler's configuration in a Diffusers-format folder, or beside the one of a network; else empty."""
    for folder in (Path(path), Path(path).resolve().parent):
        try:
            return read_json(folder / "scheduler" / "scheduler_config.json")
        except RMDError:
            continue
    return {}


def _config(kind, folder, aliases):
    """The configuration in a component's folder. Raises RMDError where it is of another class, or quantised."""
    config = read_json(folder / "config.json")
    name = config.get("_class_name") or config.get("architectures") or "model of unknown class"
    if name not in (kind.__name__, *aliases):
        raise RMDError(f"{folder} contains a {name}, not a {kind.__name__}; choose another backbone.name or folder")
    if config.get("quantization_config") is not None:
        raise RMDError(f"{folder} contains a quantised model; give the weights it was made from")
    return config


@contextlib.contextmanager
def quiet():
    """Without diffusers' messages; what is wrong becomes an RMDError."""
    from diffusers.utils import logging as diffusers_logging

    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


def without_weights(kind, config):
    """The model of class ``kind`` with its parameters on the meta device, and its buffers computed on the CPU."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return kind.from_config(config)


def build(kind, config, weights):
    """The model of class ``kind`` whose state dict is ``weights``, which it takes over without a copy."""
    model = without_weights(kind, config)
    model.load_state_dict(weights, strict=True, assign=True)
    return model


# Native-key files of networks


def load_native(family, path, *, dtype):
    """The network of a family (a Backbone) from one file in native key names, as ``load_component`` gives it.

    Of a checkpoint with more than the network in it, only tensors under ``model.diffusion_model.`` are read. Raises
    RMDError for a file that is not this network's, and for weights of integers or not finite.
    """
    from accelerate import init_empty_weights

    tensors, metadata = read_tensors(path)
    tensors = _own(tensors, family)
    with init_empty_weights(include_buffers=False):
        model = _make(family, tensors, metadata, path)
    keys = family.keys(model.config)
    expected = keys.to_native(model.state_dict()).keys()
    missing, foreign = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing:
        raise RMDError(f"{path} is missing {len(missing)} of {len(expected)} tensors, first '{missing[0]}'")
    if foreign:
        raise RMDError(
            f"{path} has {len(foreign)} tensors that this network does not have, first {foreign[0][:80]!r}; other "
            "variants (image-to-video, inpainting, ...) are not supported"
        )
    weights = finite_weights(tensors, path, dtype=dtype)
    try:
        model.load_state_dict(keys.to_diffusers(weights), strict=True, assign=True)
    except RuntimeError as error:  # a tensor of another shape
        raise RMDError(f"{path} does not fit this network ({one_line(error, 300)})") from None
    return model.eval().requires_grad_(True)


def outline_native(family, path):
    """The model that ``load_native`` would load, on the meta device, from the file's header."""
    header = read_header(path)
    with torch.device("meta"):
        tensors = {name: torch.empty(entry.shape) for name, entry in header.tensors.items()}
        return _make(family, _own(tensors, family), header.metadata, path).eval()


def save_native(native, path, *, dtype, metadata):
    """Write native tensors as one file in ``dtype``. Raises RMDError for values not finite in it, or a full disk."""
    tensors = {name: cast_weight(name, tensor, dtype, path) for name, tensor in native.items()}
    save_safetensors(path, tensors, metadata)


def _own(tensors, family):
    """The network's tensors of a file, without prefix, by the names of the family's map."""
    prefix = "model.diffusion_model."
    wrapped = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {family.native_name(n): tensor for n, tensor in (wrapped or tensors).items() if n not in family.unused}


def _make(family, tensors, metadata, path):
    name = family.kind.__name__
    try:
        arguments = family.native_config(tensors, metadata)
    except RMDError as error:
        raise RMDError(f"{path}: {error}") from None
    except (KeyError, IndexError, ValueError, ArithmeticError):
        arguments = None
    if arguments is None:
        raise RMDError(
            f"{path} is not a {name} of this backbone in native key names; give a Diffusers-format folder, "
            "or a file from ComfyUI's models/diffusion_models"
        )
    try:
        return family.kind(**arguments)
    except _UNFIT as error:
        raise RMDError(f"{path}: its tensors do not have the sizes of a {name} ({one_line(error, 200)})") from None


# Autoencoders


def load_vae_file(kind, path, *, config_of, convert):
    """The autoencoder of class ``kind`` in a native-key file, in eval mode, in float32 on the CPU.

    ``config_of(tensors)``: constructor arguments; ``convert(tensors, config=arguments)``: diffusers' converter of
    names. Raises RMDError for any other file.
    """
    prefix = "first_stage_model."  # in a checkpoint of all parts
    tensors, _ = read_tensors(path)
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    weights = {n: tensor for n, tensor in (own or tensors).items() if not n.endswith(COUNTED)}
    tensors = finite_weights(weights, path, dtype=torch.float32)
    try:
        config = config_of(tensors)
        vae = build(kind, config, convert(tensors, config=config))
    except _UNFIT as error:
        raise RMDError(f"{path} is not a {kind.__name__} in native key names ({one_line(error, 200)})") from None
    return vae.eval()


def kl_config(tensors):
    """Constructor arguments of an ``AutoencoderKL``, or one of its kind, from the tensors of a native file."""
    levels = len({name.split(".")[2] for name in tensors if name.startswith("encoder.down.")})
    return {
        "block_out_channels": [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": len({n.split(".")[4] for n in tensors if n.startswith("encoder.down.0.block.")}),
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "use_quant_conv": any(re.fullmatch(r"(encoder\.)?quant_conv\.weight", name) for name in tensors),
        "use_post_quant_conv": any(name.endswith("post_quant_conv.weight") for name in tensors),
    }


def load_kl_vae(path, *, channels, scaling, shift=0.0):
    """The ``AutoencoderKL`` of a Diffusers-format folder, or of a native-key file, frozen, in float32 on the CPU.

    ``channels``, ``scaling``, ``shift``: of the backbone's latents; a file does not name them, so it is taken to be
    made for them. Raises RMDError for any other autoencoder.
    """
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    def config_of(tensors):
        return kl_config(tensors) | {"scaling_factor": scaling, "shift_factor": shift or None}

    if is_folder(path):
        vae = load_component(AutoencoderKL, path, component="vae", dtype=torch.float32)
    else:
        vae = load_vae_file(AutoencoderKL, path, config_of=config_of, convert=convert_ldm_vae_checkpoint)
    found = (vae.config.latent_channels, vae.config.scaling_factor, vae.config.shift_factor or 0.0)
    expected = (channels, scaling, shift)
    if not all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) for a, b in zip(found, expected)):
        raise RMDError(
            f"{path}: its latents have channels, scale and shift {found}, this backbone's have {expected}; "
            "use the autoencoder of the base model"
        )
    return vae.requires_grad_(False)


@torch.no_grad()
def decode_kl(vae, latents, *, scaling, shift=0.0):
    """Images (B, 3, 1, H, W) in 0..1 from the latents (B, C, h, w) that networks see, as float32."""
    decoded = vae.decode(latents.to(vae.dtype) / scaling + shift, return_dict=False)[0]
    return rearrange((decoded.float() * 0.5 + 0.5).clamp(0, 1), "b c h w -> b c 1 h w")


@torch.no_grad()
def encode_kl(vae, images, *, scaling, shift=0.0):
    """The latents (B, C, h, w) that networks see, the posterior's mode, of images (B, 3, H, W) in 0..1, as float32."""
    mode = vae.encode((2 * images - 1).to(vae.dtype)).latent_dist.mode().float()
    return (mode - shift) * scaling

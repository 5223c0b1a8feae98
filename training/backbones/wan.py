"""Key names of Wan2.1 text-to-video transformers: native (ComfyUI, the original release) and diffusers.
Load and save Wan2.1 text-to-video transformers as single files in native key names.
Load a Wan2.1 autoencoder from a native-key file, and decode latents to pictures.
Wan2.1 text-to-video (and, with one frame, text-to-image)."""

import json
import math
import re

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from rmd_core.errors import RMDError, one_line
from rmd_core.files import cast_weight, finite_weights, read_header, read_tensors, save_safetensors
from rmd_core.schedule import FlowCurve

from ..hub import is_folder
from .base import Backbone, check_width, network_dtype, refuse_masked
from .files import WRAPPER_PREFIX, load_component, outline_component

# (native prefix, diffusers prefix); a prefix matches whole dotted words, what follows it is kept.
_OUTSIDE = (
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
)
_IN_BLOCK = tuple(
    (f"{native}.{a}", f"{ours}.{b}")
    for native, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for a, b in (
        ("q", "to_q"),
        ("k", "to_k"),
        ("v", "to_v"),
        ("o", "to_out.0"),
        ("norm_q", "norm_q"),
        ("norm_k", "norm_k"),
    )
) + (
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("modulation", "scale_shift_table"),
)
_BLOCK = re.compile(r"^(blocks\.\d+\.)(.+)$")


def native_name(diffusers_name):
    """The native name of a ``WanTransformer3DModel`` parameter, such as ``blocks.0.self_attn.q.weight``.

    Raises RMDError for a name outside the text-to-video layout.
    """
    return _rename(diffusers_name, source=1, target=0)


def diffusers_name(native):
    """The ``WanTransformer3DModel`` name of a native key, such as ``blocks.0.attn1.to_q.weight``.

    Raises RMDError for a name outside the text-to-video layout.
    """
    return _rename(native, source=0, target=1)


def to_native(state_dict):
    """A state dict with native names; the tensors are the same objects."""
    return {native_name(name): tensor for name, tensor in state_dict.items()}


def to_diffusers(state_dict):
    """A native state dict, with or without ``model.diffusion_model.`` in front, under diffusers names."""
    return {diffusers_name(name.removeprefix(WRAPPER_PREFIX)): tensor for name, tensor in state_dict.items()}


def _rename(name, *, source, target):
    block = _BLOCK.match(name)
    head, rest, table = (block[1], block[2], _IN_BLOCK) if block else ("", name, _OUTSIDE)
    for pair in table:
        if rest == pair[source] or rest.startswith(pair[source] + "."):
            return head + pair[target] + rest[len(pair[source]) :]
    raise RMDError(
        f"{name[:80]!r} is no key of a Wan2.1 text-to-video transformer; image-to-video, VACE and other variants "
        "are not supported, use a text-to-video file"
    )


_NEEDED = {  # and the number of their axes
    "patch_embedding.weight": 5,
    "head.modulation": 3,
    "head.head.weight": 2,
    "text_embedding.0.weight": 2,
    "time_embedding.0.weight": 2,
    "blocks.0.ffn.0.weight": 2,
}


def load_wan_transformer(path, *, dtype=torch.float32):
    """The ``WanTransformer3DModel`` in a native-key safetensors file, in ``dtype`` on the CPU, in eval mode.

    The sizes come from the tensor shapes; what shapes cannot tell (the number of heads) comes from the metadata entry
    ``config`` = ``{"transformer": {...}}`` that ComfyUI reads too, else heads are 128 wide.
    Raises RMDError for a missing, pickled, truncated or foreign file, and for weights of integers or not finite.
    """
    tensors, metadata = read_tensors(path)
    tensors = {name.removeprefix(WRAPPER_PREFIX): tensor for name, tensor in tensors.items()}
    with init_empty_weights(include_buffers=False):
        model = _made(tensors, metadata, path)
    _check(model, tensors, path)
    model.load_state_dict(to_diffusers(finite_weights(tensors, path, dtype=dtype)), strict=True, assign=True)
    return model.eval().requires_grad_(True)


def outline_wan_transformer(path):
    """The transformer of a native-key file on the meta device, from the file's header. Raises RMDError as above."""
    header = read_header(path)
    with torch.device("meta"):
        tensors = {n.removeprefix(WRAPPER_PREFIX): torch.empty(entry.shape) for n, entry in header.tensors.items()}
        model = _made(tensors, dict(header.metadata), path)
    return model.eval()


def native_wan_state_dict(model):
    """The parameters of a ``WanTransformer3DModel`` under native names (the tensors are shared, not copied)."""
    return to_native(model.state_dict())


def native_wan_metadata(model):
    """The ``config`` metadata entry by which ComfyUI detects a Wan model of unusual sizes."""
    sizes = {
        "num_heads": model.config.num_attention_heads,
        "text_dim": model.config.text_dim,
        "freq_dim": model.config.freq_dim,
    }
    return {"config": json.dumps({"transformer": sizes}, sort_keys=True)}


def save_wan_transformer(model, path, *, dtype=torch.float16, metadata=None):
    """Write a transformer as one native-key safetensors file that ComfyUI's diffusion model loader detects.

    ``metadata``: further string entries, such as the recipe. Raises RMDError when the file cannot be written, or when a
    weight is not finite, in the network or in ``dtype``.
    """
    tensors = {name: cast_weight(name, tensor, dtype, path) for name, tensor in native_wan_state_dict(model).items()}
    save_safetensors(path, tensors, {**native_wan_metadata(model), **(metadata or {})})


def wan_config(tensors, metadata, *, path):
    """Constructor arguments of ``WanTransformer3DModel`` for native ``tensors``. Raises RMDError naming ``path``."""
    missing = [name for name in _NEEDED if name not in tensors]
    if missing:
        raise RMDError(
            f"{path} is no Wan2.1 transformer in native key names: it has no '{missing[0]}'; "
            "give a file as it lies in ComfyUI's models/diffusion_models"
        )
    shape = {name: tuple(tensors[name].shape) for name in _NEEDED}
    for name, axes in _NEEDED.items():
        if len(shape[name]) != axes or 0 in shape[name]:
            raise RMDError(f"{path}: '{name}' has shape {shape[name]}; {axes} axes, none of them empty, are expected")
    told = _told(metadata, path)
    dim, in_channels, *patch = shape["patch_embedding.weight"]
    heads = told.get("num_heads", max(1, dim // 128))
    if type(heads) is not int or heads < 1 or dim % heads or (dim // heads) % 2:
        raise RMDError(
            f"{path}: a width of {dim} cannot be divided among {heads!r} heads of even width (metadata 'config')"
        )
    eps = told.get("eps", 1e-6)
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise RMDError(f"{path}: eps is {eps!r}; a number between 0 and 1 is expected (metadata 'config')")
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": in_channels,
        "out_channels": shape["head.head.weight"][0] // math.prod(patch),
        "text_dim": shape["text_embedding.0.weight"][1],
        "freq_dim": shape["time_embedding.0.weight"][1],
        "ffn_dim": shape["blocks.0.ffn.0.weight"][0],
        "num_layers": _layers(tensors, path),
        "cross_attn_norm": "blocks.0.norm3.weight" in tensors,
        "qk_norm": "rms_norm_across_heads",
        "eps": float(eps),
    }


def _made(tensors, metadata, path):
    config = wan_config(tensors, metadata, path=path)
    try:
        return WanTransformer3DModel(**config)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise RMDError(f"{path}: no Wan2.1 transformer has the sizes of its tensors ({one_line(error)})") from None


def _layers(tensors, path):
    numbers = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    absent = [i for i in range(len(numbers)) if str(i) not in numbers]
    if absent:
        raise RMDError(f"{path} has {len(numbers)} blocks, but no block {absent[0]}; it is damaged, use another one")
    return len(numbers)


def _told(metadata, path):
    try:
        told = json.loads(metadata.get("config", "{}")).get("transformer", {})
        return dict(told)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise RMDError(f"{path}: its metadata entry 'config' is no JSON object with a 'transformer' object") from None


def _check(model, tensors, path):
    """Every key there once, none else, every shape right."""
    wanted = {native_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, foreign = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing:
        raise RMDError(
            f"{path} lacks {len(missing)} of the {len(wanted)} tensors of its Wan2.1 transformer, first '{missing[0]}'"
        )
    if foreign:
        raise RMDError(
            f"{path} has {len(foreign)} tensors that a Wan2.1 text-to-video transformer does not have, "
            f"first {foreign[0][:80]!r}; use a text-to-video file"
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise RMDError(f"{path}: '{name}' has shape {tuple(tensors[name].shape)}, expected {shape}")


CHANNELS = 16
_WIDTH_KEY = "decoder.head.0.gamma"


def load_wan_vae(path, *, dtype=torch.float32):
    """The ``AutoencoderKLWan`` in a native-key safetensors file, frozen, in eval mode, on the CPU.

    Its base width is read from the file as ComfyUI reads it; everything else is Wan2.1's.
    Raises RMDError for a missing, pickled, truncated or foreign file, and for weights of integers or not finite.
    """
    tensors, _ = read_tensors(path)
    if _WIDTH_KEY not in tensors or "conv2.weight" not in tensors:
        raise RMDError(
            f"{path} is no Wan2.1 autoencoder in native key names: it has no '{_WIDTH_KEY}' or no 'conv2.weight'"
        )
    if not tensors[_WIDTH_KEY].ndim or tensors["conv2.weight"].shape[:1] != (CHANNELS,):
        raise RMDError(
            f"{path} is no Wan2.1 autoencoder: '{_WIDTH_KEY}' has shape {tuple(tensors[_WIDTH_KEY].shape)} and "
            f"'conv2.weight' {tuple(tensors['conv2.weight'].shape)}, whose first axis should be {CHANNELS}"
        )
    weights = finite_weights(tensors, path, dtype=dtype)
    try:
        with init_empty_weights(include_buffers=False):
            vae = AutoencoderKLWan(base_dim=tensors[_WIDTH_KEY].shape[0], z_dim=CHANNELS)
        state = convert_wan_vae_to_diffusers(weights)
    except (ArithmeticError, AssertionError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise RMDError(f"{path} is no Wan2.1 autoencoder ({one_line(error)})") from None
    wanted = vae.state_dict()
    wrong = sorted(wanted.keys() ^ state.keys()) or [
        name for name, tensor in wanted.items() if tensor.shape != state[name].shape
    ]
    if wrong:
        raise RMDError(f"{path} is no Wan2.1 autoencoder: {len(wrong)} tensors do not fit, first {wrong[0][:80]!r}")
    vae.load_state_dict(state, strict=True, assign=True)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def decode_latents(vae, latents):
    """Pictures (B, 3, T, 8h, 8w) in 0..1 from normalised latents (B, 16, t, h, w), as float32."""
    mean = _per_channel(vae.config.latents_mean, latents)
    std = _per_channel(vae.config.latents_std, latents)
    decoded = vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]
    return (decoded.float() * 0.5 + 0.5).clamp(0, 1)


def _per_channel(values, latents):
    return torch.tensor(values, dtype=torch.float32, device=latents.device).view(1, -1, 1, 1, 1)


NATIVE_SHIFT = 3.0


class WanBackbone(Backbone):
    """Wan2.1: rectified flow, 16 latent channels, timestep = 1000 sigma in float32."""

    name = "wan"
    prompt_tokens = 512
    architecture = "wan2.1"
    prediction = "flow"
    channels = 16
    multiple = 2
    pixels_per_cell = 8
    size_conditioning = "none"
    temporal = True
    known_batch = 64  # the authors', see docs/training.md, on several devices
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

    def __init__(self, *, shift=None):
        self.curve = FlowCurve(NATIVE_SHIFT if shift is None else shift)

    def load(self, path, *, dtype):
        if is_folder(path):
            network = load_component(WanTransformer3DModel, path, component="transformer", dtype=dtype)
        else:
            network = load_wan_transformer(path, dtype=dtype)
        return self._checked(network, path)

    def outline(self, path):
        if is_folder(path):
            network = outline_component(WanTransformer3DModel, path, component="transformer")
        else:
            network = outline_wan_transformer(path)
        return self._checked(network, path)

    def _checked(self, network, path):
        channels = (network.config.in_channels, network.config.out_channels)
        if channels != (self.channels, self.channels):
            raise RMDError(
                f"{path}: its transformer takes and gives {channels} channels; Wan2.1 text-to-video has 16 and 16"
            )
        return network

    def predict(self, network, x, sigma_B, conditioning):
        dtype = network_dtype(network)
        timestep = self.curve.timestep(sigma_B).to(x.device, torch.float32)
        return network(x.to(dtype), timestep, conditioning["text"].to(dtype), return_dict=False)[0].float()

    def conditioning(self, cache, texts):
        return {"text": cache.batch(texts)}

    def check_cache(self, network, cache):
        refuse_masked(cache)
        check_width(cache, cache.dim, network.config.text_dim)

    def blank_conditioning(self, network, tokens, device):
        return {"text": torch.zeros(1, tokens, network.config.text_dim, device=device)}

    def flops(self, network, height, width, frames, tokens):
        """The same count as a formula, which is faster for long videos."""
        config = network.config
        dim = config.num_attention_heads * config.attention_head_dim
        n = frames * (height // self.multiple) * (width // self.multiple)
        patch = self.multiple**2 * (config.in_channels + config.out_channels) * dim * n
        linear = n * dim * (6 * dim + 2 * config.ffn_dim) + tokens * 2 * dim * dim  # q k v o, q o, ffn; k v of the text
        attention = 2 * dim * n * (n + tokens)
        return 2 * (patch + config.num_layers * (linear + attention))

    def load_vae(self, path):
        if not is_folder(path):
            return load_wan_vae(path)
        return load_component(AutoencoderKLWan, path, component="vae", dtype=torch.float32).requires_grad_(False)

    def decode(self, vae, latents):
        return decode_latents(vae, latents)

    def native_state(self, network):
        return native_wan_state_dict(network)

    def native_layer(self, network, layer):
        return native_name(layer), (layer,)

    def export(self, network, path, *, dtype, metadata):
        save_wan_transformer(network, path, dtype=dtype, metadata=metadata)

"""The autoencoder of the picture models: AutoencoderKL from a folder or a native-key file, and decoding with it."""

import math

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from rmd_core.errors import RMDError, one_line

from ..tensor_files import finite_weights, read_tensors
from .network_files import is_folder, load_component

_PREFIX = "first_stage_model."  # in front of the autoencoder's keys in a whole checkpoint


def load_kl_vae(path, *, channels, scaling, shift=0.0):
    """The ``AutoencoderKL`` of a Diffusers-format folder, or of a native-key file, frozen, in float32 on the CPU.

    ``channels``, ``scaling``, ``shift``: what the backbone's latents are made with; a file does not tell, so it is
    taken to be made for them. Raises RMDError for any other autoencoder.
    """
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

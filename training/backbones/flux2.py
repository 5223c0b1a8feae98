"""FLUX.2 klein base, 4B and 9B."""

import re
from types import SimpleNamespace

import torch
from diffusers import Flux2Transformer2DModel
from einops import rearrange

from rmd_core.errors import RMDError
from rmd_core.noising import place

from ..hub import is_folder
from .base import Backbone, network_dtype, tell_exactly
from .files import KeyMap, decode_kl, encode_kl, kl_config, load_component, load_vae_file

HEAD = 128
GUIDED = "its network takes the guidance as an input, as that of FLUX.2 dev does; give FLUX.2 klein base"
WEIGHT = ("weight",)  # its linear layers have no bias


def flux2_keys(config):
    """The KeyMap of a ``Flux2Transformer2DModel`` whose configuration is ``config``."""
    keys = KeyMap()
    for native, ours in (
        ("img_in", "x_embedder"),
        ("txt_in", "context_embedder"),
        ("time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1"),
        ("time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2"),
        ("final_layer.linear", "proj_out"),
    ):
        keys.add(native, ours, ends=WEIGHT)
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        keys.add(f"{name}.lin", f"{name}.linear", ends=WEIGHT)
    keys.add("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True, ends=WEIGHT)
    for i in range(config.num_layers):
        for stream, projections, out, norm, feed_forward in (
            ("img", ("to_q", "to_k", "to_v"), "to_out.0", "norm_", "ff"),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "norm_added_", "ff_context"),
        ):
            native, ours = f"double_blocks.{i}.{stream}", f"transformer_blocks.{i}"
            keys.add(f"{native}_attn.qkv", *(f"{ours}.attn.{name}" for name in projections), ends=WEIGHT)
            keys.add(f"{native}_attn.proj", f"{ours}.attn.{out}", ends=WEIGHT)
            keys.add(f"{native}_mlp.0", f"{ours}.{feed_forward}.linear_in", ends=WEIGHT)
            keys.add(f"{native}_mlp.2", f"{ours}.{feed_forward}.linear_out", ends=WEIGHT)
            _norms(keys, f"{native}_attn.norm", f"{ours}.attn.{norm}")
    for i in range(config.num_single_layers):
        native, ours = f"single_blocks.{i}", f"single_transformer_blocks.{i}.attn"
        keys.add(f"{native}.linear1", f"{ours}.to_qkv_mlp_proj", ends=WEIGHT)
        keys.add(f"{native}.linear2", f"{ours}.to_out", ends=WEIGHT)
        _norms(keys, f"{native}.norm", f"{ours}.norm_")
    return keys


def _norms(keys, native, ours):
    for name, part in (("query", "q"), ("key", "k")):
        keys.add_tensor(f"{native}.{name}_norm.scale", f"{ours}{part}.weight")


class Flux2KleinBackbone(Backbone):
    """FLUX.2 klein base: rectified flow, 128 latent channels of 16 px, timestep = sigma, three layers of Qwen3's text.

    Its latents are those of ComfyUI: patches of 2 x 2 cells of 32 channels, packed, normalised. Padding is not masked.
    """

    name = "flux2_klein"
    prompt_tokens = 512
    architecture = "Flux.2-klein-4b"
    prediction = "flow"
    latents = "flux2"
    channels = 128
    multiple = 1
    pixels_per_cell = 16
    adapter_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
        *("attn.to_qkv_mlp_proj", "attn.to_out"),
    )
    kind = Flux2Transformer2DModel
    keys = staticmethod(flux2_keys)
    text_width = "joint_attention_dim"

    @classmethod
    def keys_of_file(cls, names):
        """The KeyMap of a network with the blocks that the ``names`` in a LoRA file speak of."""

        def count(kind):
            return 1 + max((int(match[1]) for name in names for match in re.finditer(kind, name)), default=-1)

        double, single = r"(?:double|(?<!single_)transformer)_blocks", r"single_(?:transformer_)?blocks"
        return cls.keys(
            SimpleNamespace(num_layers=count(rf"{double}[._](\d+)"), num_single_layers=count(rf"{single}[._](\d+)"))
        )

    @staticmethod
    def native_name(name):
        """A tensor's name in the publisher's files, of that in a file which ComfyUI saved."""
        return re.sub(r"_norm\.weight$", "_norm.scale", name)

    @staticmethod
    def native_config(tensors, metadata):
        """Constructor arguments for a native file, from its shapes, as ComfyUI reads them."""
        if "guidance_in.in_layer.weight" in tensors:
            raise RMDError(GUIDED)
        width, channels = tensors["img_in.weight"].shape
        blocks = {tuple(name.split(".")[:2]) for name in tensors}
        return {
            "in_channels": channels,
            "num_layers": sum(name == "double_blocks" for name, *_ in blocks),
            "num_single_layers": sum(name == "single_blocks" for name, *_ in blocks),
            "attention_head_dim": HEAD,
            "num_attention_heads": width // HEAD,
            "joint_attention_dim": tensors["txt_in.weight"].shape[1],
            "guidance_embeds": False,
        }

    def check_network(self, network, path):
        if network.config.guidance_embeds:
            raise RMDError(f"{path}: {GUIDED}")
        found = (network.config.in_channels, network.out_channels)
        if found != (self.channels, self.channels):
            raise RMDError(f"{path}: its network takes and gives {found} channels; flux2_klein has {self.channels}")

    def architecture_of(self, network):
        return "Flux.2-klein-9b" if network.config.num_attention_heads == 32 else self.architecture

    def predict(self, network, x, sigma_B, conditioning):
        dtype, (height, width) = network_dtype(network), x.shape[-2:]
        timestep, text = place(sigma_B, x.device, torch.float32), conditioning["text"].to(dtype)
        tell_exactly(network, 1000.0 * timestep)
        none = torch.arange(1, device=x.device)
        rows, columns, words = (torch.arange(n, device=x.device) for n in (height, width, text.shape[1]))
        output = network(
            rearrange(x.to(dtype), "b c h w -> b (h w) c"),
            encoder_hidden_states=text,
            timestep=timestep,
            img_ids=torch.cartesian_prod(none, rows, columns, none),
            txt_ids=torch.cartesian_prod(none, none, none, words),
            return_dict=False,
        )[0]
        return rearrange(output.float(), "b (h w) c -> b c h w", h=height)

    def load_vae(self, path):
        """The ``AutoencoderKLFlux2`` of a folder or file, frozen, in float32 on the CPU; RMDError for another."""
        from diffusers import AutoencoderKLFlux2

        if is_folder(path):
            vae = load_component(AutoencoderKLFlux2, path, component="vae", dtype=torch.float32)
        else:
            vae = load_vae_file(AutoencoderKLFlux2, path, config_of=kl_config, convert=_vae_to_diffusers)
        if 4 * vae.config.latent_channels != self.channels:
            raise RMDError(f"{path}: its latents have {vae.config.latent_channels} channels, FLUX.2's have 32")
        return vae.requires_grad_(False)

    def decode(self, vae, latents):
        """Images (B, 3, 1, 16h, 16w) in 0..1 from packed, normalised latents (B, 128, h, w), as float32."""
        mean, deviation = _statistics(vae)
        packed = latents * deviation + mean
        return decode_kl(vae, rearrange(packed, "b (c p q) h w -> b c (h p) (w q)", p=2, q=2), scaling=1.0)

    def encode(self, vae, images):
        """Packed, normalised latents (B, 128, H/16, W/16) of images (B, 3, H, W) in 0..1, as float32."""
        mean, deviation = _statistics(vae)
        packed = rearrange(encode_kl(vae, images, scaling=1.0), "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        return (packed - mean) / deviation


def _statistics(vae):
    """Mean and deviation (C, 1, 1) of packed latents."""
    mean, variance = (rearrange(values, "c -> c 1 1") for values in (vae.bn.running_mean, vae.bn.running_var))
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


def _vae_to_diffusers(tensors, *, config):
    """The tensors of a native file under diffusers' names."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    statistics = {name: tensors[name] for name in ("bn.running_mean", "bn.running_var")}
    plain = {re.sub(r"^(en|de)coder\.(?=(post_)?quant_conv)", "", name): tensor for name, tensor in tensors.items()}
    return convert_ldm_vae_checkpoint(plain, config) | statistics

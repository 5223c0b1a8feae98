"""Z-Image (the base model and those made from it)."""

import re
from types import SimpleNamespace

import torch
from diffusers import ZImageTransformer2DModel
from einops import rearrange

from rmd_core.errors import RMDError
from rmd_core.noising import place

from .base import Backbone, network_dtype
from .files import KeyMap

PATCH = "2-1"  # how diffusers names the layers of patches of 2 x 2 cells of one frame
AXES = [32, 48, 48]  # of a head: positions of text, rows and columns


def z_image_keys(config):
    """The KeyMap of a ``ZImageTransformer2DModel`` whose configuration is ``config``."""
    keys = KeyMap()
    keys.add("x_embedder", f"all_x_embedder.{PATCH}")
    keys.add("final_layer.linear", f"all_final_layer.{PATCH}.linear")
    keys.add("final_layer.adaLN_modulation.1", f"all_final_layer.{PATCH}.adaLN_modulation.1")
    for same in ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1"):
        keys.add(same, same)
    for same in ("x_pad_token", "cap_pad_token", "cap_embedder.0.weight"):
        keys.add_tensor(same, same)
    for name, count in (
        ("noise_refiner", config.n_refiner_layers),
        ("context_refiner", config.n_refiner_layers),
        ("layers", config.n_layers),
    ):
        for i in range(count):
            _block(keys, f"{name}.{i}", modulated=name != "context_refiner")
    return keys


def _block(keys, block, *, modulated):
    weight = ("weight",)
    attention = f"{block}.attention"
    keys.add(f"{attention}.qkv", *(f"{attention}.to_{part}" for part in "qkv"), ends=weight)
    keys.add(f"{attention}.out", f"{attention}.to_out.0", ends=weight)
    for part in "qk":
        keys.add(f"{attention}.{part}_norm", f"{attention}.norm_{part}", ends=weight)
    for same in (
        "attention_norm1",
        "attention_norm2",
        "ffn_norm1",
        "ffn_norm2",
        *(f"feed_forward.w{i}" for i in (1, 2, 3)),
    ):
        keys.add(f"{block}.{same}", f"{block}.{same}", ends=weight)
    if modulated:
        keys.add(f"{block}.adaLN_modulation.0", f"{block}.adaLN_modulation.0")


class ZImageBackbone(Backbone):
    """Z-Image: rectified flow, 16 latent channels; the network is given 1 - sigma and predicts minus the velocity.

    Its prompts are of different lengths; ``lengths`` in the conditioning, on the CPU, says how long each one is.
    """

    name = "z_image"
    prompt_tokens = 512
    architecture = "z-image"
    prediction = "flow"
    latents = "flux1"
    channels = 16
    multiple = 2
    pixels_per_cell = 8
    masked = True
    kind = ZImageTransformer2DModel
    keys = staticmethod(z_image_keys)
    text_width = "cap_feat_dim"
    scaling, latent_shift = 0.3611, 0.1159
    adapter_targets = (*Backbone.adapter_targets, *(f"feed_forward.w{i}" for i in (1, 2, 3)))

    @classmethod
    def keys_of_file(cls, names):
        """The KeyMap of a network with the blocks that the ``names`` in a LoRA file speak of."""

        def count(kind):
            return 1 + max((int(match[1]) for name in names for match in re.finditer(kind, name)), default=-1)

        return cls.keys(
            SimpleNamespace(n_layers=count(r"layers[._](\d+)"), n_refiner_layers=count(r"refiner[._](\d+)"))
        )

    @staticmethod
    def native_config(tensors, metadata):
        """Constructor arguments for a native file, from its shapes, as ComfyUI reads them."""
        dim, patch = tensors["x_embedder.weight"].shape
        head = tensors["layers.0.attention.q_norm.weight"].shape[0]
        if head != sum(AXES):
            raise RMDError(f"its heads are {head} wide, but {sum(AXES)} in Z-Image")
        blocks = {tuple(name.split(".")[:2]) for name in tensors}
        return {
            "in_channels": patch // 4,
            "dim": dim,
            "n_layers": sum(name == "layers" for name, *_ in blocks),
            "n_refiner_layers": sum(name == "noise_refiner" for name, *_ in blocks),
            "n_heads": dim // head,
            "n_kv_heads": dim // head,
            "cap_feat_dim": tensors["cap_embedder.1.weight"].shape[1],
            "axes_dims": AXES,
            "axes_lens": [1536, 512, 512],
        }

    def check_network(self, network, path):
        config = network.config
        if config.in_channels != self.channels or config.siglip_feat_dim is not None:
            raise RMDError(
                f"{path}: its network takes {config.in_channels} channels"
                f"{' and images' if config.siglip_feat_dim else ''}; z_image takes {self.channels} and no images"
            )
        if (list(config.all_patch_size), list(config.all_f_patch_size)) != ([2], [1]):
            raise RMDError(f"{path}: patches of {config.all_patch_size} cells; Z-Image has patches of 2 x 2")

    def check_sizes(self, network, sizes):
        most = 2 * min(network.config.axes_lens[1:])
        for height, width in sizes:
            if max(height, width) > most:
                raise RMDError(
                    f"plan.sizes: {height}x{width} latent cells are beyond the network's positions; "
                    f"use at most {most} a side"
                )

    def conditioning(self, cache, texts):
        found = super().conditioning(cache, texts)
        return {"text": found["text"], "lengths": found["mask"].sum(1).long()}

    def zero_conditioning(self, network, tokens, device):
        blank = super().zero_conditioning(network, tokens, device)
        return {"text": blank["text"], "lengths": torch.tensor([tokens])}

    def predict(self, network, x, sigma_B, conditioning):
        dtype = network_dtype(network)
        texts = zip(conditioning["text"].to(dtype), conditioning["lengths"].tolist())
        time = place(1.0 - sigma_B, x.device, torch.float32)
        output = network(
            list(rearrange(x.to(dtype), "b c h w -> b c 1 h w")),
            time,
            [text[:length] for text, length in texts],
            return_dict=False,
        )[0]
        return -torch.stack([rearrange(one, "c 1 h w -> c h w") for one in output]).float()

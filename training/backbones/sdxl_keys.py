"""Key names of UNets of the SDXL kind: native (the original release, ComfyUI) and diffusers."""

from .key_map import KeyMap

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_BLOCK = {name: name for name in ("norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0")} | {
    name: name for name in ("ff.net.0.proj", "ff.net.2")
}
_BARE = tuple(f"{attention}.{part}" for attention in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v"))


def sdxl_keys(config):
    """The KeyMap of a ``UNet2DConditionModel`` with text and size embeddings, whose configuration is ``config``."""
    keys = KeyMap()
    keys.add("time_embed.0", "time_embedding.linear_1")
    keys.add("time_embed.2", "time_embedding.linear_2")
    keys.add("label_emb.0.0", "add_embedding.linear_1")
    keys.add("label_emb.0.2", "add_embedding.linear_2")
    keys.add("input_blocks.0.0", "conv_in")
    keys.add("out.0", "conv_norm_out")
    keys.add("out.2", "conv_out")
    levels, layers = len(config.block_out_channels), config.layers_per_block
    depths = config.transformer_layers_per_block
    depths = (depths,) * levels if isinstance(depths, int) else tuple(depths)
    place = 1
    for level, kind in enumerate(config.down_block_types):
        for layer in range(layers):
            _resnet(keys, f"input_blocks.{place}.0", f"down_blocks.{level}.resnets.{layer}")
            if "CrossAttn" in kind:
                _transformer(keys, f"input_blocks.{place}.1", f"down_blocks.{level}.attentions.{layer}", depths[level])
            place += 1
        if level < levels - 1:
            keys.add(f"input_blocks.{place}.0.op", f"down_blocks.{level}.downsamplers.0.conv")
            place += 1
    _resnet(keys, "middle_block.0", "mid_block.resnets.0")
    _transformer(keys, "middle_block.1", "mid_block.attentions.0", depths[-1])
    _resnet(keys, "middle_block.2", "mid_block.resnets.1")
    place = 0
    for level, kind in enumerate(config.up_block_types):
        for layer in range(layers + 1):
            _resnet(keys, f"output_blocks.{place}.0", f"up_blocks.{level}.resnets.{layer}")
            if "CrossAttn" in kind:
                _transformer(
                    keys, f"output_blocks.{place}.1", f"up_blocks.{level}.attentions.{layer}", depths[::-1][level]
                )
            if layer == layers and level < levels - 1:
                after = 2 if "CrossAttn" in kind else 1
                keys.add(f"output_blocks.{place}.{after}.conv", f"up_blocks.{level}.upsamplers.0.conv")
            place += 1
    return keys


def _resnet(keys, native, ours):
    for theirs, name in _RESNET.items():
        keys.add(f"{native}.{theirs}", f"{ours}.{name}")


def _transformer(keys, native, ours, depth):
    for name in ("norm", "proj_in", "proj_out"):
        keys.add(f"{native}.{name}", f"{ours}.{name}")
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        for theirs, name in _BLOCK.items():
            keys.add(f"{native}.{block}.{theirs}", f"{ours}.{block}.{name}")
        for name in _BARE:
            keys.add(f"{native}.{block}.{name}", f"{ours}.{block}.{name}", ends=("weight",))

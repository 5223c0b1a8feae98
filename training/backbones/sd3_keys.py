"""Key names of SD3 and SD3.5 transformers: native (the original release, ComfyUI) and diffusers."""

from .key_map import KeyMap


def sd3_keys(config):
    """The KeyMap of an ``SD3Transformer2DModel`` whose configuration is ``config``; its last block drops the text."""
    keys = KeyMap()
    keys.add("context_embedder", "context_embedder")
    keys.add("x_embedder.proj", "pos_embed.proj")
    keys.add_tensor("pos_embed", "pos_embed.pos_embed")
    for native, ours in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        keys.add(f"{native}.mlp.0", f"time_text_embed.{ours}.linear_1")
        keys.add(f"{native}.mlp.2", f"time_text_embed.{ours}.linear_2")
    keys.add("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True)
    keys.add("final_layer.linear", "proj_out")
    for i in range(config.num_layers):
        last = i == config.num_layers - 1
        native, ours = f"joint_blocks.{i}", f"transformer_blocks.{i}"
        keys.add(f"{native}.x_block.adaLN_modulation.1", f"{ours}.norm1.linear")
        keys.add(f"{native}.context_block.adaLN_modulation.1", f"{ours}.norm1_context.linear", swapped=last)
        _attention(keys, f"{native}.x_block.attn", f"{ours}.attn", [f"to_{part}" for part in "qkv"], "to_out.0")
        _attention(keys, f"{native}.x_block.attn2", f"{ours}.attn2", [f"to_{part}" for part in "qkv"], "to_out.0")
        _attention(
            keys,
            f"{native}.context_block.attn",
            f"{ours}.attn",
            [f"add_{part}_proj" for part in "qkv"],
            "to_add_out",
            norms="norm_added_",
        )
        for native_part, our_part in (("x_block", "ff"), ("context_block", "ff_context")):
            keys.add(f"{native}.{native_part}.mlp.fc1", f"{ours}.{our_part}.net.0.proj")
            keys.add(f"{native}.{native_part}.mlp.fc2", f"{ours}.{our_part}.net.2")
    return keys


def _attention(keys, native, ours, projections, out, norms="norm_"):
    keys.add(f"{native}.qkv", *(f"{ours}.{name}" for name in projections))
    keys.add(f"{native}.proj", f"{ours}.{out}")
    for part in "qk":
        keys.add(f"{native}.ln_{part}", f"{ours}.{norms}{part}", ends=("weight",))

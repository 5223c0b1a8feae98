"""Key names of PixArt transformers: native (the original release, ComfyUI) and diffusers."""

from .key_map import KeyMap

UNUSED = ("pos_embed", "y_embedder.y_embedding")
"""Native tensors that diffusers has no use for: a position table, which it computes, and a caption for dropout."""


def pixart_keys(config):
    """The KeyMap of a ``PixArtTransformer2DModel`` of this configuration, with or without size conditioning."""
    keys = KeyMap()
    embedders = (
        ("t_embedder", "timestep_embedder"),
        ("csize_embedder", "resolution_embedder"),
        ("ar_embedder", "aspect_ratio_embedder"),
    )
    for native, ours in embedders:
        keys.add(f"{native}.mlp.0", f"adaln_single.emb.{ours}.linear_1")
        keys.add(f"{native}.mlp.2", f"adaln_single.emb.{ours}.linear_2")
    keys.add("t_block.1", "adaln_single.linear")
    keys.add("x_embedder.proj", "pos_embed.proj")
    keys.add("y_embedder.y_proj.fc1", "caption_projection.linear_1")
    keys.add("y_embedder.y_proj.fc2", "caption_projection.linear_2")
    keys.add("final_layer.linear", "proj_out")
    keys.add_tensor("final_layer.scale_shift_table", "scale_shift_table")
    for i in range(config.num_layers):
        native, ours = f"blocks.{i}", f"transformer_blocks.{i}"
        keys.add_tensor(f"{native}.scale_shift_table", f"{ours}.scale_shift_table")
        keys.add(f"{native}.attn.qkv", *(f"{ours}.attn1.to_{part}" for part in "qkv"))
        keys.add(f"{native}.attn.proj", f"{ours}.attn1.to_out.0")
        keys.add(f"{native}.cross_attn.q_linear", f"{ours}.attn2.to_q")
        keys.add(f"{native}.cross_attn.kv_linear", f"{ours}.attn2.to_k", f"{ours}.attn2.to_v")
        keys.add(f"{native}.cross_attn.proj", f"{ours}.attn2.to_out.0")
        keys.add(f"{native}.mlp.fc1", f"{ours}.ff.net.0.proj")
        keys.add(f"{native}.mlp.fc2", f"{ours}.ff.net.2")
    return keys

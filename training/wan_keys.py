"""Key names of Wan2.1 text-to-video transformers: native (ComfyUI, the original release) and diffusers."""

import re

from rmd_core.errors import RMDError

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
WRAPPER_PREFIX = "model.diffusion_model."  # some files carry it in front of every native key


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

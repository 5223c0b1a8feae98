"""Full-size and tiny networks with the configurations whose training memory is told."""

import json
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel, WanTransformer3DModel

from training.backbones import make_backbone
from training.config import Config
from training.prompts import write_prompt_cache

from .full_size import SDXL, WAN_1_3B, WAN_14B

COMMON = ("train.precision=bfloat16", "backbone.gradient_checkpointing=true")
THREE = (*COMMON, "model.mode=three networks")
SETS = {  # what the table calls them: overrides
    "three networks": THREE,
    "three networks, `train.offload: waiting`, block inputs `offload`": (
        *THREE,
        "backbone.gradient_checkpointing=offload",
        "train.offload=waiting",
    ),
    "adapters": COMMON,
    "adapters, `share_forward: false`": (*COMMON, "train.share_forward=false"),
    "adapters, block inputs `offload`": (*COMMON, "backbone.gradient_checkpointing=offload"),
    "the same, `base_dtype: int8`": (*COMMON, "backbone.gradient_checkpointing=offload", "model.base_dtype=int8"),
    "the same, `base_dtype: nf4`, `kind: adamw8bit`, `train.offload: waiting`, calls `apart`": (
        *COMMON,
        "backbone.gradient_checkpointing=offload",
        "model.base_dtype=nf4",
        "optimiser.kind=adamw8bit",
        "train.offload=waiting",
        "train.guidance_calls=apart",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network and the plan that it is trained on. ``pooled``: width of the pooled text, or None."""

    title: str
    backbone: str
    kind: type
    network: dict
    sizes: tuple
    frames: int
    tokens: int
    text: int
    pooled: int | None = None
    rank: int = 64

    def outline(self):
        """The network on the meta device."""
        with torch.device("meta"):
            return self.kind(**self.network).eval()

    def config(self, overrides, folder=".", device="auto"):
        """The resolved configuration with overrides, batch 1."""
        tree = {
            "backbone": {"name": self.backbone, "base": "random"},
            "plan": {"steps": 4, "split": "2+2", "sizes": self.sizes, "frames": self.frames},
            "model": {"mode": "adapters", "rank": self.rank},
            "prompts": {"cache": f"{folder}/prompts.safetensors"},
            "train": {"updates": 1, "batch": 1, "warmup_updates": 0, "device": device},
            "output": {"folder": f"{folder}/out", "trackers": []},
        }
        for override in overrides:
            name, _, value = override.partition("=")
            section, key = name.split(".")
            tree.setdefault(section, {})[key] = {"true": True, "false": False}.get(value, value)
        return Config.model_validate_json(json.dumps(tree)).resolved()

    def write_prompts(self, folder):
        """A prompt cache of random embeddings."""
        generator = torch.Generator().manual_seed(1)
        texts = ("", "a prompt")
        embeddings = {text: torch.randn(self.tokens, self.text, generator=generator) for text in texts}
        extra = {}
        if self.pooled is not None:
            extra["pooled"] = {text: torch.randn(self.pooled, generator=generator) for text in texts}
        write_prompt_cache(folder / "prompts.safetensors", embeddings, encoder="random", **extra)

    def made_backbone(self):
        """The training backbone."""
        return make_backbone(self.backbone)


_SDXL = {"backbone": "sdxl", "kind": UNet2DConditionModel, "frames": 1, "tokens": 77}
_WAN = {"backbone": "wan", "kind": WanTransformer3DModel}
_VIDEO = {**_WAN, "sizes": ((60, 104), (90, 160)), "frames": 21, "tokens": 512, "text": 4096}
CASES = {
    "sdxl": Case(
        title="SDXL, 512 to 1024", network=SDXL, sizes=((64, 64), (128, 128)), text=2048, pooled=1280, **_SDXL
    ),
    "wan-1.3b": Case(
        title="Wan2.1-1.3B, 480p to 720p, 81 frames",
        network=WAN_1_3B,
        **_VIDEO,
    ),
    "wan-14b": Case(title="Wan2.1-14B, 480p to 720p, 81 frames", network=WAN_14B, **_VIDEO),
}
TINY = {
    "sdxl": Case(
        title="SDXL, tiny",
        network=SDXL
        | {
            "block_out_channels": (32, 64, 64),
            "layers_per_block": 1,
            "transformer_layers_per_block": (1, 1, 1),
            "attention_head_dim": (2, 4, 4),
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 20 + 6 * 8,
            "norm_num_groups": 8,
        },
        sizes=((8, 8), (16, 16)),
        text=64,
        pooled=20,
        rank=16,
        **_SDXL,
    ),
    "wan-1.3b": Case(
        title="Wan2.1, tiny",
        network={
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "ffn_dim": 256,
            "num_layers": 2,
            "text_dim": 32,
            "freq_dim": 32,
        },
        sizes=((8, 8), (16, 16)),
        frames=9,
        tokens=16,
        text=32,
        rank=16,
        **_WAN,
    ),
}
TINY["wan-14b"] = TINY["wan-1.3b"]

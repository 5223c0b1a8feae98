"""The models whose speed is measured: the full-size ones, and tiny ones of their classes for use without a GPU."""

from dataclasses import dataclass
from functools import cached_property

from benchmarks.full_size import ARCHITECTURES, VAES
from rmd_core.schedule import AreaMap, ResolutionMap, ShiftPairMap
from training.backbones import make_backbone

from .ways import cascade, single_size


@dataclass(frozen=True, kw_only=True)
class SpeedModel:
    """One architecture and the ways to sample it.

    network, vae: diffusers class and configuration. sizes: latent (height, width), smallest first, of which the last
    two are the cascade's and all three those of the plan in three stages, if there are three. paper: the speed-up that
    the paper reports against the teacher, if it does.
    """

    name: str
    backbone: str
    network: tuple
    vae: tuple
    sizes: tuple
    frames: int = 1
    tokens: int
    teacher_steps: int = 40
    split: tuple = (2, 2)
    mapping: ResolutionMap = AreaMap()
    paper: float | None = None

    @property
    def low(self):
        return self.sizes[-2]

    @property
    def high(self):
        return self.sizes[-1]

    @cached_property
    def ways(self):
        """The ways by name: teacher, few (the same number of steps at the final size), rmd and, for some, three."""
        curve, steps = make_backbone(self.backbone).curve, sum(self.split)
        found = [
            single_size("teacher", curve, self.teacher_steps, self.high, guided=True),
            single_size("few", curve, steps, self.high),
            cascade("rmd", curve, self.split, self.sizes[-2:], self.mapping),
        ]
        if len(self.sizes) == 3:
            found.append(cascade("three", curve, (1, 1, 2), self.sizes, self.mapping))
        return {way.name: way for way in found}


def _full(name, **values):
    backbone, kind, config = ARCHITECTURES[name]
    return SpeedModel(name=name, backbone=backbone, network=(kind, config), vae=VAES[backbone], **values)


_VIDEO = {"frames": 21, "tokens": 512, "teacher_steps": 50, "split": (3, 3), "mapping": ShiftPairMap(3.0, 5.0)}
_PICTURE = ((32, 32), (64, 64), (128, 128))  # 256, 512 and 1024 px
_CLIP = ((60, 104), (90, 160))  # 480 x 832 and 720 x 1280 px

FULL = (
    _full("SDXL", sizes=_PICTURE, tokens=77, paper=33.4),
    _full("Wan2.1 14B", sizes=_CLIP, paper=25.6, **_VIDEO),
    _full("Wan2.1 1.3B", sizes=_CLIP, **_VIDEO),
    _full("PixArt Sigma", sizes=_PICTURE[1:], tokens=300),  # ComfyUI's PixArt cannot run at 256 px
    _full("SD3.5 Medium", sizes=_PICTURE, tokens=333),
    _full("SD3.5 Large", sizes=_PICTURE, tokens=333),
)

_TINY_KL = {"block_out_channels": (4,) * 4, "norm_num_groups": 2, "layers_per_block": 1}
_TINY = {  # name of a full-size model: what its tiny form has otherwise
    "SDXL": (
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (2, 4),
            "norm_num_groups": 8,
        },
        _TINY_KL,
        ((4, 4), (8, 8), (16, 16)),
    ),
    "PixArt Sigma": (
        {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 24, "cross_attention_dim": 48},
        _TINY_KL,
        ((16, 16), (32, 32)),
    ),
    "SD3.5 Medium": (
        {
            "num_layers": 2,
            "num_attention_heads": 2,
            "caption_projection_dim": 128,
            "dual_attention_layers": (0,),
        },
        _TINY_KL,
        ((8, 8), (16, 16), (32, 32)),
    ),
    "Wan2.1 1.3B": (
        {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128},
        {"base_dim": 8},
        ((8, 14), (12, 20)),
    ),
}


def _tiny(model):
    network, vae, sizes = _TINY[model.name]
    return SpeedModel(
        name=f"{model.name}, tiny",
        backbone=model.backbone,
        network=(model.network[0], model.network[1] | network),
        vae=(model.vae[0], model.vae[1] | vae),
        sizes=sizes,
        frames=1 if model.frames == 1 else 3,
        tokens=16,
        teacher_steps=model.teacher_steps,
        split=model.split,
        mapping=model.mapping,
    )


TINY = tuple(_tiny(model) for model in FULL if model.name in _TINY)

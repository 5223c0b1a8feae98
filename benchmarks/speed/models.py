"""The models whose speed is measured, the ways to sample them, and the arithmetic of both."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import ARCHITECTURES, VAES, outline
from benchmarks.models import TINY as TINY_NETWORKS
from rmd_core.plan import StagePlan, plan_from_split
from rmd_core.schedule import AreaMap, NoMap, ResolutionMap, ShiftPairMap
from training.backbones import Backbone, make_backbone

MODES = ("eager", "compile")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to sample: its plan, and whether each call also asks for the null prompt."""

    name: str
    plan: StagePlan
    guided: bool = False

    @property
    def steps(self):
        return len(self.plan.steps)

    def flops(self, by_size):
        """Floating-point operations of all calls for one sample, from those of one call by ``size_name``."""
        once = sum(by_size[size_name(step)] for step in self.plan.steps)
        return once * (2 if self.guided else 1)

    def warm_up(self):
        """The same with one step at each size."""
        return self._with_split((1,) * len(self.plan.stages))

    def shortened(self, steps):
        """The same with fewer steps, for a plan of one size."""
        return self._with_split((steps,))

    def _with_split(self, split):
        sizes = [(stage.height, stage.width) for stage in self.plan.stages]
        plan = plan_from_split(self.plan.curve, split, sizes=sizes, mapping=self.plan.mapping)
        return replace(self, plan=plan)


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
        found = {
            "teacher": self._way((self.teacher_steps,), guided=True),
            "few": self._way((sum(self.split),)),
            "rmd": self._way(self.split),
        }
        if len(self.sizes) == 3:
            found["three"] = self._way((1, 1, 2))
        return {name: replace(way, name=name) for name, way in found.items()}

    def _way(self, split, *, guided=False):
        mapping = self.mapping if len(split) > 1 else NoMap()
        curve, sizes = make_backbone(self.backbone).curve, self.sizes[-len(split) :]
        return Way(name="", plan=plan_from_split(curve, split, sizes=sizes, mapping=mapping), guided=guided)

    def count_flops(self):
        """Floating-point operations for one sample, counted by PyTorch on tensors without data.

        {"sizes": {``size_name``: of one call}, "decode": of one decoding at the final size}.
        """
        backbone, network = make_backbone(self.backbone), outline(*self.network)
        # The base class counts; Wan's own is a formula, which a test compares with this count.
        sizes = {size_name(s): Backbone.flops(backbone, network, *s, self.frames, self.tokens) for s in self.sizes}
        vae = outline(*self.vae)
        latent = torch.empty(*backbone.latent_shape(1, self.frames), *self.high, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            vae.decode(latent)
        return {"sizes": sizes, "decode": counter.get_total_flops()}


def size_name(size):
    """Latent (height, width), or those of a step, as text such as ``60x104``."""
    height, width = size if isinstance(size, tuple) else (size.height, size.width)
    return f"{height}x{width}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that share a loaded model: its mode, and a batch of one or the largest that fits."""

    model: SpeedModel
    mode: str
    full: bool

    def key(self, name):
        """What a row of the group is called in the file."""
        return " | ".join([self.model.name, self.mode, "full batch" if self.full else "batch 1", name])

    @property
    def names(self):
        """The rows: every way, and decoding once for each model."""
        decoding = ("decode",) if self.mode == "eager" and not self.full else ()
        return ("rmd", *(name for name in self.model.ways if name != "rmd"), *decoding)


def groups(models, modes=MODES):
    """All groups: those of the paper's headline models first, batch 1 before full batches."""
    headline = [model for model in models if model.paper]
    others = [model for model in models if not model.paper]
    order = [(part, full) for full in (False, True) for part in (headline, others)]
    return [Group(model=model, mode=mode, full=full) for part, full in order for mode in modes for model in part]


def _full(name, **values):
    backbone, kind, config = ARCHITECTURES[name]
    return SpeedModel(name=name, backbone=backbone, network=(kind, config), vae=VAES[backbone], **values)


_VIDEO = {"frames": 21, "tokens": 512, "teacher_steps": 50, "split": (3, 3), "mapping": ShiftPairMap(3.0, 5.0)}
_IMAGE_SIZES = ((32, 32), (64, 64), (128, 128))  # 256, 512 and 1024 px
_VIDEO_SIZES = ((60, 104), (90, 160))  # 480 x 832 and 720 x 1280 px

FULL = (
    _full("SDXL", sizes=_IMAGE_SIZES, tokens=77, paper=33.4),
    _full("Wan2.1 14B", sizes=_VIDEO_SIZES, paper=25.6, **_VIDEO),
    _full("Wan2.1 1.3B", sizes=_VIDEO_SIZES, **_VIDEO),
    _full("PixArt Sigma", sizes=_IMAGE_SIZES[1:], tokens=300),  # ComfyUI's PixArt cannot run at 256 px
    _full("SD3.5 Medium", sizes=_IMAGE_SIZES, tokens=333),
    _full("SD3.5 Large", sizes=_IMAGE_SIZES, tokens=333),
)

_TINY_KL = {"block_out_channels": (4,) * 4, "norm_num_groups": 2, "layers_per_block": 1}
_TINY = {  # name of a full-size model: sizes and autoencoder of its tiny form
    "SDXL": (((4, 4), (8, 8), (16, 16)), _TINY_KL),
    "Wan2.1 1.3B": (((8, 14), (12, 20)), {"base_dim": 8}),
    "PixArt Sigma": (((16, 16), (32, 32)), _TINY_KL),
    "SD3.5 Medium": (((8, 8), (16, 16), (32, 32)), _TINY_KL),
}


def _tiny(model):
    sizes, vae = _TINY[model.name]
    return replace(
        model,
        name=f"{model.name}, tiny",
        network=(model.network[0], model.network[1] | TINY_NETWORKS[model.name]),
        vae=(model.vae[0], model.vae[1] | vae),
        sizes=sizes,
        frames=1 if model.frames == 1 else 3,
        tokens=16,
        paper=None,
    )


TINY = tuple(_tiny(model) for model in FULL if model.name in _TINY)

"""The shipped models ready to be sampled, and noise that two sizes share."""

from dataclasses import dataclass, replace

import torch

from demo import files
from demo.sampling import Way, single_resolution
from demo.students import student_way
from rmd_core.boundary import Boundary, orthonormal_rows
from rmd_core.noise import SeededNoise
from rmd_core.recipe import read_recipe
from training.backbones import make_backbone
from training.prompts import PromptCache

TEACHER_STEPS, GUIDANCE = 50, 2.0


@dataclass(frozen=True)
class Shipped:
    """The demo's backbone, autoencoder and prompts, and three ways: the teacher, it in the cascade, the student."""

    backbone: object
    vae: object
    cache: PromptCache
    teacher: Way
    cascade: Way
    student: Way


def load_shipped():
    """The shipped files as ``Shipped``."""
    curve = read_recipe(files.STUDENT).curve
    backbone = make_backbone("wan", shift=curve.shift)
    student = student_way("student", files.STUDENT, backbone)
    network = backbone.load(files.TEACHER, dtype=torch.float32)
    plan = single_resolution(curve, TEACHER_STEPS, student.plan.final_hw)
    teacher = Way(title="teacher", network=network, plan=plan, boundary=Boundary(), eta=1.0, guidance=GUIDANCE)
    cascade = replace(student, title="cascade without distillation", network=network)
    return Shipped(backbone, backbone.load_vae(files.VAE), PromptCache(files.PROMPTS), teacher, cascade, student)


class SharedStart(SeededNoise):
    """Noise whose first state at a smaller size is that of the final size read down to it, which is white as well."""

    def __init__(self, seed, items, final_hw):
        super().__init__(seed, items)
        self._final_hw = final_hw

    def draw(self, shape, stage, purpose):
        if purpose != "start" or tuple(shape[-2:]) == self._final_hw:
            return super().draw(shape, stage, purpose)
        final = super().draw((*shape[:-2], *self._final_hw), stage, purpose)
        rows, columns = (orthonormal_rows(low, high) for low, high in zip(shape[-2:], self._final_hw))
        return (rows @ final.double() @ columns.T).float()


def to_pixels(pictures):
    """8-bit arrays (N, S, S, 3) of decoded pictures (N, 3, 1, S, S) in 0..1."""
    return (pictures[:, :, 0].permute(0, 2, 3, 1) * 255).round().byte().numpy()

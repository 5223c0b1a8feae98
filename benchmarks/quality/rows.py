"""Every row of the tables: what makes its pictures, and the key under which its figures are kept."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache

import torch

from demo import files
from demo.sampling import Way, single_resolution
from demo.students import student_way
from rmd_core.boundary import Boundary
from training.backbones import make_backbone
from training.config import load_config
from training.plans import build_plan, sampling_boundary

from .damage import DAMAGES
from .scoring import REPEATS, SEED_OF_REFERENCE
from .students import BASE, CELLS, CONFIG, DEFAULT, REVISION, SINGLE, digest_of_files, runs, weights_key
from .teachers import TEACHERS
from .training import OUTPUTS, student_file, train

SEEDS_OF_FLOOR = (901, 902, 903)
GUIDANCE = 2.0  # of the teacher
TEACHER_STEPS = 50
MAPPED = "method.mapping=area"  # how a teacher samples a cascade; without distillation the mapping helps


@dataclass(frozen=True, kw_only=True)
class RealRow:
    """Real pictures, damaged or not. ``seed``: of their jitters."""

    name: str
    title: str
    seed: int
    damage: object = None
    units: float | None = None
    ready = True

    @property
    def source(self):
        """What must be made before it; rows of one source are made one after the other."""
        return self.name

    @property
    def content(self):
        """What the figures depend on."""
        return {"real": self.seed, "damage": self.damage and self.damage.name}

    def prepare(self):
        """Nothing to train."""

    def pictures(self, scorer):
        """The pictures to score, (N, 3, S, S) in -1..1."""
        if self.damage is None:
            return scorer.real_pictures(self.seed)
        return self.damage.apply(scorer.real_pictures(self.seed, self.damage.prompts(scorer.prompts)))


@dataclass(frozen=True, kw_only=True)
class SampledRow:
    """Pictures that a network makes.

    ``run``: (student, training seed, updates), or ``teacher``: a teacher to train, or neither for the shipped one.
    """

    name: str
    title: str
    plan: object
    boundary: Boundary
    eta: float
    guidance: float = 1.0
    run: tuple | None = None
    teacher: object = None

    @property
    def units(self):
        """Network evaluations for a picture, in units of one at the final size."""
        return self.way(None).units

    @property
    def source(self):
        """What must be made before it; rows of one source are made one after the other."""
        if self.run is not None:
            return (self.run[0].name, self.run[1])
        return self.teacher.name if self.teacher else self.name

    @property
    def content(self):
        """What the figures depend on."""
        if self.run is not None:
            student, seed, mark = self.run
            network = {"student": weights_key(student, seed), "updates": mark}
        else:
            network = self.teacher.content if self.teacher else {"teacher": _digest(files.TEACHER)}
        return {"network": network, "prompts": _digest(files.PROMPTS), **self.sampling}

    @property
    def sampling(self):
        """How it samples: sizes and levels, and the rules, whatever the classes are that hold them."""
        stages = [[s.height, s.width, [round(level, 6) for level in s.sigmas]] for s in self.plan.stages]
        rule = [self.boundary.upsampler, self.boundary.switch_noise, self.boundary.eta_switch]
        boundary = rule if len(stages) > 1 else None
        return {"stages": stages, "boundary": boundary, "eta": self.eta, "guidance": self.guidance}

    @property
    def ready(self):
        """Whether its network is there."""
        return self._file().exists()

    def prepare(self):
        """Train the network as far as it is not there. Raises RMDError when that fails."""
        if self.run is not None:
            train(*self.run[:2])
        elif self.teacher is not None:
            self.teacher.train(OUTPUTS)

    def pictures(self, scorer):
        """The pictures to score, (N, 3, S, S) in -1..1."""
        if self.run is not None:
            way = student_way(self.title, self._file(), backbone())
        else:
            way = self.way(backbone().load(self._file(), dtype=torch.float32))
        return scorer.pictures(way, backbone())

    def _file(self):
        if self.run is not None:
            return student_file(*self.run)
        return self.teacher.file(OUTPUTS) if self.teacher else files.TEACHER

    def way(self, network):
        """The row as the demo's Way with a network."""
        return Way(title=self.title, network=network, plan=self.plan, boundary=self.boundary, eta=self.eta,
                   guidance=self.guidance)  # fmt: skip


def key_of(row, repeats=REPEATS):
    """The key of a row's figures: 12 hexadecimal digits of what they depend on."""
    judged = {"judge": _digest(files.JUDGE, files.VAE), "reference": SEED_OF_REFERENCE, "repeats": repeats}
    text = json.dumps(row.content | judged | {"revision": REVISION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def floor_rows():
    """Real pictures against the reference, of several draws of jitters."""
    return [RealRow(name=f"real_{seed}", title="real, other jitters", seed=seed) for seed in SEEDS_OF_FLOOR]


def damaged_rows():
    """Damaged real pictures."""
    return [RealRow(name=f"damaged_{d.name}", title=d.title, seed=SEEDS_OF_FLOOR[0], damage=d) for d in DAMAGES]


def teacher_rows():
    """The shipped teacher at the final size."""
    found = []
    for steps, guidance in ((TEACHER_STEPS, GUIDANCE), (4, GUIDANCE), (4, 1.0)):
        title = f"teacher, {steps} steps" + (", CFG 2" if guidance != 1.0 else "")
        name = f"teacher_{steps}" + ("_cfg" if guidance != 1.0 else "")
        found.append(_at_final_size(name, title, steps, guidance))
    return found


def cascade_rows():
    """The shipped teacher in the cascade 2+2, not distilled: with and without guidance, by rule, eta and upsampler."""
    found = []
    rules = (("exact", 0.5), ("mix", 0.5), ("fresh", 0.5), ("exact", 0.0), ("exact", 1.0), ("mix", 1.0))
    for guidance in (1.0, GUIDANCE):
        for rule, eta in rules if guidance == 1.0 else rules[:3]:
            noise = (f"method.switch_noise={rule}", f"method.eta={eta}")
            found.append(_cascade(f"{rule}_{eta:g}", f"nearest, {rule} {eta:g}", guidance, *noise))
    for upsampler, mapping in (("nearest", "none"), ("bicubic", "area"), ("bicubic", "none"), ("bilinear", "area"),
                               ("bilinear", "none")):  # fmt: skip
        changes = (f"method.upsampler={upsampler}", f"method.mapping={mapping}")
        title = f"{upsampler}, exact 0.5" + (", no mapping" if mapping == "none" else "")
        found.append(_cascade(f"{upsampler}_{mapping}", title, 1.0, *changes))
    return found


def student_rows(student, mark=None):
    """The rows of a student, one for each seed, after ``mark`` updates or at its end."""
    return [_student(student, seed, mark or student.marks[-1]) for seed in student.seeds]


def curve_rows(student):
    """The rows of a student at each of its marks, ``{mark: rows}``."""
    return {mark: student_rows(student, mark) for mark in student.marks}


def share_rows():
    """Teachers of short runs with and without low-resolution steps: (teacher, at the final size, in the cascade)."""
    plan, boundary, eta = _sampling((MAPPED,))
    rule, found = {"plan": plan, "boundary": boundary, "eta": eta, "guidance": GUIDANCE}, []
    for teacher in TEACHERS:
        single = _at_final_size(f"{teacher.name}_single", "4 steps, CFG 2", 4, GUIDANCE, teacher)
        name = f"{teacher.name}_cascade"
        found.append((teacher, single, SampledRow(name=name, title="cascade 2+2, CFG 2", teacher=teacher, **rule)))
    return found


def all_rows():
    """Every row, in the order in which they are made: the most important first, those of one run together."""
    trained = []
    for student, seed in runs():
        marks = student.marks if student in (DEFAULT, SINGLE, *CELLS) else student.marks[-1:]
        trained.append([_student(student, seed, mark) for mark in marks])
    slow, *quick = teacher_rows()
    plain, guided = ([row for row in cascade_rows() if (row.guidance == 1.0) == same] for same in (True, False))
    groups = [*trained[:2], floor_rows(), quick, plain, *trained[2:6], [slow], damaged_rows(), *trained[6:9], guided]
    groups += [*trained[9:], *(rows for _, *rows in share_rows())]
    return [row for group in groups for row in group]


def _at_final_size(name, title, steps, guidance, teacher=None):
    plan = single_resolution(backbone().curve, steps, DEFAULT.config(0).plan.sizes[-1])
    return SampledRow(name=name, title=title, plan=plan, boundary=Boundary(), eta=1.0, guidance=guidance,
                      teacher=teacher)  # fmt: skip


def _cascade(name, title, guidance, *changes):
    plan, boundary, eta = _sampling((MAPPED, *changes))
    with_cfg = ", CFG 2" if guidance != 1.0 else ""
    name = f"cascade_{name}" + ("_cfg" if guidance != 1.0 else "")
    return SampledRow(name=name, title=title + with_cfg, plan=plan, boundary=boundary, eta=eta, guidance=guidance)


def _student(student, seed, mark):
    plan, boundary, eta = _sampling(student.changes)
    name = f"{student.name}_{mark}_seed_{seed}"
    return SampledRow(name=name, title=student.title, plan=plan, boundary=boundary, eta=eta, run=(student, seed, mark))


@cache
def _sampling(changes):
    config = load_config(CONFIG, (*BASE, *changes)).resolved()
    return build_plan(config, backbone()), sampling_boundary(config.method), config.method.eta


@cache
def backbone():
    """The demo's backbone, with the flow shift of the demo's configuration."""
    config = DEFAULT.config(0)
    return make_backbone(config.backbone.name, shift=config.backbone.shift)


@cache
def _digest(*paths):
    return digest_of_files(*paths)

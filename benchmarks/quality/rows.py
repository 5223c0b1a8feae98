"""Every row of the tables: what makes its images, and the key under which its figures are kept."""

from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.results import FOLDER, cpu_name, provenance, read_results, write_results
from demo import files
from demo.sampling import SamplingSetup, single_resolution, student_setup
from rmd_core.boundary import Boundary
from rmd_core.errors import RMDError
from training.backbones import make_backbone
from training.config import load_config
from training.plans import build_plan, sampling_boundary

from .scoring import DAMAGES, REPEATS, SEED_OF_REFERENCE
from .students import (
    BASE,
    CELLS,
    CONFIG,
    DEFAULT,
    REVISION,
    SINGLE,
    TEACHERS,
    Run,
    ShippedTeacher,
    digest_of_files,
    runs,
    short_digest,
)

SEEDS_OF_FLOOR = (901, 902, 903)
GUIDANCE = 2.0  # of the teacher
TEACHER_STEPS = 50
SHIPPED = ShippedTeacher()
MAPPED = "method.mapping=area"  # how a teacher samples a cascade; without distillation the mapping helps


@dataclass(frozen=True, kw_only=True)
class RealRow:
    """Real images, damaged or not. ``seed``: of their jitters."""

    name: str
    title: str
    seed: int
    damage: object = None
    units = None
    ready = True

    @property
    def group(self):
        """Rows of one group are made one after the other."""
        return self.name

    @property
    def content(self):
        """What the figures depend on."""
        return {"real": self.seed, "damage": self.damage and self.damage.name}

    def prepare(self):
        """Nothing to train."""

    def images(self, scorer):
        """The images to score, (N, 3, S, S) in -1..1."""
        if self.damage is None:
            return scorer.real_images(self.seed)
        return self.damage.apply(scorer.real_images(self.seed, self.damage.prompts(scorer.prompts)))


@dataclass(frozen=True, kw_only=True)
class SampledRow:
    """Images that a network makes: a Run, a Teacher or the ShippedTeacher."""

    name: str
    title: str
    network: object
    plan: object
    boundary: Boundary
    eta: float
    guidance: float = 1.0

    @property
    def group(self):
        """Rows of one group are made one after the other."""
        return self.network.group

    @property
    def units(self):
        """Network evaluations for an image, in units of one at the final size."""
        return self.setup(None).units

    @property
    def content(self):
        """What the figures depend on: the network, and sizes, levels and rules of sampling."""
        stages = [[s.height, s.width, [round(level, 6) for level in s.sigmas]] for s in self.plan.stages]
        rule = [self.boundary.upsampler, self.boundary.switch_noise, self.boundary.eta_switch]
        return {
            "network": self.network.content,
            "prompts": digest_of_files(files.PROMPTS),
            "stages": stages,
            "boundary": rule if len(stages) > 1 else None,
            "eta": self.eta,
            "guidance": self.guidance,
        }

    @property
    def ready(self):
        """Whether its network is there."""
        return self.network.file.exists()

    def prepare(self):
        """Train the network as far as it is not there. Raises RMDError when that fails."""
        self.network.train()

    def images(self, scorer):
        """The images to score, (N, 3, S, S) in -1..1; a student samples by the recipe in its file."""
        if isinstance(self.network, Run):
            setup = student_setup(self.title, self.network.file, backbone())
        else:
            setup = self.setup(backbone().load(self.network.file, dtype=torch.float32))
        return scorer.images(setup, backbone())

    def setup(self, network):
        """The row as the demo's SamplingSetup with a loaded network."""
        rules = {"boundary": self.boundary, "eta": self.eta, "guidance": self.guidance}
        return SamplingSetup(title=self.title, network=network, plan=self.plan, **rules)


def key_of(row):
    """The key of a row's figures: 12 hexadecimal digits of what they depend on."""
    judged = {"judge": digest_of_files(files.CLASSIFIER, files.VAE), "reference": SEED_OF_REFERENCE, "repeats": REPEATS}
    return short_digest(row.content | judged | {"revision": REVISION})


class Store:
    """Figures of finished rows by key, in files ``<row name>.<key>.json`` of a folder; several processes may write."""

    def __init__(self, folder=FOLDER / "quality"):
        self.folder = folder

    def figures(self, row):
        """The figures kept of a row, or None. Raises RMDError for a damaged file."""
        found = sorted(self.folder.glob(f"*.{key_of(row)}.json"))
        return self._read(found[0])["figures"] if found else None

    def provenance(self):
        """How the kept rows were made, as sorted texts: processor, version and date."""
        entries = [self._read(path)["made"] for path in sorted(self.folder.glob("*.*.json"))]
        return sorted({"{cpu}, torch {torch}, {date}".format(**entry) for entry in entries})

    def keep(self, row, figures):
        """Write the figures of a row."""
        key = key_of(row)
        entry = {"name": row.name, "title": row.title, "key": key, "content": row.content, "figures": figures}
        write_results(self.folder / f"{row.name}.{key}.json", entry | {"made": made_here()})

    def _read(self, path):
        entry = read_results(path)
        if not {"figures", "made"} <= entry.keys():
            raise RMDError(f"{path} is damaged; delete it to measure again")
        return entry


def made_here():
    """Date, processor and version of torch."""
    return provenance(cpu=cpu_name(), torch=torch.__version__.split("+")[0])


def floor_rows():
    """Real images against the reference, of several samples of jitters."""
    return [RealRow(name=f"real_{seed}", title="real, other jitters", seed=seed) for seed in SEEDS_OF_FLOOR]


def damaged_rows():
    """Damaged real images."""
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
    others = ("nearest", "none"), ("bicubic", "area"), ("bicubic", "none"), ("bilinear", "area"), ("bilinear", "none")
    for upsampler, mapping in others:
        changes = (f"method.upsampler={upsampler}", f"method.mapping={mapping}")
        title = f"{upsampler}, exact 0.5" + (", no mapping" if mapping == "none" else "")
        found.append(_cascade(f"{upsampler}_{mapping}", title, 1.0, *changes))
    return found


def student_rows(student, mark=None):
    """The rows of a student, one for each seed, after ``mark`` updates or at its end."""
    return [_student(student, seed, mark or student.marks[-1]) for seed in student.seeds]


def share_rows():
    """Teachers of short runs with and without low-resolution steps: (teacher, at the final size, in the cascade)."""
    found = []
    for teacher in TEACHERS:
        single = _at_final_size(f"{teacher.name}_single", "4 steps, CFG 2", 4, GUIDANCE, teacher)
        rules = _sampling((MAPPED,)) | {"guidance": GUIDANCE}
        cascade = SampledRow(name=f"{teacher.name}_cascade", title="cascade 2+2, CFG 2", network=teacher, **rules)
        found.append((teacher, single, cascade))
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


def _at_final_size(name, title, steps, guidance, network=SHIPPED):
    plan = single_resolution(backbone().curve, steps, DEFAULT.config(0).plan.sizes[-1])
    rules = {"boundary": Boundary(), "eta": 1.0, "guidance": guidance}
    return SampledRow(name=name, title=title, network=network, plan=plan, **rules)


def _cascade(name, title, guidance, *changes):
    if guidance != 1.0:
        name, title = f"{name}_cfg", f"{title}, CFG 2"
    rules = _sampling((MAPPED, *changes)) | {"guidance": guidance}
    return SampledRow(name=f"cascade_{name}", title=title, network=SHIPPED, **rules)


def _student(student, seed, mark):
    name, rules = f"{student.name}_{mark}_seed_{seed}", _sampling(student.changes)
    return SampledRow(name=name, title=student.title, network=Run(student, seed, mark), **rules)


@cache
def _sampling(changes):
    """How the demo's configuration with some changes samples."""
    config = load_config(CONFIG, (*BASE, *changes)).resolved()
    boundary = sampling_boundary(config.method)
    return {"plan": build_plan(config, backbone()), "boundary": boundary, "eta": config.method.eta}


@cache
def backbone():
    """The demo's backbone, with the flow shift of the demo's configuration."""
    config = DEFAULT.config(0)
    return make_backbone(config.backbone.name, shift=config.backbone.shift)

"""Every row of the tables: what makes its images, the key of its figures, and the processes that make many of them."""

import logging
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache

import torch

from benchmarks.results import FOLDER, cpu_name, provenance, read_results, write_results
from demo import files
from demo.sampling import SamplingSetup, single_resolution
from rmd_core.boundary import Boundary
from rmd_core.errors import RMDError
from training.backbones import make_backbone
from training.config import load_config
from training.plans import build_plan, sampling_boundary

from .scoring import DAMAGES, REPEATS, SEED_OF_REFERENCE, Scorer
from .students import (
    AREA,
    BASE,
    CONFIG,
    FULL,
    HALF,
    LONG,
    NONE,
    REVISION,
    SEEDS,
    WORLDS,
    Run,
    digest_of_files,
    short_digest,
)

log = logging.getLogger(__name__)

SEEDS_OF_FLOOR = (901, 902, 903)
GUIDANCE = 2.0  # of the teacher
TEACHER_STEPS = 50
MANY = 7  # images of each prompt in the rows with more images
SEEDS_OF_MANY = (3, 4)  # their training seeds


@dataclass(frozen=True, kw_only=True)
class RealRow:
    """Real images, damaged or not. ``seed``: of their jitters."""

    name: str
    title: str
    seed: int
    damage: object = None
    repeats: int = REPEATS
    units = None

    @property
    def content(self):
        """What the figures depend on."""
        return {"real": self.seed, "damage": self.damage and self.damage.name}

    def prepare(self):
        """Nothing to train."""

    def figures(self, scorer):
        """The figures of the row."""
        if self.damage is None:
            return scorer.score(scorer.real_images(self.seed))
        return scorer.score(self.damage.apply(scorer.real_images(self.seed, self.damage.prompts(scorer.prompts))))


@dataclass(frozen=True, kw_only=True)
class SampledRow:
    """Images that a network makes: a Run or a Teacher."""

    name: str
    title: str
    network: object
    plan: object
    boundary: Boundary
    eta: float
    guidance: float = 1.0
    repeats: int = REPEATS

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

    def prepare(self):
        """Train the network as far as it is not there. Raises RMDError when that fails."""
        self.network.train()

    def figures(self, scorer):
        """The figures of the row."""
        setup = self.setup(self.network.load(backbone()))
        return scorer.score(scorer.images(setup, backbone()))

    def setup(self, network):
        """The row as the demo's SamplingSetup with a loaded network."""
        rules = {"boundary": self.boundary, "eta": self.eta, "guidance": self.guidance}
        return SamplingSetup(title=self.title, network=network, plan=self.plan, **rules)


def key_of(row):
    """The key of a row's figures: 12 hexadecimal digits of what they depend on."""
    judge = {"judge": digest_of_files(files.CLASSIFIER, files.VAE), "reference": SEED_OF_REFERENCE}
    return short_digest(row.content | judge | {"repeats": row.repeats, "revision": REVISION})


class Store:
    """Figures of finished rows by key, in files ``<row name>.<key>.json`` of a folder; several processes may write."""

    def __init__(self, folder=FOLDER / "quality"):
        self.folder = folder

    def figures(self, row):
        """The figures kept of a row, or None. Raises RMDError for a damaged file."""
        found = sorted(self.folder.glob(f"*.{key_of(row)}.json"))
        return self._read(found[0])["figures"] if found else None

    def provenance(self):
        """How the kept rows were made, as sorted texts: device, version and date."""
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
    """Date, device and version of torch."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    return provenance(cpu=device, torch=torch.__version__.split("+")[0])


def floor_rows():
    """Real images against the reference, of several samples of jitters."""
    return [RealRow(name=f"real_{seed}", title="real, other jitters", seed=seed) for seed in SEEDS_OF_FLOOR]


def damaged_rows():
    """Damaged real images."""
    return [RealRow(name=f"damaged_{d.name}", title=d.title, seed=SEEDS_OF_FLOOR[0], damage=d) for d in DAMAGES]


def teacher_rows(world):
    """The teacher at the final size, and in the cascade, not distilled."""
    name, teacher, found = world.teacher.name, world.teacher, []
    for steps, guidance in ((TEACHER_STEPS, GUIDANCE), (4, GUIDANCE), (4, 1.0)):
        title = f"teacher, {steps} steps" + (", CFG 2" if guidance != 1.0 else "")
        plan = single_resolution(backbone().curve, steps, final_size())
        rules = {"boundary": Boundary(), "eta": 1.0, "guidance": guidance}
        key = f"{name}_teacher_{steps}" + ("_cfg" if guidance != 1.0 else "")
        found.append(SampledRow(name=key, title=title, network=teacher, plan=plan, **rules))
    for guidance in (1.0, GUIDANCE):
        for mapping in (NONE, AREA):
            title = "teacher in the cascade" + (", CFG 2" if guidance != 1.0 else "") + f", {MAPPING_TITLES[mapping]}"
            key = f"{name}_teacher_cascade_{mapping.rpartition('=')[2]}" + ("_cfg" if guidance != 1.0 else "")
            rules = sampling(mapping) | {"guidance": guidance}
            found.append(SampledRow(name=key, title=title, network=teacher, **rules))
    return found


MAPPING_TITLES = {NONE: "no mapping", HALF: "half of the mapping", AREA: "area mapping"}
# How the one-resolution student is sampled in a cascade without tuning: (name, title, changes of BASE)
UNTOUCHED = (
    *((f"2+2_{m}", f"2+2, {MAPPING_TITLES[c]}", (c,)) for m, c in (("none", NONE), ("half", HALF), ("area", AREA))),
    *((f"1+3_{m}", f"1+3, {MAPPING_TITLES[c]}", (c, "plan.split=1+3")) for m, c in (("none", NONE), ("area", AREA))),
    *((f"3+1_{m}", f"3+1, {MAPPING_TITLES[c]}", (c, "plan.split=3+1")) for m, c in (("none", NONE), ("area", AREA))),
    ("bicubic", "2+2, area mapping, bicubic", ("method.upsampler=bicubic",)),
    ("bilinear", "2+2, area mapping, bilinear", ("method.upsampler=bilinear",)),
    ("fresh", "2+2, area mapping, fresh noise", ("method.switch_noise=fresh",)),
    ("mix", "2+2, area mapping, mixed noise", ("method.switch_noise=mix",)),
    ("eta_0", "2+2, area mapping, eta 0", ("method.eta=0.0",)),
    ("eta_1", "2+2, area mapping, eta 1", ("method.eta=1.0",)),
    ("none_bicubic", "2+2, no mapping, bicubic", (NONE, "method.upsampler=bicubic")),
    ("none_fresh", "2+2, no mapping, fresh noise", (NONE, "method.switch_noise=fresh")),
)


def untouched_rows(world, seed):
    """The few-step student of one resolution in the cascade, without any tuning."""
    run = Run(world.single, seed, world.single.marks[-1])
    return [
        SampledRow(
            name=f"{world.teacher.name}_untouched_{name}_seed_{seed}", title=title, network=run, **sampling(*changes)
        )
        for name, title, changes in UNTOUCHED
    ]


def many_untouched(seed):
    """The few-step student in the cascade without and with the mapping, with more images."""
    unmapped, _, mapped, *_ = untouched_rows(FULL, seed)
    return [with_many(unmapped), with_many(mapped)]


def student_row(student, seed, mark=None):
    """The row of a student of a training seed, after ``mark`` updates or at its last one."""
    mark = mark or student.marks[-1]
    name, rules = f"{student.name}_{mark}_seed_{seed}", sampling(*student.changes)
    return SampledRow(name=name, title=student.title, network=Run(student, seed, mark), **rules)


def student_rows(student, mark=None):
    """The rows of a student, one for each seed."""
    return [student_row(student, seed, mark) for seed in student.seeds]


def marked_rows(student, seed):
    """The rows of a student of a training seed after each of its marks, and at the end with more images."""
    found = [student_row(student, seed, mark) for mark in student.marks]
    return found + ([with_many(found[-1])] if student in FULL.main and seed in SEEDS_OF_MANY else [])


def with_many(row):
    """A row with more images of each prompt."""
    return replace(row, name=f"{row.name}_many", repeats=MANY)


def long_rows(student):
    """The rows of a student of training seed 0 after longer training."""
    return [student_row(student, 0, mark) for mark in LONG]


@cache
def all_groups():
    """Every row, in lists that are made one row after the other: the most important list first."""
    groups = [[*floor_rows(), with_many(floor_rows()[0])], *([row] for world in WORLDS for row in teacher_rows(world))]
    groups += [[with_many(row)] for row in teacher_rows(FULL)[:2]]
    for world in WORLDS:
        for seed in SEEDS:
            tuned = [student for student in (world.tuned_area, world.tuned_none) if seed in student.seeds]
            groups.append(marked_rows(world.single, seed) + (untouched_rows(world, seed) if tuned else []))
            groups[-1] += many_untouched(seed) if world is FULL and seed in SEEDS_OF_MANY else []
            groups[-1] += [row for student in tuned for row in marked_rows(student, seed)]
            groups += [marked_rows(student, seed) for student in (world.rmd_area, world.rmd_none)]
        groups += [long_rows(student) for student in (FULL.rmd_none, FULL.rmd_area)] if world is FULL else []
        groups += [
            marked_rows(student, seed) for student in (world.rmd_half, world.two_steps) for seed in student.seeds
        ]
        single, tuned, rmd = world.lora
        groups += [marked_rows(single, seed) + marked_rows(tuned, seed) for seed in single.seeds]
        groups += [marked_rows(rmd, seed) for seed in rmd.seeds]
        groups += [student_rows(student) for student in (*(world.few if world is FULL else ()), *world.options)]
    return [*groups, damaged_rows()]


@cache
def sampling(*changes):
    """How the demo's configuration with some changes samples."""
    config = load_config(CONFIG, (*BASE, *changes)).resolved()
    boundary = sampling_boundary(config.method)
    return {"plan": build_plan(config, backbone()), "boundary": boundary, "eta": config.method.eta}


@cache
def final_size():
    """The latent size of the final images."""
    return load_config(CONFIG, BASE).resolved().plan.sizes[-1]


@cache
def backbone():
    """The demo's backbone, with the flow shift of the demo's configuration."""
    config = load_config(CONFIG, BASE).resolved()
    return make_backbone(config.backbone.name, shift=config.backbone.shift)


@cache
def scorer(repeats=REPEATS):
    """The Scorer of this process for rows with so many images of each prompt."""
    return Scorer(repeats=repeats, device="cuda" if torch.cuda.is_available() else "cpu")


def make_group(names, stop_at):
    """In a process of its own: train, sample, score and keep the rows of one group that are not kept yet.

    Begins no row after ``stop_at`` (seconds since 1970). Returns the rows made, and an error as text or None.
    """
    torch.set_num_threads(1)
    store, made = Store(), []
    rows = next(group for group in all_groups() if names[0] in {row.name for row in group})
    try:
        for row in rows:
            if row.name not in names or store.figures(row) is not None:
                continue
            if time.time() > stop_at:
                break
            row.prepare()
            store.keep(row, row.figures(scorer(row.repeats)))
            made.append(row.name)
    except RMDError as error:
        return made, str(error)
    return made, None


def make_rows(groups, *, jobs, minutes):
    """Make the rows that are not kept, ``jobs`` groups at a time; returns the errors as texts."""
    stop_at, errors, store = time.time() + 60 * minutes, [], Store()
    wanted = [names for group in groups if (names := [row.name for row in group if store.figures(row) is None])]
    log.info("%d rows to make in %d groups", sum(map(len, wanted)), len(wanted))
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(make_group, names, stop_at) for names in wanted]):
            names, error = done.result()
            errors += [error] if error else []
            if names or error:
                log.info("made %s%s", ", ".join(names) or "nothing", f"; {error}" if error else "")
    return errors

"""What is trained: students, one change at a time and at equal training cost, and short trainings of the teacher."""

import hashlib
import json
import logging
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from benchmarks.results import ROOT
from demo import files
from rmd_core.errors import RMDError
from training.config import decisive, load_config

log = logging.getLogger(__name__)
OUTPUTS = Path("outputs") / "quality"  # below the repository's root, ignored by git
CONFIG = ROOT / "training" / "configs" / "demo.yaml"
REVISION = 1  # raise it when the trainer or the sampler is changed so that the same settings give other images

# What every student shares, written out so that a change of the project's defaults moves no row.
BASE = (
    "plan.steps=4", "plan.split=2+2", "plan.sizes=[[8,8],[16,16]]",
    "method.preset=default", "method.upsampler=nearest", "method.mapping=none",
    "method.switch_noise=exact", "method.loss_noise=exact", "method.eta_train=0.5", "method.eta=0.5",
    "loss.cfg=2.0", "loss.fake_weighting=eps", "loss.fake_target=x0", "train.fake_steps=1",
    "optimiser.student_lr=1e-4", "optimiser.fake_lr=4e-4", "train.batch=16", "train.ema=0.985",
)  # fmt: skip
# How the run goes, which changes no weight: no validation images, no tracker, one checkpoint.
RUN = ("backbone.vae=null", "output.trackers=[]", "output.checkpoint_every=40", "output.keep=1")
# Keys that are always part of a fingerprint, whatever their default value is or becomes.
ALWAYS = (
    "loss.cfg", "loss.fake_weighting", "loss.fake_target", "loss.clip", "loss.huber_c", "optimiser.betas",
    "optimiser.weight_decay", "optimiser.eps", "optimiser.clip_student", "optimiser.clip_fake", "train.accumulation",
    "train.seed", "train.warmup_updates", "train.fake_steps", "train.fake_only_updates", "train.share_forward",
    "train.precision", "output.dtype",
)  # fmt: skip
FILES = ("backbone.base", "backbone.vae", "prompts.cache", "prompts.file")  # identified by their content
SEEDS = (0, 1, 2)
THREE_SIZES = "plan.sizes=[[8,8],[12,12],[16,16]]"


@dataclass(frozen=True, kw_only=True)
class Student:
    """One way to train a student.

    ``changes``: overrides of the default; ``seeds``: training seeds; ``marks``: numbers of updates after which the
    student is exported, the last of them the end. ``cost``: updates of the default that cost as much as all of them.
    """

    name: str
    title: str
    changes: tuple = ()
    seeds: tuple = (0,)
    marks: tuple
    cost: int

    def overrides(self, seed):
        """All overrides of the demo's configuration that decide the weights but for the number of updates."""
        return (*BASE, *self.changes, f"train.seed={seed}")

    def config(self, seed):
        """The resolved configuration of a run to its end."""
        return load_config(CONFIG, (*self.overrides(seed), *RUN, f"train.updates={self.marks[-1]}")).resolved()


# Networks to sample: each has ``group`` (networks of one group are trained one after the other), ``content`` (what its
# weights depend on), ``file``, and ``train``, which makes the file where it is not there and raises RMDError if that
# fails.


@dataclass(frozen=True)
class Run:
    """A student after ``mark`` updates of a training seed."""

    student: Student
    seed: int
    mark: int

    @property
    def group(self):
        return f"{self.student.name}-{self.seed}"

    @property
    def content(self):
        return {"student": weights_key(self.student, self.seed), "updates": self.mark}

    @property
    def folder(self):
        """The folder of the training, from the root; another configuration gives another folder."""
        return OUTPUTS / "students" / f"{self.group}-{weights_key(self.student, self.seed)}"

    @property
    def file(self):
        return ROOT / self.folder / f"after_{self.mark}.safetensors"

    def command(self):
        """The trainer's command that trains to ``mark`` updates, from the last checkpoint if there is one."""
        own = (
            f"train.updates={self.mark}",
            f"output.folder={self.folder.as_posix()}",
            f"output.name=after_{self.mark}",
        )
        sets = [word for text in (*self.student.overrides(self.seed), *RUN, *own) for word in ("--set", text)]
        resume = ["--resume"] if (ROOT / self.folder / "run.json").exists() else []
        return ["training/distill.py", "--config", str(CONFIG), *sets, *resume]

    def train(self):
        for run in (replace(self, mark=mark) for mark in self.student.marks):
            if not run.file.exists():
                logfile = (ROOT / self.folder).with_name(f"{self.group}.log")
                run_program(run.command(), logfile, f"{self.student.name}, seed {self.seed}, to {run.mark} updates")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher trained from nothing. ``shares``: of the steps at 128, 96 and 64 px."""

    name: str
    title: str
    shares: tuple
    cpu_minutes: float = 6
    jitters: int = 16

    @property
    def group(self):
        return self.name

    @property
    def content(self):  # the speed of the machine decides too
        settings = [list(self.shares), self.cpu_minutes, self.jitters]
        return {"short teacher": settings, "vae": digest_of_files(files.VAE), "revision": REVISION}

    @property
    def file(self):
        return ROOT / OUTPUTS / "teachers" / self.name / "teacher.safetensors"

    def train(self):
        folder = self.file.parent
        if not self.file.exists():
            command = ["-m", "demo.make.teacher", "--out", folder, "--cpu-minutes", self.cpu_minutes]
            command += ["--jitters", self.jitters, "--shares", *self.shares]
            run_program(command, folder.with_suffix(".log"), self.name)


class ShippedTeacher:
    """The demo's own teacher."""

    group, file = "shipped teacher", files.TEACHER

    @property
    def content(self):
        return {"teacher": digest_of_files(files.TEACHER)}

    def train(self):
        """It is there."""


def run_program(arguments, logfile, title):
    """Run Python with arguments, its output to a log. Raises RMDError when it fails."""
    log.info("training %s", title)
    logfile.parent.mkdir(parents=True, exist_ok=True)
    with logfile.open("a") as file:
        done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, stdout=file, stderr=file)
    if done.returncode:
        raise RMDError(
            f"training {title} ended with code {done.returncode}; see {logfile} and run the same command again, which "
            "continues from the last checkpoint if there is one"
        )


def _main(name, title, *changes, marks=(80, 160, 240)):
    return Student(name=name, title=title, changes=changes, seeds=SEEDS, marks=marks, cost=240)


def _change(name, title, *changes, updates=160, seeds=SEEDS[:1]):
    return Student(name=name, title=title, changes=changes, seeds=seeds, marks=(updates,), cost=160)


def _boundary(rule, eta):
    changes = (f"method.switch_noise={rule}", f"method.loss_noise={rule}")
    return _change(
        f"noise_{rule}_{eta:g}", f"{rule} noise, eta {eta:g}", *changes,
        f"method.eta_train={float(eta)}", f"method.eta={float(eta)}",
    )  # fmt: skip


def _preset(name):
    empty = (f"method.{key}=null" for key in (
        "upsampler", "mapping", "switch_noise", "loss_noise", "eta_train", "eta"))  # fmt: skip
    return _change(f"preset_{name}", f"preset {name}", f"method.preset={name}", *empty)


DEFAULT = _main("rmd_2+2", "RMD 2+2")
SINGLE = _main("single", "one resolution, 4 steps", "plan.split=4", "plan.sizes=[[16,16]]", marks=(64, 128, 192))
CELLS = (
    _main("nearest_area", "RMD 2+2, nearest, area mapping", "method.mapping=area"),
    _main("bicubic_none", "RMD 2+2, bicubic, no mapping", "method.upsampler=bicubic"),
    _main("bicubic_area", "RMD 2+2, bicubic, area mapping", "method.upsampler=bicubic", "method.mapping=area"),
)
CHANGES = (
    _preset("official-current"),
    _preset("paper-literal"),
    _change("teacher_cfg_1", "teacher without CFG", "loss.cfg=1.0", updates=182),
    _change("teacher_cfg_1.5", "teacher CFG 1.5", "loss.cfg=1.5"),
    _change("fake_steps_2", "2 fake-score steps", "train.fake_steps=2", updates=107),
    _boundary("fresh", 0.5),
    _boundary("exact", 1),
    _boundary("exact", 0),
    _change("split_1+3", "RMD 1+3", "plan.split=1+3", updates=159),
    _change("split_3+1", "RMD 3+1", "plan.split=3+1", updates=161),
    _change("split_1+1+2", "RMD 1+1+2", "plan.split=1+1+2", THREE_SIZES, updates=162),
    _change("target_subinterval", "fake target subinterval, 3 seeds", "loss.fake_target=subinterval", seeds=SEEDS),
    _change("weighting_v", "fake weighting v", "loss.fake_weighting=v"),
    _change("weighting_min_snr5", "fake weighting min_snr5", "loss.fake_weighting=min_snr5"),
    _change("weighting_legacy", "fake weighting legacy", "loss.fake_weighting=legacy"),
    _boundary("mix", 0.5),
    _change("fake_steps_5", "5 fake-score steps", "train.fake_steps=5", updates=54),
    _boundary("mix", 1),
    _boundary("fresh", 1),
    _change("half_rates", "half the learning rates", "optimiser.student_lr=5e-5", "optimiser.fake_lr=2e-4"),
)
STUDENTS = (DEFAULT, SINGLE, *CELLS, *CHANGES)
TEACHERS = (
    Teacher(name="teacher_half_low", title="half of the steps below 128 px", shares=(0.5, 0.25, 0.25)),
    Teacher(name="teacher_tenth_low", title="a tenth of the steps below 128 px", shares=(0.9, 0.05, 0.05)),
)


def runs():
    """Every training run (student, seed), the most important first."""
    main = [(student, seed) for seed in SEEDS for student in (DEFAULT, SINGLE)]
    cells = [(student, seed) for seed in SEEDS for student in CELLS]
    changes = [(student, seed) for student in CHANGES for seed in student.seeds]
    return [*main, *cells[:3], *changes[:5], *cells[3:], *changes[5:]]


def settings(config):
    """The settings of a configuration that decide the weights, without those left at an uninteresting default."""
    every = decisive(config.model_dump(mode="json")) | {"output.dtype": config.output.dtype}
    changed = decisive(config.model_dump(mode="json", exclude_defaults=True))
    kept = {key: every[key] for key in every if key in changed or key in ALWAYS}
    return {key: value for key, value in kept.items() if key not in FILES}


@cache
def digest_of_files(*paths):
    """SHA-256 over the content of files, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()


@cache
def weights_key(student, seed):
    """What the weights of a run depend on, but for the number of updates, as 12 hexadecimal digits."""
    content = {"settings": settings(student.config(seed)), "files": digest_of_files(files.TEACHER, files.PROMPTS)}
    return short_digest(content | {"revision": REVISION})


def short_digest(content):
    """12 hexadecimal digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

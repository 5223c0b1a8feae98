"""The students of the benchmark: what each is trained with, one change at a time, at equal training cost."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from demo import files
from training.config import decisive, load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "training" / "configs" / "demo.yaml"
REVISION = 1  # raise it when the trainer or the sampler is changed so that the same settings give other pictures

# What every student shares, written out so that a change of the project's defaults moves no row.
BASE = (
    "plan.steps=4", "plan.split=2+2", "plan.sizes=[[8,8],[16,16]]",
    "method.preset=default", "method.upsampler=nearest", "method.mapping=none",
    "method.switch_noise=exact", "method.loss_noise=exact", "method.eta_train=0.5", "method.eta=0.5",
    "loss.cfg=2.0", "loss.fake_weighting=eps", "loss.fake_target=x0", "train.fake_steps=1",
    "optimiser.student_lr=1e-4", "optimiser.fake_lr=4e-4", "train.batch=16", "train.ema=0.985",
)  # fmt: skip
# How the run goes, which changes no weight: no validation pictures, no tracker, one checkpoint.
RUN = ("backbone.vae=null", "output.trackers=[]", "output.checkpoint_every=40", "output.keep=1")
# Keys that are always part of a fingerprint, whatever their default value is or becomes.
ALWAYS = (
    "loss.cfg", "loss.fake_weighting", "loss.fake_target", "loss.clip", "loss.huber_c", "optimiser.betas",
    "optimiser.weight_decay", "optimiser.eps", "optimiser.clip_student", "optimiser.clip_fake", "train.accumulation",
    "train.seed", "train.warmup_updates", "train.fake_steps", "train.fake_only_updates", "train.share_forward",
    "train.precision", "output.dtype",
)  # fmt: skip
FILES = ("backbone.base", "backbone.vae", "prompts.cache", "prompts.file")  # told by their content
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
    text = json.dumps(content | {"revision": REVISION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

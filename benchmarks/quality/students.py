"""What is trained: teachers of two kinds, and students of them, all at equal training cost."""

import contextlib
import hashlib
import json
import logging
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

from benchmarks.results import ROOT
from demo import files
from rmd_core.errors import RMDError
from rmd_core.files import read_header
from training import distill
from training.config import decisive, load_config
from training.lora_files import is_lora, merge_lora
from training.start import read_changes

log = logging.getLogger(__name__)
OUTPUTS = Path("outputs") / "quality"  # below the repository's root, ignored by git
CONFIG = ROOT / "training" / "configs" / "demo.yaml"
REVISION = 1  # raise it when the trainer or the sampler is changed so that the same settings give other images
COST = 240  # updates of RMD 2+2 that cost as much as any student of the main tables
OPTION_COST = 160  # and of the table of options
LONG = (480, 960)  # updates of one long training
ONE, TWO = 224, 213  # updates of the students of one and of two steps at the full size, at equal cost

# What every student shares, written out so that a change of the project's defaults moves no row.
BASE = (
    "model.mode=three networks", "plan.steps=4", "plan.split=2+2", "plan.sizes=[[8,8],[16,16]]",
    "method.preset=default", "method.upsampler=nearest", "method.mapping=area",
    "method.switch_noise=exact", "method.loss_noise=exact", "method.eta_train=0.5", "method.eta=0.5",
    "loss.cfg=2.0", "loss.fake_weighting=eps", "loss.fake_target=x0", "train.fake_steps=1",
    "optimiser.student_lr=1e-4", "optimiser.fake_lr=4e-4", "train.batch=16", "train.ema=0.985",
)  # fmt: skip
# How the run goes, which changes no weight: no validation images, no tracker, one checkpoint.
RUN = ("backbone.vae=null", "output.trackers=[]", "output.checkpoint_every=1000", "output.keep=1")
# Keys that are always part of a fingerprint, whatever their default value is or becomes.
ALWAYS = (
    "loss.cfg", "loss.fake_weighting", "loss.fake_target", "loss.clip", "loss.huber_c", "optimiser.betas",
    "optimiser.weight_decay", "optimiser.eps", "optimiser.clip_student", "optimiser.clip_fake", "train.accumulation",
    "train.seed", "train.warmup_updates", "train.fake_steps", "train.fake_only_updates", "train.share_forward",
    "train.precision", "output.dtype",
)  # fmt: skip
# Identified by their content.
FILES = ("backbone.base", "backbone.vae", "prompts.cache", "prompts.file", "model.init_from")
THREE_SIZES = "plan.sizes=[[8,8],[12,12],[16,16]]"
# A LoRA, as the real configurations train one; its rates are four times those of whole networks.
ADAPTERS = ("model.mode=adapters", "model.rank=64", "optimiser.student_lr=4e-4", "optimiser.fake_lr=1.6e-3")
AREA, NONE, HALF = "method.mapping=area", "method.mapping=none", "method.mapping={ratio: 1.4142135623730951}"


@dataclass(frozen=True)
class Teacher:
    """A teacher by the sizes that it was trained at; ``sha256``: of its file, in hexadecimal."""

    name: str
    title: str
    file: Path
    sha256: str

    @property
    def content(self):
        """What the weights depend on."""
        return {"teacher": digest_of_digests(self.sha256)}

    def load(self, backbone):
        """The teacher as a network."""
        return backbone.load(self.file, dtype=torch.float32)

    def train(self):
        """Raise RMDError where its file is not there."""
        if not self.file.exists():
            raise RMDError(
                f"{self.file} is not there; run: git show {COMMIT_OF_BOTH}:demo/models/diffusion_models/"
                f"rmd_tiny_wan_teacher.safetensors > {self.file.relative_to(ROOT)}"
            )


# The shipped teacher of before was trained at 128, 96 and 64 px. It is left out of the checkout for its 4 MB.
COMMIT_OF_BOTH = "f42e5bd"
SHA256_OF_BOTH = "124f65ecf814353f6e3759fb7333854ecca976b0d500b0bcc9e50d30913d87dd"


@dataclass(frozen=True, kw_only=True)
class Student:
    """One way to train a student.

    ``changes``: overrides of BASE; ``seeds``: training seeds; ``marks``: numbers of updates after which the student is
    exported. ``cost``: updates of RMD 2+2 that cost as much as all of them. ``start``: the Student whose weights,
    after its last mark and with the same seed, it starts from.
    """

    name: str
    title: str
    teacher: Teacher
    changes: tuple = ()
    seeds: tuple = (0,)
    marks: tuple = (COST,)
    cost: int = COST
    start: object = None

    def overrides(self, seed):
        """All overrides of the demo's configuration that decide the weights but for the number of updates."""
        start = () if self.start is None else (f"model.init_from={Run(self.start, seed, self.start.marks[-1]).file}",)
        return (*BASE, *self.changes, *start, f"backbone.base={self.teacher.file}", f"train.seed={seed}")

    def config(self, seed):
        """The resolved configuration of a run to its end."""
        return load_config(CONFIG, (*self.overrides(seed), *RUN, f"train.updates={self.marks[-1]}")).resolved()


@dataclass(frozen=True)
class Run:
    """A student after ``mark`` updates of a training seed."""

    student: Student
    seed: int
    mark: int

    @property
    def content(self):
        """What the weights depend on."""
        return {"student": weights_key(self.student, self.seed), "updates": self.mark}

    @property
    def folder(self):
        """The folder of the training, from the root; another configuration gives another folder."""
        name = f"{self.student.name}-{self.seed}-{weights_key(self.student, self.seed)}"
        return OUTPUTS / "students" / name

    @property
    def file(self):
        """The file of the student."""
        return ROOT / self.folder / f"after_{self.mark}.safetensors"

    def load(self, backbone):
        """The student as a network; a LoRA is merged into its teacher."""
        if not is_lora(read_header(self.file).tensors):
            return backbone.load(self.file, dtype=torch.float32)
        network = self.student.teacher.load(backbone)
        return merge_lora(network, read_changes(self.file, backbone, network), self.file)

    def command(self, device="cpu"):
        """The trainer's arguments that train to ``mark`` updates, from the last checkpoint if there is one."""
        own = (
            f"train.updates={self.mark}",
            f"train.device={device}",
            f"output.folder={self.folder.as_posix()}",
            f"output.name=after_{self.mark}",
        )
        sets = [word for text in (*self.student.overrides(self.seed), *RUN, *own) for word in ("--set", text)]
        resume = ["--resume"] if (ROOT / self.folder / "run.json").exists() else []
        return ["--config", str(CONFIG), *sets, *resume]

    def train(self):
        """Train up to every mark before this one, and to this, in this process. Raises RMDError when that fails."""
        if self.file.exists():
            return
        for run in (*(replace(self, mark=mark) for mark in self.student.marks if mark < self.mark), self):
            if run.file.exists():
                continue
            if run.student.start is not None:
                Run(run.student.start, run.seed, run.student.start.marks[-1]).train()
            self.student.teacher.train()
            later = [path for path in run.file.parent.glob("after_*") if int(path.stem.split("_")[1]) > run.mark]
            if later:
                raise RMDError(
                    f"{run.folder} has {later[0].name} but not {run.file.name}; delete the folder to train again"
                )
            logfile = (ROOT / run.folder).with_suffix(".log")
            logfile.parent.mkdir(parents=True, exist_ok=True)
            device = "auto" if torch.cuda.is_available() else "cpu"
            with logfile.open("a") as file, output_to(file):
                code = distill.main(run.command(device))
            if code:
                raise RMDError(f"training {run.folder} ended with code {code}; see {logfile}")


@cache
def sha256_of(path):
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@contextlib.contextmanager
def output_to(file):
    """Within the block what this process prints and logs goes to an open file."""
    root, handler = logging.getLogger(), logging.StreamHandler(file)
    before, root.handlers = root.handlers, [handler]
    try:
        with contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
            yield
    finally:
        root.handlers = before


def _student(teacher, name, title, *changes, **settings):
    """A Student of a teacher; its name begins with the teacher's."""
    return Student(name=f"{teacher.name}_{name}", title=title, teacher=teacher, changes=changes, **settings)


def _boundary(rule, eta):
    rules = (f"method.switch_noise={rule}", f"method.loss_noise={rule}")
    etas = (f"method.eta_train={float(eta)}", f"method.eta={float(eta)}")
    return f"noise_{rule}_{eta:g}", f"{rule} noise, eta {eta:g}", *rules, *etas


def _preset(name):
    keys = ("upsampler", "mapping", "switch_noise", "loss_noise", "eta_train", "eta")
    return f"preset_{name}", f"preset {name}", f"method.preset={name}", *(f"method.{key}=null" for key in keys)


# ((name, title, changes), updates at equal cost); tests/benchmarks/test_quality.py computes the cost
OPTIONS = (
    (("bicubic", "bicubic", "method.upsampler=bicubic"), 160),
    (_boundary("fresh", 0.5), 160),
    (("split_1+3", "RMD 1+3", "plan.split=1+3"), 159),
    (("target_subinterval", "fake target subinterval", "loss.fake_target=subinterval"), 160),
    (_boundary("exact", 0), 160),
    (("weighting_v", "fake weighting v", "loss.fake_weighting=v"), 160),
    (("own_forward", "a student forward for each phase", "train.share_forward=false"), 140),
    (_boundary("mix", 0.5), 160),
    (("fake_steps_2", "2 fake-score steps", "train.fake_steps=2"), 107),
    (_boundary("exact", 1), 160),
    (("split_3+1", "RMD 3+1", "plan.split=3+1"), 161),
    (("split_1+1+2", "RMD 1+1+2", "plan.split=1+1+2", THREE_SIZES), 162),
    (_preset("official-current"), 160),
    (("teacher_cfg_1", "teacher without CFG", "loss.cfg=1.0"), 182),
    (("weighting_min_snr5", "fake weighting min_snr5", "loss.fake_weighting=min_snr5"), 160),
    (("fake_steps_5", "5 fake-score steps", "train.fake_steps=5"), 54),
    (_preset("paper-literal"), 160),
    (("mixed_stages", "a stage for each half of an update", "train.accumulation=2", "train.batch=8"), 160),
)  # fmt: skip


class World:
    """A teacher and its students.

    ``mapping``: the one that the table of options starts from; ``seeds``: of the control, of the tuned students and of
    half of the mapping; ``lora_seeds``: of LoRAs; ``first``: the first marks of RMD.
    """

    def __init__(self, teacher, mapping, *, seeds, lora_seeds, first=()):
        self.teacher = teacher
        main = partial(_student, teacher, seeds=SEEDS)
        marks = (20, 40, 80, 160, COST)
        rmd_marks = (*first, 80, 160, COST)
        one_size = (NONE, "plan.split=4", "plan.sizes=[[16,16]]")
        self.single = main("single", "one resolution, 4 steps", *one_size, marks=(64, 128, 192))
        # The control: the two full-size steps alone. Is the small stage of any use?
        two = ("plan.steps=2", "plan.split=2", "plan.sizes=[[16,16]]")
        self.two_steps = _student(
            teacher, "two_steps", "one resolution, 2 steps", NONE, *two, seeds=seeds, marks=(TWO,)
        )
        self.rmd_area = main("rmd_area", "RMD, area mapping", AREA, marks=rmd_marks)
        self.rmd_none = main("rmd_none", "RMD, no mapping", NONE, marks=rmd_marks)
        # With one large step, does a small one before it help?
        one = ("plan.steps=1", "plan.split=1", "plan.sizes=[[16,16]]")
        self.few = (
            _student(teacher, "one_step", "one resolution, 1 step", NONE, *one, marks=(ONE,)),
            _student(teacher, "rmd_1+1", "RMD 1+1", AREA, "plan.steps=2", "plan.split=1+1", marks=(253,)),
            _student(teacher, "rmd_2+1", "RMD 2+1", AREA, "plan.steps=3", "plan.split=2+1", marks=(247,)),
        )
        self.rmd_half = _student(
            teacher, "rmd_half", "RMD, half of the mapping", HALF, seeds=seeds, marks=(80, 160, COST)
        )
        start = {"start": self.single, "marks": marks}
        self.tuned_area = _student(
            teacher, "tuned_area", "one resolution, then tuned, area mapping", AREA, seeds=seeds, **start
        )
        self.tuned_none = _student(
            teacher, "tuned_none", "one resolution, then tuned, no mapping", NONE, seeds=seeds, **start
        )
        tuned = self.tuned_none, self.tuned_area
        # The same as LoRAs: what a user of a few-step LoRA would train.
        lora = partial(_student, teacher, seeds=lora_seeds)
        single = lora("single_lora", "one resolution, 4 steps, LoRA", *one_size, *ADAPTERS, marks=(192,))
        self.lora = (
            single,
            lora("tuned_lora", f"{self.tuned_area.title}, LoRA", AREA, *ADAPTERS, start=single, marks=marks),
            lora("rmd_lora", f"{self.rmd_area.title}, LoRA", AREA, *ADAPTERS, marks=marks),
        )
        self.main = (self.single, self.two_steps, *tuned, self.rmd_none, self.rmd_half, self.rmd_area)
        self.base = self.rmd_none if mapping == NONE else self.rmd_area
        self.options = [
            _student(teacher, name, title, mapping, *changes, marks=(updates,), cost=OPTION_COST)
            for (name, title, *changes), updates in OPTIONS
        ]


SEEDS = (0, 1, 2, 3, 4)
FULL = World(
    Teacher("full", "trained at the full size", files.TEACHER, sha256_of(files.TEACHER)),
    AREA,
    seeds=SEEDS,
    lora_seeds=SEEDS[:3],
    first=(20, 40),
)
BOTH_FILE = ROOT / OUTPUTS / "teachers" / "both.safetensors"
BOTH = World(
    Teacher("both", "trained at both sizes", BOTH_FILE, SHA256_OF_BOTH),
    NONE,
    seeds=SEEDS[:3],
    lora_seeds=SEEDS[:1],
)
WORLDS = (FULL, BOTH)


def settings(config):
    """The settings of a configuration that decide the weights, without those left at an uninteresting default."""
    every = decisive(config.model_dump(mode="json")) | {"output.dtype": config.output.dtype}
    changed = decisive(config.model_dump(mode="json", exclude_defaults=True))
    kept = {key: every[key] for key in every if key in changed or key in ALWAYS}
    return {key: value for key, value in kept.items() if key not in FILES}


def digest_of_files(*paths):
    """SHA-256 over the SHA-256 digests of files, in hexadecimal."""
    return digest_of_digests(*map(sha256_of, paths))


def digest_of_digests(*digests):
    """SHA-256 over digests in hexadecimal, in hexadecimal."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


@cache
def weights_key(student, seed):
    """What the weights of a run depend on, but for the number of updates, as 12 hexadecimal digits."""
    # Without the file that it starts from, whose name depends on the key of that run.
    overrides = (*BASE, *student.changes, f"train.seed={seed}", *RUN, f"train.updates={student.marks[-1]}")
    content = {
        "settings": settings(load_config(CONFIG, overrides).resolved()),
        "files": digest_of_digests(student.teacher.sha256, sha256_of(files.PROMPTS)),
        "revision": REVISION,
    }
    if student.start is not None:
        content["start"] = Run(student.start, seed, student.start.marks[-1]).content
    return short_digest(content)


def short_digest(content):
    """12 hexadecimal digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

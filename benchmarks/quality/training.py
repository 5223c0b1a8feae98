"""Train the students with the real trainer, in pieces that end where a student is exported."""

import logging
import subprocess
import sys
from pathlib import Path

from rmd_core.errors import RMDError

from .students import CONFIG, ROOT, RUN, weights_key

log = logging.getLogger(__name__)
OUTPUTS = Path("outputs") / "quality"  # below the repository's root, ignored by git


def run_folder(student, seed, outputs=OUTPUTS):
    """Where a run lies; another configuration gives another folder."""
    return Path(outputs) / "students" / f"{student.name}-{seed}-{weights_key(student, seed)}"


def student_file(student, seed, mark, outputs=OUTPUTS):
    """The file of a student after ``mark`` updates."""
    return ROOT / run_folder(student, seed, outputs) / f"after_{mark}.safetensors"


def command(student, seed, mark, outputs=OUTPUTS):
    """The trainer's command that trains to ``mark`` updates, from the last checkpoint if there is one."""
    folder = run_folder(student, seed, outputs)
    own = (f"train.updates={mark}", f"output.folder={folder.as_posix()}", f"output.name=after_{mark}")
    sets = [word for text in (*student.overrides(seed), *RUN, *own) for word in ("--set", text)]
    resume = ["--resume"] if (ROOT / folder / "run.json").exists() else []
    program = [sys.executable, str(ROOT / "training" / "distill.py"), "--config", str(CONFIG)]
    return [*program, *sets, *resume]


def train(student, seed, outputs=OUTPUTS):
    """Train one run as far as it is not there, with its output in the run's log. Raises RMDError when it fails."""
    for mark in student.marks:
        if student_file(student, seed, mark, outputs).exists():
            continue
        log.info("training %s, seed %d, to %d updates", student.name, seed, mark)
        told = ROOT / run_folder(student, seed, outputs).parent / f"{student.name}-{seed}.log"
        told.parent.mkdir(parents=True, exist_ok=True)
        with told.open("a") as file:
            done = subprocess.run(command(student, seed, mark, outputs), cwd=ROOT, stdout=file, stderr=file)
        if done.returncode:
            raise RMDError(
                f"training {student.name}, seed {seed}, ended with code {done.returncode}; see {told} and run the "
                "same command again, which continues from the last checkpoint"
            )

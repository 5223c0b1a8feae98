"""Short trainings of the teacher that differ in their share of low-resolution steps."""

import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from demo import files
from rmd_core.errors import RMDError

from .students import REVISION, ROOT, digest_of_files

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher trained from nothing. ``shares``: of the steps at 128, 96 and 64 px."""

    name: str
    title: str
    shares: tuple
    cpu_minutes: float = 6
    jitters: int = 16

    @property
    def content(self):
        """What its weights depend on, but for the speed of the machine."""
        settings = [list(self.shares), self.cpu_minutes, self.jitters]
        return {"short teacher": settings, "vae": digest_of_files(files.VAE), "revision": REVISION}

    def file(self, outputs):
        """Where its weights lie."""
        return ROOT / outputs / "teachers" / self.name / "teacher.safetensors"

    def train(self, outputs):
        """Train it if it is not there, in one piece. Raises RMDError when that fails."""
        path = self.file(outputs)
        if path.exists():
            return
        log.info("training %s", self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        told = path.parent.with_suffix(".log")
        with told.open("a") as file:
            done = subprocess.run(self._command(path.parent), cwd=ROOT, stdout=file, stderr=file)
        if done.returncode:
            raise RMDError(f"training {self.name} ended with code {done.returncode}; see {told} and run it again")

    def _command(self, folder):
        shares = [str(share) for share in self.shares]
        return [
            sys.executable, "-m", "demo.make.teacher", "--out", str(Path(folder)), "--cpu-minutes",
            str(self.cpu_minutes), "--jitters", str(self.jitters), "--shares", *shares,
        ]  # fmt: skip


TEACHERS = (
    Teacher(name="teacher_half_low", title="half of the steps below 128 px", shares=(0.5, 0.25, 0.25)),
    Teacher(name="teacher_tenth_low", title="a tenth of the steps below 128 px", shares=(0.9, 0.05, 0.05)),
)

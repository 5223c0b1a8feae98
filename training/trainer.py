"""The training loop: fake-score steps, a student step, the record, validation, checkpoints."""

import contextlib
import logging
import math
import time
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from rmd_core.errors import RMDError
from rmd_core.files import writing

from .batches import describe
from .export import student_files
from .memory import cost_of_run
from .networks import make_networks
from .objective import Objective
from .parallel import gather_full
from .record import MetricsFile, combine, latent_figures, start_trackers
from .run import CheckpointStore
from .speed import matmul_tflops
from .validation import Validation

log = logging.getLogger(__name__)

MOST_SKIPPED = 10  # steps of one network in a row whose gradient was not finite, before the run ends


class Trainer:
    """One run in all its processes: ``restore`` once, then ``run``."""

    def __init__(self, setup, processes):
        self.setup = setup
        self.config = setup.config
        self.processes = processes
        self.device = processes.device
        self.folder = folder = Path(self.config.output.folder)
        self.sampler = setup.sampler(processes.shares)
        self.done = 0
        train = self.config.train
        self.samples = train.batch * train.accumulation * processes.shares  # of an update
        cost, forward, _ = cost_of_run(setup)
        self.flops = cost.total * forward * self.samples  # of an update, of all processes
        self.skipped = {"fake": 0, "student": 0}  # steps in a row without a finite gradient
        self.seconds = {}  # by phase, since the last record
        self.branched = False
        self.trackers = []
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.store = CheckpointStore(folder / "checkpoints", keep=self.config.output.keep, processes=processes)
        if self.device.type == "cuda":  # while there is room
            self.matmul = matmul_tflops(self.device, getattr(torch, train.precision))
            log.info("this device: %.0f TFLOP a second in a large matrix product", self.matmul)
        self.networks = make_networks(setup, processes)
        self.objective = Objective(
            setup,
            student=self.networks.student,
            fake=self.networks.fake,
            teacher=self.networks.teacher,
            device=self.device,
        )
        self.validation = None
        if setup.vae is not None:
            images = folder / "pictures"  # of a run that an older version started
            images = images if images.is_dir() else folder / "images"
            self.validation = Validation(setup, images, device=self.device, decodes=processes.main)

    def run(self, signals):
        """Train to the end, or until ``signals`` has received one; returns the exit code. Raises RMDError."""
        try:
            self._log_batch_size()
            with self.processes.raise_together():
                if self.processes.main:
                    self.trackers = start_trackers(self.config, self.folder, first=self.done + 1)
            return self._loop(signals)
        except RuntimeError as error:
            raise self.processes.as_process_lost(error) or error from None
        finally:
            for tracker in self.trackers:
                tracker.finish()

    def _loop(self, signals):
        train, output = self.config.train, self.config.output
        if self.branched:  # so that this run resumes without the one that it comes from
            self.store.save(self.done, self.networks.state())
        if self.done == 0 and self.validation is not None:
            figures = self._validate(0)
            with self._writing():
                self._record({"update": 0, **figures})
        bar = {"total": train.updates, "initial": min(self.done, train.updates), "disable": not self.processes.main}
        with tqdm(**bar, unit="update", dynamic_ncols=True) as bar:
            while self.done < train.updates:
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.device)
                started = time.perf_counter()
                figures = self.update(self.done + 1)
                seconds = time.perf_counter() - started
                self.done += 1
                last = self.done == train.updates
                stop = self.processes.agree(signals.received)  # a later signal counts from the next update on
                if self.validation is not None and (last or self.done % output.validate_every == 0):
                    with self._timed("validation"):
                        figures |= self._validate(self.done)
                figures |= self._speed(seconds)
                with self._writing():
                    self._record({"update": self.done, **figures})
                bar.set_postfix({k: f"{figures[k]:.4g}" for k in ("loss_student", "loss_fake") if k in figures})
                bar.update()
                due = self.done % output.checkpoint_every == 0 and not any(self.skipped.values())
                if last or stop or due:
                    with self._timed("checkpoint"):
                        self.store.save(self.done, self.networks.state())
                if stop and not last:
                    log.info("stopped by a signal after update %d; continue with --resume", self.done)
                    return 128 + stop  # as shells have it
        path = self.folder / f"{output.name}.safetensors"
        with self.networks.averaged(), self._writing():
            self.networks.export(path, update=self.done)
        log.info("the student is %s", " and ".join(map(str, student_files(path, self.setup.backbone).values())))
        return 0

    def update(self, number):
        """One update, counted from 1; returns its figures, without those that are not finite.

        A step whose gradient is not finite is left out. Raises RMDError after MOST_SKIPPED of them in a row.
        """
        train, settings = self.config.train, self.config.optimiser
        with_student = number > train.fake_only_updates
        rates = self.networks.set_rates(number)
        mine, norms, samples = {}, {}, []
        for turn in range(train.fake_steps):
            share = with_student and train.share_forward and turn == train.fake_steps - 1
            batches = self.sampler.batches(number, f"fake-{turn}", round_number=self._round(number, turn))
            with self._timed("fake"):
                losses, samples = self.objective.fake_phase(self._own(batches), share=share)
                norms["norm_fake"] = self._step("fake", settings.clip_fake, "fake score", batches, number)
            mine["loss_fake"] = sum(losses)
            for stage in sorted({batch.stage for batch in batches}):
                own = [loss for loss, batch in zip(losses, batches) if batch.stage == stage]
                mine[f"loss_fake_stage_{stage + 1}"] = sum(own) * (len(losses) / len(own))
        if with_student:
            if samples:  # the same samples and student forward, other noise levels
                batches = [self.sampler.other_levels(batch, number, "student") for batch in batches]
            else:
                last = self._round(number, train.fake_steps - 1)
                batches = self.sampler.batches(number, "student", round_number=last)
            with self._timed("student"):
                mine["loss_student"], x0 = self.objective.student_phase(self._own(batches), samples)
                norms["norm_student"] = self._step("student", settings.clip_student, "student", batches, number)
            mine |= latent_figures(x0)
            if not self.skipped["student"]:
                self.networks.update_ema()
        mine = dict(zip(mine, torch.stack(list(mine.values())).tolist()))  # the one time that they are read
        figures = rates | norms | combine(self.processes.gather(mine))
        if len(stages := {batch.stage for batch in batches}) == 1:
            figures["stage"] = stages.pop() + 1
        if any(self.skipped.values()):
            figures["skipped"] = sum(map(bool, self.skipped.values()))
        return {name: value for name, value in figures.items() if math.isfinite(value)}

    def _round(self, number, turn):
        """The number of a fake-score step in the whole run, which its prompts follow."""
        return (number - 1) * self.config.train.fake_steps + turn

    def _own(self, batches):
        """This process's samples of micro-batches for all."""
        own = [batch.rows(*self.processes.rows(len(batch.steps))) for batch in batches]
        # Calls of sharded networks are made by all processes together, so all make as many.
        return [m.up_to(int(b.steps.max())) for m, b in zip(own, batches)] if self.processes.sharded else own

    def _step(self, role, limit, name, batches, number):
        """Clip, step and clear, or clear alone where the gradient is not finite; returns its norm before clipping."""
        parameters = list(self.networks.trained[role].parameters())
        self.processes.average_gradients(parameters, experts=bool(self.setup.backbone.experts))
        norm = gather_full(clip_grad_norm_(parameters, math.inf if limit is None else limit)).item()
        if math.isfinite(norm):
            self.skipped[role] = 0
            self.networks.step(role)
            return norm
        # Gradients were averaged, so all processes see the same norm.
        self.networks.skip(role)
        self.skipped[role] += 1
        problem = f"update {number}: the {name}'s gradient norm is {norm} {describe(batches)}"
        if self.skipped[role] == MOST_SKIPPED:
            latest = self.store.latest_path()
            kept = f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet"
            raise RMDError(
                f"{problem}, as in {MOST_SKIPPED - 1} steps before it; {kept}; lower the learning rates or clip the "
                "gradients (optimiser.*) in a new output.folder with --branch"
            )
        log.warning("warning: %s; this step is left out", problem)
        return norm

    def show(self):
        """The validation images (B, 3, H, W) in 0..1 of the student as it is now, in process 0, else None."""
        with self.networks.averaged() as student:
            latents = self.validation.sample(student)
        return self.validation.decode(latents) if self.processes.main else None

    def _validate(self, update):
        images = self.show()
        with self._writing():
            return self.validation.write(images, update) if self.processes.main else {}

    def _speed(self, seconds):
        """Figures of the speed of an update and of its phases, and on a GPU of its memory."""
        figures = {"seconds": seconds, "samples_per_second": self.samples / seconds, **self.seconds}
        self.seconds = {}
        figures["tflop_per_second"] = self.flops / seconds / 1e12
        if self.device.type == "cuda":
            figures["peak_share"] = figures["tflop_per_second"] / self.processes.count / self.matmul
            figures["peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return figures

    @contextlib.contextmanager
    def _timed(self, phase):
        """A block whose seconds are in the next record, with those of other blocks of this phase.

        Each phase of an update ends with its gradient's norm, which is read from the device, so no GPU is waited for.
        """
        started = time.perf_counter()
        yield
        name = f"seconds_{phase}"
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def _record(self, entry):
        if not self.processes.main:
            return
        self.metrics.append(entry)
        figures = {name: value for name, value in entry.items() if name != "update"}
        for tracker in self.trackers:
            tracker.add(figures, entry["update"])

    def restore(self, branch=None):
        """Continue from the newest checkpoint in the folder, if there is one. Raises RMDError for a damaged one.

        ``branch``: the folder of another run, from whose newest checkpoint this new run starts.
        """
        store, self.branched = self.store, branch is not None
        if self.branched:
            store = CheckpointStore(Path(branch) / "checkpoints", keep=1, processes=self.processes)
        with self.processes.raise_together():
            newest = max(store.updates(), default=-1)
            if self.branched and newest < 0:
                raise RMDError(f"--branch {branch}: there is no checkpoint; give the output folder of another run")
        newest = self.processes.gather(newest)[0]
        with self.processes.raise_together():
            if newest >= 0:
                if not store.path(newest).is_dir():
                    raise RMDError(
                        f"process {self.processes.rank + 1} of {self.processes.count} does not see "
                        f"{store.path(newest)}; the output folder must be on a disk that all machines share"
                    )
                checkpoint = store.load(newest, self.networks.state())
                self.networks.load(checkpoint)
                self.done = checkpoint.update
                log.info("resuming after update %d from %s", self.done, checkpoint.path)
                if not checkpoint.mixes_stages and self.config.train.accumulation > 1:
                    log.warning(
                        "warning: this run used one stage for a whole update until update %d; from here on each "
                        "micro-batch has its own, so the samples of an update change",
                        self.done,
                    )
                if checkpoint.processes != self.processes.count:
                    log.warning(
                        "warning: this run had %d processes until update %d and has %d from here on, so the "
                        "samples of an update change",
                        *(checkpoint.processes, self.done, self.processes.count),
                    )
            if self.processes.main:
                self.metrics.keep_until(newest)

    def _log_batch_size(self):
        train, samples = self.config.train, self.samples
        known = self.setup.backbone.recommended_batch(self.setup.teacher)
        log.info(
            "an update is %d samples: batch %d x accumulation %d x processes %d",
            *(samples, train.batch, train.accumulation, self.processes.shares),
        )
        if known is not None and samples < known and self.processes.main:
            log.warning(
                "warning: %d samples an update are known to be too few: the authors train %s with %d; raise "
                "train.accumulation or the number of processes",
                *(samples, self.setup.backbone.name, known),
            )

    @contextlib.contextmanager
    def _writing(self):
        """For what process 0 writes: its failure is everybody's."""
        with self.processes.raise_together(), writing(self.folder):
            yield

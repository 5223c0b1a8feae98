"""The two phases of an update as gradients: the fake score's, then the student's.
The training loop: fake-score steps, a student step, the record, validation, checkpoints."""

import contextlib
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from rmd_core.errors import RMDError
from rmd_core.files import writing
from rmd_core.prompt_cache import NULL_PROMPT

from .backbones.base import move
from .networks import make_networks
from .objective import Estimate, Objective
from .parallel import full
from .plans import loss_boundary, sampling_boundary, training_boundary
from .record import MetricsFile, combine, latent_figures, start_trackers
from .run import CheckpointStore
from .sample import Validation


@dataclass(frozen=True)
class Sample:
    """One micro-batch of a phase. ``estimate`` carries a graph where the student's phase is to reuse it, else None."""

    x_in: torch.Tensor
    conditioning: dict
    estimate: Estimate | None


class NotFinite(RMDError):
    """A loss or a gradient norm that is infinite or no number."""


class TwoPhases:
    """Adds the gradients of either phase to the networks' ``.grad``; stepping is the caller's.

    ``embed(prompts)``: conditioning on the CPU. ``null``: conditioning of the null prompt, one row.
    ``micro_batch``: samples of one forward. ``agree(problem)``: the first problem that any process has, a line of text
    or None; None where this is the only one. ``backward``: what to call on a loss, its own where None.
    """

    def __init__(self, objective, *, student, fake, teacher, embed, null, micro_batch, agree=None, backward=None):
        self.objective = objective
        self.student = student
        self.fake = fake
        self.teacher = teacher
        self.embed = embed
        self.device = objective.device
        self.null = move(null, self.device)
        self.micro_batch = micro_batch
        self.agree = agree or (lambda problem: problem)
        self.backward = backward or torch.Tensor.backward

    def fake_phase(self, draw, *, share):
        """Gradients of the fake score's loss: ``(loss, samples)``.

        With ``share`` the samples serve ``student_phase`` too. If the draw is one micro-batch its student forward is
        kept with its graph; else only the states the student received are kept, and graphs are made one by one.
        """
        parts = self._parts(draw)
        total, samples = 0.0, []
        for part in parts:
            sample, estimate = self._sample(part, keep_graph=share and len(parts) == 1)
            state = self.objective.noised(estimate, part, "fake")
            loss = self.objective.fake_loss(self.fake, estimate, state, sample.conditioning)
            total += self._add(loss, len(parts), "fake score", part)
            samples.append(sample)
        return total, samples if share else None

    def student_phase(self, draw, samples=None):
        """Gradients of the student's loss: ``(loss, estimates)`` with the estimates (B, C, [T,] H, W) detached.

        ``samples``: those of a fake phase over the same stage, steps and noise, or None to make new ones.
        """
        parts = self._parts(draw)
        total, estimates = 0.0, []
        for place, part in enumerate(parts):
            sample = samples[place] if samples else self._sample(part, keep_graph=True)[0]
            estimate = sample.estimate or self.objective.estimate(self.student, part, sample.x_in, sample.conditioning)
            state = self.objective.noised(estimate, part, "student")
            null = {name: row.expand(len(part.steps), *row.shape[1:]) for name, row in self.null.items()}
            loss = self.objective.student_loss(self.fake, self.teacher, estimate, state, sample.conditioning, null)
            total += self._add(loss, len(parts), "student", part)
            estimates.append(estimate.x0.detach())
        return total, torch.cat(estimates)

    def _parts(self, draw):
        return [draw.rows(start, start + self.micro_batch) for start in range(0, len(draw.steps), self.micro_batch)]

    def _sample(self, part, *, keep_graph):
        conditioning = move(self.embed(part.prompts), self.device)
        x_in = self.objective.student_input(self.student, part, conditioning)
        with torch.set_grad_enabled(keep_graph):
            estimate = self.objective.estimate(self.student, part, x_in, conditioning)
        return Sample(x_in, conditioning, estimate if keep_graph else None), estimate

    def _add(self, loss, parts, name, part):
        value = loss.item()
        fine = math.isfinite(value)
        problem = self.agree(None if fine else f"the {name}'s loss is {value} {describe(part)}")
        if problem is not None:
            raise NotFinite(problem)
        self.backward(loss / parts)
        return value / parts


def describe(draw):
    """The batch of a draw in words."""
    prompts = ", ".join(repr(prompt) for prompt in draw.prompts[:4]) + (", ..." if len(draw.prompts) > 4 else "")
    return f"in stage {draw.stage + 1}, for the batch of {len(draw.prompts)} prompts {prompts}"


log = logging.getLogger(__name__)


class Trainer:
    """One run in all its processes: ``restore`` once, then ``run``."""

    def __init__(self, setup, processes):
        self.setup = setup
        self.config = setup.config
        self.processes = processes
        self.device = processes.device
        self.folder = folder = Path(self.config.output.folder)
        self.draws = setup.draws(processes.count)
        self.done = 0
        self.trackers = []
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.store = CheckpointStore(folder / "checkpoints", keep=self.config.output.keep, processes=processes)
        self.networks = make_networks(setup, processes)
        self.phases = self._make_phases()
        self.validation = self._make_validation() if setup.vae is not None else None

    def _make_phases(self):
        setup, method = self.setup, self.config.method
        objective = Objective(
            setup.plan,
            setup.backbone,
            boundary=training_boundary(method),
            loss_boundary=loss_boundary(method),
            eta=method.eta_train,
            frames=self.config.plan.frames,
            settings=self.config.loss,
            guidance_calls=self.config.train.guidance_calls,
            device=self.device,
        )
        return TwoPhases(
            objective,
            student=self.networks.student,
            fake=self.networks.fake,
            teacher=self.networks.teacher,
            embed=setup.embed,
            null=setup.embed([NULL_PROMPT]),
            micro_batch=self.config.train.batch,
            agree=self.processes.agree,
            backward=self.processes.accelerator.backward,
        )

    def _make_validation(self):
        setup, method = self.setup, self.config.method
        return Validation(
            setup.plan,
            setup.backbone,
            setup.vae.to(self.device) if self.processes.main else None,
            conditioning=move(setup.embed(setup.validation_prompts), self.device),
            boundary=sampling_boundary(method),
            eta=method.eta,
            frames=self.config.plan.frames,
            seed=self.config.train.seed,
            folder=self.folder / "pictures",
            device=self.device,
        )

    def restore(self):
        """Continue from the newest checkpoint in the folder, if there is one. Raises RMDError for a damaged one."""
        with self.processes.together():
            newest = max(self.store.updates(), default=-1)
        newest = int(self.processes.gather([newest])[0][0])
        with self.processes.together():
            if newest >= 0:
                self._check_there(newest)
                checkpoint = self.store.load(newest, self.networks.parts())
                self.networks.load(checkpoint)
                self.done = checkpoint.update
                log.info("resuming after update %d from %s", self.done, checkpoint.path)
                if checkpoint.processes != self.processes.count:
                    log.warning(
                        "warning: this run had %d processes until update %d and has %d from here on, and with them "
                        "the samples of an update change",
                        *(checkpoint.processes, self.done, self.processes.count),
                    )
            if self.processes.main:
                self.metrics.keep_until(newest)

    def _check_there(self, update):
        """Raise RMDError where this process does not see the checkpoint that the first one sees."""
        if not self.store.path(update).is_dir():
            raise RMDError(
                f"process {self.processes.rank + 1} of {self.processes.count} does not see {self.store.path(update)}; "
                "the output folder must be on a disk that all machines share"
            )

    def run(self, signals):
        """Train to the end, or until ``signals`` has received one; returns the exit code. Raises RMDError."""
        try:
            self._tell_batch()
            with self.processes.together():
                if self.processes.main:
                    self.trackers = start_trackers(self.config, self.folder, first=self.done + 1)
            return self._loop(signals)
        except RuntimeError as error:
            raise self.processes.lost(error) or error from None
        finally:
            for tracker in self.trackers:
                tracker.finish()

    def _loop(self, signals):
        train, output = self.config.train, self.config.output
        if self.done == 0 and self.validation is not None:
            figures = self._validate(0)
            with self._writing():
                self._record({"update": 0, **figures})
        bar = {"total": train.updates, "initial": min(self.done, train.updates), "disable": not self.processes.main}
        with tqdm(**bar, unit="update", dynamic_ncols=True) as bar:
            while self.done < train.updates:
                started = time.perf_counter()
                try:
                    figures = self.update(self.done + 1)
                except NotFinite as error:
                    raise self._stopped(error) from None
                self.done += 1
                last = self.done == train.updates
                signals.received = self.processes.first_of(signals.received)
                if self.validation is not None and (last or self.done % output.validate_every == 0):
                    figures |= self._validate(self.done)
                figures["seconds"] = time.perf_counter() - started
                with self._writing():
                    self._record({"update": self.done, **figures})
                bar.set_postfix({k: f"{figures[k]:.4g}" for k in ("loss_student", "loss_fake") if k in figures})
                bar.update()
                if last or signals.received or self.done % output.checkpoint_every == 0:
                    self.store.save(self.done, self.networks.parts())
                if signals.received and not last:
                    log.info("stopped by a signal after update %d; continue with --resume", self.done)
                    return signals.exit_code
        path = self.folder / f"{output.name}.safetensors"
        with self.networks.averaged(), self._writing():
            self.networks.export(path, update=self.done)
        log.info("the student is %s", path)
        return 0

    def _tell_batch(self):
        train, known = self.config.train, self.setup.backbone.known_batch
        samples = train.batch * train.accumulation * self.processes.count
        log.info(
            "an update is %d samples: batch %d x accumulation %d x processes %d",
            *(samples, train.batch, train.accumulation, self.processes.count),
        )
        if known is not None and samples < known and self.processes.main:
            log.warning(
                "warning: an update of %d samples is known to be too few: the authors train %s with %d; raise "
                "train.accumulation or the number of processes",
                *(samples, self.setup.backbone.name, known),
            )

    @contextlib.contextmanager
    def _writing(self):
        """For what process 0 writes: its failure is everybody's."""
        with self.processes.together(), writing(self.folder):
            yield

    def _stopped(self, error):
        latest = self.store.latest_path()
        return RMDError(
            f"update {self.done + 1}: {error}; "
            + (f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet")
            + "; lower the learning rates or clip the gradients (optimiser.*)"
        )

    def update(self, number):
        """One update, counted from 1; returns its figures. Raises RMDError when a loss or gradient is not finite."""
        train, settings = self.config.train, self.config.optimiser
        with_student = number > train.fake_only_updates
        figures, mine = {"lr_student": settings.student_lr, "lr_fake": settings.fake_lr}, {}
        for turn in range(train.fake_steps):
            round_number = (number - 1) * train.fake_steps + turn
            draw = self.draws.phase(number, f"fake-{turn}", round_number=round_number)
            share = with_student and train.share_forward and turn == train.fake_steps - 1
            mine["loss_fake"], samples = self.phases.fake_phase(self._share(draw), share=share)
            figures["norm_fake"] = self._step("fake", settings.clip_fake, "fake score", draw)
        if with_student:
            if share:
                draw = self.draws.other_levels(draw, number, "student")
            else:
                draw = self.draws.phase(number, "student", round_number=round_number)
            mine["loss_student"], x0 = self.phases.student_phase(self._share(draw), samples)
            figures["norm_student"] = self._step("student", settings.clip_student, "student", draw)
            mine |= latent_figures(x0)
            self.networks.student_moved()
        shares = [dict(zip(mine, row)) for row in self.processes.gather(mine.values())]
        return figures | combine(shares) | {"stage": draw.stage + 1}

    def _share(self, draw):
        """This process's samples of a draw for all."""
        mine = draw.rows(*self.processes.rows(len(draw.steps)))
        # Calls of spread networks are made by all processes together, so all make as many.
        return mine.reaching(int(draw.steps.max())) if self.processes.sharded else mine

    def _step(self, role, limit, name, draw):
        """Clip, step and clear; returns the gradient's norm before clipping."""
        parameters = list(self.networks.trained[role].parameters())
        self.processes.average_gradients(parameters)
        norm = full(clip_grad_norm_(parameters, math.inf if limit is None else limit)).item()
        if not math.isfinite(norm):
            raise NotFinite(f"the {name}'s gradient norm is {norm} {describe(draw)}")
        self.networks.step(role)
        return norm

    def _validate(self, update):
        with self.networks.averaged() as student:
            latents = self.validation.sample(student)
        with self._writing():
            return self.validation.write(latents, update) if self.processes.main else {}

    def _record(self, entry):
        if not self.processes.main:
            return
        self.metrics.append(entry)
        figures = {name: value for name, value in entry.items() if name != "update"}
        for tracker in self.trackers:
            tracker.add(figures, entry["update"])

"""The training loop: fake-score steps, a student step, the record, validation, checkpoints."""

import logging
import math
import time

from accelerate import Accelerator
from tqdm import tqdm

from rmd_core.errors import RMDError

from .backbones.base import move
from .board import Board
from .checkpoints import CheckpointStore
from .files import write_failure
from .metrics import MetricsFile, latent_figures
from .networks import make_networks
from .objective import Objective
from .plans import loss_boundary, sampling_boundary, training_boundary
from .prompt_cache import NULL_PROMPT
from .two_phase import NotFinite, TwoPhases, describe
from .validation import Validation

log = logging.getLogger(__name__)


class Trainer:
    """One run: ``restore`` once, then ``run``."""

    def __init__(self, setup, folder):
        self.setup = setup
        self.config = setup.config
        self.folder = folder
        train, output = self.config.train, self.config.output
        self.accelerator = Accelerator(
            cpu=train.device == "cpu",
            mixed_precision="bf16" if train.precision == "bfloat16" else "no",
        )
        self.device = self.accelerator.device
        self.draws = setup.draws()
        self.done = 0
        self.board = None
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.store = CheckpointStore(folder / "checkpoints", keep=output.keep)
        self.networks = make_networks(setup, self.accelerator)
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
            backward=self.accelerator.backward,
        )

    def _make_validation(self):
        setup, method = self.setup, self.config.method
        return Validation(
            setup.plan,
            setup.backbone,
            setup.vae.to(self.device),
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
        checkpoint = self.store.load_latest(self.networks.parts())
        if checkpoint is not None:
            self.networks.load(checkpoint)
            self.done = checkpoint.update
            log.info("resuming after update %d from %s", self.done, checkpoint.path)
        self.metrics.keep_until(self.done if checkpoint else -1)

    def run(self, signals):
        """Train to the end, or until ``signals`` has received one; returns the exit code. Raises RMDError."""
        try:
            if self.config.output.tensorboard:
                self.board = Board(self.folder / "tensorboard", first=self.done + 1)
            return self._loop(signals)
        except OSError as error:
            raise write_failure(self.folder, error) from None

    def _loop(self, signals):
        train, output = self.config.train, self.config.output
        if self.done == 0 and self.validation is not None:
            self._record({"update": 0, **self._validate(0)})
        with tqdm(total=train.updates, initial=min(self.done, train.updates), unit="update", dynamic_ncols=True) as bar:
            while self.done < train.updates:
                started = time.perf_counter()
                try:
                    figures = self.update(self.done + 1)
                except NotFinite as error:
                    raise self._stopped(error) from None
                self.done += 1
                last = self.done == train.updates
                if self.validation is not None and (last or self.done % output.validate_every == 0):
                    figures |= self._validate(self.done)
                figures["seconds"] = time.perf_counter() - started
                self._record({"update": self.done, **figures})
                bar.set_postfix({k: f"{figures[k]:.4g}" for k in ("loss_student", "loss_fake") if k in figures})
                bar.update()
                if last or signals.received or self.done % output.checkpoint_every == 0:
                    self.store.save(self.done, self.networks.parts())
                if signals.received and not last:
                    log.info("stopped by a signal after update %d; continue with --resume", self.done)
                    return signals.exit_code
        path = self.folder / f"{output.name}.safetensors"
        with self.networks.averaged():
            self.networks.export(path, update=self.done)
        log.info("the student is %s", path)
        return 0

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
        figures = {"lr_student": settings.student_lr, "lr_fake": settings.fake_lr}
        for turn in range(train.fake_steps):
            round_number = (number - 1) * train.fake_steps + turn
            draw = self.draws.phase(number, f"fake-{turn}", round_number=round_number)
            share = with_student and train.share_forward and turn == train.fake_steps - 1
            figures["loss_fake"], samples = self.phases.fake_phase(draw, share=share)
            figures["norm_fake"] = self._step("fake", settings.clip_fake, "fake score", draw)
        if with_student:
            if share:
                draw = self.draws.other_levels(draw, number, "student")
            else:
                draw = self.draws.phase(number, "student", round_number=round_number)
            figures["loss_student"], x0 = self.phases.student_phase(draw, samples)
            figures["norm_student"] = self._step("student", settings.clip_student, "student", draw)
            figures |= latent_figures(x0)
            self.networks.student_moved()
        return figures | {"stage": draw.stage + 1}

    def _step(self, role, limit, name, draw):
        """Clip, step and clear; returns the gradient's norm before clipping."""
        parameters, optimiser = list(self.networks.trained[role].parameters()), self.networks.optimisers[role]
        norm = self.accelerator.clip_grad_norm_(parameters, math.inf if limit is None else limit).item()
        if not math.isfinite(norm):
            raise NotFinite(f"the {name}'s gradient norm is {norm} {describe(draw)}")
        optimiser.step()
        optimiser.zero_grad()
        return norm

    def _validate(self, update):
        with self.networks.averaged() as student:
            return self.validation.run(student, update)

    def _record(self, entry):
        self.metrics.append(entry)
        if self.board is not None:
            self.board.add({name: value for name, value in entry.items() if name != "update"}, entry["update"])

"""The training loop: fake-score steps, a student step, the record, validation, checkpoints."""

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from tqdm import tqdm

from rmd_core.errors import RMDError

from .backbones.base import move
from .checkpoints import CheckpointStore
from .draws import PhaseDraw
from .ema import WeightAverage
from .export import export_student
from .files import write_failure
from .metrics import MetricsFile, latent_figures
from .objective import Estimate, Objective
from .optim import load_optimiser_tensors, make_adamw, optimiser_tensors
from .plans import loss_boundary, sampling_boundary, training_boundary
from .validation import Validation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One micro-batch of a phase. ``estimate`` carries a graph where the student's phase is to reuse it, else None."""

    x_in: torch.Tensor
    conditioning: dict
    estimate: Estimate | None


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
            log_with="tensorboard" if output.tensorboard else None,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        )
        if self.accelerator.num_processes > 1:
            raise RMDError(f"training runs in one process, but {self.accelerator.num_processes} were started; start one")
        self.device = self.accelerator.device
        self.draws = setup.draws()
        self.done = 0
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.store = CheckpointStore(folder / "checkpoints", keep=output.keep)
        self._make_networks()
        method = self.config.method
        self.objective = Objective(
            setup.plan,
            setup.backbone,
            boundary=training_boundary(method),
            loss_boundary=loss_boundary(method),
            eta=method.eta_train,
            frames=self.config.plan.frames,
            settings=self.config.loss,
            device=self.device,
        )
        self.validation = self._make_validation() if setup.vae is not None else None

    def _make_networks(self):
        student, fake = self.setup.copies()
        if self.config.backbone.gradient_checkpointing:
            student.enable_gradient_checkpointing()
            fake.enable_gradient_checkpointing()
        settings = self.config.optimiser
        student, fake = student.to(self.device), fake.to(self.device)
        self.average = WeightAverage(student, self.config.train.ema) if self.config.train.ema is not None else None
        self.student, self.student_optimiser, self.fake, self.fake_optimiser = self.accelerator.prepare(
            student,
            make_adamw(student, lr=settings.student_lr, settings=settings),
            fake,
            make_adamw(fake, lr=settings.fake_lr, settings=settings),
        )
        dtype = torch.bfloat16 if self.config.train.precision == "bfloat16" else torch.float32
        self.teacher = self.setup.teacher.to(self.device, dtype)

    def _make_validation(self):
        setup, method = self.setup, self.config.method
        return Validation(
            setup.plan,
            setup.backbone,
            setup.vae.to(self.device),
            conditioning=move(setup.backbone.conditioning(setup.cache, setup.validation_prompts), self.device),
            boundary=sampling_boundary(method),
            eta=method.eta,
            frames=self.config.plan.frames,
            seed=self.config.train.seed,
            folder=self.folder / "pictures",
            device=self.device,
        )

    def restore(self):
        """Continue from the newest checkpoint in the folder, if there is one. Raises RMDError for a damaged one."""
        checkpoint = self.store.load_latest()
        if checkpoint is not None:
            self._bare(self.student).load_state_dict(checkpoint.parts["student"])
            self._bare(self.fake).load_state_dict(checkpoint.parts["fake"])
            load_optimiser_tensors(self.student_optimiser.optimizer, checkpoint.parts["student_optimiser"])
            load_optimiser_tensors(self.fake_optimiser.optimizer, checkpoint.parts["fake_optimiser"])
            if self.average is not None:
                self.average.load(checkpoint.parts["average"])
            self.done = checkpoint.update
            log.info("resuming after update %d from %s", self.done, checkpoint.path)
        self.metrics.keep_until(self.done if checkpoint else -1)

    def run(self, signals):
        """Train to the end, or until ``signals`` has received one; returns the exit code. Raises RMDError."""
        try:
            if self.config.output.tensorboard:
                options = {"tensorboard": {"purge_step": self.done + 1}}
                self.accelerator.init_trackers("tensorboard", init_kwargs=options)
            return self._loop(signals)
        except OSError as error:
            raise write_failure(self.folder, error) from None
        finally:
            self.accelerator.end_training()

    def _loop(self, signals):
        train, output = self.config.train, self.config.output
        if self.done == 0 and self.validation is not None:
            self._record({"update": 0, **self._validate(0)})
        with tqdm(total=train.updates, initial=min(self.done, train.updates), unit="update", dynamic_ncols=True) as bar:
            while self.done < train.updates:
                started = time.perf_counter()
                figures = self.update(self.done + 1)
                self.done += 1
                last = self.done == train.updates
                if self.validation is not None and (last or self.done % output.validate_every == 0):
                    figures |= self._validate(self.done)
                figures["seconds"] = time.perf_counter() - started
                self._record({"update": self.done, **figures})
                bar.set_postfix({k: f"{figures[k]:.4g}" for k in ("loss_student", "loss_fake") if k in figures})
                bar.update()
                if last or signals.received or self.done % output.checkpoint_every == 0:
                    self._save()
                if signals.received and not last:
                    log.info("stopped by a signal after update %d; continue with --resume", self.done)
                    return signals.exit_code
        path = self.folder / f"{output.name}.safetensors"
        with self._averaged() as student:
            export_student(self.setup, student, path, update=self.done)
        log.info("the student is %s", path)
        return 0

    def update(self, number):
        """One update, counted from 1; returns its figures. Raises RMDError when a loss or gradient is not finite."""
        train = self.config.train
        figures = {}
        with_student = number > train.fake_only_updates
        for turn in range(train.fake_steps):
            round_number = (number - 1) * train.fake_steps + turn
            draw = self.draws.phase(number, f"fake-{turn}", round_number=round_number)
            shared = with_student and train.share_forward and turn == train.fake_steps - 1
            samples = self._fake_step(draw, figures, keep_graph=shared and train.accumulation == 1)
        if with_student:
            if shared:
                draw = self.draws.other_levels(draw, number, "student")
            else:
                draw, samples = self.draws.phase(number, "student", round_number=round_number), None
            self._student_step(draw, samples, figures)
        return figures

    def _parts(self, draw):
        size = self.config.train.batch
        return [draw.rows(start, start + size) for start in range(0, len(draw.steps), size)]

    def _fake_step(self, draw: PhaseDraw, figures, *, keep_graph):
        samples, total = [], 0.0
        for part in self._parts(draw):
            sample, estimate = self._sampled(part, keep_graph=keep_graph)
            state = self.objective.noised(estimate, part, "fake")
            loss = self.objective.fake_loss(self.fake, estimate, state, sample.conditioning)
            total += self._backward(loss, "fake score", part)
            samples.append(sample)
        figures["loss_fake"] = total
        figures["norm_fake"] = self._step(self.fake, self.fake_optimiser, self.config.optimiser.clip_fake, "fake score", draw)
        return samples

    def _student_step(self, draw, samples, figures):
        total, estimates = 0.0, []
        for place, part in enumerate(self._parts(draw)):
            sample = samples[place] if samples else self._sampled(part, keep_graph=True)[0]
            estimate = sample.estimate or self.objective.estimate(self.student, part, sample.x_in, sample.conditioning)
            state = self.objective.noised(estimate, part, "student")
            null = move(self.setup.null_conditioning(), self.device)
            null = {name: tensor.expand(len(part.steps), *tensor.shape[1:]) for name, tensor in null.items()}
            loss = self.objective.student_loss(self.fake, self.teacher, estimate, state, sample.conditioning, null)
            total += self._backward(loss, "student", part)
            estimates.append(estimate.x0.detach())
        figures["loss_student"] = total
        norm = self._step(self.student, self.student_optimiser, self.config.optimiser.clip_student, "student", draw)
        figures |= {"norm_student": norm, "stage": draw.stage, **latent_figures(torch.cat(estimates))}
        settings = self.config.optimiser
        figures |= {"lr_student": settings.student_lr, "lr_fake": settings.fake_lr}
        if self.average is not None:
            self.average.update(self._bare(self.student))

    def _sampled(self, part, *, keep_graph):
        """A micro-batch's sample as the student's phase needs it, and the estimate."""
        conditioning = move(self.setup.backbone.conditioning(self.setup.cache, part.prompts), self.device)
        x_in = self.objective.student_input(self.student, part, conditioning)
        with torch.set_grad_enabled(keep_graph):
            estimate = self.objective.estimate(self.student, part, x_in, conditioning)
        return Sample(x_in, conditioning, estimate if keep_graph else None), estimate

    def _backward(self, loss, name, part):
        value = loss.item()
        if not math.isfinite(value):
            raise self._not_finite(f"the {name}'s loss is {value}", part)
        self.accelerator.backward(loss / self.config.train.accumulation)
        return value / self.config.train.accumulation

    def _step(self, network, optimiser, limit, name, draw):
        norm = self.accelerator.clip_grad_norm_(network.parameters(), math.inf if limit is None else limit).item()
        if not math.isfinite(norm):
            raise self._not_finite(f"the {name}'s gradient norm is {norm}", draw)
        optimiser.step()
        optimiser.zero_grad()
        return norm

    def _not_finite(self, what, part):
        prompts = ", ".join(repr(prompt) for prompt in part.prompts[:4]) + (", ..." if len(part.prompts) > 4 else "")
        latest = self.store.latest_path()
        return RMDError(
            f"update {self.done + 1}: {what} for the batch of {len(part.prompts)} prompts {prompts} in stage {part.stage + 1}; "
            + (f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet")
            + "; lower the learning rates or clip the gradients (optimiser.*)"
        )

    def _validate(self, update):
        with self._averaged() as student:
            return self.validation.run(student, update)

    def _averaged(self):
        bare = self._bare(self.student)
        return self.average.applied_to(bare) if self.average is not None else nullcontext(bare)

    def _record(self, entry):
        self.metrics.append(entry)
        if self.config.output.tensorboard:
            self.accelerator.log({k: v for k, v in entry.items() if k != "update"}, step=entry["update"])

    def _save(self):
        parts = {
            "student": self._bare(self.student).state_dict(),
            "fake": self._bare(self.fake).state_dict(),
            "student_optimiser": optimiser_tensors(self.student_optimiser.optimizer),
            "fake_optimiser": optimiser_tensors(self.fake_optimiser.optimizer),
        }
        if self.average is not None:
            parts["average"] = self.average.tensors
        self.store.save(self.done, parts)

    def _bare(self, network):
        return self.accelerator.unwrap_model(network)

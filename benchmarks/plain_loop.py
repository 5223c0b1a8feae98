"""The authors' loop, plainly: the trainer's networks, losses and optimisers, with none of its savings."""

import math
from dataclasses import replace

import torch
from torch.nn.utils import clip_grad_norm_

from rmd_core.cascade import DenoiserRunner, trajectory
from training.backbones.base import to_device
from training.objective import estimate_x0_eps


class PlainLoop:
    """Updates of a ``Trainer``'s networks as the authors make them, in one process and without accumulation.

    The student runs the whole cascade, of which two states are used; each phase samples its own stage and steps and
    runs its own student forward. All noise of an update has one seed.
    Source: docs/method/method.md, training objective.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.objective = trainer.objective

    def update(self, number):
        """One update, counted from 1: the losses of the fake score and of the student."""
        first, second = self.batches(number)
        conditioning = to_device(self.objective.embed(first.prompts), self.objective.device)
        states = self.states(first, conditioning)
        losses = []
        for role, batch, phase in (("fake", first, self.fake_phase), ("student", second, self.student_phase)):
            losses.append(phase(batch, self.received(states, batch), conditioning))
            self._step(role)
        self.trainer.networks.update_ema()
        return losses

    def batches(self, number):
        """The batches of the two phases: stage, steps and levels of their own, the same prompts."""
        sampler = self.trainer.sampler
        first, second = (sampler.batch(number, name, round_number=number - 1) for name in ("fake-0", "student"))
        return first, replace(second, seed=first.seed)

    @torch.no_grad()
    def states(self, batch, conditioning):
        """What the student receives at every step of the whole cascade; the last step's call is made too."""
        objective = self.objective

        def denoise(x, step):
            sigma = torch.full((len(x),), step.sigma, dtype=torch.float64)
            curve = objective.plan.curve
            return estimate_x0_eps(objective.backbone, objective.student, x, sigma, conditioning, curve=curve)

        visits = trajectory(
            objective.plan,
            DenoiserRunner(denoise, eta=objective.config.method.eta_train, device=objective.device),
            shape=objective.backbone.latent_shape(len(batch.steps), objective.config.plan.frames),
            noise=batch.noise("trajectory"),
            boundary=objective.boundary,
        )
        return [x for _, x in visits]

    @staticmethod
    def received(states, batch):
        """Each sample's state at its own sampled step."""
        return torch.stack([states[step][sample] for sample, step in enumerate(batch.steps.tolist())])

    def fake_phase(self, batch, x_in, conditioning):
        """Adds the gradients of the fake score's loss; the student's forward is made for this phase alone."""
        with torch.no_grad():
            estimate = self.objective.estimate(batch, x_in, conditioning)
        loss = self.objective.fake_loss(estimate, self.objective.noised(estimate, batch, "fake"), conditioning)
        loss.backward()
        return loss.item()

    def student_phase(self, batch, x_in, conditioning):
        """Adds the gradients of the student's loss, with a forward of its own."""
        estimate = self.objective.estimate(batch, x_in, conditioning)
        loss = self.objective.student_loss(estimate, self.objective.noised(estimate, batch, "student"), conditioning)
        loss.backward()
        return loss.item()

    def _step(self, role):
        networks, settings = self.trainer.networks, self.trainer.config.optimiser
        limit = {"student": settings.clip_student, "fake": settings.clip_fake}[role]
        clip_grad_norm_(networks.trained[role].parameters(), math.inf if limit is None else limit)
        networks.optimisers[role].step()
        networks.optimisers[role].zero_grad()

"""The two phases of an update as gradients: the fake score's, then the student's."""

import math
from dataclasses import dataclass

import torch

from rmd_core.errors import RMDError

from .backbones.base import move
from .objective import Estimate


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

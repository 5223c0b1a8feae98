"""The two losses of one update, from the prompts of a batch to gradients.

Source: docs/method/method.md, training objective.

Three networks take part: the student G, the fake score F and the teacher R. The student makes a clean estimate at one
of its steps; the estimate is upsampled to the final size and noised; F learns to denoise it (``fake_phase``), and the
student learns from the difference between F and R there (``student_phase``). F and R only ever see latents of the final
size, labelled with the level the latent really has.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from rmd_core.boundary import step_noise
from rmd_core.cascade import DenoiserRunner, trajectory
from rmd_core.losses import fake_score_loss, fake_score_loss_subinterval, generator_loss
from rmd_core.noising import add_noise, guide, noise_further, place, to_x0_eps
from rmd_core.prompt_cache import NULL_PROMPT

from .backbones.base import concat, select, to_device
from .plans import loss_boundary, training_boundary


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: its scale, and the null prompt's conditioning for the whole batch.

    ``calls``: ``together``, conditional and null rows in one call, or ``apart``, in one after the other.
    """

    scale: float
    null: dict
    calls: str = "together"


def estimate_x0_eps(backbone, network, x, sigma_B, conditioning, *, curve, guidance=None):
    """The network's (x0, eps) for states ``x`` at the levels ``sigma_B``, shape (B,), float64.

    With ``guidance`` the network evaluates conditional and null rows. Guiding x0 and eps is the same as guiding the
    output, which both are affine in. Source: docs/method/method.md, predictions.
    """
    if guidance is not None and guidance.calls == "apart":
        rows = (conditioning, guidance.null)
        pairs = [estimate_x0_eps(backbone, network, x, sigma_B, row, curve=curve) for row in rows]
        return tuple(guide(*pair, guidance.scale) for pair in zip(*pairs))
    if guidance is not None:
        x, sigma_B = torch.cat((x, x)), torch.cat((sigma_B, sigma_B))
        conditioning = concat(conditioning, guidance.null)
    output = backbone.predict(network, x, sigma_B, conditioning)
    pair = to_x0_eps(output, x, alpha=curve.alpha(sigma_B), sigma=sigma_B, prediction=backbone.prediction)
    return pair if guidance is None else tuple(guide(*part.chunk(2), guidance.scale) for part in pair)


@dataclass(frozen=True)
class Estimate:
    """The student's clean estimate at the final size, with its graph, and the noise to mix it with, without one."""

    x0: torch.Tensor
    noise: torch.Tensor


@dataclass(frozen=True)
class NoisedState:
    """A state ``x`` of level ``sigma`` at the final size; ``last`` is the noise added last, ``fresh`` its share."""

    x: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor
    last: torch.Tensor
    fresh: torch.Tensor


class StudentSample(NamedTuple):
    """A micro-batch at the student: what it received, and its estimate where the graph of that is kept."""

    x_in: torch.Tensor
    conditioning: dict
    estimate: Estimate | None


class Objective:
    """Both losses of a run, as gradients added to the networks' ``.grad``; stepping is the caller's.

    ``setup``: the Setup of the run.
    """

    def __init__(self, setup, *, student, fake, teacher, device="cpu"):
        config = setup.config
        self.config = config
        self.plan = setup.plan
        self.backbone = setup.backbone
        self.embed = setup.embed  # prompts to their conditioning, on the CPU
        self.student = student
        self.fake = fake
        self.teacher = teacher
        learned = setup.learned(device)
        self.boundary = training_boundary(config.method, learned)  # at a change of size while trajectories are made
        self.loss_boundary = loss_boundary(config.method, learned)  # from a low-resolution estimate to the final size
        self.guidance_calls = config.train.guidance_calls
        self.device = device
        self.null = to_device(self.embed([NULL_PROMPT]), device)

    def fake_phase(self, batches, *, share):
        """Gradients of the fake score's loss over micro-batches: ``(losses, samples)``, a StudentSample for each.

        The losses add up to that of the phase, and stay on the device: to read one would let the device wait.
        With ``share`` the samples serve ``student_phase`` too, else there are none. Of a single micro-batch the student
        forward is kept with its graph; of several only the states the student received are kept.
        """
        keep_graph = share and len(batches) == 1
        losses, samples = [], []
        for batch in batches:
            conditioning = self.conditioning(batch)
            x_in = self.student_input(batch, conditioning)
            with torch.set_grad_enabled(keep_graph):
                estimate = self.estimate(batch, x_in, conditioning)
            loss = self.fake_loss(estimate, self.noised(estimate, batch, "fake"), conditioning)
            losses.append(_backward(loss, len(batches)))
            samples.append(StudentSample(x_in, conditioning, estimate if keep_graph else None))
        return losses, samples if share else []

    def student_phase(self, batches, samples=()):
        """Gradients of the student's loss over micro-batches: ``(loss, estimates)``, which are detached.

        The estimates of all micro-batches are one tensor (B, C, [T,] H, W).

        ``samples``: those of a fake phase over the same stage, steps and noise; new ones are made where there are none.
        """
        total, estimates = 0.0, []
        for number, batch in enumerate(batches):
            if samples:
                x_in, conditioning, estimate = samples[number]
            else:
                conditioning, estimate = self.conditioning(batch), None
                x_in = self.student_input(batch, conditioning)
            estimate = estimate or self.estimate(batch, x_in, conditioning)
            loss = self.student_loss(estimate, self.noised(estimate, batch, "student"), conditioning)
            total += _backward(loss, len(batches))
            estimates.append(estimate.x0.detach())
        return total, torch.cat(estimates)

    def conditioning(self, batch):
        """The conditioning of a batch's prompts, on the device."""
        return to_device(self.embed(batch.prompts), self.device)

    def student_input(self, batch, conditioning):
        """The state the student receives at each sample's own step, (B, C, [T,] h, w) of its stage, without graph.

        The student runs the cascade only until each sample has reached its own step.
        """

        def denoise(x, step):
            rows = (batch.steps > step.index).nonzero().flatten()
            if not len(rows):  # only because other processes go on: one call without use
                rows = torch.zeros(1, dtype=torch.long)
            own, rows = select(conditioning, rows), place(rows, x.device)
            x0, eps = torch.zeros_like(x), torch.zeros_like(x)
            sigma = torch.full((len(rows),), step.sigma, dtype=torch.float64)
            x0[rows], eps[rows] = self._x0_eps(self.student, x[rows], sigma, own)
            return x0, eps

        runner = DenoiserRunner(denoise, eta=self.config.method.eta_train, device=self.device)
        shape = self.backbone.latent_shape(len(batch.steps), self.config.plan.frames)
        visits = trajectory(self.plan, runner, shape=shape, noise=batch.noise("trajectory"), boundary=self.boundary)
        x_in, last = None, int(batch.steps.max()) if batch.last_step is None else batch.last_step
        for step, x in visits:
            if step.stage == batch.stage:
                x_in = x.clone() if x_in is None else x_in
                rows = place((batch.steps == step.index).nonzero().flatten(), x.device)
                x_in[rows] = x[rows]
            if step.index == last:
                return x_in
        raise AssertionError("the steps of a batch are in the plan")

    def estimate(self, batch, x_in, conditioning):
        """The student's Estimate from ``x_in``, upsampled to the final size in one step."""
        levels = torch.tensor([step.sigma for step in self.plan.steps], dtype=torch.float64)
        x0, eps = self._x0_eps(self.student, x_in, levels[batch.steps], conditioning)
        eps = eps.detach()
        fresh = batch.noise("loss").of_stage(batch.stage)
        if batch.stage == len(self.plan.stages) - 1:
            eta = self.config.method.eta_train
            new = fresh("step", tuple(eps.shape)) if eta < 1.0 else None
            return Estimate(x0, step_noise(eps, eta, new))
        return Estimate(*self.loss_boundary.switch(x0, eps, self.plan.final_hw, fresh))

    def noised(self, estimate, batch, phase):
        """The estimate as a state of level s, without graph, noised on to level t for ``phase``."""
        curve = self.plan.curve
        alpha_s, alpha_t = curve.alpha(batch.s), curve.alpha(batch.t)
        x_s = add_noise(estimate.x0.detach(), estimate.noise, alpha=alpha_s, sigma=batch.s)
        last = place(batch.noise(phase).sample(batch.stage, "level", tuple(x_s.shape)), x_s.device, x_s.dtype)
        x_t, fresh = noise_further(x_s, alpha_s=alpha_s, sigma_s=batch.s, alpha_t=alpha_t, sigma_t=batch.t, noise=last)
        return NoisedState(x_t, alpha_t, batch.t, last, fresh)

    def fake_loss(self, estimate, state, conditioning):
        """The fake score's loss; only the fake score gets a gradient."""
        x0, _ = self._x0_eps(self.fake, state.x, state.sigma, conditioning)
        if self.config.loss.fake_target == "subinterval":
            return fake_score_loss_subinterval(
                x0, x_t=state.x, noise=state.last, fresh=state.fresh, alpha=state.alpha, sigma=state.sigma
            )
        return fake_score_loss(
            x0, estimate.x0.detach(), alpha=state.alpha, sigma=state.sigma, weighting=self.config.loss.fake_weighting
        )

    def student_loss(self, estimate, state, conditioning):
        """The student's loss; only what made ``estimate.x0`` gets a gradient."""
        with torch.no_grad():
            fake_x0, _ = self._x0_eps(self.fake, state.x, state.sigma, conditioning)
            teacher_x0 = self.teacher_x0(state, conditioning)
        return generator_loss(
            estimate.x0, teacher_x0, fake_x0, clip=self.config.loss.clip, huber_c=self.config.loss.huber_c
        )

    def teacher_x0(self, state, conditioning):
        """The teacher's clean estimate, guided in x0 space by its conditional and its null one."""
        guidance = None
        if self.config.loss.cfg != 1.0:
            null = {name: row.expand(len(state.x), *row.shape[1:]) for name, row in self.null.items()}
            guidance = Guidance(self.config.loss.cfg, null, self.guidance_calls)
        return self._x0_eps(self.teacher, state.x, state.sigma, conditioning, guidance)[0]

    def _x0_eps(self, network, x, sigma_B, conditioning, guidance=None):
        curve = self.plan.curve
        return estimate_x0_eps(self.backbone, network, x, sigma_B, conditioning, curve=curve, guidance=guidance)


def _backward(loss, parts):
    """Add the gradients of a micro-batch, one of ``parts``; returns its share of the loss, without graph."""
    (loss / parts).backward()
    return loss.detach() / parts

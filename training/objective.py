"""One network call as the pair (x0, eps), guided or not: the one place where trainer and sampler ask a network.
The two losses of one update: the fake score's regression and the student's distribution matching.

Source: docs/method.md, training objective. Three networks take part: the student G, the fake score F and the teacher R.
F and R only ever see latents of the final size, labelled with the level the latent really has.
"""

from dataclasses import dataclass

import torch

from rmd_core.boundary import step_noise
from rmd_core.cascade import DenoiserRunner, trajectory
from rmd_core.losses import fake_score_loss, fake_score_loss_subinterval, generator_loss
from rmd_core.noising import add_noise, guide, noise_further, to_x0_eps

from .backbones.base import join, take


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

    With ``guidance`` the network is asked for conditional and null rows. Guiding x0 and eps is the same as guiding the
    output, which both are affine in. Source: docs/method.md, predictions.
    """
    if guidance is not None and guidance.calls == "apart":
        rows = (conditioning, guidance.null)
        asked = [estimate_x0_eps(backbone, network, x, sigma_B, row, curve=curve) for row in rows]
        return tuple(guide(*pair, guidance.scale) for pair in zip(*asked))
    if guidance is not None:
        x, sigma_B = torch.cat((x, x)), torch.cat((sigma_B, sigma_B))
        conditioning = join(conditioning, guidance.null)
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


class Objective:
    """Both losses for one plan.

    ``boundary``: the rule at a change of size while trajectories are made; ``loss_boundary``: the one by which a
    low-resolution estimate reaches the final size inside the losses; ``eta``: share of predicted noise inside a stage.
    ``settings``: the configuration's loss section. ``guidance_calls``: of the teacher, ``together`` or ``apart``.
    """

    def __init__(
        self, plan, backbone, *, boundary, loss_boundary, eta, frames, settings, guidance_calls="together", device="cpu"
    ):
        self.plan = plan
        self.backbone = backbone
        self.boundary = boundary
        self.loss_boundary = loss_boundary
        self.eta = eta
        self.frames = frames
        self.settings = settings
        self.guidance_calls = guidance_calls
        self.device = device

    def student_input(self, student, draw, conditioning):
        """The state the student receives at each sample's drawn step, (B, C, [T,] h, w) of its stage, without graph.

        The student runs the cascade only until each sample has reached its own step.
        """

        def denoise(x, step):
            rows = (draw.steps > step.index).nonzero().flatten().to(x.device)
            if not len(rows):  # only because other processes go on: one call without use
                rows = torch.zeros(1, dtype=torch.long, device=x.device)
            x0, eps = torch.zeros_like(x), torch.zeros_like(x)
            x0[rows], eps[rows] = self._step(student, x[rows], step, take(conditioning, rows))
            return x0, eps

        runner = DenoiserRunner(denoise, eta=self.eta, device=self.device)
        shape = self.backbone.latent_shape(len(draw.steps), self.frames)
        visits = trajectory(self.plan, runner, shape=shape, noise=draw.noise("trajectory"), boundary=self.boundary)
        inputs, last = None, int(draw.steps.max()) if draw.reach is None else draw.reach
        for step, x in visits:
            if step.stage == draw.stage:
                mine = (draw.steps == step.index).to(x.device)
                inputs = x.clone() if inputs is None else torch.where(_like(mine, x), x, inputs)
            if step.index == last:
                return inputs
        raise AssertionError("a drawn step lies in the plan")

    def estimate(self, student, draw, x_in, conditioning):
        """The student's estimate from ``x_in``, brought to the final size in one step."""
        levels = torch.tensor([step.sigma for step in self.plan.steps], dtype=torch.float64)
        x0, eps = self._x0_eps(student, x_in, levels[draw.steps], conditioning)
        eps = eps.detach()
        fresh = draw.noise("loss").of_stage(draw.stage)
        if draw.stage == len(self.plan.stages) - 1:
            new = fresh("step", tuple(eps.shape)) if self.eta < 1.0 else None
            return Estimate(x0, step_noise(eps, self.eta, new))
        return Estimate(*self.loss_boundary.cross(x0, eps, self.plan.final_hw, fresh))

    def noised(self, estimate, draw, phase):
        """The estimate as a state of level s, without graph, noised on to level t for ``phase``."""
        curve = self.plan.curve
        alpha_s, alpha_t = curve.alpha(draw.s), curve.alpha(draw.t)
        x_s = add_noise(estimate.x0.detach(), estimate.noise, alpha=alpha_s, sigma=draw.s)
        last = draw.noise(phase).draw(tuple(x_s.shape), draw.stage, "level").to(x_s)
        x_t, fresh = noise_further(x_s, alpha_s=alpha_s, sigma_s=draw.s, alpha_t=alpha_t, sigma_t=draw.t, noise=last)
        return NoisedState(x_t, alpha_t, draw.t, last, fresh)

    def fake_loss(self, fake, estimate, state, conditioning):
        """The fake score's loss; only ``fake`` gets a gradient."""
        x0, _ = self._x0_eps(fake, state.x, state.sigma, conditioning)
        if self.settings.fake_target == "subinterval":
            return fake_score_loss_subinterval(
                x0, x_t=state.x, noise=state.last, fresh=state.fresh, alpha=state.alpha, sigma=state.sigma
            )
        return fake_score_loss(
            x0, estimate.x0.detach(), alpha=state.alpha, sigma=state.sigma, weighting=self.settings.fake_weighting
        )

    def student_loss(self, fake, teacher, estimate, state, conditioning, null_conditioning):
        """The student's loss; only what made ``estimate.x0`` gets a gradient."""
        with torch.no_grad():
            fake_x0, _ = self._x0_eps(fake, state.x, state.sigma, conditioning)
            teacher_x0 = self.teacher_x0(teacher, state, conditioning, null_conditioning)
        return generator_loss(estimate.x0, teacher_x0, fake_x0, clip=self.settings.clip, huber_c=self.settings.huber_c)

    def teacher_x0(self, teacher, state, conditioning, null_conditioning):
        """The teacher's clean estimate, guided in x0 space by its conditional and its null one."""
        guidance = None
        if self.settings.cfg != 1.0:
            guidance = Guidance(self.settings.cfg, null_conditioning, self.guidance_calls)
        return self._x0_eps(teacher, state.x, state.sigma, conditioning, guidance)[0]

    def _step(self, student, x, step, conditioning):
        """The student's (x0, eps) at one step of the plan, for a whole batch."""
        return self._x0_eps(student, x, torch.full((len(x),), step.sigma, dtype=torch.float64), conditioning)

    def _x0_eps(self, network, x, sigma_B, conditioning, guidance=None):
        return estimate_x0_eps(
            self.backbone, network, x, sigma_B, conditioning, curve=self.plan.curve, guidance=guidance
        )


def _like(flags_B, x):
    return flags_B.view(-1, *([1] * (x.ndim - 1)))

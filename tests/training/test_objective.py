"""One update's gradients against a slow, plain form that runs every cascade whole and every forward by itself."""

from math import sqrt

import pytest
import torch

from rmd_core.noise import SeededNoise, derive_seed
from training.objective import Estimate
from training.validation import Validation
from training_world import gradients, make_objective, make_setup, tiny_wan

PLANS = {
    "2+2": ("plan.split=2+2",),
    "1+3": ("plan.split=1+3",),
    "1+1+2": ("plan.split=1+1+2", "plan.sizes=[[2,2],[4,4],[8,8]]"),
    "4": ("plan.split=4", "plan.sizes=[[8,8]]"),
    "thresholds": ("plan.split=null", "plan.thresholds=[-2.5]"),
    "3+3 as official-current": ("method.preset=official-current", "plan.steps=6", "plan.split=3+3"),
    "2+2 unguided": ("loss.cfg=1.0",),
    "2+2 as official-7gpu": ("method.preset=official-7gpu",),
}


def assert_equal_gradients(ours, plain):
    assert ours.keys() == plain.keys() and ours
    scale = max(g.norm() for g in plain.values())
    assert scale > 1e-4
    for name, gradient in plain.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * scale, name


class Plain:
    """The plain form: rectified flow written out, nearest upsampling, white re-injection by block means."""

    def __init__(self, setup):
        self.plan = setup.plan
        self.setup = setup
        self.eta = setup.config.method.eta_train
        self.method = setup.config.method

    def network(self, network, x, sigma, prompt):
        v = network(x, torch.tensor([1000 * sigma], dtype=torch.float32), self.setup.embed([prompt])["text"]).sample
        return x - sigma * v, x + (1 - sigma) * v

    def mixed(self, eps, fresh):
        return self.eta * eps + sqrt(1 - self.eta**2) * fresh

    def up(self, x, size):
        return x.repeat_interleave(size // x.shape[-2], -2).repeat_interleave(size // x.shape[-1], -1)

    def carried(self, eps, size, sample, rule):
        """Noise at the larger size; for ``exact`` the block means come from the smaller one, the rest is fresh."""
        if rule != "exact":
            fresh = sample((1, 16, 1, size, size), "switch")
            return fresh if rule == "fresh" else self.mixed(self.up(eps, size), fresh)
        r = size // eps.shape[-1]
        low = self.mixed(eps, sample(eps.shape, "switch-low"))
        xi = sample((1, 16, 1, size, size), "switch")
        means = xi.unflatten(-2, (-1, r)).unflatten(-1, (-1, r)).mean((-3, -1))
        return xi + self.up(low / r - means, size)

    @torch.no_grad()
    def inputs(self, student, batch, item):
        """What the student receives at every step of the whole cascade, for one sample."""
        source = SeededNoise(derive_seed(batch.seed, "trajectory"), [batch.items[item]])
        steps = self.plan.steps
        x = source.sample(0, "start", (1, 16, 1, steps[0].height, steps[0].width))
        received = []
        for step in steps:
            received.append(x)
            x0, eps = self.network(student, x, step.sigma, batch.prompts[item])
            if step is steps[-1]:
                return received
            following = steps[step.index + 1]
            if following.stage == step.stage:
                noise = self.mixed(eps, source.sample(step.stage, f"step-{step.index_in_stage}", eps.shape))
            else:
                noise = self.carried(
                    eps,
                    following.height,
                    lambda s, p, n=following.stage: source.sample(n, p, s),
                    self.method.switch_noise,
                )
                x0 = self.up(x0, following.height)
            x = (1 - following.sigma) * x0 + following.sigma * noise

    def state(self, student, batch, item, phase):
        """A fresh forward of one sample: (x0 with graph, x_t, t)."""
        step = self.plan.steps[batch.steps[item]]
        x = self.inputs(student, batch, item)[step.index]
        x0, eps = self.network(student, x, step.sigma, batch.prompts[item])
        loss = SeededNoise(derive_seed(batch.seed, "loss"), [batch.items[item]])
        eps = eps.detach()
        if step.stage == len(self.plan.stages) - 1:
            noise = self.mixed(eps, loss.sample(step.stage, "step", eps.shape))
        else:
            noise = self.carried(
                eps, self.plan.final_hw[0], lambda s, p: loss.sample(step.stage, p, s), self.method.loss_noise
            )
            x0 = self.up(x0, self.plan.final_hw[0])
        s, t = batch.s[item].item(), batch.t[item].item()
        x_s = (1 - s) * x0.detach() + s * noise
        xi = SeededNoise(derive_seed(batch.seed, phase), [batch.items[item]]).sample(batch.stage, "level", x0.shape)
        scale = (1 - t) / (1 - s)
        return x0, scale * x_s + sqrt(t**2 - (scale * s) ** 2) * xi, t

    def fake_loss(self, student, fake, batch):
        losses = []
        for item, prompt in enumerate(batch.prompts):
            x0, x_t, t = self.state(student, batch, item, "fake")
            guess, _ = self.network(fake, x_t, t, prompt)
            losses.append(((1 - t) / t) ** 2 * (guess - x0.detach()).square().mean())
        return sum(losses) / len(losses)

    def student_loss(self, student, fake, teacher, batch, cfg):
        losses = []
        for item, prompt in enumerate(batch.prompts):
            x0, x_t, t = self.state(student, batch, item, "student")
            with torch.no_grad():
                fake_x0, _ = self.network(fake, x_t, t, prompt)
                null, _ = self.network(teacher, x_t, t, "")
                conditional, _ = self.network(teacher, x_t, t, prompt)
                real = null + cfg * (conditional - null)
                target = x0 + real - fake_x0
                weight = max(0.2, (x0 - real).abs().mean().item())
            c = 1e-3 * sqrt(x0.numel() / 16384)
            losses.append(((((x0 - target) ** 2 + c**2).sqrt() - c) / weight).mean())
        return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("plan", "micro_batch", "share"), [*((plan, 4, True) for plan in PLANS), ("1+1+2", 2, True), ("2+2", 2, False)]
)
def test_gradients_equal_the_plain_form(tmp_path, plan, micro_batch, share):
    """Also where micro-batches are of different stages: their losses count alike."""
    sizes = (f"train.batch={micro_batch}", f"train.accumulation={4 // micro_batch}")
    setup = make_setup(tmp_path, *PLANS[plan], *sizes, "train.warmup_updates=0")
    plain, sampler = Plain(setup), setup.sampler()
    seen = set()
    for update in range(1, 20):
        batches = sampler.batches(update, "fake-0", round_number=update)
        stages = tuple(sorted(batch.stage for batch in batches))
        if stages in seen:
            continue
        seen.add(stages)
        objective = make_objective(setup)
        student, fake = objective.student, objective.fake
        _, samples = objective.fake_phase(batches, share=share)
        ours = gradients(fake)
        assert not gradients(student) and not gradients(setup.teacher)
        fake.zero_grad()
        sum(plain.fake_loss(student, fake, batch) / len(batches) for batch in batches).backward()
        assert_equal_gradients(ours, gradients(fake))
        assert not gradients(student)

        with torch.no_grad():  # the fake score steps in between; the student's phase must see it
            for parameter in fake.parameters():
                parameter -= 0.05 * parameter.grad
        fake.zero_grad()
        batches = (
            [sampler.other_levels(batch, update, "student") for batch in batches]
            if share
            else sampler.batches(update, "student", round_number=update)
        )
        value, x0 = objective.student_phase(batches, samples)
        ours = gradients(student)
        assert not gradients(fake) and not gradients(setup.teacher)
        student.zero_grad()
        cfg = setup.config.loss.cfg
        loss = sum(plain.student_loss(student, fake, setup.teacher, batch, cfg) / len(batches) for batch in batches)
        loss.backward()
        assert value == pytest.approx(loss.item(), rel=1e-4)
        assert_equal_gradients(ours, gradients(student))
        assert x0.shape == (4, 16, 1, 8, 8) and not x0.requires_grad
    assert {stage for stages in seen for stage in stages} == set(range(len(setup.plan.stages)))
    assert micro_batch == 4 or any(len(set(stages)) > 1 for stages in seen)


def test_the_trajectory_stops_at_the_sampled_step_and_leaves_finished_samples_out(tmp_path):
    setup = make_setup(tmp_path, "train.batch=6", "train.warmup_updates=0")
    objective, sampler, calls = make_objective(setup), setup.sampler(), []
    objective.student.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    for update in range(1, 7):
        batch = sampler.batch(update, "fake-0", round_number=0)
        calls.clear()
        x_in = objective.student_input(batch, objective.conditioning(batch))
        stage = setup.plan.stages[batch.stage]
        assert x_in.shape == (6, 16, 1, stage.height, stage.width) and not x_in.requires_grad
        expected = [int((batch.steps > index).sum()) for index in range(int(batch.steps.max()))]
        assert calls == expected


def test_the_level_given_is_the_level_of_the_state(tmp_path):
    """Reconstruct the share of x0 and the power of the noise in x_t from what they are made of."""
    setup = make_setup(tmp_path, "train.batch=64", "train.warmup_updates=0", "method.eta_train=0")
    objective, sampler = make_objective(setup), setup.sampler()
    for update in (1, 2, 3, 4):
        batch = sampler.batch(update, "fake-0", round_number=0)
        zeros = torch.zeros(64, 16, 1, 8, 8)
        white = torch.randn(zeros.shape, generator=torch.Generator().manual_seed(update))
        noise_only = objective.noised(Estimate(zeros, white), batch, "fake")
        with_one = objective.noised(Estimate(zeros + 1, white), batch, "fake")
        share = (with_one.x - noise_only.x).flatten(1)
        alpha = (1 - batch.t).float()[:, None]
        assert torch.allclose(share, alpha.expand_as(share), atol=1e-5)
        power = noise_only.x.square().flatten(1).mean(1).sqrt() / batch.t
        assert (power - 1).abs().max() < 0.12 and abs(power.mean() - 1) < 0.02
        assert torch.equal(noise_only.sigma, batch.t) and bool((batch.t > batch.s).all())


@pytest.mark.parametrize("where", ["sampling", "training"])
def test_timestep_is_float32_and_the_same_in_sampling_and_training(tmp_path, where):
    setup = make_setup(tmp_path, "train.batch=8", "train.warmup_updates=0")
    given, calls, student = {}, [], tiny_wan()
    objective = make_objective(setup)

    def note(module, arguments):
        x, timestep = arguments[:2]
        calls.append(x.shape[-1])
        assert timestep.dtype == torch.float32
        for value in timestep.tolist():
            given.setdefault(x.shape[-1], set()).add(value)

    student.register_forward_pre_hook(note)
    sampler = setup.sampler()
    if where == "training":
        objective.student = student
        for update in range(1, 9):
            objective.fake_phase(sampler.batches(update, "fake-0", round_number=0), share=False)
    else:
        validation = Validation(setup, tmp_path, decodes=False)
        validation.sample(student)
        # one call a step and image, on the plan's own grid
        assert calls == [step.width for step in setup.plan.steps] * len(setup.validation_prompts)
    expected = {}
    for step in setup.plan.steps:
        expected.setdefault(step.width, set()).add(torch.tensor(step.timestep, dtype=torch.float32).item())
    assert given == expected


def test_subinterval_target_trains_the_fake_score_only(tmp_path):
    setup = make_setup(tmp_path, "loss.fake_target=subinterval")
    objective = make_objective(setup)
    batch = setup.sampler().batch(1, "fake-0", round_number=0)
    (loss,), _ = objective.fake_phase([batch], share=False)
    with torch.no_grad():
        conditioning = objective.conditioning(batch)
        x_in = objective.student_input(batch, conditioning)
        estimate = objective.estimate(batch, x_in, conditioning)
        state = objective.noised(estimate, batch, "fake")
        v = objective.fake(state.x, (1000 * batch.t).float(), conditioning["text"]).sample
        a, t, b = ((1 - batch.t), batch.t, state.fresh)
        shape = (-1, 1, 1, 1, 1)
        target = (state.x - (t**2 / b).view(shape) * state.last) / a.view(shape)
        error = ((state.x - t.view(shape) * v) - target).square().flatten(1).mean(1)
        expected = ((b * a / t**2) ** 2 * error).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert gradients(objective.fake) and not gradients(objective.student)

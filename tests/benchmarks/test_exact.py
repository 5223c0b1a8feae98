"""The exact world: closed forms against the engine, against sampling and against slow references."""

import pytest
import torch

from benchmarks.exact import classes
from benchmarks.exact.__main__ import MARK, RESULTS, main
from benchmarks.exact.students import LEVELS, Walk, at_steps, divergence, rmd_optimum, to_blocks
from benchmarks.exact.tables import report
from benchmarks.exact.world import (
    CURVE,
    FULL,
    SMALL,
    bands_of,
    covariance,
    network,
    plan_of,
    power_of,
    score,
    student,
    student_gain,
    to_cells,
    to_modes,
    wasserstein,
)
from benchmarks.results import ROOT, read_results, stored_block
from rmd_core.boundary import Boundary, area_average
from rmd_core.cascade import DenoiserRunner, run_cascade
from rmd_core.errors import RMDError
from rmd_core.noise import SeededNoise

POWER = power_of(FULL, "seen").flatten()


def true_field(count, seed):
    noise = torch.randn(count, FULL, FULL, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return to_cells(power_of(FULL, "seen").sqrt() * noise)


def test_the_field_has_unit_variance_and_the_small_power_is_that_of_averaged_fields():
    fields = true_field(6000, 0)
    assert fields.var().item() == pytest.approx(1, abs=0.03)
    small = to_modes(area_average(fields, (SMALL, SMALL))).square().mean(0)
    torch.testing.assert_close(small, power_of(SMALL, "seen"), rtol=0.1, atol=0)


def test_a_network_that_has_not_seen_the_small_size_makes_the_same_field_in_cells():
    """Its power at k of 8 is that at 2 k of 16: as many periods a cell, so objects twice as large in the image."""
    torch.testing.assert_close(power_of(SMALL, "unseen"), power_of(FULL, "seen")[::2, ::2])


@pytest.mark.parametrize("rule", ["exact", "mix", "fresh"])
@pytest.mark.parametrize("upsampler", ["nearest", "bilinear"])
def test_the_covariance_of_the_real_engine_is_that_of_the_formulas(rule, upsampler):
    plan, boundary = plan_of("2+2", "area"), Boundary(upsampler, rule, 0.7)
    gain_at, walk = student(plan, "unseen", 0.4), Walk(plan, boundary, 0.4)
    state = walk.start()
    for step in plan.steps:
        state = walk.after(state, step, gain_at(step))
    engine = covariance(plan, gain_at, boundary, 0.4)
    order = to_blocks(torch.arange(FULL**2).reshape(FULL, FULL)).flatten()
    torch.testing.assert_close(torch.block_diag(*state), engine[order][:, order], rtol=1e-9, atol=1e-10)


def test_an_upsampler_that_mixes_scales_is_refused():
    with pytest.raises(RMDError, match="bicubic mixes the scales"):
        Walk(plan_of("2+2"), Boundary("bicubic"), 0.5)


def test_sampling_gives_the_exact_covariance():
    plan, boundary = plan_of("2+2"), Boundary(eta_switch=0.5)
    gain_at = student(plan, "unseen", 0.5)
    made = run_cascade(
        plan,
        DenoiserRunner(network(gain_at), eta=0.5, dtype=torch.float64),
        shape=(3000, 1),
        noise=SeededNoise(3),
        boundary=boundary,
    )
    found = to_modes(made.x0).flatten(1)
    exact = covariance(plan, gain_at, boundary, 0.5)
    scale = exact.diagonal().sqrt()
    apart = (found.T @ found / len(found) - exact) / scale[:, None] / scale
    assert apart.abs().max() < 6 / len(found) ** 0.5 and apart.square().mean().sqrt() < 1.1 / len(found) ** 0.5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_student_is_right_at_the_full_size(eta):
    plan = plan_of("4")
    cov = covariance(plan, student(plan, "seen", eta), Boundary(), eta)
    torch.testing.assert_close(cov, torch.diag(POWER), rtol=1e-9, atol=1e-9)


def test_the_wrong_power_of_the_largest_scale_shrinks_by_hand():
    """As exact.md: with eta 0 each full-size step multiplies the excess by alpha^2 S / (alpha^2 S + sigma^2)."""
    power = POWER[0].item()
    for mapping, levels in (("none", (0.75, 0.5)), ("area", (6 / 7, 2 / 3))):
        plan = plan_of("2+2", mapping)
        excess = 3.0  # twice as large in the image: four times the power
        for sigma in levels:
            signal = (1 - sigma) ** 2 * power
            excess *= signal / (signal + sigma**2)
        found = covariance(plan, student(plan, "unseen", 0.0), Boundary(eta_switch=0.0), 0.0)[0, 0] / power
        assert found.item() == pytest.approx(1 + excess, rel=2e-3)


def test_mapping_and_exact_noise_make_the_largest_scale_right():
    """As in method.md, one family of jumps: the small state's mean, enlarged, is the true one at the mapped level."""
    plan, boundary = plan_of("2+2", "area"), Boundary()
    walk, gain_at = Walk(plan, boundary, 0.5), student(plan, "seen", 0.5)
    state = walk.start()
    for step in plan.steps[:2]:
        state = walk.after(state, step, gain_at(step))
    sigma = plan.steps[2].sigma
    assert state[0, 0, 0].item() == pytest.approx(CURVE.alpha(sigma) ** 2 * POWER[0].item() + sigma**2)


def test_a_step_of_the_student_with_predicted_noise_makes_the_true_power():
    power = torch.tensor([0.01, 1.0, 20.0], dtype=torch.float64)
    sigma, after, eta = 0.9, 0.75, 0.6
    gain = student_gain(power, sigma, after, eta)
    both = CURVE.alpha(after) * gain + after * eta * (1 - CURVE.alpha(sigma) * gain) / sigma
    made = both**2 * (CURVE.alpha(sigma) ** 2 * power + sigma**2) + after**2 * (1 - eta**2)
    torch.testing.assert_close(made, CURVE.alpha(after) ** 2 * power + after**2)


def test_w2_of_diagonal_fields_is_that_of_their_deviations():
    wrong = POWER * torch.linspace(0.3, 2, len(POWER), dtype=torch.float64)
    torch.testing.assert_close(wasserstein(torch.diag(wrong), POWER), (wrong.sqrt() - POWER.sqrt()).square().sum())
    found = score(torch.diag(POWER * 0.25))
    assert found["total"] == pytest.approx(25) and found["power high"] == pytest.approx(0.25)
    assert bands_of(FULL).sum(1).tolist() == [16, 48, 192]


def test_the_divergence_is_that_of_pytorch_and_zero_for_the_true_field():
    plan, blocks = plan_of("2+2", "area"), to_blocks(POWER.reshape(FULL, FULL))
    walk, step = Walk(plan, Boundary(), 0.5), plan.steps[3]
    state = torch.diag_embed(CURVE.alpha(step.sigma) ** 2 * blocks + step.sigma**2)
    right = walk.seen_by_losses(state, step, student(plan, "seen", 0.5)(step))
    assert divergence(right, walk, step).item() == pytest.approx(0, abs=1e-12)
    interval, wrong = walk.intervals.steps[3], right + 0.1
    slow = []
    for index in torch.linspace(interval.lower, interval.upper, LEVELS, dtype=torch.float64):
        t = walk.intervals.sigma_at(index).item()
        noised = [(1 - t) ** 2 * cov + t**2 * torch.eye(4).double() for cov in (wrong, torch.diag_embed(blocks))]
        ours, true = (torch.distributions.MultivariateNormal(torch.zeros(4).double(), cov) for cov in noised)
        slow.append(torch.distributions.kl_divergence(ours, true).sum().item() / len(POWER))
    assert divergence(wrong, walk, step).item() == pytest.approx(sum(slow) / LEVELS)


def test_distillation_repairs_what_the_small_size_does_wrong():
    """Three factors a step repair most; what the divergence finds is there in the real engine's result."""
    plan, boundary = plan_of("2+2", "area"), Boundary()
    start = student(plan, "unseen", 0.5)
    before = score(covariance(plan, start, boundary, 0.5))["total"]
    gains, divergence_before = rmd_optimum(plan, boundary, 0.5, start, free=False)
    after = score(covariance(plan, at_steps(gains), boundary, 0.5))["total"]
    assert divergence_before > 0 and after < before / 20


@pytest.mark.parametrize("small", ["seen", "unseen"])
def test_the_teacher_of_the_classes_is_the_gradient_of_the_log_density(small):
    plan = plan_of("2+2")
    for step in (plan.steps[1], plan.steps[2]):
        known, alpha = classes.classes(step.height, small), CURVE.alpha(step.sigma)
        x = torch.randn(3, 1, step.height, step.width, generator=torch.Generator().manual_seed(1)).double()
        x.requires_grad_()
        parts = torch.distributions.MultivariateNormal(
            alpha * known.means.flatten(1), torch.diag_embed((alpha**2 * known.powers + step.sigma**2).flatten(1))
        )
        density = parts.log_prob(to_modes(x).flatten(1)[:, None]).logsumexp(1)
        (gradient,) = torch.autograd.grad(density.sum(), x)
        x0, eps = classes.teacher(small)(x.detach(), step)
        torch.testing.assert_close(x0, (x + step.sigma**2 * gradient).detach() / alpha, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alpha * x0 + step.sigma * eps, x.detach())


def test_true_images_of_the_classes_are_recognised_and_halved_ones_are_not():
    modes = classes.classes(FULL, "seen").sample(2000, 5)
    right, wrong = classes.score(modes), classes.score(modes.flip(0) * 0.2 + modes)
    assert right["recognised"] > 98 and right["total"] < 1 < wrong["total"] and wrong["recognised"] < 90


def test_the_page_holds_the_kept_results(capsys):
    """``python -m benchmarks.exact --page docs/method/exact.md`` writes the page and keeps what it has."""
    main([])
    kept = report(read_results(RESULTS))
    assert capsys.readouterr().out == f"{kept}\n" and stored_block(ROOT / "docs" / "method" / "exact.md", MARK) == kept

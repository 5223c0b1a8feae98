"""The two losses against their closed forms, and training to its end where teacher and fake score are known exactly.

The second half is distribution matching on Gaussians. A generator with a power per mode is trained by the real losses
against a teacher of known power. The fake score is refitted exactly at every update, as the linear predictor that
minimises the real fake loss. The method page says where this must end: at the teacher's power S if the noise of the
states is white, and at m S if it has the power m.
"""

from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core_world import flow, randn, vp
from rmd_core.boundary import Boundary, upsample
from rmd_core.errors import RMDError
from rmd_core.losses import (
    FAKE_WEIGHTINGS,
    fake_score_loss,
    fake_score_loss_subinterval,
    fake_score_weight,
    generator_loss,
    generator_weight,
    huber_constant,
)
from rmd_core.noising import add_noise, noise_further

SHAPES = [(3, 2, 4, 5), (3, 2, 2, 4, 5)]


def trio(shape, dtype=torch.float64):
    return tuple(randn(*shape, seed=seed, dtype=dtype) for seed in range(3))


# Invariant 15
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_generator_loss_and_gradient_vanish_where_fake_equals_teacher(shape, dtype):
    x0, teacher, _ = trio(shape)
    x0, teacher = x0.to(dtype).requires_grad_(), teacher.to(dtype)
    loss = generator_loss(x0, teacher, teacher.clone())
    loss.backward()
    assert loss.item() == 0
    assert x0.grad.abs().max().item() == 0


# Invariant 16
@pytest.mark.parametrize("shape", SHAPES)
def test_generator_gradient_is_the_closed_form(shape):
    x0, teacher, fake = trio(shape)
    x0.requires_grad_()
    generator_loss(x0, teacher, fake).backward()
    c = huber_constant(shape[1:])
    gap = fake - teacher
    weight = generator_weight(x0, teacher)
    bound = 1 / (weight * x0.numel())
    torch.testing.assert_close(x0.grad, gap / (gap.square() + c * c).sqrt() * bound)
    assert (x0.grad.abs() < bound).all()
    assert (x0.grad.sign() == gap.sign()).all()  # a descent step goes along teacher - fake


# Invariant 17
@pytest.mark.parametrize("shape", SHAPES)
def test_generator_loss_value_is_a_function_of_fake_teacher_and_weight(shape):
    x0, teacher, fake = trio(shape)
    c, weight = huber_constant(shape[1:]), generator_weight(x0, teacher)
    expected = ((((fake - teacher).square() + c * c).sqrt() - c) / weight).mean()
    torch.testing.assert_close(generator_loss(x0, teacher, fake), expected)
    mirrored = 2 * teacher - x0  # another x0 with the same weight
    torch.testing.assert_close(generator_loss(mirrored, teacher, fake), expected)


# Invariant 18
@pytest.mark.parametrize("shape", SHAPES)
def test_generator_weight_is_per_sample_and_clipped(shape):
    x0, teacher, fake = trio(shape)
    teacher[0] = x0[0] + 0.01
    weight = generator_weight(x0, teacher)
    assert weight.shape == (3, *[1] * (len(shape) - 1))
    assert weight[0].item() == 0.2
    assert (weight >= 0.2).all()
    assert not weight.requires_grad

    gradients = []
    for scale in (1.0, 7.0):
        leaf = x0.clone()
        leaf[2] *= scale
        leaf.requires_grad_()
        generator_loss(leaf, teacher, fake).backward()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0][:2], gradients[1][:2])
    assert not torch.equal(gradients[0][2], gradients[1][2])


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_losses_are_means_of_single_losses(shape):
    x0, teacher, fake = trio(shape)
    sigma = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    single = [generator_loss(x0[i : i + 1], teacher[i : i + 1], fake[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(generator_loss(x0, teacher, fake), torch.stack(single).mean())
    for weighting in FAKE_WEIGHTINGS:
        whole = fake_score_loss(x0, fake, alpha=1 - sigma, sigma=sigma, weighting=weighting)
        parts = [
            fake_score_loss(x0[i : i + 1], fake[i : i + 1], alpha=1 - s.item(), sigma=s.item(), weighting=weighting)
            for i, s in enumerate(sigma)
        ]
        torch.testing.assert_close(whole, torch.stack(parts).mean())


# Invariant 19
def test_huber_constant_by_size():
    assert huber_constant((16, 21, 90, 160)) == pytest.approx(0.0171846588560844, abs=1e-15)
    assert huber_constant((16, 21, 60, 104)) == pytest.approx(0.0113123, abs=1e-7)
    assert huber_constant((4, 64, 64)) == 0.001
    assert huber_constant((4, 128, 128)) == 0.002
    assert huber_constant((16, 128, 128)) == 0.004


# Invariant 20
@pytest.mark.parametrize("weighting", FAKE_WEIGHTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fake_loss_is_zero_on_its_target(weighting, shape):
    x0 = randn(*shape)
    assert fake_score_loss(x0, x0.clone(), alpha=0.3, sigma=0.7, weighting=weighting).item() == 0


# Invariant 20
@pytest.mark.parametrize("kind", [flow, vp])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 0.97])
def test_weights_turn_the_x0_error_into_the_noise_and_the_velocity_error(kind, sigma):
    alpha, sigma = kind(sigma)
    x0, eps, predicted = trio((2, 3, 4, 5))
    x = add_noise(x0, eps, alpha=alpha, sigma=sigma)
    predicted_eps = (x - alpha * predicted) / sigma

    def velocity(clean, noise):
        return noise - clean if kind is flow else alpha * noise - sigma * clean

    def loss(weighting):
        return fake_score_loss(predicted, x0, alpha=alpha, sigma=sigma, weighting=weighting)

    torch.testing.assert_close(loss("eps"), (predicted_eps - eps).square().mean())
    torch.testing.assert_close(loss("v"), (velocity(predicted, predicted_eps) - velocity(x0, eps)).square().mean())


def test_capped_weights():
    alpha, sigma = 1 - torch.tensor([0.1, 0.5, 0.9]).double(), torch.tensor([0.1, 0.5, 0.9]).double()
    assert fake_score_weight(alpha, sigma, "min_snr5").tolist() == pytest.approx([5.0, 1.0, 1 / 81])
    assert fake_score_weight(alpha, sigma, "legacy").tolist() == pytest.approx([1 / 81, 1.0, 5.0])
    with pytest.raises(RMDError, match="snr"):
        fake_score_weight(0.5, 0.5, "snr")


# Invariant 22
@given(sigma=st.floats(0.0, 1.0), kind=st.sampled_from([flow, vp]), weighting=st.sampled_from(FAKE_WEIGHTINGS))
@settings(max_examples=300)
def test_weights_are_finite_at_every_level(sigma, kind, weighting):
    weight = fake_score_weight(*kind(sigma), weighting)
    assert weight.dtype == torch.float64
    assert torch.isfinite(weight.float())
    assert weight >= 0


# Invariant 22
@pytest.mark.parametrize("t", [0.003, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_subinterval_loss_is_the_weighted_error_of_its_target(shape, t):
    x_s, noise, predicted = trio(shape)
    s = 0.4 * t
    alpha, sigma = flow(t)
    x_t, b = noise_further(x_s, alpha_s=1 - s, sigma_s=s, alpha_t=alpha, sigma_t=sigma, noise=noise)
    loss = fake_score_loss_subinterval(predicted, x_t=x_t, noise=noise, fresh=b, alpha=alpha, sigma=sigma)
    assert torch.isfinite(loss)
    if alpha > 0:
        target = (x_t - sigma**2 / b * noise) / alpha
        weighted = (b * alpha / sigma**2) ** 2 * (predicted - target).square().mean()
        torch.testing.assert_close(loss, weighted)


# Invariant 22
def test_subinterval_loss_stays_finite_where_no_noise_was_added():
    x, noise, _ = trio((2, 3, 4, 5))
    x.requires_grad_()
    loss = fake_score_loss_subinterval(x, x_t=noise, noise=noise, fresh=0.0, alpha=1.0, sigma=0.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert x.grad.abs().max() == 0


def test_subinterval_target_is_unbiased_under_inherited_noise():
    """A scalar Gaussian whose carried noise is correlated with x0: the best linear predictors of 6.2."""
    power, s, t, n = 1.7, 0.75, 0.831, 400_000
    for correlation, plain, tweedie in [(0.0, 0.3887, 0.3887), (0.3, 0.6024, 0.8484), (-0.3, 0.1324, -0.1627)]:
        x0, other, xi = (randn(n, 1, seed=seed) for seed in range(3))
        x0 = power**0.5 * x0
        carried = correlation * x0 / power**0.5 + (1 - correlation**2) ** 0.5 * other
        x_s = add_noise(x0, carried, alpha=1 - s, sigma=s)
        x_t, b = noise_further(x_s, alpha_s=1 - s, sigma_s=s, alpha_t=1 - t, sigma_t=t, noise=xi)
        gain = torch.zeros((), dtype=torch.float64, requires_grad=True)

        def best(loss_of, gain=gain):
            (slope,) = torch.autograd.grad(loss_of(gain), gain, create_graph=True)
            (curvature,) = torch.autograd.grad(slope, gain)
            return (-slope / curvature).item()

        x0_gain = best(lambda g, x_t=x_t, x0=x0: fake_score_loss(g * x_t, x0, alpha=1 - t, sigma=t, weighting="eps"))
        sub_gain = best(
            lambda g, x_t=x_t, xi=xi, b=b: fake_score_loss_subinterval(
                g * x_t, x_t=x_t, noise=xi, fresh=b, alpha=1 - t, sigma=t
            )
        )
        assert x0_gain == pytest.approx(plain, abs=0.01)
        assert sub_gain == pytest.approx(tweedie, abs=0.03)


# Invariant 21
def test_only_the_prediction_and_only_x0_receive_gradients():
    leaves = [leaf.requires_grad_() for leaf in trio((2, 3, 4, 5))]
    predicted, target, _ = leaves
    fake_score_loss(predicted, target, alpha=0.5, sigma=0.5, weighting="eps").backward()
    assert predicted.grad is not None and target.grad is None
    leaves = [leaf.requires_grad_() for leaf in trio((2, 3, 4, 5))]
    generator_loss(*leaves).backward()
    assert leaves[0].grad is not None and leaves[1].grad is None and leaves[2].grad is None
    leaves = [leaf.requires_grad_() for leaf in trio((2, 3, 4, 5))]
    fake_score_loss_subinterval(leaves[0], x_t=leaves[1], noise=leaves[2], fresh=0.3, alpha=0.5, sigma=0.5).backward()
    assert leaves[0].grad is not None and leaves[1].grad is None and leaves[2].grad is None


def test_half_precision_inputs_are_compared_in_float32():
    x0, teacher, fake = trio((2, 3, 4, 5))
    half = [part.to(torch.bfloat16) for part in (x0, teacher, fake)]
    loss = generator_loss(*half)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, generator_loss(*(part.float() for part in half)))


def test_shapes_must_agree():
    x0, teacher, _ = trio((2, 3, 4, 5))
    with pytest.raises(RMDError, match="teacher x0 is"):
        generator_loss(x0, teacher[..., :4], x0)
    with pytest.raises(RMDError, match="x0 target is"):
        fake_score_loss(x0, teacher[:1], alpha=0.5, sigma=0.5, weighting="eps")


BATCH, UPDATES = 1024, 200
S_LEVEL, T_LEVEL = 0.6, 0.75


def fitted_gains(loss_of, modes):
    """The per-mode gains at which a quadratic loss is smallest, by one Newton step from zero."""
    gains = torch.zeros(modes, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss_of(gains), gains, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), gains)  # the modes do not interact: the Hessian is diagonal
    return (-slope / curvature).detach()


def distil(powers, carried_noise, *, seed=0, target="x0", correlation=0.0, updates=UPDATES):
    """Train per-mode scales against a teacher of `powers` (n,); return the generator's powers, averaged over the end.

    carried_noise(shape, generator) samples the noise of the state at level s, in the basis of the modes; correlation
    mixes the generator's own latent into it.
    """
    n = len(powers)
    generator = torch.Generator().manual_seed(seed)
    log_scale = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_scale], lr=0.03, betas=(0.5, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates, eta_min=5e-4)
    levels_s, levels_t = (1 - S_LEVEL, S_LEVEL), (1 - T_LEVEL, T_LEVEL)
    teacher_gain = levels_t[0] * powers / (levels_t[0] ** 2 * powers + levels_t[1] ** 2)
    level = {"alpha": levels_t[0], "sigma": levels_t[1]}
    tail = []
    for _ in range(updates):
        latent = torch.randn(BATCH, n, generator=generator, dtype=torch.float64)
        x0 = log_scale.exp() * latent
        noise = correlation * latent + sqrt(1 - correlation**2) * carried_noise((BATCH, n), generator)
        fresh = torch.randn(BATCH, n, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            x_s = add_noise(x0, noise, alpha=levels_s[0], sigma=levels_s[1])
            x_t, b = noise_further(
                x_s, alpha_s=levels_s[0], sigma_s=levels_s[1], alpha_t=levels_t[0], sigma_t=levels_t[1], noise=fresh
            )
        if target == "x0":
            clean = x0.detach()

            def fake_loss(gains, x_t=x_t, clean=clean):
                return fake_score_loss(gains * x_t, clean, weighting="eps", **level)
        else:

            def fake_loss(gains, x_t=x_t, b=b, fresh=fresh):
                return fake_score_loss_subinterval(gains * x_t, x_t=x_t, noise=fresh, fresh=b, **level)

        fake_gain = fitted_gains(fake_loss, n)
        loss = generator_loss(x0, teacher_gain * x_t, fake_gain * x_t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        tail.append((2 * log_scale.detach()).exp())
    return torch.stack(tail[-updates // 4 :]).mean(0)


def white(shape, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def noise_power_at_t(power_at_s):
    """Relative noise power of the state at t when the state at s had `power_at_s` times the promised one."""
    carried = (S_LEVEL * (1 - T_LEVEL) / (1 - S_LEVEL) / T_LEVEL) ** 2
    return 1 + carried * (power_at_s - 1)


# Invariant 27
@pytest.mark.parametrize("target", ["x0", "subinterval"])
def test_white_noise_converges_to_the_teachers_power(target):
    powers = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    got = distil(powers, white, target=target)
    torch.testing.assert_close(got, powers, rtol=0.06, atol=0)


# Invariant 27
@pytest.mark.parametrize("power", [0.4, 2.5])
def test_noise_of_another_power_converges_to_that_multiple(power):
    powers = torch.tensor([0.8, 1.7], dtype=torch.float64)
    got = distil(powers, lambda shape, generator: sqrt(power) * white(shape, generator))
    torch.testing.assert_close(got, noise_power_at_t(power) * powers, rtol=0.06, atol=0)


# Invariant 27
def test_under_noise_inherited_from_the_generator_only_the_subinterval_target_finds_the_teacher():
    """The sub-interval target brings the power of the whole state x_t to the teacher's; the x0 target does not."""
    powers, rho = torch.tensor([1.7], dtype=torch.float64), 0.3
    alpha, sigma = 1 - T_LEVEL, T_LEVEL
    carried = S_LEVEL * (1 - T_LEVEL) / (1 - S_LEVEL)
    marginal = {}
    for target in ("x0", "subinterval"):
        scale = distil(powers, white, target=target, correlation=rho, updates=300).sqrt()
        marginal[target] = ((alpha * scale) ** 2 + 2 * alpha * scale * carried * rho + sigma**2).item()
    expected = (alpha**2 * powers + sigma**2).item()
    assert marginal["subinterval"] == pytest.approx(expected, rel=0.01)
    assert abs(marginal["x0"] - expected) > 3 * abs(marginal["subinterval"] - expected)


def switched_noise(rule, eta, upsampler, basis, low, high):
    """Noise carried over a switch from `low` to `high` cells in a row, in the coordinates of `basis`."""

    def carried(shape, generator):
        def fresh(_purpose, full_shape):
            return torch.randn(full_shape, generator=generator, dtype=torch.float64)

        eps = fresh("low", (1, shape[0], 1, low))  # the samples share the channel axis
        noise = Boundary(upsampler, rule, eta).noise(eps, (1, high), fresh)
        return noise[0, :, 0] @ basis

    return carried


# Invariant 27
@pytest.mark.parametrize("rule", ["exact", "mix"])
def test_a_switch_ends_where_its_noise_says(rule):
    """4 to 8 cells, eta 0.9: exact noise ends at the teacher, interpolated noise at the power of each of its modes."""
    low, high, eta = 4, 8, 0.9
    eye = torch.eye(low, dtype=torch.float64)
    interpolation = upsample(eye[:, None, None], (1, high), "bilinear")[:, 0, 0].T
    gains, basis = torch.linalg.eigh(interpolation @ interpolation.T)
    powers = torch.linspace(0.5, 2.0, high, dtype=torch.float64)
    got = distil(powers, switched_noise(rule, eta, "bilinear", basis, low, high))
    mixed = eta**2 * gains + 1 - eta**2
    multiple = torch.ones(high, dtype=torch.float64) if rule == "exact" else noise_power_at_t(mixed)
    torch.testing.assert_close(got, multiple * powers, rtol=0.08, atol=0)
    if rule == "mix":
        assert multiple.max() > 1.1 and multiple.min() < 0.9

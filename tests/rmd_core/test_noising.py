"""Network outputs to (x0, eps) and back, guidance, and adding noise: coefficients, composition, edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core_world import FLOW3, SDXL, flow, randn, vp
from rmd_core.errors import RMDError
from rmd_core.noising import (
    PREDICTIONS,
    add_noise,
    broadcast_to,
    guide,
    noise_further,
    to_x0_eps,
)

CASES = [("eps", SDXL), ("v", SDXL), ("flow", FLOW3)]
SHAPES = [(2, 4, 5, 3), (2, 4, 3, 5, 2), (2, 7)]


def tensors(shape, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@given(case=st.sampled_from(CASES), share=st.floats(0.05, 0.98), shape=st.sampled_from(SHAPES))
def test_invariant_13_x0_and_eps_reconstruct_the_input(case, share, shape):
    prediction, curve = case
    sigma = curve.table_sigma(999 * share)
    output, x = tensors(shape, 2)
    x0, eps = to_x0_eps(output, x, alpha=curve.alpha(sigma), sigma=sigma, prediction=prediction)
    assert torch.allclose(curve.alpha(sigma) * x0 + sigma * eps, x, atol=1e-10)


DEFINITIONS = {  # what a network of each kind puts out for a clean latent and its noise
    "eps": lambda x0, eps, alpha, sigma: eps,
    "v": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    "flow": lambda x0, eps, alpha, sigma: eps - x0,
}


@given(case=st.sampled_from(CASES), share=st.floats(0.05, 0.98))
def test_the_definition_of_each_prediction_is_undone(case, share):
    prediction, curve = case
    sigma = curve.table_sigma(999 * share)
    alpha = curve.alpha(sigma)
    x0, eps = tensors((2, 3, 4, 4), 2)
    output = DEFINITIONS[prediction](x0, eps, alpha, sigma)
    again = to_x0_eps(output, alpha * x0 + sigma * eps, alpha=alpha, sigma=sigma, prediction=prediction)
    assert torch.allclose(again[0], x0, atol=1e-9) and torch.allclose(again[1], eps, atol=1e-9)


def test_a_flow_at_pure_noise_predicts_x0_from_the_noise():
    output, x = tensors((1, 2, 3, 3), 2)
    x0, eps = to_x0_eps(output, x, alpha=0.0, sigma=1.0, prediction="flow")
    assert torch.equal(x0, x - output) and torch.equal(eps, x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction, curve", CASES)
def test_per_sample_levels_are_the_samples_one_by_one(prediction, curve, shape):
    output, x = tensors(shape, 2)
    sigma = curve.table_sigma(torch.tensor([700.0, 123.0]))
    alpha = curve.alpha(sigma)
    together = to_x0_eps(output, x, alpha=alpha, sigma=sigma, prediction=prediction)
    for place in range(2):
        alone = to_x0_eps(
            output[place : place + 1],
            x[place : place + 1],
            alpha=float(alpha[place]),
            sigma=float(sigma[place]),
            prediction=prediction,
        )
        assert all(torch.allclose(a[place : place + 1], b, rtol=1e-12) for a, b in zip(together, alone))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_half_types_are_computed_in_float32(prediction):
    output, x = (tensor.to(torch.bfloat16) for tensor in tensors((2, 4, 3, 3), 2))
    level = dict(alpha=torch.tensor([0.3, 0.5]), sigma=torch.tensor([0.7, 0.5]), prediction=prediction)
    got = to_x0_eps(output, x, **level)
    expected = to_x0_eps(output.float(), x.float(), **level)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(got, expected))


def test_float64_levels_leave_float32_alone():
    output, x = (tensor.float() for tensor in tensors((2, 4, 3, 3), 2))
    sigma = torch.tensor([0.7, 0.5], dtype=torch.float64)
    x0, eps = to_x0_eps(output, x, alpha=1 - sigma, sigma=sigma, prediction="flow")
    assert x0.dtype == eps.dtype == torch.float32


@pytest.mark.parametrize("prediction, curve", CASES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5])
def test_invariant_14_guidance_commutes_with_the_parameterisation(prediction, curve, scale):
    sigma = curve.table_sigma(600)
    level = dict(alpha=curve.alpha(sigma), sigma=sigma, prediction=prediction)
    conditional, unconditional, x = tensors((2, 3, 4, 4), 3)
    guided_output = to_x0_eps(guide(conditional, unconditional, scale), x, **level)
    parts = zip(to_x0_eps(conditional, x, **level), to_x0_eps(unconditional, x, **level))
    for of_output, (part, other) in zip(guided_output, parts):
        assert torch.allclose(of_output, guide(part, other, scale), atol=1e-9)


def test_invariant_14_scale_1_is_the_conditional_and_none_needs_one_call():
    conditional, unconditional = tensors((2, 3), 2)
    assert guide(conditional, unconditional, 1.0) is conditional
    assert guide(conditional, None, None) is conditional
    assert torch.allclose(guide(conditional, unconditional, 3.0), unconditional + 3 * (conditional - unconditional))
    with pytest.raises(RMDError, match="scale 3"):
        guide(conditional, None, 3.0)


def test_other_predictions_are_refused():
    (x,) = tensors((1, 2), 1)
    with pytest.raises(RMDError, match="eps, v, flow"):
        to_x0_eps(x, x, alpha=0.5, sigma=0.5, prediction="x0")


def test_broadcast_to_any_rank():
    for shape in [(3,), (3, 2), (3, 2, 4, 4), (3, 2, 5, 4, 4)]:
        level = broadcast_to(torch.tensor([0.1, 0.2, 0.3]), torch.zeros(shape))
        assert level.shape == (3, *(1 for _ in shape[1:]))
    assert broadcast_to(0.25, torch.zeros(3)) == 0.25
    assert math.isclose(broadcast_to(torch.tensor(0.25), torch.zeros(3)), 0.25)


def test_broadcast_to_refuses_levels_of_another_batch():
    for level in (torch.zeros(2), torch.zeros(3, 1)):
        with pytest.raises(RMDError, match="one for each"):
            broadcast_to(level, torch.zeros(3, 4))


KINDS = st.sampled_from([flow, vp])
SIGMA = st.floats(0.0, 1.0)


def further(kind, s, t):
    (alpha_s, sigma_s), (alpha_t, sigma_t) = kind(s), kind(t)
    return dict(alpha_s=alpha_s, sigma_s=sigma_s, alpha_t=alpha_t, sigma_t=sigma_t)


def coefficients(kind, s, t):
    """(alpha_t / alpha_s, b) of `noise_further`: what becomes of a state of 1 and noise of 0, and its `fresh`."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return noise_further(one, **further(kind, s, t), noise=zero)


# Invariant 12
@given(kind=KINDS, levels=st.tuples(SIGMA, SIGMA))
@settings(max_examples=200)
def test_variance_identity_and_signal_scale(kind, levels):
    s, t = sorted(levels)
    scale, fresh = coefficients(kind, s, t)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = kind(s), kind(t)
    assert torch.isfinite(scale) and torch.isfinite(fresh)
    assert (scale * alpha_s).item() == pytest.approx(alpha_t, abs=1e-12)
    assert ((scale * sigma_s) ** 2 + fresh**2).item() == pytest.approx(sigma_t**2, abs=1e-10)


# Invariant 12
@given(kind=KINDS, levels=st.tuples(SIGMA, SIGMA, SIGMA))
@settings(max_examples=200)
def test_two_steps_of_noise_equal_one(kind, levels):
    s, t, u = sorted(levels)
    first_scale, first_fresh = coefficients(kind, s, t)
    second_scale, second_fresh = coefficients(kind, t, u)
    scale, fresh = coefficients(kind, s, u)
    assert (first_scale * second_scale).item() == pytest.approx(scale.item(), abs=1e-9)
    assert ((second_scale * first_fresh) ** 2 + second_fresh**2).item() == pytest.approx(fresh.item() ** 2, abs=1e-9)


# Invariant 12
@pytest.mark.parametrize("kind", [flow, vp])
@pytest.mark.parametrize("level", [0.0, 0.003, 0.3, 0.98, 1.0])
def test_same_level_is_the_identity(kind, level):
    x = randn(2, 3, 4, 5)
    out, fresh = noise_further(x, **further(kind, level, level), noise=randn(2, 3, 4, 5, seed=1))
    assert torch.equal(out, x)
    assert fresh == 0


# Invariant 12
@pytest.mark.parametrize("kind", [flow, vp])
@pytest.mark.parametrize("s", [0.0, 1e-12, 0.5, 1 - 1e-12, 1.0])
def test_pure_noise_is_reached_without_nan(kind, s):
    out, _ = noise_further(randn(1, 2, 3, 3), **further(kind, s, 1.0), noise=randn(1, 2, 3, 3, seed=1))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (3, 2, 2, 4, 5)])
def test_levels_are_per_sample_for_any_rank(shape):
    x, noise = randn(*shape), randn(*shape, seed=1)
    s, t = torch.tensor([0.1, 0.5, 0.7]).double(), torch.tensor([0.4, 0.5, 1.0]).double()
    whole = noise_further(x, alpha_s=1 - s, sigma_s=s, alpha_t=1 - t, sigma_t=t, noise=noise)
    clean = add_noise(x, noise, alpha=1 - t, sigma=t)
    for i in range(3):
        single = noise_further(x[i : i + 1], **further(flow, s[i].item(), t[i].item()), noise=noise[i : i + 1])
        torch.testing.assert_close(whole.x[i : i + 1], single.x)
        torch.testing.assert_close(whole.fresh[i], single.fresh)
        torch.testing.assert_close(clean[i], (1 - t[i]) * x[i] + t[i] * noise[i])


def test_noising_a_state_made_from_clean_equals_noising_clean_with_the_combined_noise():
    x0, first, second = (randn(2, 3, 4, 5, seed=seed) for seed in range(3))
    x_s = add_noise(x0, first, alpha=0.4, sigma=0.6)
    x_t, fresh = noise_further(x_s, **further(flow, 0.6, 0.8), noise=second)
    combined = (0.5 * 0.6 * first + fresh * second) / 0.8
    torch.testing.assert_close(x_t, add_noise(x0, combined, alpha=0.2, sigma=0.8))


def test_coefficients_are_float64_beside_half_precision_states():
    x = randn(2, 3, 4, 5, dtype=torch.float32).to(torch.bfloat16)
    out, fresh = noise_further(x, **further(flow, 0.2, 0.3), noise=x)
    assert out.dtype == torch.bfloat16
    assert fresh.dtype == torch.float64


def test_less_noisy_targets_are_refused():
    x = randn(2, 1, 2, 2)
    s, t = torch.tensor([0.2, 0.6]), torch.tensor([0.3, 0.5])
    with pytest.raises(RMDError, match="less noisy"):
        noise_further(x, alpha_s=1 - s, sigma_s=s, alpha_t=1 - t, sigma_t=t, noise=x)
    with pytest.raises(RMDError, match="less noisy"):
        noise_further(x, **further(flow, 1.0, 0.99), noise=x)

"""Adding noise: coefficients, composition, edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmd_core.errors import RMDError
from rmd_core.noising import add_noise, further_coefficients, noise_further


def flow(sigma):
    return 1 - sigma, sigma


def vp(sigma):
    return (1 - sigma**2) ** 0.5, sigma


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


KINDS = st.sampled_from([flow, vp])
SIGMA = st.floats(0.0, 1.0)


def further(kind, s, t):
    (alpha_s, sigma_s), (alpha_t, sigma_t) = kind(s), kind(t)
    return dict(alpha_s=alpha_s, sigma_s=sigma_s, alpha_t=alpha_t, sigma_t=sigma_t)


# Invariant 12
@given(kind=KINDS, levels=st.tuples(SIGMA, SIGMA))
@settings(max_examples=200, deadline=None)
def test_variance_identity_and_signal_scale(kind, levels):
    s, t = sorted(levels)
    scale, fresh = further_coefficients(**further(kind, s, t))
    (alpha_s, sigma_s), (alpha_t, sigma_t) = kind(s), kind(t)
    assert torch.isfinite(scale) and torch.isfinite(fresh)
    assert (scale * alpha_s).item() == pytest.approx(alpha_t, abs=1e-12)
    assert ((scale * sigma_s) ** 2 + fresh**2).item() == pytest.approx(sigma_t**2, abs=1e-10)


# Invariant 12
@given(kind=KINDS, levels=st.tuples(SIGMA, SIGMA, SIGMA))
@settings(max_examples=200, deadline=None)
def test_two_steps_of_noise_equal_one(kind, levels):
    s, t, u = sorted(levels)
    first_scale, first_fresh = further_coefficients(**further(kind, s, t))
    second_scale, second_fresh = further_coefficients(**further(kind, t, u))
    scale, fresh = further_coefficients(**further(kind, s, u))
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

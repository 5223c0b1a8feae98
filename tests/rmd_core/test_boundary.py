"""The switch: torch's kernels, exact boxes, time left alone; noise white for every ratio, and nothing read at eta 0."""

from dataclasses import replace
from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from einops import reduce
from hypothesis import given
from hypothesis import strategies as st

from core_world import randn
from rmd_core.boundary import (
    SWITCH_NOISES,
    UPSAMPLERS,
    Boundary,
    area_average,
    box_average,
    embed_noise,
    learned_name,
    orthonormal_rows,
    resize,
    step_noise,
    upsample,
)
from rmd_core.errors import RMDError
from rmd_core.presets import PRESETS, preset

SIZES = [((8, 8), (16, 16)), ((6, 10), (9, 16)), ((5, 7), (5, 11)), ((3, 4), (7, 9))]
PAIRS = [(64, 128), (60, 90), (104, 160), (8, 12), (7, 10), (5, 5), (1, 3), (13, 14)]


def slow_boxes(x_HW, size_hw):
    """Box averaging cell by cell, from overlaps of intervals."""
    out = torch.zeros(size_hw, dtype=x_HW.dtype)
    for i, j in [(i, j) for i in range(size_hw[0]) for j in range(size_hw[1])]:
        for a in range(x_HW.shape[0]):
            for b in range(x_HW.shape[1]):
                fh, fw = x_HW.shape[0] / size_hw[0], x_HW.shape[1] / size_hw[1]
                overlap_h = max(0.0, min((i + 1) * fh, a + 1) - max(i * fh, a)) / fh
                overlap_w = max(0.0, min((j + 1) * fw, b + 1) - max(j * fw, b)) / fw
                out[i, j] += overlap_h * overlap_w * x_HW[a, b]
    return out


@pytest.mark.parametrize(("low", "high"), SIZES)
@pytest.mark.parametrize("method", UPSAMPLERS)
def test_every_frame_of_a_video_is_upsampled_by_itself(method, low, high):
    x = randn(2, 3, 4, *low, dtype=torch.float32)
    video = upsample(x, high, method)
    assert video.shape == (2, 3, 4, *high)
    for t in range(4):
        torch.testing.assert_close(video[:, :, t], upsample(x[:, :, t], high, method), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), SIZES)
@pytest.mark.parametrize("method", UPSAMPLERS)
def test_constant_stays_constant(method, low, high):
    x = torch.full((1, 2, *low), 1.5, dtype=torch.float64)
    torch.testing.assert_close(upsample(x, high, method), torch.full((1, 2, *high), 1.5, dtype=torch.float64))


@pytest.mark.parametrize("method", UPSAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_same_size_returns_the_values_unchanged(method, dtype):
    x = randn(2, 3, 2, 5, 6).to(dtype)
    assert torch.equal(upsample(x, (5, 6), method), x)


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_interpolation_has_half_pixel_centres_and_no_antialias(method):
    x = randn(2, 3, 6, 10, dtype=torch.float32)
    reference = F.interpolate(x, size=(9, 16), mode=method, align_corners=False, antialias=False)
    torch.testing.assert_close(upsample(x, (9, 16), method), reference)


def test_nearest_takes_the_cell_under_the_target_centre():
    x = randn(1, 1, 6, 7, dtype=torch.float32)
    out = upsample(x, (9, 16), "nearest")
    for i in range(9):
        for j in range(16):
            assert out[0, 0, i, j] == x[0, 0, int((i + 0.5) * 6 / 9), int((j + 0.5) * 7 / 16)]


@pytest.mark.parametrize(("low", "high"), SIZES)
def test_area_averages_exact_fractional_boxes(low, high):
    x = randn(1, 1, *low)
    torch.testing.assert_close(upsample(x, high, "area")[0, 0], slow_boxes(x[0, 0], high))


@given(n=st.integers(1, 40), extra=st.integers(0, 40))
def test_area_keeps_the_mean_and_shares_are_probabilities(n, extra):
    boxes = box_average(n, n + extra)
    assert (boxes >= 0).all()
    torch.testing.assert_close(boxes.sum(1), torch.ones(n + extra, dtype=torch.float64))
    torch.testing.assert_close(boxes.mean(0), torch.full((n,), 1 / n, dtype=torch.float64))


def test_area_equals_nearest_at_whole_ratios_and_torch_area_at_two_thirds():
    x = randn(2, 3, 6, 8, dtype=torch.float32)
    torch.testing.assert_close(upsample(x, (12, 24), "area"), upsample(x, (12, 24), "nearest"))
    torch.testing.assert_close(upsample(x, (9, 12), "area"), F.interpolate(x, size=(9, 12), mode="area"))


def test_half_precision_is_upsampled_in_float32_and_cast_once():
    x = randn(1, 4, 6, 6, dtype=torch.float32).to(torch.bfloat16)
    for method in UPSAMPLERS:
        assert torch.equal(upsample(x, (9, 9), method), upsample(x.float(), (9, 9), method).to(torch.bfloat16))


@pytest.mark.parametrize("method", UPSAMPLERS)
def test_gradient_is_the_adjoint(method):
    x = randn(1, 2, 4, 5).requires_grad_()
    y = randn(1, 2, 7, 8, seed=1)
    (upsample(x, (7, 8), method) * y).sum().backward()
    probe = randn(1, 2, 4, 5, seed=2)
    left = (upsample(probe, (7, 8), method) * y).sum()
    torch.testing.assert_close(left, (probe * x.grad).sum())


@pytest.mark.parametrize("method", UPSAMPLERS)
def test_input_is_not_changed(method):
    x = randn(1, 2, 4, 5, dtype=torch.float32)
    before = x.clone()
    upsample(x, (8, 8), method)
    assert torch.equal(x, before)


def test_bad_requests_name_what_came():
    x = randn(1, 2, 4, 5, dtype=torch.float32)
    with pytest.raises(RMDError, match="4x5 to 8x4"):
        upsample(x, (8, 4), "nearest")
    with pytest.raises(RMDError, match="3 axes"):
        upsample(x[0], (8, 8), "nearest")


class Fresh:
    """Independent noise per purpose, and a list of what was asked for."""

    def __init__(self, seed=100, dtype=torch.float64):
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.given = {}

    def __call__(self, purpose, shape):
        self.given[purpose] = torch.randn(shape, generator=self.generator, dtype=self.dtype)
        return self.given[purpose]


def interpolation_matrix(n_low, n_high, method):
    """U (n_high, n_low) of one axis, read off unit vectors."""
    return upsample(torch.eye(n_low, dtype=torch.float64)[:, None, None], (1, n_high), method)[:, 0, 0].T


def switch_noise(eps, size_hw, *, rule, eta, fresh, upsampler):
    return Boundary(upsampler, rule, eta).noise(eps, size_hw, fresh)


def switch_operators(low_hw, high_hw, rule, eta, upsampler="bilinear"):
    """The linear maps of one switch, column by column: (from eps_L, from zeta, from xi)."""
    n_low, n_high = low_hw[0] * low_hw[1], high_hw[0] * high_hw[1]

    def columns(n, size, which):
        def fresh(purpose, shape):
            if which == {"switch": "xi", "switch-low": "zeta"}[purpose]:
                return torch.eye(n, dtype=torch.float64).reshape(n, 1, *size)
            return torch.zeros(shape, dtype=torch.float64)

        eye = torch.eye(n, dtype=torch.float64).reshape(n, 1, *size)
        eps = eye if which == "eps" else torch.zeros(n, 1, *low_hw, dtype=torch.float64)
        out = switch_noise(eps, high_hw, rule=rule, eta=eta, fresh=fresh, upsampler=upsampler)
        return out.reshape(n, n_high).T

    return columns(n_low, low_hw, "eps"), columns(n_low, low_hw, "zeta"), columns(n_high, high_hw, "xi")


# Invariant 8
@pytest.mark.parametrize(("n_low", "n_high"), PAIRS)
def test_rows_are_orthonormal_and_a_constant_maps_to_a_constant(n_low, n_high):
    q = orthonormal_rows(n_low, n_high)
    assert q.dtype == torch.float64
    torch.testing.assert_close(q @ q.T, torch.eye(n_low, dtype=torch.float64), rtol=0, atol=1e-10)
    back = q.T @ torch.ones(n_low, dtype=torch.float64)
    constant = torch.full((n_high,), sqrt(n_low / n_high), dtype=torch.float64)
    torch.testing.assert_close(back, constant, rtol=0, atol=1e-10)


@pytest.mark.parametrize("ratio", [2, 3])
def test_rows_are_the_scaled_block_mean_at_whole_ratios(ratio):
    block_mean = torch.eye(5, dtype=torch.float64).repeat_interleave(ratio, 1) / ratio
    torch.testing.assert_close(orthonormal_rows(5, 5 * ratio), sqrt(ratio) * block_mean)


# Invariant 9
@pytest.mark.parametrize("eta", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    ("low_hw", "high_hw"), [((4, 4), (8, 8)), ((4, 5), (6, 8)), ((3, 5), (5, 7)), ((4, 3), (4, 5))]
)
def test_exact_noise_has_identity_covariance_analytically(low_hw, high_hw, eta):
    maps = switch_operators(low_hw, high_hw, "exact", eta)
    covariance = sum(part @ part.T for part in maps)
    torch.testing.assert_close(covariance, torch.eye(high_hw[0] * high_hw[1], dtype=torch.float64), rtol=0, atol=1e-10)


# Invariant 9
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 3, 4, 6, 5)])
def test_reading_exact_noise_back_gives_the_mixed_low_noise(shape, eta):
    eps, fresh = randn(*shape), Fresh()
    out = switch_noise(eps, (9, 8), rule="exact", eta=eta, fresh=fresh, upsampler="bicubic")
    read = orthonormal_rows(6, 9) @ out @ orthonormal_rows(5, 8).T
    mixed = eta * eps + sqrt(1 - eta * eta) * fresh.given.get("switch-low", torch.zeros(()))
    torch.testing.assert_close(read, mixed, rtol=0, atol=1e-12)


# Invariant 9
@pytest.mark.parametrize("rule", SWITCH_NOISES)
def test_eta_zero_uses_nothing_of_the_prediction(rule):
    poison = torch.full((1, 2, 4, 6), torch.nan)
    out = switch_noise(poison, (6, 9), rule=rule, eta=0.0, fresh=Fresh(), upsampler="nearest")
    assert torch.isfinite(out).all()


# Invariant 9
def test_eta_one_asks_for_no_low_noise_and_mix_for_no_noise_at_all():
    exact, mix = Fresh(), Fresh()
    eps = randn(1, 2, 4, 6)
    switch_noise(eps, (6, 9), rule="exact", eta=1.0, fresh=exact, upsampler="nearest")
    out = switch_noise(eps, (6, 9), rule="mix", eta=1.0, fresh=mix, upsampler="nearest")
    assert set(exact.given) == {"switch"}
    assert not mix.given
    assert torch.equal(out, upsample(eps, (6, 9), "nearest"))


@pytest.mark.parametrize("rule", SWITCH_NOISES)
@pytest.mark.parametrize("shape", [(3, 2, 4, 6), (3, 2, 5, 4, 6)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_switch_noise_keeps_rank_and_dtype(rule, shape, dtype):
    eps = randn(*shape).to(dtype)
    out = switch_noise(eps, (7, 9), rule=rule, eta=0.5, fresh=Fresh(dtype=torch.float32), upsampler="bicubic")
    assert out.shape == (*shape[:-2], 7, 9)
    assert out.dtype == dtype


@pytest.mark.parametrize("rule", SWITCH_NOISES)
def test_half_precision_noise_is_computed_in_float32_and_cast_once(rule):
    eps = randn(2, 3, 4, 6).to(torch.bfloat16)
    half, full = (
        switch_noise(part, (7, 9), rule=rule, eta=0.5, fresh=Fresh(dtype=torch.float32), upsampler="bicubic")
        for part in (eps, eps.float())
    )
    assert torch.equal(half, full.to(torch.bfloat16))


def test_equal_size_needs_no_high_noise():
    eps, fresh = randn(2, 3, 5, 6), Fresh()
    out = switch_noise(eps, (5, 6), rule="exact", eta=0.6, fresh=fresh, upsampler="bicubic")
    assert set(fresh.given) == {"switch-low"}
    torch.testing.assert_close(out, 0.6 * eps + 0.8 * fresh.given["switch-low"])


def test_exact_noise_is_white_by_monte_carlo_at_wan_sizes():
    fresh = Fresh(dtype=torch.float32)
    eps = randn(12, 8, 60, 104, dtype=torch.float32)
    out = switch_noise(eps, (90, 160), rule="exact", eta=0.9, fresh=fresh, upsampler="bilinear").double()
    assert abs(out.var().item() - 1) < 5e-3
    shifted = (out[..., :-1] * out[..., 1:], out[..., :-1, :] * out[..., 1:, :], out[..., :-1, :-1] * out[..., 1:, 1:])
    for product in shifted:
        assert abs(product.mean().item()) < 4e-3
    read = orthonormal_rows(60, 90) @ out @ orthonormal_rows(104, 160).T
    assert abs((read * eps).mean().item() - 0.9) < 5e-3


def test_exact_noise_of_an_item_does_not_depend_on_its_batch():
    low, xi = randn(5, 3, 7, 11, dtype=torch.float32), randn(5, 3, 10, 17, seed=1, dtype=torch.float32)
    whole = embed_noise(low, xi)
    for i in range(5):
        assert torch.equal(whole[i : i + 1], embed_noise(low[i : i + 1], xi[i : i + 1]))


# Invariant 10
@pytest.mark.parametrize("sigma", [0.9, 0.75, 0.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 2e-14)])
def test_mapped_exact_noise_at_eta_one_is_the_pyramid_jump(sigma, dtype, tolerance):
    ratio = 2
    x0, eps, fresh = randn(2, 3, 8, 8, dtype=dtype), randn(2, 3, 8, 8, seed=1, dtype=dtype), Fresh(dtype=dtype)
    mapped = ratio * sigma / (1 + (ratio - 1) * sigma)
    x_up, noise = Boundary("nearest", "exact", 1.0).switch(x0, eps, (16, 16), fresh)
    state = (1 - mapped) * x_up + mapped * noise

    noisy = (1 - sigma) * x0 + sigma * eps
    xi = fresh.given["switch"]
    blocks = upsample(reduce(xi, "b c (h two) (w too) -> b c h w", "mean", two=2, too=2), (16, 16), "nearest")
    jump = (1 - mapped) / (1 - sigma) * upsample(noisy, (16, 16), "nearest") + mapped * (xi - blocks)
    torch.testing.assert_close(state, jump, rtol=0, atol=tolerance)


# Invariant 11
def test_raw_bilinear_reinjection_shrinks_the_noise():
    doubled = interpolation_matrix(64, 128, "bilinear").square().sum(1)
    assert doubled[1:-1].square().mean().item() == pytest.approx(0.390625, abs=1e-12)
    wan = torch.outer(*(interpolation_matrix(a, b, "bilinear").square().sum(1) for a, b in [(60, 90), (104, 160)]))
    assert wan.mean().item() == pytest.approx(0.4383, abs=5e-5)


# Invariant 11
@pytest.mark.parametrize(
    ("method", "low_hw", "high_hw", "variance"),
    [
        ("nearest", (64, 64), (128, 128), 1.0),
        ("bilinear", (64, 64), (128, 128), 0.398),
        ("bicubic", (64, 64), (128, 128), 0.733),
        ("nearest", (60, 104), (90, 160), 1.0),
        ("bicubic", (60, 104), (90, 160), 0.739),
    ],
)
def test_variance_of_interpolated_noise(method, low_hw, high_hw, variance):
    axes = zip(low_hw, high_hw, strict=True)
    rows, columns = (interpolation_matrix(low, high, method).square().sum(1).mean() for low, high in axes)
    assert (rows * columns).item() == pytest.approx(variance, abs=6e-4)


def test_mix_is_the_documented_sum():
    eps, fresh = randn(2, 3, 4, 6), Fresh()
    out = switch_noise(eps, (6, 9), rule="mix", eta=0.6, fresh=fresh, upsampler="bilinear")
    torch.testing.assert_close(out, 0.6 * upsample(eps, (6, 9), "bilinear") + 0.8 * fresh.given["switch"])


def test_fresh_ignores_the_prediction():
    fresh = Fresh()
    out = switch_noise(randn(2, 3, 4, 6), (6, 9), rule="fresh", eta=0.9, fresh=fresh, upsampler="bilinear")
    assert torch.equal(out, fresh.given["switch"])


def test_step_noise_mixes_with_squares_that_sum_to_one():
    eps, fresh = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    torch.testing.assert_close(step_noise(eps, 0.6, fresh), 0.6 * eps + 0.8 * fresh)
    assert torch.equal(step_noise(eps, 1.0, None), eps)
    assert torch.equal(step_noise(torch.full_like(eps, torch.nan), 0.0, fresh), fresh)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan"), True, "0.5", None])
def test_eta_outside_zero_to_one_is_refused(eta):
    eps = randn(1, 1, 4, 4)
    with pytest.raises(RMDError, match="eta"):
        step_noise(eps, eta, eps)
    with pytest.raises(RMDError, match="eta_switch"):
        Boundary("nearest", "exact", eta)


def test_bad_switches_are_refused():
    eps = randn(1, 1, 4, 4)
    with pytest.raises(RMDError, match="4x4 to 3x8"):
        switch_noise(eps, (3, 8), rule="exact", eta=0.5, fresh=Fresh(), upsampler="nearest")
    with pytest.raises(RMDError, match="lanczos"):
        Boundary("lanczos")
    with pytest.raises(RMDError, match="pink"):
        Boundary("nearest", "pink")
    with pytest.raises(RMDError, match="8 down to 9"):
        orthonormal_rows(9, 8)
    with pytest.raises(RMDError, match="same shape"):
        step_noise(eps, 0.5, eps[..., :3])


def test_boundary_without_prediction():
    x0, fresh = randn(1, 2, 4, 4), Fresh()
    switched = Boundary("nearest", "fresh").switch(x0, None, (8, 8), fresh)
    assert torch.equal(switched.noise, fresh.given["switch"])
    with pytest.raises(RMDError, match="no predicted noise"):
        Boundary("nearest", "mix", 0.5).switch(x0, None, (8, 8), fresh)


@pytest.mark.parametrize("name", PRESETS)
def test_the_method_presets_are_accepted(name):
    one = preset(name)
    Boundary(one.upsampler, one.switch_noise, one.eta)
    Boundary(one.upsampler, one.loss_noise, one.eta_train)


def test_unknown_presets_are_refused_with_the_known_ones():
    with pytest.raises(RMDError, match="'official' is unknown; use one of default, paper-literal"):
        preset("official")


def test_presets_cannot_be_changed():
    with pytest.raises(TypeError):
        PRESETS["default"] = None
    with pytest.raises(AttributeError):
        PRESETS["default"].eta = 0.1


NETWORK = learned_name("network", 64 * "a")


def test_a_learned_upsampler_enlarges_the_estimate_and_not_the_noise():
    """Here a box average, as `area` is; the noise is that of the rule without it."""
    x0, eps = randn(2, 4, 3, 5, 6), randn(2, 4, 3, 5, 6, seed=1)
    learned = [replace(Boundary(name, "mix"), learned=area_average) for name in ("bicubic", NETWORK)]
    known = Boundary("bicubic", "mix").switch(x0, eps, (10, 9), lambda _, shape: randn(*shape, seed=2))
    for rule in learned:
        mine = rule.switch(x0, eps, (10, 9), lambda _, shape: randn(*shape, seed=2))
        assert torch.equal(mine.x0, upsample(x0, (10, 9), "area"))
        assert torch.equal(mine.noise, known.noise)
        assert rule.between((5, 6), (10, 9), eta=0.2) is rule
        assert rule.enlarged(x0, (5, 6)) is x0
    assert learned[0] == Boundary("bicubic", "mix")


def test_a_learned_upsampler_that_is_missing_or_of_another_shape_is_refused():
    x0 = randn(1, 4, 5, 6)
    for rule, words in (
        (Boundary(NETWORK), "needs the learned upsampler network"),
        (replace(Boundary(), learned=lambda x, _: x), "not .1, 4, 10, 9."),
    ):
        with pytest.raises(RMDError, match=words):
            rule.enlarged(x0, (10, 9))
    with pytest.raises(RMDError, match="unknown"):
        Boundary("network sha256:" + 63 * "a")


def test_a_resize_grows_and_averages():
    x = randn(2, 4, 6, 8)
    assert torch.equal(resize(x, (9, 8)), upsample(x, (9, 8), "bicubic"))
    assert torch.equal(resize(x, (3, 4)), area_average(x, (3, 4)))
    assert resize(x, (12, 4)).shape == (2, 4, 12, 4)

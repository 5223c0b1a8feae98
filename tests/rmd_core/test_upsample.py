"""upsample: torch's kernels, exact boxes, time left alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rmd_core.boundary import UPSAMPLERS, box_average, upsample
from rmd_core.errors import RMDError

SIZES = [((8, 8), (16, 16)), ((6, 10), (9, 16)), ((5, 7), (5, 11)), ((3, 4), (7, 9))]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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
    x = randn(2, 3, 4, *low)
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
    x = randn(2, 3, 6, 10)
    reference = F.interpolate(x, size=(9, 16), mode=method, align_corners=False, antialias=False)
    torch.testing.assert_close(upsample(x, (9, 16), method), reference)


def test_bilinear_weights_from_the_half_pixel_formula():
    x = randn(1, 1, 1, 6, dtype=torch.float64)
    out = upsample(x, (1, 9), "bilinear")[0, 0, 0]
    for i in range(9):
        centre = min(max((i + 0.5) * 6 / 9 - 0.5, 0.0), 5.0)
        left = min(int(centre), 4)
        share = centre - left
        torch.testing.assert_close(out[i], (1 - share) * x[0, 0, 0, left] + share * x[0, 0, 0, left + 1])


def test_nearest_takes_the_cell_under_the_target_centre():
    x = randn(1, 1, 6, 7)
    out = upsample(x, (9, 16), "nearest")
    for i in range(9):
        for j in range(16):
            assert out[0, 0, i, j] == x[0, 0, int((i + 0.5) * 6 / 9), int((j + 0.5) * 7 / 16)]


@pytest.mark.parametrize(("low", "high"), SIZES)
def test_area_averages_exact_fractional_boxes(low, high):
    x = randn(1, 1, *low, dtype=torch.float64)
    torch.testing.assert_close(upsample(x, high, "area")[0, 0], slow_boxes(x[0, 0], high))


@given(n=st.integers(1, 40), extra=st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_area_keeps_the_mean_and_shares_are_probabilities(n, extra):
    boxes = box_average(n, n + extra)
    assert (boxes >= 0).all()
    torch.testing.assert_close(boxes.sum(1), torch.ones(n + extra, dtype=torch.float64))
    torch.testing.assert_close(boxes.mean(0), torch.full((n,), 1 / n, dtype=torch.float64))


def test_area_equals_nearest_at_whole_ratios_and_torch_area_at_two_thirds():
    x = randn(2, 3, 6, 8)
    torch.testing.assert_close(upsample(x, (12, 24), "area"), upsample(x, (12, 24), "nearest"))
    torch.testing.assert_close(upsample(x, (9, 12), "area"), F.interpolate(x, size=(9, 12), mode="area"))


def test_half_precision_is_computed_in_float32_and_cast_once():
    x = randn(1, 4, 6, 6).to(torch.bfloat16)
    for method in UPSAMPLERS:
        assert torch.equal(upsample(x, (9, 9), method), upsample(x.float(), (9, 9), method).to(torch.bfloat16))


@pytest.mark.parametrize("method", UPSAMPLERS)
def test_gradient_is_the_adjoint(method):
    x = randn(1, 2, 4, 5, dtype=torch.float64).requires_grad_()
    y = randn(1, 2, 7, 8, seed=1, dtype=torch.float64)
    (upsample(x, (7, 8), method) * y).sum().backward()
    probe = randn(1, 2, 4, 5, seed=2, dtype=torch.float64)
    left = (upsample(probe, (7, 8), method) * y).sum()
    torch.testing.assert_close(left, (probe * x.grad).sum())


@pytest.mark.parametrize("method", UPSAMPLERS)
def test_input_is_not_changed(method):
    x = randn(1, 2, 4, 5)
    before = x.clone()
    upsample(x, (8, 8), method)
    assert torch.equal(x, before)


def test_bad_requests_name_what_came():
    x = randn(1, 2, 4, 5)
    with pytest.raises(RMDError, match="lanczos"):
        upsample(x, (8, 8), "lanczos")
    with pytest.raises(RMDError, match="4x5 to 8x4"):
        upsample(x, (8, 4), "nearest")
    with pytest.raises(RMDError, match="3 axes"):
        upsample(x[0], (8, 8), "nearest")

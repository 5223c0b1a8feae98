"""The distances between sets of pictures, against closed forms and slow references."""

import pytest
import torch

from benchmarks.picture_metrics import diversity, frechet_distance, kernel_distance, sliced_wasserstein


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_distance_of_equal_sets_is_zero():
    rows = draw(0, 200, 5)
    assert frechet_distance(rows, rows) == pytest.approx(0.0, abs=1e-6)


def test_frechet_distance_of_scaled_and_shifted_sets_is_the_closed_form():
    rows = draw(1, 300, 4)
    scale, shift = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64), torch.tensor([1.0, 0.0, -2.0, 0.5])
    # the rows' own covariance rotated onto its axes, so that scaling commutes with it
    _, axes = torch.linalg.eigh(torch.cov(rows.T))
    rows = rows @ axes
    expected = (shift.double() + rows.mean(0) * (scale - 1)).square().sum()
    expected = expected + (rows.var(0).sqrt() * (scale - 1)).square().sum()
    assert frechet_distance(rows, rows * scale + shift) == pytest.approx(expected.item(), rel=1e-9)


def test_kernel_distance_is_the_sum_over_pairs():
    a, b = draw(2, 7, 3), draw(3, 5, 3) + 0.3

    def k(x, y):
        return (torch.dot(x, y) / 3 + 1) ** 3

    within_a = sum(k(a[i], a[j]) for i in range(7) for j in range(7) if i != j) / 42
    within_b = sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(k(x, y) for x in a for y in b) / 35
    assert kernel_distance(a, b) == pytest.approx(1000 * (within_a + within_b - 2 * across).item(), rel=1e-9)


def test_sliced_wasserstein_sees_blur_and_ignores_flat_colour():
    pictures = draw(4, 40, 3, 32, 32).float()
    blurred = torch.nn.functional.avg_pool2d(pictures, 3, stride=1, padding=1)
    floor = sliced_wasserstein(pictures, pictures, 0)  # other random patches of the same pictures
    assert sliced_wasserstein(pictures + 0.25, pictures, 0) == pytest.approx(floor, abs=1e-4)
    assert sliced_wasserstein(blurred, pictures, 0) > 5 * floor


def test_diversity_is_the_spread_within_a_concept():
    features = torch.tensor([[0.0], [2.0], [10.0], [16.0]])
    assert diversity(features, torch.tensor([0, 0, 1, 1])) == pytest.approx(2.0)

"""The quality benchmark's scores: distances against closed forms and slow references, and on real, damaged and made
images, with few of them."""

import pytest
import torch
from einops import rearrange, repeat

from benchmarks.quality import rows
from benchmarks.quality.rows import RealRow
from benchmarks.quality.scoring import (
    DAMAGES,
    PROMPTS,
    Scorer,
    bootstrap_interval,
    diversity,
    kernel_distance,
    sliced_wasserstein,
    violations,
)
from demo import files
from demo.classifier import frechet_distance
from demo.sampling import student_setup

FEW = [text for text in PROMPTS if text.endswith(("on-blue", "on-pink"))]


@pytest.fixture(scope="module")
def scorer():
    return Scorer(repeats=1, prompts=FEW)


def test_damaged_images_rank_as_they_should(scorer):
    figures = {"": scorer.score(scorer.real_images(901))}
    for damage in DAMAGES:
        images = damage.apply(scorer.real_images(901, damage.prompts(scorer.prompts)))
        assert images.shape == scorer.reference.shape and images.abs().max() <= 1
        if damage.name == "wrong_prompts":
            images = scorer.real_images(901).roll(2, 0)  # two backgrounds here, so the next concept
        figures[damage.name] = scorer.score(images)
    assert violations(figures) == []
    assert figures[""]["concept"] == 1.0
    assert violations({**figures, "blur_3": figures["blur_5"]})[0] == ("blur_5", "blur_3", "swd")


def test_the_reference_against_itself_is_perfect(scorer):
    figures = scorer.score(scorer.reference)
    assert figures["fd"] == pytest.approx(0.0, abs=1e-6) and figures["spread"] == pytest.approx(1.0)


def test_blocks_are_moved_and_kept(scorer):
    (blocks,) = [damage for damage in DAMAGES if damage.name == "blocks"]
    image = repeat(torch.arange(64.0) / 64, "(y x) -> 1 c (y h) (x w)", y=8, c=3, h=16, w=16)
    moved = blocks.apply(image)
    assert not torch.equal(moved, image)
    assert torch.equal(moved.flatten().sort().values, image.flatten().sort().values)
    assert (rearrange(moved, "1 c (y h) (x w) -> c y x (h w)", h=16, w=16).diff(dim=3) == 0).all()


def test_wrong_prompts_shift_by_a_concept():
    (wrong,) = [damage for damage in DAMAGES if damage.name == "wrong_prompts"]
    numbers = torch.arange(len(PROMPTS)).view(-1, 1, 1, 1) / len(PROMPTS)
    order = (wrong.apply(numbers) * len(PROMPTS)).round().long().flatten().tolist()
    assert all(PROMPTS[i].split()[0] != PROMPTS[j].split()[0] for i, j in enumerate(order))


def test_a_student_of_the_demo_names_most_concepts_right(scorer):
    setup = student_setup("student", files.STUDENT, rows.backbone())
    assert scorer.score(scorer.images(setup, rows.backbone()))["concept"] > 0.9


def test_a_real_row_has_the_reference_distribution(scorer):
    row = RealRow(name="real", title="", seed=901)
    assert row.figures(scorer) == scorer.score(scorer.real_images(901))


def test_the_interval_has_the_spread_of_fresh_sets():
    """Against the slow way: distances of many fresh pairs of sets whose prompts have means of their own."""
    means = normal(1, 80, 3) * 2

    def pair(seed):
        return tuple(repeat(means, "p d -> (r p) d", r=4) + normal(seed + i, 320, 3) + 0.2 * i for i in (0, 1))

    fresh = torch.tensor([frechet_distance(*pair(2 * i + 10)) for i in range(200)])
    low, high = bootstrap_interval(*pair(10), 4)
    wanted = fresh.quantile(torch.tensor([0.025, 0.975], dtype=fresh.dtype))
    assert high - low == pytest.approx((wanted[1] - wanted[0]).item(), rel=0.4)
    assert low <= frechet_distance(*pair(10)) <= high


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_distance_of_equal_sets_is_zero():
    rows = normal(0, 200, 5)
    assert frechet_distance(rows, rows) == pytest.approx(0.0, abs=1e-6)


def test_frechet_distance_of_scaled_and_shifted_sets_is_the_closed_form():
    rows = normal(1, 300, 4)
    scale, shift = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64), torch.tensor([1.0, 0.0, -2.0, 0.5])
    # the rows' own covariance rotated onto its axes, so that scaling commutes with it
    _, axes = torch.linalg.eigh(torch.cov(rows.T))
    rows = rows @ axes
    expected = (shift.double() + rows.mean(0) * (scale - 1)).square().sum()
    expected = expected + (rows.var(0).sqrt() * (scale - 1)).square().sum()
    assert frechet_distance(rows, rows * scale + shift) == pytest.approx(expected.item(), rel=1e-9)


def test_kernel_distance_is_the_sum_over_pairs():
    a, b = normal(2, 7, 3), normal(3, 5, 3) + 0.3

    def k(x, y):
        return (torch.dot(x, y) / 3 + 1) ** 3

    within_a = sum(k(a[i], a[j]) for i in range(7) for j in range(7) if i != j) / 42
    within_b = sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(k(x, y) for x in a for y in b) / 35
    assert kernel_distance(a, b) == pytest.approx(1000 * (within_a + within_b - 2 * across).item(), rel=1e-9)


def test_sliced_wasserstein_sees_blur_and_ignores_flat_colour():
    images = normal(4, 40, 3, 32, 32).float()
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    floor = sliced_wasserstein(images, images, 0)  # other random patches of the same images
    assert sliced_wasserstein(images + 0.25, images, 0) == pytest.approx(floor, abs=1e-4)
    assert sliced_wasserstein(blurred, images, 0) > 5 * floor


def test_diversity_is_the_spread_within_a_concept():
    features = torch.tensor([[0.0], [2.0], [10.0], [16.0]])
    assert diversity(features, torch.tensor([0, 0, 1, 1])) == pytest.approx(2.0)

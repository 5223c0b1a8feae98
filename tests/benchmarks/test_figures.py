"""The images of README and docs: the noise they share, and that they are small."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.figures import SharedStart, logsnr_stages
from rmd_core.boundary import orthonormal_rows
from rmd_core.noise import SeededNoise

IMAGES = Path(__file__).parents[2] / "docs" / "images"


@pytest.mark.parametrize("name", ["logsnr_stages", "full_size_cascade_rmd", "stages_of_a_sample"])
def test_images_are_small(name):
    path = IMAGES / f"{name}.png"
    assert path.stat().st_size < 450_000
    assert Image.open(path).width <= 1800


def test_the_curves_have_a_panel_for_each_model():
    left, right = logsnr_stages().axes
    assert (left.get_title(), right.get_title()) == ("SDXL, 2+2", "Wan2.1, 3+3")
    numbers = [[text.get_text() for text in axes.texts if text.get_text().isdigit()] for axes in (left, right)]
    assert numbers == [list("1234") + list("34"), list("123456") + list("456")]  # then those without a mapping


def test_the_smaller_start_is_the_larger_one_read_down():
    shared, plain = SharedStart(1, (4, 5), (16, 16)), SeededNoise(1, (4, 5))
    high, low = (shared.sample(0, "start", (2, 8, 1, side, side)) for side in (16, 8))
    assert torch.equal(high, plain.sample(0, "start", tuple(high.shape)))
    rows = orthonormal_rows(8, 16).float()
    assert torch.allclose(low, rows @ high @ rows.T, atol=1e-6)
    assert torch.equal(shared.sample(1, "switch", (2, 3)), plain.sample(1, "switch", (2, 3)))
    assert low.var().item() == pytest.approx(1.0, abs=0.15)

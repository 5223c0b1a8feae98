"""The learned upsampler: bicubic until it is trained, any ratio, frames apart, gradients, and its file."""

import json

import pytest
import torch

from core_world import randn
from rmd_core.boundary import Boundary, learned_name, upsample
from rmd_core.errors import RMDError
from rmd_core.files import read_tensors, save_safetensors
from rmd_core.upsampler import UPSAMPLER_KEY, LatentUpsampler, read_upsampler

SIZES = [((8, 8), (16, 16)), ((6, 10), (9, 16)), ((5, 7), (5, 11)), ((3, 4), (7, 15))]


def network(*, trained=True, channels=3, dtype=torch.float64):
    """A tiny upsampler, its last layer away from zero where ``trained``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = LatentUpsampler(channels=channels, width=6, blocks=2, latents="wan").to(dtype)
    if trained:
        made.leave.weight.data = 0.1 * randn(*made.leave.weight.shape, dtype=dtype)
    return made.requires_grad_(False)


@pytest.mark.parametrize(("low", "high"), SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_an_untrained_one_is_bicubic_bit_for_bit(low, high, dtype):
    x = randn(2, 3, *low).to(dtype)
    if (high[0] <= 2 * low[0]) and (high[1] <= 2 * low[1]):
        assert torch.equal(network(trained=False, dtype=torch.float32)(x, high), upsample(x, high, "bicubic"))
    assert network(dtype=torch.float32)(x, high).dtype == dtype


@pytest.mark.parametrize(("low", "high"), SIZES)
def test_any_ratio_and_every_frame_and_item_by_itself(low, high):
    enlarge, x = network(), randn(2, 3, 4, *low)
    made = enlarge(x, high)
    assert made.shape == (2, 3, 4, *high)
    for item in range(2):
        for t in range(4):
            torch.testing.assert_close(made[item : item + 1, :, t], enlarge(x[item : item + 1, :, t], high))


def test_equal_size_is_the_identity_and_more_than_twice_takes_two_passes():
    enlarge, x = network(), randn(1, 3, 3, 4)
    assert enlarge(x, (3, 4)) is x
    assert torch.equal(enlarge(x, (7, 15)), enlarge(enlarge(x, (6, 8)), (7, 15)))


def test_a_pattern_of_the_small_size_gives_one_of_the_large_size():
    """No seams: far from the border the output repeats with the input's period, for a ratio of 3:2."""
    x = randn(1, 3, 2, 2).tile(1, 1, 16, 16)
    made = network()(x, (48, 48))[..., 15:33, 15:33]
    torch.testing.assert_close(made[..., :-3, :-3], made[..., 3:, 3:])


def test_gradients_are_those_of_finite_differences():
    enlarge, x = network(), randn(1, 3, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda small: enlarge(small, (5, 8)), x)
    rule = Boundary(learned_name("up", enlarge.digest()), learned=enlarge)
    rule.switch(
        x, randn(1, 3, 3, 4, seed=1), (5, 8), lambda _, shape: randn(*shape, seed=2)
    ).x0.square().sum().backward()
    assert x.grad.abs().min() > 0 and all(p.grad is None for p in enlarge.parameters())


def test_the_file_gives_the_same_bits_and_the_digest_of_its_weights(tmp_path):
    saved, x = network(dtype=torch.float32), randn(1, 3, 2, 4, 6, dtype=torch.float32)
    path = saved.save(tmp_path / "up.safetensors")
    before = torch.get_rng_state()
    again = read_upsampler(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again(x, (8, 9)), saved(x, (8, 9)))
    assert (again.latents, again.channels, again.digest()) == ("wan", 3, saved.digest())
    assert not any(p.requires_grad for p in again.parameters())
    tensors, metadata = read_tensors(path)
    assert again.save(tmp_path / "copy.safetensors").read_bytes() == path.read_bytes()
    save_safetensors(path, {name: weight.bfloat16() for name, weight in tensors.items()}, metadata)
    assert read_upsampler(path).digest() == saved.digest() != network(trained=False).digest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "configuration is damaged"),
        ({"version": 9}, "has version 9"),
        ({"width": 10**9}, "width is 1000000000"),
        ({"blocks": True}, "blocks is True"),
        ({"blocks": 3}, "are not those of its configuration"),
        (None, "not an RMD upsampler"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, change, words):
    path = network(dtype=torch.float32).save(tmp_path / "up.safetensors")
    tensors, metadata = read_tensors(path)
    config = json.loads(metadata[UPSAMPLER_KEY]) | (change or {})
    changed = {} if change is None else {UPSAMPLER_KEY: json.dumps(config if change else {})}
    save_safetensors(path, tensors, changed)
    with pytest.raises(RMDError, match=words) as caught:
        read_upsampler(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_cut_files_and_values_that_are_not_finite_are_refused(tmp_path):
    path = network(dtype=torch.float32).save(tmp_path / "up.safetensors")
    tensors, metadata = read_tensors(path)
    save_safetensors(path, tensors | {"leave.bias": torch.full((3,), float("nan"))}, metadata)
    with pytest.raises(RMDError, match="not finite"):
        read_upsampler(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RMDError, match="truncated"):
        read_upsampler(path)


def test_other_latents_and_smaller_targets_are_refused():
    with pytest.raises(RMDError, match="of 3 channels, not 4"):
        network()(randn(1, 4, 2, 2), (4, 4))
    with pytest.raises(RMDError, match="stages may only grow"):
        network()(randn(1, 3, 4, 4), (4, 3))

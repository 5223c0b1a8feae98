"""Derived seeds and addressed noise."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmd_core.errors import RMDError
from rmd_core.noise import SeededNoise, derive_seed

parts = st.lists(st.one_of(st.integers(), st.text(max_size=6)), max_size=4)


def test_derive_seed_is_sha256_of_the_address():
    digest = hashlib.sha256(b'[7,1,"switch",0]').hexdigest()
    assert derive_seed(7, 1, "switch", 0) == int(digest[:16], 16) // 2


@given(seed=st.integers(), address=parts)
def test_derived_seeds_fit_a_generator(seed, address):
    derived = derive_seed(seed, *address)
    assert 0 <= derived < 2**63
    torch.Generator().manual_seed(derived)


@given(first=parts, second=parts)
def test_different_addresses_give_different_seeds(first, second):
    assert (derive_seed(0, *first) == derive_seed(0, *second)) == (first == second)


def test_parts_do_not_run_together():
    seeds = {derive_seed(1, 23), derive_seed(12, 3), derive_seed(1, "23"), derive_seed(1, 2, 3), derive_seed(123)}
    assert len(seeds) == 5


@pytest.mark.parametrize("part", [1.5, None, b"x", True, (1,)])
def test_derive_seed_refuses_other_parts(part):
    with pytest.raises(RMDError, match="integers and text"):
        derive_seed(0, part)


@given(batch=st.integers(1, 5), more=st.integers(0, 4))
def test_item_0_does_not_depend_on_the_batch_size(batch, more):
    small, large = (SeededNoise(11).sample(0, "start", (size, 3, 4, 5)) for size in (batch, batch + more))
    assert torch.equal(small, large[:batch])


def test_items_are_drawn_again_by_name():
    whole = SeededNoise(5).sample(1, "switch", (4, 2, 3, 3))
    assert torch.equal(SeededNoise(5, [3, 1]).sample(1, "switch", (2, 2, 3, 3)), whole[[3, 1]])


def test_every_part_of_the_address_counts():
    addresses = [(5, 1, "a"), (6, 1, "a"), (5, 2, "a"), (5, 1, "b")]
    samples = [SeededNoise(seed).sample(stage, purpose, (1, 64)) for seed, stage, purpose in addresses]
    samples.append(SeededNoise(5, [1]).sample(1, "a", (1, 64)))
    for place, sample in enumerate(samples):
        assert not any(torch.equal(sample, other) for other in samples[:place])
        assert all(abs(float((sample * other).mean())) < 0.6 for other in samples[:place])


def test_noise_is_standard_normal_float32_on_the_cpu():
    noise = SeededNoise(3).sample(0, "start", (2, 4, 64, 64))
    assert noise.dtype == torch.float32 and noise.device.type == "cpu"
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.var()) - 1.0) < 0.03


def test_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    SeededNoise(1).sample(0, "start", (2, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_refuses_shapes_and_items_that_do_not_fit():
    with pytest.raises(RMDError, match="batch axis"):
        SeededNoise(0).sample(0, "start", ())
    with pytest.raises(RMDError, match="one per batch item"):
        SeededNoise(0, [0]).sample(0, "start", (2, 3))
